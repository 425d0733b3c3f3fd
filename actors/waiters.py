"""Who waits for the end of Runs in this process: told after the commit, or by the store for Runs owned
elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from cluster.errors import FailureCode, NotFound, RunFailed
from cluster.lifecycle.run_status import RunStatus
from cluster.model.blob_reference import resolve
from cluster.model.plan import Json

if TYPE_CHECKING:
    from actors.driver import Driver
    from cluster.engine import Run
    from cluster.store.blobs import BlobStore
    from cluster.store.run_store import RunStore

__all__ = ["RunEnd", "Waiters"]

_FIRST_RECHECK_S = 0.01
_LAST_RECHECK_S = 1.0


class RunEnd:
    """How a Run ended, for who waits in this process."""

    __slots__ = ("error", "output", "run_id", "status")

    def __init__(self, run: Run) -> None:
        self.run_id = run.run_id
        self.status = run.record.status
        self.error = run.record.error
        self.output = run.render_output() if self.status is RunStatus.SUCCEEDED else b"null"


class Waiters:
    """Futures by run id."""

    def __init__(self, store: RunStore, driver: Driver) -> None:
        self._store = store
        self._driver = driver
        self._futures: dict[str, asyncio.Future[RunEnd]] = {}

    def on_end(self, end: RunEnd) -> None:
        """Tell who waits; called after the commit."""
        future = self._futures.pop(end.run_id, None)
        if future is not None and not future.done():
            future.set_result(end)

    async def wait(self, run_ids: Sequence[str]) -> list[RunEnd]:
        """Wait for all of them, in order.

        Raises:
            NotFound: One is unknown.
        """
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[RunEnd]] = {}
        for run_id in run_ids:
            futures[run_id] = self._futures.setdefault(run_id, loop.create_future())
        all_ended = asyncio.gather(*futures.values())
        recheck_s = _FIRST_RECHECK_S
        while not all_ended.done():
            not_here = [i for i, f in futures.items() if not f.done() and self._driver.find(i) is None]
            await self._look_up(not_here)
            await asyncio.wait([all_ended], timeout=recheck_s if not_here else _LAST_RECHECK_S)
            recheck_s = min(recheck_s * 1.5, _LAST_RECHECK_S)
        await all_ended
        return [futures[run_id].result() for run_id in run_ids]

    async def _look_up(self, run_ids: list[str]) -> None:
        """Ask the store for Runs that are not in memory here: ended, parked, or owned elsewhere."""
        for start in range(0, len(run_ids), 200):
            chunk = [run_id for run_id in run_ids[start : start + 200] if run_id in self._futures]
            for run_id, ended in zip(chunk, await self._store.ended_outputs(chunk), strict=True):
                if ended is None:
                    continue
                if isinstance(ended, NotFound):
                    future = self._futures.pop(run_id, None)
                    if future is not None and not future.done():
                        future.set_exception(ended)
                    continue
                self.on_end(RunEnd(ended))

    async def output_of(self, end: RunEnd, blobs: BlobStore) -> Json:
        """Decode an output, reading blobs.

        Raises:
            RunFailed: The Run did not succeed.
        """
        if end.status is not RunStatus.SUCCEEDED:
            code = end.error.code if end.error else FailureCode.EXECUTION_FAILED
            message = end.error.message if end.error else str(end.status)
            raise RunFailed(message, run_id=end.run_id, code=code)
        output: Any = orjson.loads(end.output)
        if b'"$blob"' in end.output:
            output = await asyncio.to_thread(resolve, output, blobs.read)
        return output
