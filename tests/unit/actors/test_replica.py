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

from actors.messages import NO_ATTEMPT, AttemptKey, Exchange, Report, StepCall, decode_reports, encode
from actors.replica import Replica, ReplicaConfig


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    module = "tests.integration.agents_for_tests"
    agents = (f"{module}:nap", f"{module}:odd", f"{module}:odd_in_thread")
    replica = Replica(ReplicaConfig("agent-1", agents, 4, str(tmp_path), 1 << 18, (), ()))
    yield replica
    if replica._host is not None:
        replica._host.threads.shutdown()
    if replica._sweeper is not None:
        replica._sweeper.cancel()
        with suppress(asyncio.CancelledError):
            await replica._sweeper


def call(number: int, log: Path, seconds: float = 0.0, sent_at: float = 1.0) -> StepCall:
    inputs = orjson.dumps({"seconds": seconds, "n": number, "log": str(log)})
    key = (f"run-{number}", 0, -1, 1)
    return StepCall(key, "work", "nap", inputs, b"{}", "default", time.time() + 60, sent_at)


def odd_call(how: str, capability: str = "odd") -> StepCall:
    key = (f"run-{how}-{capability}", 0, -1, 1)
    inputs = orjson.dumps({"raise": how})
    return StepCall(key, "work", capability, inputs, b"{}", "default", time.time() + 60, 1.0)


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
    assert list(mailbox.done) == [other.key], "what is forgotten takes no room"


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


async def test_owner_that_lost_a_run_and_got_it_back_is_told_again_what_it_did_not_look_at(
    replica: Replica, tmp_path: Path
) -> None:
    work = call(1, tmp_path / "log")
    (report,) = await exchange(replica, calls=[work])

    assert await replica.adopt("a", 1, [work.key]) == [work.key]

    (told,) = await exchange(replica, seen=1)
    assert (told.seq, told.kind, told.payload) == (2, "ok", report.payload)


async def test_report_that_moves_to_an_heir_leaves_no_gap_for_an_owner_that_still_lives(
    replica: Replica, tmp_path: Path
) -> None:
    moved, kept = call(1, tmp_path / "log"), call(2, tmp_path / "log")
    await exchange(replica, calls=[moved])
    await replica.adopt("heir", 0, [moved.key])

    reports = await exchange(replica, calls=[kept])
    reports = await exchange(replica, again=True)

    assert [(each.seq, each.kind, tuple(each.key)) for each in reports] == [
        (1, "moved", NO_ATTEMPT),
        (2, "ok", kept.key),
    ]


async def test_attempt_that_a_store_without_its_last_moments_begins_anew_belongs_to_who_began_it(
    replica: Replica, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    before = call(1, log, seconds=0.1)
    first = asyncio.create_task(exchange(replica, calls=[before]))
    await asyncio.sleep(0)

    (report,) = await exchange(replica, "other", calls=[call(1, log, seconds=0.1, sent_at=2.0)])

    assert (tuple(report.key), report.kind) == (before.key, "ok")
    assert len(log.read_text().splitlines()) == 1, "it was under way with the same inputs"
    first.cancel()


async def test_attempt_that_begins_anew_with_other_inputs_or_after_its_end_is_executed_again(
    replica: Replica, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    endless = call(1, log, seconds=600.0)
    first = asyncio.create_task(exchange(replica, calls=[endless]))
    while not log.exists():  # noqa: ASYNC110 - until it has begun
        await asyncio.sleep(0)

    (report,) = await exchange(replica, "other", calls=[call(1, log, sent_at=2.0)])
    (again,) = await exchange(replica, "third", calls=[call(1, log, sent_at=3.0)])

    assert [report.kind, again.kind] == ["ok", "ok"]
    assert len(log.read_text().splitlines()) == 3
    assert not replica._attempts
    first.cancel()


@pytest.mark.parametrize("capability", ["odd", "odd_in_thread"])
@pytest.mark.parametrize(
    "how", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError", "StopIteration"]
)
async def test_agent_that_raises_what_ends_other_processes_fails_its_step_and_nothing_else(
    replica: Replica, how: str, capability: str
) -> None:
    (report,) = await exchange(replica, calls=[odd_call(how, capability)])

    assert report.kind == "failed"
    assert how in orjson.loads(report.payload)["message"]
    assert replica._num_running == 0


async def test_attempt_that_is_stopped_before_it_has_begun_gives_its_slot_back(
    replica: Replica, tmp_path: Path
) -> None:
    work = call(1, tmp_path / "log", seconds=600.0)
    first, second = (
        asyncio.create_task(exchange(replica, **fields))
        for fields in ({"calls": [work]}, {"stops": [work.key]})
    )
    reports = [*await first, *await second]

    assert [(tuple(each.key), each.kind) for each in reports] == [(work.key, "stopped")]
    assert replica._num_running == 0


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
