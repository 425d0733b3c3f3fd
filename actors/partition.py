"""One owned partition: its Runs in memory, and the batch that the next commit will write.

Everything here happens between two awaits of the orchestrator's loop: no I/O, one writer.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

import orjson

from cluster.engine import Outcome, Run
from cluster.errors import TuttiError
from cluster.store.journal import CommitBatch, RunChange

if TYPE_CHECKING:
    from cluster.model.commands import Command
    from cluster.store.journal import InboxEntry

__all__ = ["Parked", "Partition", "TakenBatch", "verdict_of"]


class Parked(NamedTuple):
    """A Run beyond the window: only its place in the line is in memory."""

    order: int
    created_at: float
    run_id: str


class TakenBatch(NamedTuple):
    """A batch on its way, and what to do when it is written."""

    partition: Partition
    batch: CommitBatch
    commands: list[tuple[Run, Command]]
    acks: list[tuple[object, int]]


class Partition:
    """State of one partition under one epoch.

    Attributes:
        runs: Runs in memory that have not ended.
        parked: Runs that wait in Redis for room in memory, as a heap.
        adopted: Ids loaded at the takeover: their inbox entries are old news.
        cursor: Last inbox id handled.
        is_open: It is loaded; its inbox may be read.
        is_lost: Another owner has it.
    """

    def __init__(self, number: int, epoch: int) -> None:
        self.number = number
        self.epoch = epoch
        self.runs: dict[str, Run] = {}
        self.parked: list[Parked] = []
        self.parked_ids: set[str] = set()
        self.adopted: set[str] = set()
        self.cursor = "0-0"
        self.is_lost = False
        self.is_open = False
        self._trimmed = "0-0"
        self._commit_number = 0
        self._changes: dict[str, RunChange] = {}
        self._commands: list[tuple[Run, Command]] = []
        self._verdicts: list[tuple[str, str]] = []
        self._acks: dict[int, tuple[object, int]] = {}

    @property
    def is_dirty(self) -> bool:
        """Whether there is something to commit."""
        return bool(
            self._changes or self._commands or self._verdicts or self._acks or self.cursor != self._trimmed
        )

    def merge(self, run: Run, outcome: Outcome) -> None:
        """Add an outcome to the batch; QueueStep commands are the caller's."""
        if outcome.accepted:
            change = self._changes.get(run.header.run_id)
            if change is None:
                change = self._changes[run.header.run_id] = RunChange(run)
            for unit in outcome.changed_units:
                change.units[unit] = None
            for unit in outcome.new_results:
                change.results[unit] = None
            change.events += outcome.events

    def after_commit(self, run: Run, command: Command) -> None:
        """Do something when the batch is written."""
        self._commands.append((run, command))

    def acknowledge(self, link: object, seq: int) -> None:
        """Tell a link, when the batch is written, that reports up to `seq` are durable."""
        self._acks[id(link)] = (link, seq)

    def answer(self, command_id: str, verdict: str) -> None:
        """Write a verdict with the batch."""
        self._verdicts.append((command_id, verdict))

    def handled(self, entry: InboxEntry) -> None:
        """Move the cursor; the entry goes when the batch is written."""
        self.cursor = entry.entry_id

    def take(self) -> TakenBatch:
        """Take the batch out; what happens from now on belongs to the next one."""
        self._commit_number += 1
        trim_to = ""
        if self.cursor != self._trimmed:
            milliseconds, _, sequence = self.cursor.partition("-")
            trim_to = f"{milliseconds}-{int(sequence) + 1}"
            self._trimmed = self.cursor
        batch = CommitBatch(
            self.number,
            self.epoch,
            self._commit_number,
            trim_to,
            list(self._changes.values()),
            self._verdicts,
        )
        taken = TakenBatch(self, batch, self._commands, list(self._acks.values()))
        self._changes, self._commands, self._verdicts, self._acks = {}, [], [], {}
        return taken

    def park(self, run_id: str, priority: int, created_at: float) -> None:
        """Let a Run wait in Redis."""
        if run_id not in self.parked_ids:
            self.parked_ids.add(run_id)
            heapq.heappush(self.parked, Parked(-priority, created_at, run_id))

    def unpark(self, count: int) -> list[str]:
        """Take out the ids of up to `count` Runs that go first."""
        taken: list[str] = []
        while self.parked and len(taken) < count:
            parked = heapq.heappop(self.parked)
            if parked.run_id in self.parked_ids:
                self.parked_ids.discard(parked.run_id)
                taken.append(parked.run_id)
        return taken


def verdict_of(refusal: TuttiError | None) -> str:
    """Encode a verdict: an empty object says it was carried out."""
    if refusal is None:
        return "{}"
    details = {key: str(value) for key, value in refusal.details.items()}
    return orjson.dumps({"code": refusal.code, "message": refusal.message, "details": details}).decode()
