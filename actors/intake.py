"""How Runs and messages reach a Driver: created here, from the inbox, at a takeover, out of the parking line.

It decides who has room in memory and loads who comes back; what an event does to a Run is the engine's to
say.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from actors.parking import ParkingLine
from actors.partition import Partition, command_event, details_verdict, verdict_of
from actors.waits import wait_of_parked, waits_of
from actors.worker_desk import WORKER_ENTRIES
from cluster.errors import Conflict, InvalidInput, NotFound, TuttiError
from cluster.lifecycle.phase import Phase
from cluster.lifecycle.run_status import RunStatus
from cluster.model import events as ev
from cluster.model.plan import OUTSIDE_PREFIX
from cluster.model.run_id import client_id
from cluster.store.keys import partition_of
from cluster.store.run_codec import created_run, decode_run

if TYPE_CHECKING:
    from actors.driver import Driver
    from cluster.engine import Outcome, Run
    from cluster.model.compiled import CompiledPlan
    from cluster.model.plan import Submission
    from cluster.scheduling.reasons import StepWait
    from cluster.store.journal import InboxEntry

__all__ = ["IDLE", "Intake", "takes_no_room"]

_UNPARK_AT_ONCE = 500
IDLE = frozenset({RunStatus.PENDING, RunStatus.PAUSED, RunStatus.WAITING})
"""Runs in these statuses are in memory but take no room."""
_UNPARKED = frozenset({RunStatus.PENDING, RunStatus.WAITING})


def takes_no_room(run: Run) -> bool:
    """Whether a Run in memory leaves room for others: it waits for what may take days, somebody or a worker
    outside, and if it took any, many of them would keep out all that could go on.
    """
    if run.record.status in IDLE:
        return True
    if run.running or run.record.phase not in (Phase.OUTSIDE, Phase.PARALLEL):
        return False
    return all(run.plan.steps[step].step.capability.startswith(OUTSIDE_PREFIX) for step, _ in run.ready)


class Intake:
    """The door of a Driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._settings = driver.settings
        self._journal = driver.journal
        self._line = ParkingLine()

    # -- made here

    def create(
        self, submission: Submission, compiled: CompiledPlan, now: float
    ) -> asyncio.Future[None] | None:
        """Begin a Run in memory; its record is written with the commit of its first transitions.

        Only for a new id that nobody else can have given: whether an id is taken is not asked.

        Returns:
            Done when the commit is written, StaleOwner when it was refused; None where the Run must go
            through the store, because its partition is not ours or there is no room.
        """
        partition = self._driver.partitions.get(
            partition_of(submission.run_id, self._settings.num_partitions)
        )
        if partition is None or not partition.is_open or self.num_loaded >= self._settings.max_loaded_runs:
            return None
        run, creation = created_run(submission, compiled, now)
        accepted = asyncio.get_running_loop().create_future()
        partition.create(run, creation, accepted)
        self._adopt(partition, run)
        return accepted

    # -- from the inbox

    async def take_entry(self, entry: InboxEntry) -> None:
        """Handle one inbox entry, in order."""
        partition = self._driver.partitions.get(entry.partition)
        if partition is None or partition.is_lost:
            return
        fields = entry.fields
        kind, run_id = fields[b"k"], fields[b"r"].decode()
        if kind == b"submit":
            self._take_submission(partition, run_id, fields)
        elif kind == b"command":
            await self._take_command(partition, run_id, fields)
        elif kind in WORKER_ENTRIES:
            await self._take_worker_entry(partition, run_id, kind, fields)
        elif kind == b"ended":
            status = RunStatus(fields[b"status"].decode())
            await self._deliver(partition, run_id, ev.PredecessorEnded(fields[b"run"].decode(), status))
        partition.handled(entry)
        self._driver.mark_dirty()

    def _take_submission(self, partition: Partition, run_id: str, fields: dict[bytes, bytes]) -> None:
        if run_id in partition.runs or run_id in partition.adopted or run_id in partition.parked_ids:
            return
        names = {b"header": b"h", b"plan": b"p", b"inputs": b"i", b"record": b"s"}
        self.take_in(partition, decode_run({name: fields[short] for name, short in names.items()}))

    async def _take_command(self, partition: Partition, run_id: str, fields: dict[bytes, bytes]) -> None:
        refusal: TuttiError | None = InvalidInput("unknown command")
        body = orjson.loads(fields[b"d"])
        if body["kind"] == "why":
            partition.answer(fields[b"c"].decode(), details_verdict(waits=self._why(partition, run_id)))
            return
        event = command_event(body)
        if event is not None:
            outcome = await self._deliver(partition, run_id, event)
            refusal = await self._refusal_of(partition, run_id) if outcome is None else outcome.refusal
        partition.answer(fields[b"c"].decode(), verdict_of(refusal))

    async def _take_worker_entry(
        self, partition: Partition, run_id: str, kind: bytes, fields: dict[bytes, bytes]
    ) -> None:
        """Take what a worker did; one of a parked Run is taken to memory."""
        parked = await self._parked(partition, run_id)
        with self._driver.held_back():
            for run in parked:
                self._adopt_parked(partition, run)
            found = partition.runs.get(run_id)
            if found is not None:
                self._driver.desk.take_entry(found, kind, fields)

    def _why(self, partition: Partition, run_id: str) -> list[StepWait]:
        """Say why a Run's StepRuns wait; those of one that has ended do not."""
        dispatcher = self._driver.dispatcher
        if run_id in partition.parked_ids:
            return wait_of_parked(self._settings.max_loaded_runs, dispatcher.now())
        run = partition.runs.get(run_id)
        return [] if run is None else waits_of(run, dispatcher.reasons(run_id), dispatcher.now())

    async def _refusal_of(self, partition: Partition, run_id: str) -> TuttiError:
        async for run in self._journal.load(partition.number, [run_id]):
            status = run.record.status
            return Conflict(f"run {client_id(run_id)} has already ended: {status}", status=status)
        return NotFound(f"run {client_id(run_id)} not found")

    async def _deliver(self, partition: Partition, run_id: str, event: ev.Event) -> Outcome | None:
        """Let something happen to a Run, loading it where it is parked; None where it does not go on.
        Nothing of a parked Run starts before the event: it may be the one that forbids it.
        """
        parked = await self._parked(partition, run_id)
        with self._driver.held_back():
            for run in parked:
                self._adopt_parked(partition, run)
            found = partition.runs.get(run_id)
            return None if found is None else self._driver.apply(partition, found, event)

    async def _parked(self, partition: Partition, run_id: str) -> list[Run]:
        if run_id not in partition.parked_ids:
            return []
        return [run async for run in self._journal.load(partition.number, [run_id])]

    # -- room in memory

    @property
    def num_loaded(self) -> int:
        """Runs in memory that can go on, over all partitions."""
        return sum(len(each.runs) - len(each.idle) for each in self._driver.partitions.values())

    def take_in(self, partition: Partition, run: Run) -> None:
        """Take a Run into memory, or park it where there is no room. What has attempts out goes first, and
        what waits for other Runs takes no room: else it could keep out the one it waits for. What waits for
        an answer takes none either, and has timers of its own.
        """
        if run.record.status.is_terminal:
            return
        has_room = self.num_loaded < self._settings.max_loaded_runs
        is_outside = run.record.phase == Phase.OUTSIDE
        if has_room or run.running or is_outside or run.record.status in _UNPARKED:
            self._adopt(partition, run)
            return
        self._line.add(partition, run)
        if run.record.deadline_at is not None:
            self._driver.timers.set((run.run_id, -1, -1), run.record.deadline_at)

    def _adopt(self, partition: Partition, run: Run) -> None:
        partition.runs[run.run_id] = run
        partition.parked_ids.discard(run.run_id)
        if takes_no_room(run):
            partition.idle.add(run.run_id)
        if run.running:
            self._driver.dispatcher.hold(run)
        self._driver.apply(partition, run, ev.RunAdopted())

    def _adopt_parked(self, partition: Partition, run: Run) -> None:
        """Adopt a Run that was loaded, unless it came in by another way meanwhile."""
        if run.run_id in partition.parked_ids and not partition.is_lost:
            self._adopt(partition, run)

    async def unpark(self) -> None:
        """Load parked Runs while there is room."""
        room = self._settings.max_loaded_runs - self.num_loaded
        partitions = self._driver.partitions
        places = self._line.take(partitions, min(room, _UNPARK_AT_ONCE))
        owners = {place.partition: partitions[place.partition] for place in places}
        loaded: dict[str, Run] = {}
        try:
            for number in owners:
                run_ids = [place.run_id for place in places if place.partition == number]
                async for run in self._journal.load(number, run_ids):
                    loaded[run.run_id] = run
        except TuttiError:
            self._line.put_back(places)
            raise
        for place in places:
            if place.run_id in loaded:
                self._adopt_parked(owners[place.partition], loaded[place.run_id])

    async def wake_parked(self, run_id: str) -> None:
        """Let the deadline of a parked Run pass.

        Raises:
            Unavailable: It could not be loaded; try again.
        """
        partition = self._driver.partitions.get(partition_of(run_id, self._settings.num_partitions))
        if partition is not None and run_id in partition.parked_ids:
            await self._deliver(partition, run_id, ev.TimerFired(-1, -1, 0.0))
