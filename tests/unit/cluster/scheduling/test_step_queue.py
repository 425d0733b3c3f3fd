"""Who goes next: by priority, age, fairness, deadline and keys; and never a step is forgotten."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.scheduling.affinity import Affinity
from cluster.scheduling.limits import Limits, capability_key, tenant_key
from cluster.scheduling.queued_step import QueuedStep
from cluster.scheduling.reasons import BehindOthers, CapacityShort, QuotaReached, RateReached
from cluster.scheduling.step_queue import StepQueue

quick = settings(max_examples=100, deadline=None)


def queue(limits: Limits | None = None, **options: Any) -> StepQueue:
    return StepQueue("llm", limits or Limits(), **options)


def step(step_id: Any, tenant: str = "t", priority: int = 50, at: float = 0.0, **fields: Any) -> QueuedStep:
    return QueuedStep(step_id, tenant, priority, at, **fields)


def drained(waiting: StepQueue, now: float = 0.0, **options: Any) -> list[Any]:
    found = []
    while (taken := waiting.pop(now, **options)) is not None:
        found.append(taken.step_id)
    return found


# -- order


def test_equal_steps_are_first_come_first_served() -> None:
    waiting = queue()
    for number in range(20):
        waiting.push(step(number))
    assert drained(waiting) == list(range(20))
    assert len(waiting) == 0


def test_higher_priority_goes_first_by_a_single_point() -> None:
    waiting = queue()
    for priority in (50, 51, 0, 100, 49):
        waiting.push(step(priority, priority=priority))
    assert drained(waiting) == [100, 51, 50, 49, 0]


def test_earliest_deadline_goes_first_within_a_tenant_and_others_have_their_patience() -> None:
    waiting = queue(patience_s=100)
    waiting.push(step("none", at=0))
    waiting.push(step("late", at=0, deadline_at=500))
    waiting.push(step("soon", at=0, deadline_at=50))
    waiting.push(step("none, much later", at=60))
    waiting.push(step("in between", at=60, deadline_at=130))
    assert drained(waiting) == ["soon", "none", "late", "in between", "none, much later"]


def test_priority_of_a_waiting_step_can_change_and_a_step_can_leave() -> None:
    waiting = queue()
    for number in range(5):
        waiting.push(step(number, at=number))
    assert waiting.reprioritise(3, 90, 5)
    assert not waiting.reprioritise("unknown", 90, 5)
    assert waiting.remove(1, 5) is not None
    assert waiting.remove(1, 5) is None
    with pytest.raises(ValueError, match="0 to 100"):
        waiting.reprioritise(0, 101, 5)
    with pytest.raises(ValueError, match="waits already"):
        waiting.push(step(0))
    assert drained(waiting, 5) == [3, 0, 2, 4]


def test_step_that_returns_to_its_priority_keeps_its_place() -> None:
    waiting = queue()
    for number in range(3):
        waiting.push(step(number, at=number))
    waiting.reprioritise(0, 90, 5)
    waiting.reprioritise(0, 50, 5)
    assert drained(waiting, 5) == [0, 1, 2]


def test_old_low_priority_gets_one_of_eight_decisions_and_no_more() -> None:
    """A thousand reports from the night must neither wait for ever nor keep the urgent question waiting."""
    waiting = queue(ageing_s=10)
    for number in range(1000):
        waiting.push(step(("old", number), priority=20, at=0))
    for number in range(1000):
        waiting.push(step(("urgent", number), tenant="u", priority=90, at=699))
    before = [waiting.pop(699) for _ in range(16)]
    assert Counter(taken.step_id[0] for taken in before if taken) == {"urgent": 16}
    after = [waiting.pop(700) for _ in range(80)]
    assert Counter(taken.step_id[0] for taken in after if taken) == {"urgent": 70, "old": 10}


def test_every_level_that_overtakes_has_its_turn_even_when_the_oldest_step_is_blocked() -> None:
    limits = Limits()
    limits.set_concurrency("never", 0, 0)
    waiting = queue(limits, ageing_s=1)
    waiting.push(step("blocked", priority=10, keys=("never",)))
    for number in range(100):
        for priority in (10, 20, 30, 90):
            waiting.push(step((priority, number), priority=priority, at=1))
    taken = [waiting.pop(1000) for _ in range(48)]
    assert Counter(each.step_id[0] for each in taken if each) == {90: 42, 10: 2, 20: 2, 30: 2}


# -- fairness

costs = st.floats(0.1, 10.0)
offers = st.lists(st.tuples(st.sampled_from("abc"), costs), min_size=1, max_size=60)
weights = st.fixed_dictionaries({name: st.sampled_from((0.5, 1.0, 3.0)) for name in "abc"})


@quick
@given(offers, weights)
def test_difference_between_waiting_tenants_never_exceeds_one_largest_step_each(
    offered: list[tuple[str, float]], weight_by_tenant: dict[str, float]
) -> None:
    """The bound of start-time fair queueing, over every interval in which both wait."""
    waiting = queue(weight_of=weight_by_tenant.__getitem__)
    left = Counter(tenant for tenant, _ in offered)
    largest = {name: max((cost for tenant, cost in offered if tenant == name), default=0.0) for name in "abc"}
    for number, (tenant, cost) in enumerate(offered):
        waiting.push(step(number, tenant, cost=cost))
    served = {name: [0.0] for name in "abc"}
    busy_until = dict.fromkeys("abc", 0)
    for moment in range(1, len(offered) + 1):
        taken = waiting.pop(0)
        assert taken is not None
        left[taken.tenant] -= 1
        for name in "abc":
            more = taken.cost if name == taken.tenant else 0.0
            served[name].append(served[name][-1] + more)
            if left[name]:
                busy_until[name] = moment
    for one, other in (("a", "b"), ("b", "c"), ("a", "c")):
        bound = largest[one] / weight_by_tenant[one] + largest[other] / weight_by_tenant[other] + 1e-6
        end = min(busy_until[one], busy_until[other])
        gaps = [
            served[one][moment] / weight_by_tenant[one] - served[other][moment] / weight_by_tenant[other]
            for moment in range(end + 1)
        ]
        assert max(gaps) - min(gaps) <= bound


def test_flood_of_one_tenant_does_not_delay_the_other() -> None:
    waiting = queue()
    for number in range(10_000):
        waiting.push(step(number, "flood"))
    for _ in range(100):
        waiting.pop(0)
    waiting.push(step("mine", "other", at=1))
    assert [taken.step_id for _ in range(2) if (taken := waiting.pop(1))].count("mine") == 1


def test_tenant_that_was_idle_is_owed_nothing() -> None:
    waiting = queue()
    for number in range(100):
        waiting.push(step(("a", number), "a"))
    for _ in range(50):
        waiting.pop(0)
    for number in range(50):
        waiting.push(step(("b", number), "b"))
    assert Counter(name for name, _ in (drained(waiting))[:20]) == {"a": 10, "b": 10}


def test_costs_are_settled_when_they_are_known() -> None:
    """Both are charged 1; a's steps really take 3, so that b gets three of them for each of a's."""
    waiting = queue()
    for number in range(400):
        for tenant in "ab":
            waiting.push(step((tenant, number), tenant))
    counts: Counter[str] = Counter()
    for _ in range(200):
        taken = waiting.pop(0)
        assert taken is not None
        counts[taken.tenant] += 1
        waiting.settle(taken, 3.0 if taken.tenant == "a" else 1.0)
    assert counts == {"a": 50, "b": 150}


def test_credit_for_cheaper_steps_is_set_off_against_the_next() -> None:
    waiting = queue()
    for number in range(400):
        for tenant in "ab":
            waiting.push(step((tenant, number), tenant, cost=4.0))
    counts: Counter[str] = Counter()
    for _ in range(250):
        taken = waiting.pop(0)
        assert taken is not None
        counts[taken.tenant] += 1
        waiting.settle(taken, 1.0 if taken.tenant == "a" else 4.0)
    assert abs(counts["a"] - 4 * counts["b"]) <= 5


# -- keys


def test_step_whose_key_is_used_up_lets_others_pass_and_is_woken_when_it_frees() -> None:
    limits = Limits()
    limits.set_concurrency("db", 1, 0)
    waiting = queue(limits)
    for number in range(3):
        waiting.push(step(("db", number), keys=("db",)))
    waiting.push(step("free"))
    assert drained(waiting) == [("db", 0), "free"]
    assert waiting.why(("db", 1), 0) == QuotaReached(key="db", num_used=1, limit=1)
    assert limits.release(("db",), 1) == (waiting,)
    assert drained(waiting, 1) == [("db", 1)]


def test_quota_of_a_tenant_and_of_the_capability_hold_for_every_step() -> None:
    limits = Limits()
    limits.set_concurrency(tenant_key("a"), 2, 0)
    limits.set_concurrency(capability_key("llm"), 3, 0)
    waiting = queue(limits)
    for number in range(4):
        waiting.push(step(("a", number), "a"))
        waiting.push(step(("b", number), "b"))
    first = drained(waiting)
    assert len(first) == 3
    assert sum(name == "a" for name, _ in first) <= 2
    limits.set_concurrency(capability_key("llm"), None, 0)
    assert len(drained(waiting)) == 3
    reason = waiting.why(("a", 2), 0)
    assert reason == QuotaReached(key="tenant:a", num_used=2, limit=2)
    assert reason.sentence(0) == "The limit of tenant:a is reached: 2/2 run."


def test_rate_key_tells_when_it_lets_the_next_one_go() -> None:
    limits = Limits()
    limits.set_rate("mail", num=1, per_s=10, now=0)
    waiting = queue(limits)
    for number in range(3):
        waiting.push(step(number, keys=("mail",)))
    assert drained(waiting, 0) == [0]
    assert waiting.next_wake_at() == 10
    reason = waiting.why(1, 0)
    assert isinstance(reason, RateReached)
    assert reason.sentence(4) == "The rate of mail is reached: 1 in 10 s; about 6 s more."
    assert drained(waiting, 9.99) == []
    assert drained(waiting, 10) == [1]
    assert waiting.next_wake_at() == 20
    assert drained(waiting, 25) == [2]
    assert waiting.next_wake_at() is None


def test_hundred_thousand_blocked_steps_are_parked_as_one_line() -> None:
    """The decision looks at the line once; counted, not timed."""
    looks = 0

    class Counting(Limits):
        def blocking(self, keys: Any, now: float) -> Any:
            nonlocal looks
            looks += 1
            return super().blocking(keys, now)

    limits = Counting()
    limits.set_concurrency("db", 1, 0)
    waiting = queue(limits)
    for number in range(100_000):
        waiting.push(step(number, keys=("db",)))
    waiting.push(step("free", priority=1))
    assert drained(waiting) == [0, "free"]
    limits.release(("db",), 0)
    assert drained(waiting) == [1]
    assert looks < 30


# -- lanes


def test_shut_lane_is_passed_and_its_steps_repeat_the_reason() -> None:
    waiting = queue()
    waiting.push(step("gang", lane="8"))
    waiting.push(step("small", lane="1/4"))
    short = CapacityShort(num_bundles=8, missing="GPU", num_missing=3)
    assert drained(waiting, shut={"8": short}) == ["small"]
    assert waiting.why("gang", 0) == short
    assert drained(waiting) == ["gang"]


def test_replica_takes_its_loaded_model_first_but_only_so_often_in_a_row() -> None:
    waiting = queue()
    for number in range(20):
        waiting.push(step(("cold", number), lane="cold"))
        waiting.push(step(("warm", number), lane="warm"))
    affinity = Affinity("warm", max_in_row=3)
    taken = [waiting.pop(0, affinity=affinity) for _ in range(9)]
    kinds = [each.step_id[0] for each in taken if each]
    assert kinds == ["warm", "warm", "warm", "cold", "warm", "warm", "warm", "cold", "warm"]


def test_replica_stops_preferring_its_model_when_the_time_for_it_is_over() -> None:
    waiting = queue()
    for number in range(20):
        waiting.push(step(("cold", number), lane="cold"))
        waiting.push(step(("warm", number), lane="warm"))
    affinity = Affinity("warm", max_in_row=100, max_s=5)
    taken = [waiting.pop(now, affinity=affinity) for now in (0, 2, 4, 6, 8)]
    assert [each.step_id[0] for each in taken if each] == ["warm", "warm", "warm", "cold", "warm"]


def test_loaded_model_never_goes_before_a_higher_priority() -> None:
    waiting = queue()
    waiting.push(step("warm", lane="warm"))
    waiting.push(step("urgent", lane="cold", priority=51))
    assert drained(waiting, affinity=Affinity("warm")) == ["urgent", "warm"]


def test_reason_counts_those_ahead_and_estimates_when() -> None:
    waiting = queue()
    for number in range(5):
        waiting.push(step(("urgent", number), priority=90))
    for number in range(3):
        waiting.push(step(("mine", number)))
        waiting.push(step(("other", number), "other"))
    assert waiting.why(("mine", 1), 100, num_per_s=2) == BehindOthers(
        num_ahead=8, priority=50, until_at=104.5
    )
    assert waiting.why("unknown", 0) is None


# -- everything at once

KEYS = ("k1", "k2", "r1")


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Pushes, pops, cancels, changes of priority, ends and new limits in any order, beside a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.limits = Limits()
        self.waiting = queue(self.limits, ageing_s=5)
        self.steps: dict[int, QueuedStep] = {}
        self.running: list[QueuedStep] = []
        self.number = 0

    @initialize(k1=st.integers(0, 3), k2=st.integers(1, 3), tenant=st.integers(1, 4))
    def declare(self, k1: int, k2: int, tenant: int) -> None:
        self.limits.set_concurrency("k1", k1, 0)
        self.limits.set_concurrency("k2", k2, 0)
        self.limits.set_rate("r1", num=1, per_s=2, now=0)
        self.limits.set_concurrency(tenant_key("a"), tenant, 0)

    @rule(
        tenant=st.sampled_from("ab"),
        priority=st.sampled_from((0, 50, 51, 100)),
        lane=st.sampled_from(("x", "y")),
        keys=st.sets(st.sampled_from(KEYS)),
        deadline_s=st.sampled_from((1.0, math.inf)),
        num=st.integers(1, 4),
    )
    def push(
        self, tenant: str, priority: int, lane: str, keys: set[str], deadline_s: float, num: int
    ) -> None:
        for _ in range(num):
            self.number += 1
            new = step(
                self.number,
                tenant,
                priority,
                self.now,
                lane=lane,
                keys=tuple(sorted(keys)),
                deadline_at=self.now + deadline_s,
            )
            self.waiting.push(new)
            self.steps[self.number] = new

    def keys_of(self, each: QueuedStep) -> tuple[str, ...]:
        return (*each.keys, tenant_key(each.tenant), capability_key("llm"))

    def may_go(self, each: QueuedStep, shut: set[str]) -> bool:
        return each.lane not in shut and self.limits.blocking(self.keys_of(each), self.now) is None

    @rule(shut=st.sets(st.sampled_from(("x", "y")), max_size=1), affinity=st.booleans())
    def pop(self, shut: set[str], affinity: bool) -> None:
        eligible = [each for each in self.steps.values() if self.may_go(each, shut)]
        taken = self.waiting.pop(self.now, shut, Affinity("x") if affinity else None)
        if taken is None:
            assert not eligible, "a slot stays idle although a step may go"
            return
        assert taken.step_id in {each.step_id for each in eligible}, "a step goes although it may not"
        top = max(each.priority for each in eligible)
        if taken.priority < top:
            oldest = min(each.enqueued_at for each in self.steps.values() if each.priority == taken.priority)
            assert taken.priority + int((self.now - oldest) / 5) >= min(top, 100), "it is not old enough"
        assert taken.step_id is not None
        self.running.append(self.steps.pop(int(str(taken.step_id))))

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.running:
            ended = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            self.limits.release(self.keys_of(ended), self.now)
            self.waiting.settle(ended, data.draw(st.sampled_from((0.0, 0.5, 3.0))))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.steps:
            step_id = data.draw(st.sampled_from(sorted(self.steps)))
            assert self.waiting.remove(step_id, self.now) is not None
            del self.steps[step_id]

    @rule(data=st.data(), priority=st.sampled_from((0, 50, 100)))
    def reprioritise(self, data: st.DataObject, priority: int) -> None:
        if self.steps:
            step_id = data.draw(st.sampled_from(sorted(self.steps)))
            assert self.waiting.reprioritise(step_id, priority, self.now)
            self.steps[step_id].priority = priority

    @rule(key=st.sampled_from(("k1", "k2")), limit=st.sampled_from((0, 1, 3, None)))
    def change_limit(self, key: str, limit: int | None) -> None:
        self.limits.set_concurrency(key, limit, self.now)

    @rule(seconds=st.sampled_from((0.5, 2.0, 30.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def agrees(self) -> None:
        assert {each.step_id for each in self.waiting} == set(self.steps)
        assert sum(self.waiting.num_by_lane().values()) == len(self.steps)
        assert sum(self.waiting.num_by_tenant().values()) == len(self.steps)
        for step_id in self.steps:
            assert self.waiting.why(step_id, self.now) is not None

    def teardown(self) -> None:
        for key in ("k1", "k2", tenant_key("a")):
            self.limits.forget(key, self.now)
        while self.steps:
            self.now += 2.0
            taken = self.waiting.pop(self.now)
            assert taken is not None, "something is forgotten"
            self.steps.pop(int(str(taken.step_id)))


AnyOrderOfEvents.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase


def test_rate_that_is_raised_is_asked_again_by_its_new_pace_and_not_by_the_old_one() -> None:
    limits = Limits()
    limits.set_rate("k", 1, 1000, 0)
    waiting = StepQueue("llm", limits)
    for number in range(3):
        waiting.push(QueuedStep(number, "t", 50, 0.0, keys=("k",)))
    assert waiting.pop(0.0) is not None
    assert (waiting.pop(0.0), waiting.next_wake_at()) == (None, 1000.0)
    limits.set_rate("k", 1, 2, 1.0)
    assert (waiting.pop(1.0), waiting.next_wake_at()) == (None, pytest.approx(3.0, abs=0.01))
    assert waiting.pop(3.0) is not None
