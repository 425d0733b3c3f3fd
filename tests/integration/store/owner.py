"""A small owner of one partition for the tests: the real Partition, Journal and engine."""

from __future__ import annotations

import time

from actors.partition import Partition, TakenBatch, verdict_of
from cluster.engine import Outcome, Run, advance
from cluster.lifecycle.run_status import RunStatus
from cluster.model import commands as cmd
from cluster.model import events as ev
from cluster.model.plan import Plan, Step, Submission
from cluster.settings import Settings
from cluster.store.journal import InboxEntry, Journal
from cluster.store.keys import partition_of
from cluster.store.run_codec import decode_run

__all__ = ["NUM_PARTITIONS", "TestOwner", "chain", "ids_in", "settings_for", "submission"]

NUM_PARTITIONS = 2
RETENTION_S = 3600.0


def settings_for(url: str, **fields: object) -> Settings:
    return Settings(redis_url=url, num_partitions=NUM_PARTITIONS, retention_s=RETENTION_S, **fields)  # type: ignore[arg-type]


def chain(num_steps: int = 1) -> Plan:
    """Steps s0, s1, …, each on the one before."""
    steps = [
        Step(
            name=f"s{index}",
            capability="work",
            inputs={"from": {"$ref": f"steps.s{index - 1}.output"}} if index else {},
        )
        for index in range(num_steps)
    ]
    return Plan(name="chain", steps=tuple(steps))


def submission(run_id: str, **fields: object) -> Submission:
    fields.setdefault("plan", chain())
    fields.setdefault("digest", "digest-1")
    return Submission(run_id=run_id, **fields)  # type: ignore[arg-type]


def ids_in(partition: int, count: int, prefix: str = "run") -> list[str]:
    """Run ids that belong to a partition."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        if partition_of(f"{prefix}-{number}", NUM_PARTITIONS) == partition:
            found.append(f"{prefix}-{number}")
        number += 1
    return found


class TestOwner:
    """Owns one partition and does what an orchestrator does, one call at a time.

    Attributes:
        partition: Present while it believes to own it.
        started: Attempts it was told to start, by unit, newest last.
    """

    __test__ = False

    def __init__(self, url: str, name: str, number: int = 0, lease_s: float = 30.0) -> None:
        self.journal = Journal(url, NUM_PARTITIONS, name, RETENTION_S)
        self.number = number
        self.lease_s = lease_s
        self.partition: Partition | None = None
        self.started: list[tuple[str, cmd.StartStep]] = []
        self.watches: list[tuple[str, str]] = []
        self.num_messages = 0

    async def claim(self) -> bool:
        """Take the partition over, where its lease is free."""
        owned = (await self.journal.own([self.number], self.lease_s))[self.number]
        if not owned.owned:
            return False
        if owned.is_new or self.partition is None:
            await self._load(owned.epoch)
        return True

    async def _load(self, epoch: int) -> None:
        self.partition = partition = Partition(self.number, epoch)
        backlog = await self.journal.read_backlog(self.number)
        active = await self.journal.active_ids(self.number)
        partition.adopted = {run_id for run_id, _ in active}
        partition.adopted.update(e.fields[b"r"].decode() for e in backlog if e.fields[b"k"] == b"submit")
        async for run in self.journal.load(self.number, [run_id for run_id, _ in active]):
            self._adopt(run)
        for entry in backlog:
            self._take(entry)

    async def read(self) -> int:
        """Handle what is in the inbox."""
        assert self.partition is not None
        entries = await self.journal.read_inbox({self.number: self.partition.cursor})
        for entry in entries:
            self._take(entry)
        return len(entries)

    def _take(self, entry: InboxEntry) -> None:
        assert self.partition is not None
        fields, run_id = entry.fields, entry.fields[b"r"].decode()
        kind = fields[b"k"]
        run = self.partition.runs.get(run_id)
        if kind == b"submit" and run_id not in self.partition.adopted and run is None:
            stored = {
                "header": fields[b"h"],
                "plan": fields[b"p"],
                "inputs": fields[b"i"],
                "record": fields[b"s"],
            }
            self._adopt(decode_run({name.encode(): value for name, value in stored.items()}))
        elif kind == b"ended" and run is not None:
            status = RunStatus(fields[b"status"].decode())
            self.apply(run, ev.PredecessorEnded(fields[b"run"].decode(), status))
        elif kind == b"command" and run is not None:
            refusal = self.apply(run, ev.CancelRequested("")).refusal
            self.partition.answer(fields[b"c"].decode(), verdict_of(refusal))
        self.partition.handled(entry)

    def _adopt(self, run: Run) -> None:
        assert self.partition is not None
        self.partition.runs[run.run_id] = run
        self.apply(run, ev.RunAdopted())

    def apply(self, run: Run, event: ev.Event) -> Outcome:
        """Let something happen; commands wait for the commit."""
        assert self.partition is not None
        outcome = advance(run, event, time.time())
        self.partition.merge(run, outcome)
        for command in outcome.commands:
            if not isinstance(command, cmd.QueueStep):
                self.partition.after_commit(run, command)
        return outcome

    def assign_all(self) -> None:
        """Give every ready StepRun a slot."""
        assert self.partition is not None
        for run in list(self.partition.runs.values()):
            for unit in sorted(run.ready):
                self.apply(run, ev.StepAssigned(*unit, "agent-1"))

    def take(self) -> TakenBatch:
        assert self.partition is not None
        return self.partition.take()

    async def commit(self, taken: TakenBatch | None = None) -> int:
        """Write a batch and do what follows from it; -1 where the epoch is over."""
        taken = taken or self.take()
        (reply,) = await self.journal.commit([taken.batch])
        if reply < 0:
            self.partition = None
            return reply
        self.num_messages += reply
        for run, command in taken.commands:
            if isinstance(command, cmd.StartStep):
                self.started.append((run.run_id, command))
            elif isinstance(command, cmd.EndRun):
                taken.partition.runs.pop(run.run_id, None)
            elif isinstance(command, cmd.WatchRuns):
                self.watches += [(other, run.run_id) for other in command.run_ids]
        return reply

    async def watch_all(self) -> list[str]:
        """Send the watches that commits asked for; gives what each was answered."""
        watches, self.watches = self.watches, []
        return await self.journal.watch(watches)

    async def cancel_run(self, run_id: str) -> None:
        """Cancel a Run and commit it."""
        assert self.partition is not None
        self.apply(self.partition.runs[run_id], ev.CancelRequested("enough"))
        await self.commit()

    def report(self, run_id: str, start: cmd.StartStep, output: bytes) -> bool:
        """Hand in a result of an attempt; says whether the engine accepted it."""
        assert self.partition is not None
        run = self.partition.runs.get(run_id)
        if run is None:
            return False
        event = ev.StepSucceeded(start.step, start.item, start.attempt, output)
        return bool(self.apply(run, event).new_results)

    async def run_all(self, output: bytes = b'"done"') -> None:
        """Drive every Run in memory to its end."""
        assert self.partition is not None
        while self.partition.runs:
            self.assign_all()
            await self.commit()
            for run_id, start in self.started:
                self.report(run_id, start, output)
            self.started.clear()
            await self.commit()
            if not any(run.ready for run in self.partition.runs.values()):
                return

    async def close(self) -> None:
        await self.journal.close()
