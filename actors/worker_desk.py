"""Steps for outside workers, as the owner of their Runs sees them: offered, claimed, reported, lost.

A ready Step is offered after the commit that says it is ready; who takes it is the board's business, and what
becomes of it arrives through the inbox, where the engine's check of the attempt has the last word. Nothing is
kept here that a new owner could not find again: offers are named by their attempts, so that offering twice is
offering once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import orjson
import structlog

from cluster.engine import GrowingRun
from cluster.errors import InvalidInput, StepError, TuttiError
from cluster.lifecycle.run_status import RunStatus
from cluster.model import events as ev
from cluster.model.commands import QueueStep
from cluster.model.plan import OUTSIDE_PREFIX
from cluster.model.run_id import client_id
from cluster.model.view import Failure
from cluster.model.worker_result import WorkerResult, meaning_of
from cluster.scheduling.worker_demands import board_offer_fields
from cluster.store.connection import redis_errors_as_ours
from cluster.store.scripts import call_many
from cluster.store.step_leases import LeaseEnd, OfferState, StepLeases, offer_id_of
from cluster.store.worker_board import BoardOffer, WorkerBoard

if TYPE_CHECKING:
    from actors.driver import Driver
    from cluster.engine import Run
    from cluster.model.commands import FindAttempt, StopStep

__all__ = ["WORKER_ENTRIES", "WorkerDesk", "is_outside"]

WORKER_ENTRIES = frozenset({b"claimed", b"progress", b"result", b"lost"})
"""Kinds of inbox entries that the scripts of leases write."""

_log = structlog.get_logger("tutti.workers")
_AT_ONCE = 16
_RETRY_PAUSE_S = 0.2
_SWEEP_EVERY_S = 0.5
_LOOK_EVERY_S = 5.0
_NEWS_S = 10.0
_KEEP_EVERY_S = 3600.0
_MAX_LOST = 5
"""How many workers may vanish with one Step, until it is to blame."""

_results = msgspec.json.Decoder(WorkerResult)
Unit = tuple[int, int]


class _Offered(NamedTuple):
    offer_id: str
    attempt: int
    body: bytes
    board: BoardOffer
    since: float


def is_outside(run: Run, step: int) -> bool:
    """Whether outside workers serve a Step."""
    return run.plan.steps[step].step.capability.startswith(OUTSIDE_PREFIX)


class WorkerDesk:
    """The desk of one Driver.

    Attributes:
        waiting: Offers that nobody has, as far as we know, by Run and unit.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        settings = driver.settings
        self._num_partitions = settings.num_partitions
        self._leases = StepLeases(driver.journal.redis, settings.num_partitions, settings.worker_lease_s)
        self._board = WorkerBoard(driver.journal.redis, settings.worker_ttl_s, settings.worker_lease_s)
        self.waiting: dict[str, dict[Unit, _Offered]] = {}
        self._refused: set[str] = set()
        self._work: dict[str, list[Callable[[], Awaitable[None]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(_AT_ONCE)

    # -- offering

    def queue(self, run: Run, step: int, item: int) -> None:
        """Offer a StepRun that has become ready, when the commit that says so is written."""
        found = self._driver.find(run.run_id)
        if found is not None:
            found[0].after_commit(run, QueueStep(step, item))
            self._driver.mark_dirty()

    def offer(self, run: Run, step: int, item: int) -> None:
        """Offer a ready StepRun; its readiness is written. One that is offered gets its Run's priority."""
        unit = (step, item)
        record = run.record
        if unit not in run.ready or record.status is RunStatus.PAUSED or record.status.is_terminal:
            return
        attempt = run.unit(*unit).attempt + 1
        offer_id = offer_id_of(run.run_id, step, item, attempt, self._num_partitions)
        try:
            board = self._board_offer(run, step)
            body = self._body(run, unit, attempt)
        except InvalidInput as error:
            self._apply(run, ev.StepUnserved(step, item, error.message))
            return
        except StepError:
            self._apply(run, ev.StepAssigned(step, item, ""))  # which finds the same, and ends the Step
            return
        offered = _Offered(offer_id, attempt, body, board, time.monotonic())
        self.waiting.setdefault(run.run_id, {})[unit] = offered
        again = offer_id in self._refused
        self._refused.discard(offer_id)
        self._do(offer_id, lambda: self._post(run.run_id, unit, offered, again))

    def _board_offer(self, run: Run, step: int) -> BoardOffer:
        declared = run.plan.steps[step].step
        return BoardOffer(
            declared.capability.removeprefix(OUTSIDE_PREFIX),
            run.record.priority,
            run.record.created_at,
            **board_offer_fields(declared),
        )

    def _body(self, run: Run, unit: Unit, attempt: int) -> bytes:
        """Write down what a worker is told."""
        step = run.plan.steps[unit[0]].step
        return orjson.dumps(
            {
                "run_id": client_id(run.run_id),
                "step": step.name,
                "item": unit[1],
                "attempt": attempt,
                "kind": step.capability.removeprefix(OUTSIDE_PREFIX),
                "inputs": orjson.Fragment(run.render_inputs(*unit)),
                "priority": run.record.priority,
                "timeout_s": step.timeout_s or self._driver.settings.step_timeout_s,
                "deadline_at": run.record.deadline_at,
                "metadata": run.header.metadata,
            }
        )

    async def _post(self, run_id: str, unit: Unit, offered: _Offered, again: bool) -> None:
        if self.waiting.get(run_id, {}).get(unit) is not offered:
            return
        offer = self._leases.offer_call(
            offered.offer_id, run_id, unit, offered.attempt, offered.body, again=again
        )
        # On the board it does no harm although somebody has it: a claim finds that out.
        calls = (offer, self._board.post_call(offered.offer_id, offered.board))
        with redis_errors_as_ours():
            replies = await call_many(self._driver.journal.redis, calls)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        await self._board.give_best(offered.offer_id, offered.board, replies[1])

    # -- taking back

    def forget(self, run_id: str) -> None:
        """Withdraw a Run's offers: it ended or is paused."""
        for offered in self.waiting.pop(run_id, {}).values():
            self._withdraw(offered.offer_id, run_id, "its run waits or has ended")

    def forget_items(self, run_id: str, step: int) -> None:
        """Withdraw the offers of a mapped Step's items: it ended."""
        units = self.waiting.get(run_id, {})
        for unit in [each for each in units if each[0] == step]:
            self._withdraw(units.pop(unit).offer_id, run_id, "its step has ended")
        if not units:
            self.waiting.pop(run_id, None)

    def drop(self, run_ids: Iterable[str]) -> None:
        """Leave offers to another owner."""
        for run_id in run_ids:
            self.waiting.pop(run_id, None)

    def stop(self, run: Run, command: StopStep) -> None:
        """Take an attempt from its worker, and tell the worker."""
        unit = (command.step, command.item)
        self._driver.dispatcher.release([(run.run_id, *unit, command.attempt)])
        offer_id = offer_id_of(run.run_id, *unit, command.attempt, self._num_partitions)
        self._withdraw(offer_id, run.run_id, "its result is not wanted any more")

    def _withdraw(self, offer_id: str, run_id: str, reason: str) -> None:
        self._do(offer_id, lambda: self._end(offer_id, run_id, reason))

    async def _end(self, offer_id: str, run_id: str, reason: str) -> None:
        ended = await self._leases.end(offer_id, LeaseEnd.WITHDRAWN, reason)
        worker_id = "" if ended is None else ended.worker_id
        await self._board.settle(offer_id, worker_id, "over")
        if worker_id:
            await self._board.ask_to_stop(worker_id, offer_id, client_id(run_id))

    # -- what the inbox brings

    def take_entry(self, run: Run, kind: bytes, fields: dict[bytes, bytes]) -> None:
        """Take what a script decided about an offer of a Run in memory."""
        unit = (int(fields[b"s"]), int(fields[b"i"]))
        attempt, offer_id = int(fields[b"a"]), fields[b"o"].decode()
        if not _has(run, unit):
            return
        if kind == b"claimed":
            self._take_claim(run, unit, attempt, offer_id, fields[b"w"].decode())
            return
        is_running = unit in run.running and run.unit(*unit).attempt == attempt
        if kind == b"progress":
            if is_running:
                done, message = float(fields[b"p"]), fields[b"m"].decode(errors="replace")
                self._apply(run, ev.StepProgressed(*unit, attempt, done, message))
            return
        if is_running:
            self._take_end(run, unit, attempt, kind, fields)
        elif unit in run.ready and run.unit(*unit).attempt + 1 == attempt:
            # Its claim was refused, so this counts for nothing, and somebody else must be found.
            self._refused.add(offer_id)
            self.offer(run, *unit)

    def _take_claim(self, run: Run, unit: Unit, attempt: int, offer_id: str, worker_id: str) -> None:
        if unit in run.ready and run.unit(*unit).attempt + 1 == attempt:
            self._apply(run, ev.StepAssigned(*unit, worker_id))
        if unit in run.running and run.unit(*unit).attempt == attempt:
            units = self.waiting.get(run.run_id, {})
            units.pop(unit, None)
            if not units:
                self.waiting.pop(run.run_id, None)
            return
        if unit in run.ready:
            self._refused.add(offer_id)
        self._withdraw(offer_id, run.run_id, "it was claimed too late")

    def _take_end(self, run: Run, unit: Unit, attempt: int, kind: bytes, fields: dict[bytes, bytes]) -> None:
        driver = self._driver
        driver.timers.clear((run.run_id, *unit))
        driver.dispatcher.release([(run.run_id, *unit, attempt)])
        if kind == b"lost":
            reason = fields[b"m"].decode(errors="replace")
            event: ev.Event = ev.AttemptLost(*unit, attempt, reason, fields[b"c"] == b"1", _MAX_LOST)
        else:
            meaning = meaning_of(_results.decode(fields[b"d"]), moves_by_status=isinstance(run, GrowingRun))
            driver.figures.observe_step(run, *unit, "failed" if isinstance(meaning, Failure) else "ok")
            if isinstance(meaning, Failure):
                event = ev.StepFailed(*unit, attempt, meaning, driver.chance())
            else:
                event = ev.StepSucceeded(*unit, attempt, meaning)
        self._apply(run, event)
        driver.dispatcher.serve_woken()

    def _apply(self, run: Run, event: ev.Event) -> None:
        found = self._driver.find(run.run_id)
        if found is not None:
            self._driver.apply(*found, event)

    # -- after a takeover

    def find(self, run: Run, command: FindAttempt) -> None:
        """Look whether a worker has an attempt that was running when the Run was loaded."""
        offer_id = offer_id_of(run.run_id, command.step, command.item, command.attempt, self._num_partitions)
        self._do(offer_id, lambda: self._find(run.run_id, command, offer_id))

    async def _find(self, run_id: str, command: FindAttempt, offer_id: str) -> None:
        state, _ = await self._leases.state(offer_id)
        if state in {OfferState.NONE, OfferState.OFFERED, OfferState.WITHDRAWN}:
            key = (run_id, command.step, command.item, command.attempt)
            self._driver.lose_attempts([key], "no worker has it any more")

    # -- upkeep

    async def upkeep_loop(self) -> None:
        """End leases whose time is over, put back what was not claimed, and post again what got lost."""
        looked_at = kept_at = time.monotonic()
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            await self._expire()
            await self._board.sweep()
            now = time.monotonic()
            if now - looked_at > _LOOK_EVERY_S:
                looked_at = now
                await self._look_again(now)
            if now - kept_at > _KEEP_EVERY_S:
                kept_at = now
                await self._leases.keep([each.offer_id for _, _, each in self._all()])

    def _all(self) -> list[tuple[str, Unit, _Offered]]:
        return [
            (run_id, unit, each) for run_id, units in self.waiting.items() for unit, each in units.items()
        ]

    async def _expire(self) -> None:
        owned = [number for number, each in self._driver.partitions.items() if each.is_open]
        for offer_id in await self._leases.expired(owned):
            reason = f"its worker gave no sign of life for {self._driver.settings.worker_lease_s:g} s"
            ended = await self._leases.end(offer_id, LeaseEnd.EXPIRED, reason)
            if ended is not None:
                _log.info("lease expired", worker=ended.worker_id, run_id=ended.run_id)
                await self._board.ask_to_stop(ended.worker_id, offer_id, client_id(ended.run_id))

    async def _look_again(self, now: float) -> None:
        """Find offers that the board has lost, and those whose news never came."""
        old = [each for each in self._all() if now - each[2].since > _LOOK_EVERY_S]
        for start in range(0, len(old), 500):
            page = old[start : start + 500]
            missing = set(await self._board.missing([each.offer_id for _, _, each in page]))
            for run_id, unit, offered in page:
                if offered.offer_id in missing:
                    await self._repair(run_id, unit, offered, now)

    async def _repair(self, run_id: str, unit: Unit, offered: _Offered, now: float) -> None:
        state, _ = await self._leases.state(offered.offer_id)
        found = self._driver.find(run_id)
        if found is None or self.waiting.get(run_id, {}).get(unit) is not offered:
            return
        if state in {OfferState.DONE, OfferState.LOST} and now - offered.since > _NEWS_S:
            self._refused.add(offered.offer_id)
        elif state in {OfferState.LEASED, OfferState.DONE, OfferState.LOST}:
            return
        self.offer(found[1], *unit)

    # -- work on the store, in order for each offer

    def _do(self, offer_id: str, work: Callable[[], Awaitable[None]]) -> None:
        waiting = self._work.get(offer_id)
        if waiting is not None:
            waiting.append(work)
            return
        self._work[offer_id] = [work]
        task = asyncio.get_running_loop().create_task(self._work_off(offer_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work_off(self, offer_id: str) -> None:
        waiting = self._work[offer_id]
        try:
            while waiting:
                async with self._places:
                    await self._insist(waiting[0])
                del waiting[0]
        finally:
            del self._work[offer_id]

    async def _insist(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except TuttiError as error:
                _log.warning("workers wait", reason=error.message)
                await asyncio.sleep(_RETRY_PAUSE_S)
            else:
                return

    def close(self) -> None:
        """Stop what is under way."""
        for task in self._tasks:
            task.cancel()


def _has(run: Run, unit: Unit) -> bool:
    step, item = unit
    if not 0 <= step < len(run.steps):
        return False
    items: Any = run.steps[step].items
    return item < 0 if items is None else -1 <= item < len(items)
