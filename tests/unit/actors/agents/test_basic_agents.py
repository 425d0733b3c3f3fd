"""The agents of the tests and benchmarks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest

from actors.agent import declaration_of
from actors.agents.basic import Crash, Fail, Noop, Sleep
from cluster.errors import FailureCode, StepError


async def test_noop_and_echo_give_the_very_object_back() -> None:
    inputs = {"rows": [1, 2, 3]}
    assert declaration_of(Noop).capabilities == ("noop", "echo")
    assert await declaration_of(Noop).bind()(inputs, "echo", None) is inputs


async def test_sleep_tells_progress_and_how_long_it_slept(context) -> None:
    assert await Sleep().execute({"seconds": 0.6}, context) == {"slept_s": 0.6}
    fractions = [fraction for fraction, _ in context.told]
    assert fractions and fractions == sorted(fractions) and 0 < fractions[0] < 1


async def test_sleep_ends_at_once_when_cancelled(context) -> None:
    begin = time.monotonic()
    work = asyncio.ensure_future(Sleep().execute({"seconds": 60}, context))
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("seconds", [-1, "2", None, float("nan"), True])
async def test_sleep_refuses_what_is_no_duration(context, seconds) -> None:
    with pytest.raises(StepError, match="seconds") as caught:
        await Sleep().execute({"seconds": seconds}, context)
    assert caught.value.code == FailureCode.VALIDATION_ERROR


async def test_fail_raises_what_was_asked_for(context) -> None:
    with pytest.raises(StepError, match="no luck") as caught:
        await Fail().execute({"message": "no luck", "code": "TIMEOUT", "retryable": True}, context)
    assert (caught.value.code, caught.value.retryable) == ("TIMEOUT", True)


async def test_fail_succeeds_after_as_many_attempts_as_it_was_told(context_on_attempt) -> None:
    with pytest.raises(StepError):
        await Fail().execute({"times": 2}, context_on_attempt(2))
    assert await Fail().execute({"times": 2}, context_on_attempt(3)) == {"succeeded_on_attempt": 3}


async def test_crash_survives_once_its_times_are_over(context_on_attempt) -> None:
    assert await Crash().execute({"times": 1}, context_on_attempt(2)) == {"survived_attempt": 2}


def test_crash_takes_its_process_down_without_a_word() -> None:
    script = (
        "import asyncio, atexit, types\n"
        "from actors.agents.basic import Crash\n"
        "atexit.register(print, 'said goodbye')\n"
        "asyncio.run(Crash().execute({'times': 1}, types.SimpleNamespace(attempt=1)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (1, b"")
