"""From ready to running in one orchestrator, with real queues, keys and links; no replica is ever called, so
that an attempt ends when the test says so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from actors.dispatcher import Dispatcher
from actors.messages import AttemptKey
from actors.pool_line import Ready
from actors.pool_table import KeyLimit, PoolEntry, PoolTable, ReplicaEntry
from actors.replica_link import ReplicaLink
from cluster.engine import Run, advance
from cluster.model import events as ev
from cluster.model.compiled import compile_plan
from cluster.model.plan import Plan, Step, Submission
from cluster.scheduling.pools import PoolSpec
from cluster.scheduling.reasons import (
    BehindOthers,
    CapacityShort,
    ModelCold,
    NoPool,
    QuotaReached,
    RateReached,
    Reason,
    ReplicaMissing,
)
from cluster.store.run_codec import created_run

NOBODY_SERVES = Plan(name="one", steps=(Step(name="a", capability="nobody"),))


class Rig:
    """A dispatcher, and who plays the Driver.

    Attributes:
        begun: Names of the Runs that got a slot, in order.
    """

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.refused: dict[str, str] = {}
        self._running: dict[str, tuple[AttemptKey, ReplicaLink]] = {}
        self._version = 0
        self._began_at = time.time()
        self.dispatcher = Dispatcher("o", self, self._assign, self._unserve, lambda: None, {"work": 2.0})

    def table(
        self,
        *,
        slots: int = 1,
        limits: Sequence[KeyLimit] = (),
        reason: Reason | None = None,
        model: str = "",
    ) -> None:
        """Tell what the scheduler would: one pool with one replica of so many slots, or none for 0."""
        self._version += 1
        spec = PoolSpec(name="p", agents=("a:B",), concurrency=max(slots, 1), model=model)
        pool = PoolEntry("p", ("work",), 3, 5.0, max(slots, 1), max(slots, 1), "", spec, reason)
        replicas = (ReplicaEntry("agent-p-1", "p", None, slots),) if slots else ()
        self.dispatcher.update(PoolTable(self._version, (pool,), replicas, tuple(limits)))

    def submit(self, name: str, *, step: dict[str, Any] | None = None, **fields: Any) -> Run:
        plan = Plan(name="one", steps=(Step(name="a", capability="work", **(step or {})),))
        return self.queue(plan, name, **fields)

    def queue(self, plan: Plan, name: str, **fields: Any) -> Run:
        submission = Submission(run_id=name, plan=plan, inputs={}, **fields)
        run, _ = created_run(submission, compile_plan(plan), self._began_at)
        advance(run, ev.RunAdopted(), self._began_at, 300.0)
        self.dispatcher.queue(run, (0, -1), 0)
        return run

    def end(self, name: str) -> None:
        key, link = self._running.pop(name)
        link.give_up([key])
        link.ended_at = time.monotonic()
        self.dispatcher.release([key])
        self.dispatcher.serve_pool("p")

    def why(self, name: str) -> Reason | None:
        return self.dispatcher.reasons(name).get(Ready(name, 0, -1))

    def _assign(self, ready: Ready, link: ReplicaLink) -> AttemptKey:
        key = (ready.run_id, ready.step, ready.item, 1)
        link.reserve(key)
        self._running[ready.run_id] = (key, link)
        self.begun.append(ready.run_id)
        return key

    def _unserve(self, ready: Ready, reason: str) -> None:
        self.refused[ready.run_id] = reason

    def on_reports(self, link: ReplicaLink, reports: list[Any]) -> None:
        """Nothing is called, so that nothing is reported."""

    def on_replica_lost(self, link: ReplicaLink, reason: str) -> None:
        """Nothing is called, so that nothing is lost."""

    def on_replica_stuck(self, link: ReplicaLink, reason: str) -> None:
        """Nothing is called, so that nothing is stuck."""


@pytest.fixture
async def rig():
    rig = Rig()
    yield rig
    rig.dispatcher.close()


async def test_urgent_step_takes_the_next_free_slot_before_thousands_that_wait(rig: Rig) -> None:
    rig.table()
    for number in range(3_000):
        rig.submit(f"r-{number}")
    rig.submit("urgent", priority=51)
    rig.end("r-0")
    rig.end("urgent")
    assert rig.begun == ["r-0", "urgent", "r-1"]


async def test_tenant_at_its_limit_waits_for_one_of_its_own_and_lets_others_pass(rig: Rig) -> None:
    rig.table(slots=8, limits=[KeyLimit("tenant:x", 4)])
    for number in range(6):
        rig.submit(f"x-{number}", tenant="x")
    rig.submit("y", tenant="y")
    assert rig.begun == ["x-0", "x-1", "x-2", "x-3", "y"]
    reached = QuotaReached(key="tenant:x", num_used=4, limit=4)
    assert [rig.why("x-4"), rig.why("x-5")] == [reached, reached]
    assert reached.sentence(0) == "The limit of tenant:x is reached: 4/4 run."
    rig.end("y")
    assert "x-4" not in rig.begun
    rig.end("x-0")
    assert rig.begun[-1] == "x-4"
    assert rig.why("x-5") == reached


async def test_limit_that_is_raised_starts_what_waited_for_it(rig: Rig) -> None:
    rig.table(slots=8, limits=[KeyLimit("tenant:x", 1)])
    for number in range(4):
        rig.submit(f"x-{number}", tenant="x")
    assert rig.begun == ["x-0"]
    rig.table(slots=8, limits=[KeyLimit("tenant:x", 3)])
    assert rig.begun == ["x-0", "x-1", "x-2"]
    rig.table(slots=8)
    assert rig.begun == ["x-0", "x-1", "x-2", "x-3"]


async def test_rate_key_lets_its_burst_go_and_says_until_when_the_next_waits(rig: Rig) -> None:
    rig.table(slots=8, limits=[KeyLimit("mail", None, 1.0, 3600.0, 2.0)])
    for number in range(4):
        rig.submit(f"r-{number}", step={"keys": ("mail",)})
    assert rig.begun == ["r-0", "r-1"]
    reason = rig.why("r-3")
    assert isinstance(reason, RateReached)
    assert (reason.key, reason.num, reason.per_s) == ("mail", 1.0, 3600.0)
    assert reason.until_at is not None
    assert reason.until_at > time.time() + 3000
    rig.submit("free")
    assert rig.begun[-1] == "free"


async def test_key_that_only_a_pattern_declares_waits_for_its_share_and_is_asked_for(rig: Rig) -> None:
    rig.table(slots=8, limits=[KeyLimit("user-*", 2)])
    rig.submit("r", step={"keys": ("user-7",)})
    assert rig.begun == []
    assert rig.dispatcher.needs().keys["user-7"].num_wanted == 1
    rig.table(slots=8, limits=[KeyLimit("user-*", 2), KeyLimit("user-7", 1)])
    assert rig.begun == ["r"]


async def test_what_waits_for_a_key_asks_for_no_slots(rig: Rig) -> None:
    rig.table(slots=8, limits=[KeyLimit("tenant:x", 1)])
    for number in range(3):
        rig.submit(f"x-{number}", tenant="x")
    assert rig.dispatcher.needs().demand == {}
    assert rig.dispatcher.demand() == {"work": 2}


async def test_what_waits_is_asked_for_in_the_pool_it_waits_for_and_in_no_other(rig: Rig) -> None:
    specs = [PoolSpec(name="small", agents=("a:B",)), PoolSpec(name="large", agents=("a:B",), num_gpus=1)]
    pools = tuple(PoolEntry(each.name, ("work",), 3, 5.0, 4, 4, "", each) for each in specs)
    rig.dispatcher.update(PoolTable(1, pools, ()))
    rig.submit("anywhere")
    rig.submit("urgent", priority=90, step={"resources": {"num_gpus": 1}})
    needs = rig.dispatcher.needs()
    assert needs.demand == {"small": {50: 1}, "large": {90: 1}}
    assert set(needs.oldest_s) == {"small", "large"}
    rig.dispatcher.forget("urgent")
    assert rig.dispatcher.needs().demand == {"small": {50: 1}}


async def test_each_step_that_got_a_slot_is_told_once_with_how_long_it_waited(rig: Rig) -> None:
    rig.table()
    for name in ("first", "second", "third"):
        rig.submit(name)
    assert rig.dispatcher.needs().begun == (("capability:work", 0.0),)
    rig.end("first")
    ((key, waited),) = rig.dispatcher.needs().begun
    assert (key, waited > 0.0) == ("capability:work", True)
    assert rig.dispatcher.needs().begun == ()


async def test_reasons_tell_the_place_in_the_queue_and_when_it_will_be_reached(rig: Rig) -> None:
    rig.table()
    for number in range(4):
        rig.submit(f"r-{number}")
    rig.end("r-0")
    reason = rig.why("r-3")
    assert isinstance(reason, BehindOthers)
    assert (reason.num_ahead, reason.priority) == (1, 50)
    assert reason.until_at is not None
    # Two turns of two seconds on one slot.
    assert 3 < reason.until_at - rig.dispatcher.now() <= 4


async def test_nothing_is_estimated_where_no_attempt_ends_or_what_was_estimated_is_over(rig: Rig) -> None:
    rig.table()
    for number in range(3):
        rig.submit(f"r-{number}")
    assert rig.why("r-1") == BehindOthers(num_ahead=0, priority=50), "nothing has ended yet"
    rig.end("r-0")
    link = rig.dispatcher.lines["p"].links[0]
    wait = rig.dispatcher.lines["p"].queue[Ready("r-2", 0, -1)].item
    link.ended_at -= 3.0
    wait.ready_at -= 3.0
    assert rig.why("r-2") == BehindOthers(num_ahead=0, priority=50), "two seconds were estimated"
    link.ended_at -= 7.0
    rig.submit("late")
    assert rig.why("late") == BehindOthers(num_ahead=1, priority=50), "nothing has ended lately"


async def test_pool_that_is_full_and_cannot_grow_says_why_instead_of_who_goes_first(rig: Rig) -> None:
    short = CapacityShort(num_bundles=1, missing="GPU", num_missing=1.0)
    limits = [KeyLimit("tenant:x", 1)]
    rig.table(slots=2, limits=limits, reason=short)
    for name in ("x-0", "x-1"):
        rig.submit(name, tenant="x")
    for name in ("r-0", "r-1"):
        rig.submit(name)
    assert isinstance(rig.why("x-1"), QuotaReached), "a key is what it waits for"
    assert rig.why("r-1") == short
    rig.table(slots=2, limits=limits)
    assert isinstance(rig.why("r-1"), BehindOthers)


async def test_before_the_first_table_nobody_knows_the_pools(rig: Rig) -> None:
    rig.submit("r")
    assert rig.why("r") == ReplicaMissing(pool="")
    rig.table()
    assert rig.begun == ["r"]


async def test_pool_without_replicas_says_why_it_cannot_grow(rig: Rig) -> None:
    rig.table(slots=0)
    rig.submit("r")
    assert rig.why("r") == ReplicaMissing(pool="p")
    short = CapacityShort(num_bundles=4, missing="GPU", num_missing=1.0)
    rig.table(slots=0, reason=short)
    assert rig.why("r") == short


async def test_first_in_line_waits_for_its_model_where_no_replica_has_it(rig: Rig) -> None:
    rig.table()
    rig.submit("holder", step={"model": "llama"})
    rig.submit("warm", step={"model": "llama"})
    rig.submit("cold", step={"model": "qwen"}, priority=60)
    cold = rig.why("cold")
    assert isinstance(cold, ModelCold)
    assert (cold.model, cold.where) == ("qwen", "pool p")
    assert isinstance(rig.why("warm"), BehindOthers)


async def test_capability_without_a_pool_is_refused_with_the_reason_and_waits_no_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.table()
    rig.queue(NOBODY_SERVES, "r")
    rig.dispatcher.check_links()
    assert rig.refused == {}, "a pool that was just declared may be in the next table"
    assert rig.why("r") == NoPool(capability="nobody")
    monkeypatch.setattr("actors.dispatcher._REFUSED_AFTER_S", 0.0)
    rig.dispatcher.check_links()
    assert rig.refused == {"r": "no pool serves the capability 'nobody'"}
    assert rig.dispatcher.reasons("r") == {}
    rig.table()
    assert rig.begun == []


async def test_step_that_comes_before_its_new_pool_is_known_begins_when_the_table_has_it(rig: Rig) -> None:
    rig.dispatcher.update(PoolTable(1, (), ()))
    rig.submit("early")
    rig.queue(NOBODY_SERVES, "r")
    assert rig.dispatcher.demand() == {"work": 1, "nobody": 1}
    rig.table()
    rig.dispatcher.check_links()
    assert (rig.begun, rig.refused) == (["early"], {})
    assert rig.dispatcher.needs().demand == {}
