"""What passes between an orchestrator and a replica, without Ray: messages get lost, doubled, late."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import orjson
import pytest

from actors.messages import AttemptKey, Exchange, Report, StepCall, decode_reports, encode
from actors.replica import Replica, ReplicaConfig


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    agents = ("tests.integration.agents_for_tests:nap",)
    replica = Replica(ReplicaConfig("agent-1", agents, 4, str(tmp_path), 1 << 18, (), ()))
    yield replica
    if replica._sweeper is not None:
        replica._sweeper.cancel()
        with suppress(asyncio.CancelledError):
            await replica._sweeper


def call(number: int, log: Path, seconds: float = 0.0) -> StepCall:
    inputs = orjson.dumps({"seconds": seconds, "n": number, "log": str(log)})
    return StepCall((f"run-{number}", 0, -1, 1), "work", "nap", inputs, b"{}", "default", time.time() + 60)


async def exchange(replica: Replica, caller: str = "a", **fields: object) -> list[Report]:
    message = {"seen": 0, "ack": 0, "calls": [], "stops": [], "again": False, **fields}
    return decode_reports(await replica.exchange(encode(Exchange(caller, **message)))).reports  # type: ignore[arg-type]


def keys_of(reports: list[Report]) -> list[AttemptKey]:
    return [tuple(report.key) for report in reports]  # type: ignore[misc]


async def test_call_that_comes_again_while_it_runs_or_waits_for_its_ack_is_not_executed_again(
    replica: Replica, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    work = call(1, log, seconds=0.1)
    waiting = asyncio.create_task(exchange(replica, calls=[work]))
    await asyncio.sleep(0)
    first = await exchange(replica, calls=[work])
    assert await waiting == [], "the newest call is the one that waits"
    again = await exchange(replica, calls=[work], again=True)
    assert first == again
    assert keys_of(first) == [work.key]
    assert len(log.read_text().splitlines()) == 1


async def test_older_call_returns_at_once_although_the_newer_one_comes_at_the_same_moment(
    replica: Replica,
) -> None:
    """Only two calls may be in flight: one that overslept the other's coming held new work up for 5 s."""
    older, newer = (asyncio.create_task(exchange(replica)) for _ in range(2))
    async with asyncio.timeout(2):
        assert await older == []
    assert not newer.done()
    newer.cancel()


async def test_report_is_kept_until_its_effect_is_durable_and_forgotten_then(
    replica: Replica, tmp_path: Path
) -> None:
    work, other = call(1, tmp_path / "log"), call(2, tmp_path / "log")
    (report,) = await exchange(replica, calls=[work])
    assert await exchange(replica, seen=0, again=True) == [report], "its answer was lost"
    (later,) = await exchange(replica, seen=1, ack=0, calls=[other])
    assert await exchange(replica, seen=0, ack=0, again=True) == [report, later], "seen is not durable"
    assert await exchange(replica, seen=0, ack=1, again=True) == [later]
    (mailbox,) = replica._mailboxes.values()
    assert mailbox.done == {other.key}, "what is forgotten takes no room"


async def test_heir_gets_what_the_dead_owner_never_acknowledged_and_what_still_runs(
    replica: Replica, tmp_path: Path
) -> None:
    done, running, unknown = (call(n, tmp_path / "log", seconds=s) for n, s in ((1, 0.0), (2, 0.2), (3, 0.0)))
    (report,) = await exchange(replica, calls=[done, running])
    assert keys_of([report]) == [done.key]

    held = await replica.adopt("heir", 0, [done.key, running.key, unknown.key])

    assert held == sorted([done.key, running.key])
    taken = await exchange(replica, "heir")
    taken += await exchange(replica, "heir", seen=1)
    assert keys_of(taken) == [done.key, running.key]
    assert await replica.adopt("heir", 2, [done.key]) == [done.key], "asked twice, answered twice"
    assert len((tmp_path / "log").read_text().splitlines()) == 2


class Line:
    """An orchestrator's end of a bad line: every message may be lost, doubled or late, every answer too.

    Attributes:
        taken: How often the outcome of each attempt was taken for new.
    """

    def __init__(self, replica: Replica, dice: random.Random) -> None:
        self.replica, self.dice = replica, dice
        self.taken: Counter[AttemptKey] = Counter()
        self.seen = self.durable = 0
        self.ahead: set[int] = set()
        self.unsure: dict[AttemptKey, StepCall] = {}
        self.again = False
        self.in_flight: list[asyncio.Task[bytes]] = []

    def send(self, calls: list[StepCall]) -> None:
        """Send once, twice or not at all; the answers come when they come."""
        self.unsure.update({each.key: each for each in calls})
        self.durable = self.dice.randint(self.durable, self.seen)
        everything = list(self.unsure.values()) if self.again else calls
        message = encode(Exchange("a", self.seen, self.durable, everything, [], self.again))
        num_copies = self.dice.choice([0, 1, 1, 1, 1, 2])
        self.again = num_copies == 0
        for _ in range(num_copies):
            self.in_flight.append(asyncio.create_task(self.replica.exchange(message)))

    def receive(self) -> None:
        """Take answers that are there, in any order; some never arrive."""
        there = [task for task in self.in_flight if task.done()]
        self.dice.shuffle(there)
        for task in there:
            self.in_flight.remove(task)
            if self.dice.random() < 0.2:
                self.again = True
                continue
            for report in decode_reports(task.result()).reports:
                self.take(report)

    def take(self, report: Report) -> None:
        if report.seq <= self.seen or report.seq in self.ahead:
            return
        self.ahead.add(report.seq)
        while self.seen + 1 in self.ahead:
            self.seen += 1
            self.ahead.discard(self.seen)
        key: AttemptKey = tuple(report.key)  # type: ignore[assignment]
        self.unsure.pop(key, None)
        self.taken[key] += 1


@pytest.mark.parametrize("seed", range(20))
async def test_bad_line_executes_each_attempt_once_and_brings_each_outcome_once(
    replica: Replica, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    log = tmp_path / "log"
    line = Line(replica, dice)
    work = [call(number, log, dice.choice([0.0, 0.0, 0.001])) for number in range(60)]
    todo = list(work)
    async with asyncio.timeout(20):
        while len(line.taken) < len(work):
            line.send([todo.pop() for _ in range(min(len(todo), dice.randrange(6)))])
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            line.receive()
            line.again = line.again or not todo
    while len(line.in_flight) > 1:  # only the newest waits for news
        await asyncio.sleep(0)
        line.in_flight = [task for task in line.in_flight if not task.done()]
    for task in line.in_flight:
        task.cancel()
    assert line.taken == Counter({each.key: 1 for each in work})
    assert Counter(entry.split()[0] for entry in log.read_text().splitlines()) == {
        each.key[0]: 1 for each in work
    }
