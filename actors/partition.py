"""One owned partition: its Runs in memory, and the batch that the next commit will write.

Everything here happens between two awaits of the orchestrator's loop: no I/O, one writer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import orjson

from cluster.engine import Outcome, Run
from cluster.errors import TuttiError
from cluster.model import events as ev
from cluster.store.journal import CommitBatch, RunChange
from cluster.store.run_codec import Creation

if TYPE_CHECKING:
    from cluster.model.commands import Command
    from cluster.store.journal import InboxEntry

__all__ = ["Partition", "TakenBatch", "command_event", "details_verdict", "verdict_of"]


class TakenBatch(NamedTuple):
    """A batch on its way, and what to do when it is written."""

    partition: Partition
    batch: CommitBatch
    commands: list[tuple[Run, Command]]
    acks: list[tuple[object, int]]
    accepted: list[asyncio.Future[None]]


class Partition:
    """State of one partition under one epoch.

    Attributes:
        runs: Runs in memory that have not ended.
        idle: Ids of Runs in memory that wait for other Runs, answers or workers outside, or are paused; they
            leave room for others.
        parked_ids: Ids of Runs that wait in Redis for room in memory.
        adopted: Ids loaded at the takeover: their inbox entries are old news.
        cursor: Last inbox id handled.
        is_open: It is loaded; its inbox may be read.
        is_lost: Another owner has it.
    """

    def __init__(self, number: int, epoch: int) -> None:
        self.number = number
        self.epoch = epoch
        self.runs: dict[str, Run] = {}
        self.idle: set[str] = set()
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
        self._accepted: list[asyncio.Future[None]] = []

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
            if outcome.growths:
                change.growths += outcome.growths
            change.events += outcome.events

    def create(self, run: Run, creation: Creation, accepted: asyncio.Future[None]) -> None:
        """Write a new Run with the batch; `accepted` is done when it is written."""
        change = self._changes[run.run_id] = RunChange(run)
        change.creation = creation
        change.events.append(creation.first_event)
        self._accepted.append(accepted)

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
        taken = TakenBatch(self, batch, self._commands, list(self._acks.values()), self._accepted)
        self._changes, self._commands, self._verdicts, self._acks, self._accepted = {}, [], [], {}, []
        return taken


def verdict_of(refusal: TuttiError | None) -> str:
    """Encode a verdict: an empty object says it was carried out."""
    if refusal is None:
        return "{}"
    details = {key: str(value) for key, value in refusal.details.items()}
    return orjson.dumps({"code": refusal.code, "message": refusal.message, "details": details}).decode()


def details_verdict(**details: object) -> str:
    """Encode the verdict of a question: its answer is the details."""
    return msgspec.json.encode({"details": details}).decode()


def command_event(body: dict[str, Any]) -> ev.Event | None:
    """Read a command of the inbox; None where it is none that we know."""
    kind = body["kind"]
    if kind == "cancel":
        return ev.CancelRequested(str(body.get("reason") or ""))
    if kind == "pause":
        return ev.PauseRequested()
    if kind == "resume":
        return ev.ResumeRequested()
    if kind == "answer":
        data = orjson.dumps(body.get("data"))
        return ev.AnswerGiven(
            str(body.get("step") or ""), str(body["answer"]), data, str(body.get("by") or "")
        )
    return ev.PriorityRequested(int(body["priority"])) if kind == "priority" else None
