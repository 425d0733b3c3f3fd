"""A worker outside the cluster, as a class: handlers by decorator, and all the manners the protocol asks for.

It needs httpx and nothing of the rest: copy it, or write your own from docs/workers.md. It refuses to hide
failures: what a handler raises is reported, and a result is repeated until somebody has taken it.

    worker = Worker("http://localhost:8000", "secret")

    @worker.task("echo")
    async def echo(params, task):
        await task.progress(0.5, "half way")
        return params

    asyncio.run(worker.run())
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import httpx

__all__ = ["Handler", "TaskContext", "TaskFailed", "Worker"]

_log = logging.getLogger("tutti.worker")
_POLL_TIMEOUT_S = 45.0
_MAX_PAUSE_S = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Handler = Callable[[dict[str, Any], "TaskContext"], Awaitable[Any]]
"""Gets the params and the task; what it returns is the result's data."""


class TaskFailed(Exception):
    """Raised by handlers that know why.

    Args:
        message: One sentence.
        code: See docs/workers.md; it says whether another attempt may help.
    """

    def __init__(self, message: str, code: str = "TRANSIENT_ERROR") -> None:
        super().__init__(message)
        self.message, self.code = message, code


class TaskContext:
    """One task.

    Attributes:
        job_id, task_id, attempt: As the service names them; `task_id` is that of one attempt.
        status: What the result will say; handlers may set a word of their own.
    """

    def __init__(self, worker: Worker, task: dict[str, Any]) -> None:
        self.job_id: str = task["job_id"]
        self.task_id: str = task["task_id"]
        self.attempt: int = task["attempt"]
        self.status = "success"
        self._worker = worker
        self.ids = {
            "job_id": self.job_id,
            "task_id": self.task_id,
            "worker_id": worker.worker_id,
            "lease_token": task["lease_token"],
        }

    async def progress(self, progress: float, message: str = "") -> None:
        """Tell how far it is, 0 to 1; a failure to do so is no failure of the task."""
        body = {**self.ids, "progress": progress, "message": message}
        with suppress(httpx.HTTPError):
            await self._worker.call("POST", "/_worker/tasks/progress", body)


class Worker:
    """A worker.

    Args:
        url: Of the service.
        token: Global, or the worker's own.
        worker_id: `[A-Za-z0-9_-]+`; None for one of its own making.
        max_concurrent: Tasks at a time, >= 1.
        heartbeat_s: Seconds between signs of life; well below the service's lease.
        about: More to tell at registration: resources, installed_models, cost_per_skill, …
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        worker_id: str | None = None,
        max_concurrent: int = 4,
        heartbeat_s: float = 10.0,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.worker_id = worker_id or f"worker-{uuid4().hex[:12]}"
        self._max_concurrent = max_concurrent
        self._heartbeat_s = heartbeat_s
        self._about = about or {}
        self._handlers: dict[str, Handler] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(max_concurrent)
        self._stopping = asyncio.Event()
        self._client = httpx.AsyncClient(
            base_url=url, headers={"X-Worker-Token": token}, timeout=_POLL_TIMEOUT_S
        )

    def task(self, kind: str) -> Callable[[Handler], Handler]:
        """Register a handler for a type of task."""

        def register(handler: Handler) -> Handler:
            self._handlers[kind] = handler
            return handler

        return register

    def stop(self) -> None:
        """Take nothing more; `run` returns when what runs has ended."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`, SIGINT or SIGTERM; reconnect for ever, after pauses with jitter."""
        with self._obeying_signals():
            failures = 0
            beating: asyncio.Task[None] | None = None
            try:
                while not self._stopping.is_set():
                    try:
                        await self._register()
                        beating = beating or asyncio.create_task(self._beat())
                        failures = 0
                        await self._take_tasks()
                    except (httpx.HTTPError, ValueError) as error:
                        failures += 1
                        _log.warning("the service is away: %s", error)
                        await self._pause(failures)
                if self._running:
                    await asyncio.wait(set(self._running.values()))
                with suppress(httpx.HTTPError, ValueError):
                    await self.call("DELETE", f"/_worker/workers/{self.worker_id}")
            finally:
                for task in (*self._running.values(), *([beating] if beating else [])):
                    task.cancel()
                await self._client.aclose()

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the service, and stop what its answer says is not wanted any more.

        Raises:
            httpx.HTTPError: It is away, or refuses.
        """
        answer = await self._client.request(method, path, json=body)
        answer.raise_for_status()
        told: dict[str, Any] = answer.json() if answer.content else {}
        for task_id in told.get("cancel_task_ids", ()):
            if task_id in self._running and task_id != told.get("task_id"):
                self._running[task_id].cancel()
        return told

    async def _register(self) -> None:
        about = {**self._about, "worker_id": self.worker_id, "supported_tasks": sorted(self._handlers)}
        about["max_concurrent_tasks"] = self._max_concurrent
        await self.call("POST", "/_worker/workers/register", about)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            with suppress(httpx.HTTPError, ValueError):
                body = {"status": "idle", "current_tasks": list(self._running)}
                await self.call("PATCH", f"/_worker/workers/{self.worker_id}", body)

    async def _take_tasks(self) -> None:
        while True:
            async with self._places:  # poll only where there is room
                polling = asyncio.ensure_future(
                    self.call("GET", f"/_worker/workers/{self.worker_id}/tasks/next")
                )
                stopping = asyncio.ensure_future(self._stopping.wait())
                await asyncio.wait([polling, stopping], return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if not polling.done():
                    polling.cancel()
                    return
                task = await polling
            if task:
                await self._places.acquire()
                self._running[task["task_id"]] = asyncio.create_task(self._do(task))
            if self._stopping.is_set():
                return

    async def _do(self, task: dict[str, Any]) -> None:
        context = TaskContext(self, task)
        try:
            data = await self._handlers[task["type"]](task["params"], context)
            result: dict[str, Any] = {"status": context.status, "data": data}
        except asyncio.CancelledError:
            result = {"status": "cancelled"}
        except TaskFailed as error:
            result = _failure(error.code, error.message)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its result
            _log.exception("task %s failed", context.task_id)
            result = _failure("TRANSIENT_ERROR", f"{type(error).__name__}: {error}")
        try:
            await self._hand_in({**context.ids, "result": result})
        finally:
            self._running.pop(context.task_id, None)
            self._places.release()

    async def _hand_in(self, body: dict[str, Any]) -> None:
        """Repeat a result until it is taken or refused; taken twice it counts once."""
        failures = 0
        while True:
            try:
                told = await self.call("POST", "/_worker/tasks/result", body)
            except httpx.HTTPStatusError as error:
                if error.response.status_code < 500 and error.response.status_code != 429:
                    _log.warning("result refused: %s", error.response.text)
                    return
            except httpx.HTTPError as error:
                _log.warning("result not taken yet: %s", error)
            else:
                if told["status"] == "ignored":
                    _log.warning("result of %s ignored: %s", body["task_id"], told.get("reason"))
                return
            failures += 1
            await asyncio.sleep(_pause_s(failures))

    async def _pause(self, failures: int) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), _pause_s(failures))

    @contextmanager
    def _obeying_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        obeyed = []
        for each in _SIGNALS:
            with suppress(NotImplementedError, RuntimeError, ValueError):  # no main thread, or Windows
                loop.add_signal_handler(each, self.stop)
                obeyed.append(each)
        try:
            yield
        finally:
            for each in obeyed:
                loop.remove_signal_handler(each)


def _failure(code: str, message: str) -> dict[str, Any]:
    return {"status": "failure", "error": {"code": code, "message": message}}


def _pause_s(failures: int) -> float:
    """Full jitter, so that many workers do not come back at one instant."""
    return random.uniform(0.1, min(_MAX_PAUSE_S, 0.5 * 2.0 ** min(failures, 10)))
