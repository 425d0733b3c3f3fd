"""The agents that do nothing of use: they carry the tests and the benchmarks.

They stay as small as can be, because what they cost is counted as what the engine costs. They refuse to read
files, call anything or keep state: how often one failed is read from the attempt number, so a new replica
    behaves
the same.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from typing import NoReturn

from actors.agent import AgentContext, agent
from cluster.errors import FailureCode, StepError
from cluster.model.plan import Json

__all__ = ["Crash", "Fail", "Noop", "Sleep"]

_PROGRESS_INTERVAL_S = 0.25
_EVERY_ATTEMPT = 1 << 30


@agent("noop", "echo")
class Noop:
    """Gives its inputs back as they are, without looking at them."""

    async def execute(self, inputs: Json) -> Json:
        """Return the inputs."""
        return inputs


@agent("sleep")
class Sleep:
    """Waits without holding a thread: `{"seconds": 1.5}`."""

    async def execute(self, inputs: Json, context: AgentContext) -> Json:
        """Wait, telling progress about four times a second.

        Args:
            inputs: `seconds`: 0 or more, default 1.
            context: Told the progress; its cancellation ends the wait at once.

        Returns:
            `{"slept_s": seconds}`.

        Raises:
            StepError: `seconds` is no finite number of 0 or more.
        """
        seconds = _number(inputs, "seconds", 1.0)
        begin = time.monotonic()
        while (left := seconds - (time.monotonic() - begin)) > 0:
            await asyncio.sleep(min(left, _PROGRESS_INTERVAL_S))
            done = min(time.monotonic() - begin, seconds)
            if done < seconds:
                await context.progress(done / seconds, f"slept {done:.1f} of {seconds:g} s")
        return {"slept_s": seconds}


@agent("fail")
class Fail:
    """Fails as told: `{"message", "code", "retryable", "times"}`."""

    async def execute(self, inputs: Json, context: AgentContext) -> Json:
        """Raise the failure that is asked for, or return once it has failed often enough.

        Args:
            inputs: `message`, `code` (default EXECUTION_FAILED), `retryable` (default false) and `times`:
                fail while the attempt is at most this, default for ever.
            context: Its attempt number is what counts.

        Returns:
            `{"succeeded_on_attempt": n}`.

        Raises:
            StepError: The failure that was asked for, or an input that is no number.
        """
        if context.attempt <= _number(inputs, "times", _EVERY_ATTEMPT):
            told = inputs if isinstance(inputs, dict) else {}
            raise StepError(
                str(told.get("message", "failed on request")),
                code=str(told.get("code", FailureCode.EXECUTION_FAILED)),
                retryable=bool(told.get("retryable", False)),
            )
        return {"succeeded_on_attempt": context.attempt}


@agent("crash")
class Crash:
    """Takes its whole process down, as a segmentation fault in native code would: `{"times": 1}`."""

    async def execute(self, inputs: Json, context: AgentContext) -> Json:
        """End the process while the attempt is at most `times` (default for ever), else return.

        Returns:
            `{"survived_attempt": n}`.

        Raises:
            StepError: `times` is no number.
        """
        if context.attempt <= _number(inputs, "times", _EVERY_ATTEMPT):
            _die()
        return {"survived_attempt": context.attempt}


def _die() -> NoReturn:
    # Not sys.exit: no handler may run and no answer may be sent, just as when the kernel kills the process.
    os._exit(1)


def _number(inputs: Json, name: str, default: float) -> float:
    value = inputs.get(name, default) if isinstance(inputs, dict) else default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise StepError(f"{name} must be a number of 0 or more", code=FailureCode.VALIDATION_ERROR)
    return float(value)
