"""Tasks beside an actor's methods: kept alive by a reference, their failures logged, ended together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
from ray.exceptions import RayError

from cluster.errors import TuttiError

__all__ = ["BackgroundTasks"]

_log = structlog.get_logger("tutti.scheduler")


class BackgroundTasks:
    """All of one actor's."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something once."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._settle)
        return task

    def repeat(self, work: Callable[[], Awaitable[None]], every_s: float) -> None:
        """Run something for ever, with a pause after each time; what fails is tried again after the pause."""
        self.spawn(self._repeat(work, every_s))

    async def _repeat(self, work: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            try:
                await work()
            except TuttiError as error:
                _log.warning("tried again", work=work.__name__, reason=error.message)
            except RayError as error:
                _log.warning("tried again", work=work.__name__, reason=str(error).partition("\n")[0])
            except Exception:  # noqa: BLE001 - the outer loop of an actor: a bug in one round must not end all rounds
                _log.exception("failed, tried again", work=work.__name__)
            await asyncio.sleep(every_s)

    def cancel_all(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()

    def _settle(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("background work failed", reason=repr(error))
