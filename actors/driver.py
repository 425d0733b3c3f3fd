"""The heart of an orchestrator, without Ray: it owns partitions, drives their Runs and commits in groups.

Its loops are commits (write, then act) and timers; leases and inboxes are the orchestrator's. Each may fail
on a lost Redis and goes on when it is back; nothing is acted on before its commit is written.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from actors.dispatcher import Dispatcher
from actors.figures import Figures
from actors.intake import IDLE, Intake, takes_no_room
from actors.messages import AttemptKey, Report, StepCall
from actors.partition import Partition, TakenBatch
from actors.pool_line import Ready
from actors.replica_link import ReplicaLink
from actors.timers import TimerWheel
from actors.waiters import RunEnd
from actors.worker_desk import WorkerDesk, is_outside
from cluster.engine import Outcome, Run, advance
from cluster.errors import StaleOwner, TuttiError
from cluster.lifecycle.run_status import RunStatus
from cluster.model import commands as cmd
from cluster.model import events as ev
from cluster.store.keys import partition_of
from cluster.store.run_codec import failure_decoder

if TYPE_CHECKING:
    from cluster.settings import Settings
    from cluster.store.journal import Journal

__all__ = ["Driver"]

_log = structlog.get_logger("tutti.driver")
_RETRY_PAUSE_S = 0.2
_TICK_S = 0.02
_UNDER_WAY = frozenset({RunStatus.RUNNING, RunStatus.RETRYING})
_STILL_OURS = frozenset({cmd.EndRun, cmd.StopStep})  # all else is the next owner's to do


class Driver:
    """Drives the Runs of the partitions it owns.

    Attributes:
        partitions: Owned partitions by number.
        dispatcher: Queues and links.
        desk: Steps for outside workers.
        figures: Counters for /metrics and estimates.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        owner_id: str,
        *,
        find_attempts: Callable[[ReplicaLink, list[AttemptKey]], Any],
        ask_for_slots: Callable[[], None],
        replace_replica: Callable[[str, str], None],
    ) -> None:
        self.settings = settings
        self.journal = journal
        self.owner_id = owner_id
        self.partitions: dict[int, Partition] = {}
        self.figures = Figures()
        self.dispatcher = Dispatcher(
            owner_id, self, self._assign, self._unserve, ask_for_slots, self.figures.mean_s
        )
        self.timers = TimerWheel()
        self.intake = Intake(self)
        self.desk = WorkerDesk(self)
        self.on_end: Callable[[RunEnd], None] = lambda _end: None
        self._find_attempts = find_attempts
        self._replace_replica = replace_replica
        self._to_watch: list[tuple[str, str]] = []
        self._searched: dict[str, list[AttemptKey]] = {}
        self._dirty = asyncio.Event()
        self._relays: set[int] = set()
        self._to_queue: deque[tuple[Run, int, int]] = deque()
        self._is_queueing = False
        self._random = random.Random()
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- one event

    def apply(self, partition: Partition, run: Run, event: ev.Event) -> Outcome:
        """Let something happen to a Run: into the batch what must be written, after it what must be done."""
        outcome = advance(run, event, time.time(), self.settings.step_timeout_s)
        if not outcome.commands and not outcome.accepted:
            return outcome
        partition.merge(run, outcome)
        for command in outcome.commands:
            if type(command) is cmd.QueueStep:
                self._to_queue.append((run, command.step, command.item))
            else:
                partition.after_commit(run, command)
        if run.record.status in IDLE or (run.record.phase and takes_no_room(run)):
            partition.idle.add(run.run_id)
        elif partition.idle:
            partition.idle.discard(run.run_id)
        if run.run_id in self.dispatcher.waiting or run.run_id in self.desk.waiting:
            self._wait_no_more(run, event)
        self._dirty.set()
        if not self._is_queueing:
            self._queue_all()
        return outcome

    def _wait_no_more(self, run: Run, event: ev.Event) -> None:
        """Take out of the queues what an event left without anything to wait for."""
        if run.record.status in IDLE or run.record.status.is_terminal:
            self.dispatcher.forget(run.run_id)
            self.desk.forget(run.run_id)
        elif getattr(event, "item", -1) >= 0:
            step: int = getattr(event, "step")  # noqa: B009 - whatever has an item has a step
            if run.steps[step].status.is_terminal:
                self.dispatcher.forget_items(run.run_id, step)
                self.desk.forget_items(run.run_id, step)

    def _queue_all(self) -> None:
        """Queue what became ready. Starting or refusing it may make more ready: a loop, no recursion."""
        self._is_queueing = True
        try:
            while self._to_queue:
                run, step, item = self._to_queue.popleft()
                if (step, item) not in run.ready:
                    continue
                if is_outside(run, step):
                    self.desk.queue(run, step, item)
                else:
                    self.dispatcher.queue(run, (step, item), run.unit(step, item).crashes)
        finally:
            self._is_queueing = False

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Let nothing start until the block has ended."""
        self._is_queueing = True
        try:
            yield
        finally:
            self._queue_all()

    def find(self, run_id: str) -> tuple[Partition, Run] | None:
        """Return a Run in memory with its partition."""
        partition = self.partitions.get(partition_of(run_id, self.settings.num_partitions))
        run = partition.runs.get(run_id) if partition is not None else None
        return None if partition is None or run is None else (partition, run)

    def _assign(self, ready: Ready, link: ReplicaLink) -> AttemptKey | None:
        found = self.find(ready.run_id)
        if found is None:
            return None
        partition, run = found
        unit = (ready.step, ready.item)
        if unit not in run.ready:
            return None
        self.apply(partition, run, ev.StepAssigned(*unit, link.replica_id))
        if unit not in run.running:
            return None
        key = (ready.run_id, *unit, run.unit(*unit).attempt)
        link.reserve(key)
        return key

    def _unserve(self, ready: Ready, reason: str) -> None:
        found = self.find(ready.run_id)
        if found is not None:
            self.apply(*found, ev.StepUnserved(ready.step, ready.item, reason))

    # -- from replicas

    def on_reports(self, link: ReplicaLink, reports: list[Report]) -> None:
        """Take what a replica reports; acknowledged when written."""
        self.dispatcher.release([report.key for report in reports if report.kind != "progress"])
        with self.dispatcher.gathered():
            touched = self._apply_reports(link, reports)
            last = reports[-1].seq
            for partition in touched.values():
                partition.acknowledge(link, last)
            if not touched:
                link.acknowledge(last)
            self.dispatcher.serve_pool(link.entry.pool)

    def _apply_reports(self, link: ReplicaLink, reports: list[Report]) -> dict[int, Partition]:
        touched: dict[int, Partition] = {}
        for report in reports:
            run_id, step, item, attempt = report.key
            found = self.find(run_id)
            if found is None:
                if not self.owns(run_id) and run_id:
                    link.keep(report.seq)
                continue
            partition, run = found
            touched[partition.number] = partition
            event = self._event_of(report, step, item, attempt)
            if event is None:
                continue
            if report.kind != "progress":
                self.timers.clear((run_id, step, item))
                self.figures.observe_step(run, step, item, report.kind)
            self.apply(partition, run, event)
        return touched

    def _event_of(self, report: Report, step: int, item: int, attempt: int) -> ev.Event | None:
        if report.kind == "ok":
            return ev.StepSucceeded(step, item, attempt, report.payload)
        if report.kind == "failed":
            failure = failure_decoder.decode(report.payload)
            return ev.StepFailed(step, item, attempt, failure, self._random.random(), report.number)
        if report.kind == "progress":
            return ev.StepProgressed(
                step, item, attempt, report.number, report.payload.decode(errors="replace")
            )
        return None

    def on_replica_lost(self, link: ReplicaLink, reason: str) -> None:
        """Take back what a dead replica held."""
        self.dispatcher.drop(link)
        self._replace_replica(link.replica_id, reason)
        most = self.dispatcher.max_crashes(link)
        for key in list(link.held):
            run_id, step, item, attempt = key
            is_to_blame = link.is_to_blame(key)
            found = self.find(run_id)
            if found is not None:
                self.timers.clear((run_id, step, item))
                self.apply(*found, ev.AttemptLost(step, item, attempt, reason, is_to_blame, most))
        self.dispatcher.serve_pool(link.entry.pool)

    def on_replica_stuck(self, link: ReplicaLink, reason: str) -> None:
        """Have a replica killed that does not obey."""
        if not link.was_replaced:
            _log.warning("replica is stuck", replica=link.replica_id, reason=reason)
            link.was_replaced = True
        self._replace_replica(link.replica_id, reason)  # again and again: the scheduler may be away

    # -- commits

    async def commit_loop(self) -> None:
        """Write batches for ever; what comes while one is on its way goes into the next."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            taken = [p.take() for p in self.partitions.values() if p.is_dirty and not p.is_lost]
            if taken:
                await self._commit(taken)

    async def _commit(self, taken: list[TakenBatch]) -> None:
        calls = [self.journal.encode(each.batch) for each in taken]
        began = time.monotonic()
        while True:
            try:
                replies = await self.journal.send(calls)
                break
            except TuttiError as error:
                _log.warning("commit not written, trying again", reason=error.message)
                await asyncio.sleep(_RETRY_PAUSE_S)
        self.figures.observe_commit(time.monotonic() - began)
        for each, reply in zip(taken, replies, strict=True):
            if reply < 0:
                _refuse(each.accepted)
                self.lose(each.partition, "its epoch is over, or the store has lost commits")
                continue
            for accepted in each.accepted:
                if not accepted.done():
                    accepted.set_result(None)
            if reply:
                self._relays.add(each.partition.number)
            for link, seq in each.acks:
                if isinstance(link, ReplicaLink):
                    link.acknowledge(seq)
            for run, command in each.commands:
                if not each.partition.is_lost or type(command) in _STILL_OURS:
                    self._carry_out(each.partition, run, command)
        if self._searched:
            self._search()
        if self._to_watch:
            self._spawn(self._watch())
        if self._relays:
            self._spawn(self._relay())

    def _carry_out(self, partition: Partition, run: Run, command: cmd.Command) -> None:
        kind = type(command)
        if kind is cmd.StartStep:
            self._start(run, command)  # type: ignore[arg-type]
        elif kind is cmd.SetTimer:
            self._set_timer(run, command)  # type: ignore[arg-type]
        elif kind is cmd.EndRun:
            self._forget(partition, run)
        elif isinstance(command, cmd.QueueStep):
            self.desk.offer(run, command.step, command.item)
        elif isinstance(command, cmd.StopStep):
            self.timers.clear((run.run_id, command.step, command.item))
            if is_outside(run, command.step):
                self.desk.stop(run, command)
                return
            link = self.dispatcher.links.get(command.agent_id)
            if link is not None:
                link.stop((run.run_id, command.step, command.item, command.attempt))
        elif isinstance(command, cmd.FindAttempt):
            if is_outside(run, command.step):
                self.desk.find(run, command)
                return
            key = (run.run_id, command.step, command.item, command.attempt)
            self._searched.setdefault(command.agent_id, []).append(key)
        elif isinstance(command, cmd.WatchRuns):
            self._to_watch += [(other, run.run_id) for other in command.run_ids]

    def _start(self, run: Run, command: cmd.StartStep) -> None:
        if is_outside(run, command.step):
            return  # its worker began with the claim
        if run.unit(command.step, command.item).attempt != command.attempt:
            return  # lost and begun again while the commit was on its way
        link = self.dispatcher.links.get(command.agent_id)
        key = (run.run_id, command.step, command.item, command.attempt)
        if link is None or link.lost:
            found = self.find(run.run_id)
            if found is not None:
                reason = "its replica died before it began"
                self.apply(
                    *found, ev.AttemptLost(command.step, command.item, command.attempt, reason, crashed=False)
                )
            return
        step = run.plan.steps[command.step].step
        deadline_at = run.unit(command.step, command.item).deadline_at or 0.0
        metadata = orjson.dumps(run.header.metadata)
        link.send(
            StepCall(
                key,
                step.name,
                step.capability,
                command.inputs,
                metadata,
                run.header.tenant,
                deadline_at,
                time.time(),
            )
        )

    def _set_timer(self, run: Run, command: cmd.SetTimer) -> None:
        if command.step >= 0:
            step_run = run.unit(command.step, command.item)
            wanted = step_run.not_before_at if step_run.not_before_at is not None else step_run.deadline_at
            if wanted != command.at or step_run.status.is_terminal:
                return  # it has moved on since
        if not run.record.status.is_terminal:
            self.timers.set((run.run_id, command.step, command.item), command.at)

    def _forget(self, partition: Partition, run: Run) -> None:
        partition.runs.pop(run.run_id, None)
        partition.idle.discard(run.run_id)
        self.timers.clear((run.run_id, -1, -1))
        if run.record.status is not RunStatus.SUCCEEDED:
            self._clear_timers_of_steps(run)
        self.figures.observe_run(run)
        self.on_end(RunEnd(run))

    def _clear_timers_of_steps(self, run: Run) -> None:
        """Clear what would wake steps that were to be tried again and never will be."""
        for index, step_run in enumerate(run.steps):
            self.timers.clear((run.run_id, index, -1))
            for item in range(len(step_run.items or ())):
                self.timers.clear((run.run_id, index, item))

    def _search(self) -> None:
        searched, self._searched = self._searched, {}
        for agent_id, keys in searched.items():
            link = self.dispatcher.links.get(agent_id)
            if link is None:
                self.lose_attempts(keys, "its replica was gone when the Run was taken over")
            else:
                self._spawn(self._find_attempts(link, keys))

    @property
    def num_running(self) -> int:
        """Runs under way; it looks at every Run in memory."""
        return sum(
            run.record.status in _UNDER_WAY for each in self.partitions.values() for run in each.runs.values()
        )

    def owns(self, run_id: str) -> bool:
        """Whether a Run belongs to a partition of ours."""
        return partition_of(run_id, self.settings.num_partitions) in self.partitions

    def is_running(self, key: AttemptKey) -> bool:
        """Whether an attempt's result is still wanted."""
        run_id, step, item, attempt = key
        found = self.find(run_id)
        return (
            found is not None
            and (step, item) in found[1].running
            and found[1].unit(step, item).attempt == attempt
        )

    def lose_attempts(self, keys: list[AttemptKey], reason: str) -> None:
        """Take back attempts that nobody holds."""
        self.dispatcher.release(keys)
        for run_id, step, item, attempt in keys:
            self.timers.clear((run_id, step, item))
            found = self.find(run_id)
            if found is not None:
                self.apply(*found, ev.AttemptLost(step, item, attempt, reason, crashed=False))
        self.dispatcher.serve_woken()

    async def _watch(self) -> None:
        watches, self._to_watch = self._to_watch, []
        statuses = await self._insist(lambda: self.journal.watch(watches))
        for (other, watcher), status in zip(watches, statuses, strict=True):
            found = self.find(watcher)
            if status and found is not None:
                self.apply(*found, ev.PredecessorEnded(other, RunStatus(status)))

    async def _relay(self) -> None:
        numbers, self._relays = self._relays, set()
        for number in numbers:
            while await self._insist(lambda number=number: self.journal.relay_outbox(number)):  # type: ignore[misc]
                continue

    async def _insist(self, attempt: Callable[[], Any]) -> Any:
        """Repeat until Redis is there."""
        while True:
            try:
                return await attempt()
            except TuttiError:
                await asyncio.sleep(_RETRY_PAUSE_S)

    # -- timers

    async def timer_loop(self) -> None:
        """Fire timers for ever."""
        while True:
            await asyncio.sleep(_TICK_S)
            for run_id, step, item in self.timers.pop_due(time.time()):
                found = self.find(run_id)
                if found is not None:
                    self.apply(*found, ev.TimerFired(step, item, self._random.random()))
                else:
                    await self._insist(lambda run_id=run_id: self.intake.wake_parked(run_id))  # type: ignore[misc]

    # -- ownership

    def lose(self, partition: Partition, reason: str) -> None:
        """Forget a partition that has another owner; replicas keep what they hold for it."""
        if partition.is_lost:
            return
        _log.warning("partition lost", partition=partition.number, reason=reason)
        partition.is_lost = True
        if self.partitions.get(partition.number) is partition:
            del self.partitions[partition.number]
        _refuse(partition.take().accepted)
        for run_id in partition.parked_ids:
            self.timers.clear((run_id, -1, -1))
        self.desk.drop(partition.runs.keys())
        for run in partition.runs.values():
            self.dispatcher.forget(run.run_id)
            self.timers.clear((run.run_id, -1, -1))
            for step, item in run.running | run.backoff | run.ready:
                self.timers.clear((run.run_id, step, item))
        for link in self.dispatcher.links.values():
            link.give_up([key for key in link.held if key[0] in partition.runs])
        total = self.settings.num_partitions
        self.dispatcher.hand_over(lambda run_id: partition_of(run_id, total) == partition.number)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def chance(self) -> float:
        """Draw a number in [0, 1)."""
        return self._random.random()

    def mark_dirty(self) -> None:
        """Ask for a commit."""
        self._dirty.set()

    async def close(self) -> None:
        """Stop what runs beside the loops."""
        for task in self._tasks:
            task.cancel()
        self.dispatcher.close()
        self.desk.close()


def _refuse(waiting: list[asyncio.Future[None]]) -> None:
    """Tell who waits for the acceptance of Runs that these were not written here."""
    for accepted in waiting:
        if not accepted.done():
            accepted.set_exception(StaleOwner("the partition has another owner"))
