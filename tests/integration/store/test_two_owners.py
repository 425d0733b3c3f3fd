"""Two owners fight for one partition, agents answer twice, late, out of order: each result counts once."""

from __future__ import annotations

import random
from collections import Counter
from typing import NamedTuple

import pytest
import redis as sync_redis

from actors.partition import TakenBatch
from cluster.model import commands as cmd
from cluster.model.plan import Plan, Step
from cluster.store.run_codec import decode_events, decode_run
from cluster.store.run_store import RunStore
from cluster.store.scripts import Call
from tests.integration.store.conftest import OpenOwner
from tests.integration.store.owner import TestOwner, chain, ids_in, submission

pytestmark = pytest.mark.integration

NUM_RUNS = 12


def diamond() -> Plan:
    join = {"left": {"$ref": "steps.left.output"}, "right": {"$ref": "steps.right.output"}}
    return Plan(
        name="diamond",
        steps=(
            Step(name="top", capability="work"),
            Step(name="left", capability="work", inputs={"x": {"$ref": "steps.top.output"}}),
            Step(name="right", capability="work", map=[1, 2, 3], needs=("top",)),
            Step(name="join", capability="work", inputs=join),
        ),
    )


class Held(NamedTuple):
    """A batch that its owner has taken and encoded but not sent yet."""

    owner: TestOwner
    taken: TakenBatch
    call: Call


class Fight:
    """Owners, one of which holds the lease at a time, and the attempts that agents work on.

    Attributes:
        attempts: Every attempt that was ever started: their answers may come at any time, and again.
        results: The output that each answer carried, told by owner and number so that no two are equal.
    """

    def __init__(self, dice: random.Random, owners: list[TestOwner], client: sync_redis.Redis) -> None:
        self.dice, self.owners, self.client = dice, owners, client
        self.attempts: list[tuple[str, cmd.StartStep]] = []
        self.in_flight: list[Held] = []
        self.number = 0
        self.stale = 0

    async def move(self) -> None:
        owner = self.dice.choice(self.owners)
        kind = self.dice.choice(
            ["claim", "work", "work", "work", "answer", "answer", "answer", "steal", "hold"]
        )
        if kind == "steal" and self.dice.random() < 0.3:
            self.client.hset("tutti:{0}:owner", "until_ms", 1)
        if owner.partition is None or kind == "claim":
            await owner.claim()
        if owner.partition is None:
            return
        if kind == "answer" and self.attempts:
            for _ in range(self.dice.randrange(1, 6)):
                self.answer(owner)
        elif kind == "work":
            owner.assign_all()
            self.hold(owner)
            await self.flush(owner)
        elif kind == "hold":  # the owner stops between taking a batch and sending it
            self.hold(owner)
        if self.in_flight and self.dice.random() < 0.3:
            await self.flush(self.in_flight[0].owner)

    def answer(self, owner: TestOwner) -> None:
        """An agent reports to whoever it believes to own the Run: any attempt, any number of times."""
        run_id, start = self.dice.choice(self.attempts)
        self.number += 1
        owner.report(
            run_id, start, b'{"by":"%s","number":%d}' % (owner.journal._owner_id.encode(), self.number)
        )

    def hold(self, owner: TestOwner) -> None:
        taken = owner.take()
        self.in_flight.append(Held(owner, taken, owner.journal.encode(taken.batch)))

    async def flush(self, owner: TestOwner) -> None:
        """Send what an owner holds, in order, as its commit loop does."""
        for held in [each for each in self.in_flight if each.owner is owner]:
            self.in_flight.remove(held)
            await self._send(*held)

    async def _send(self, owner: TestOwner, taken: TakenBatch, call: Call) -> None:
        is_current = taken.partition is owner.partition
        (reply,) = await owner.journal.send([call])
        if self.dice.random() < 0.3:  # the reply was lost, so it is sent again
            again = await owner.journal.send([call])
            assert (again == [-1]) == (reply < 0)
        if reply < 0:
            self.stale += 1
            if is_current:
                owner.partition = None
            return
        for run, command in taken.commands:
            if isinstance(command, cmd.StartStep):
                self.attempts.append((run.run_id, command))
            elif isinstance(command, cmd.FindAttempt):
                pass  # its agent still works on it
            elif isinstance(command, cmd.EndRun):
                taken.partition.runs.pop(run.run_id, None)


@pytest.mark.parametrize("seed", range(4))
async def test_random_results_through_two_owners_are_accepted_exactly_once(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis, seed: int
) -> None:
    dice = random.Random(seed)
    run_ids = ids_in(0, NUM_RUNS)
    plans = [diamond(), chain(3)]
    await store.submit_many([submission(each, plan=dice.choice(plans)) for each in run_ids])
    owners = [await open_owner(f"owner-{n}", claims=False) for n in range(2)]
    fight = Fight(dice, owners, client)
    accepted: dict[tuple[str, bytes], bytes] = {}
    for _ in range(400):
        await fight.move()
        remember_results(client, run_ids, accepted)
    while client.zcard("tutti:{0}:active"):
        await fight.move()
    remember_results(client, run_ids, accepted)
    for run_id in run_ids:
        check_history(client, run_id)
        view = await store.get(run_id, None)
        assert view.status == "succeeded"
        assert view.progress == 1.0
    assert (await store.totals()).succeeded == NUM_RUNS
    assert client.hgetall("tutti:{0}:tenants") == {}
    assert int(client.hget("tutti:{0}:owner", "epoch") or 0) > 2, "there was no fight"
    assert fight.stale


def remember_results(
    client: sync_redis.Redis, run_ids: list[str], accepted: dict[tuple[str, bytes], bytes]
) -> None:
    """A result that stands in the store never changes and never goes."""
    for run_id in run_ids:
        fields = client.hgetall(f"tutti:{{0}}:run:{run_id}")
        found = {(run_id, name): value for name, value in fields.items() if name.startswith(b"r:")}
        before = {key: value for key, value in accepted.items() if key[0] == run_id}
        assert before.items() <= found.items()
        accepted.update(found)


def check_history(client: sync_redis.Redis, run_id: str) -> None:
    """Each StepRun succeeded once, by the attempt that was started last; sequence numbers have no gap."""
    events = [
        event
        for _, fields in client.xrange(f"tutti:{{0}}:events:{run_id}")
        for event in decode_events(fields[b"e"])
    ]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    ends = Counter((event.step, event.item) for event in events if event.type == "step.succeeded")
    assert set(ends.values()) == {1}
    last_start = {(e.step, e.item): e.attempt for e in events if e.type == "step.started"}
    for event in events:
        if event.type == "step.succeeded" and (event.step, event.item) in last_start:
            assert event.attempt == last_start[(event.step, event.item)]
    assert [event.type for event in events].count("run.succeeded") == 1
    run = decode_run(client.hgetall(f"tutti:{{0}}:run:{run_id}"))
    assert run.record.event_seq == len(events)
    assert run.record.num_open == 0


async def test_zombie_that_wakes_after_a_takeover_changes_nothing_and_steps_back(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    run_ids = ids_in(0, 5)
    await store.submit_many([submission(each, plan=chain(2)) for each in run_ids])
    zombie = await open_owner("owner-1")
    zombie.assign_all()
    await zombie.commit()
    for run_id, start in zombie.started:
        zombie.report(run_id, start, b'"of the zombie"')
    client.hset("tutti:{0}:owner", "until_ms", 1)
    heir = await open_owner("owner-2")
    for run_id, start in zombie.started:
        heir.report(run_id, start, b'"of the heir"')
    assert await zombie.commit() == -1
    assert zombie.partition is None
    await heir.commit()
    await heir.run_all(b'"last"')
    for run_id in run_ids:
        view = await store.get(run_id, None)
        assert [each.output for each in view.steps] == ["of the heir", "last"]
