"""What a pool's owner asks of its queue: may a Step pass all that waits, what waits for keys, and why."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling.limits import Limits, capability_key, tenant_key
from cluster.scheduling.pool_queue import PoolQueue
from cluster.scheduling.queued_step import QueuedStep
from cluster.scheduling.reasons import BehindOthers, QuotaReached, RateReached

CAPABILITY = (capability_key("llm"),)


def step(step_id: Any, tenant: str = "t", priority: int = 50, at: float = 0.0, **fields: Any) -> QueuedStep:
    fields.setdefault("keys", CAPABILITY)
    return QueuedStep(step_id, tenant, priority, at, **fields)


_steps = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from([10, 50, 90]),
        st.integers(0, 5),
        st.sampled_from([(), ("mail",), ("disk",)]),
        st.sampled_from(["", "llama"]),
    ),
    min_size=1,
    max_size=40,
)


@given(_steps, st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_reasons_of_many_are_those_of_each(drawn: list[tuple[Any, ...]], num_taken: int) -> None:
    limits = Limits()
    limits.set_concurrency("mail", 1, 0)
    limits.set_concurrency(tenant_key("c"), 2, 0)
    limits.set_rate("disk", 1, 10, 0)
    queue = PoolQueue("p", limits)
    for number, (tenant, priority, at, keys, lane) in enumerate(drawn):
        queue.push(step(number, tenant, priority, at, keys=CAPABILITY + keys, lane=lane))
    for _ in range(num_taken):
        queue.pop(6.0)
    asked = [*range(len(drawn)), "unknown"]
    told = queue.reasons(asked, 6.0, 2.0)
    each = {step_id: queue.why(step_id, 6.0, 2.0) for step_id in asked}
    assert told == {step_id: reason for step_id, reason in each.items() if reason is not None}


def test_reason_counts_who_goes_before_and_estimates_when() -> None:
    queue = PoolQueue("p", Limits())
    for number in range(5):
        queue.push(step(number, at=number))
    queue.push(step("urgent", priority=90, at=9))
    assert queue.reasons(["urgent", 3], 10.0, 2.0) == {
        "urgent": BehindOthers(num_ahead=0, priority=90, until_at=10.5),
        3: BehindOthers(num_ahead=4, priority=50, until_at=12.5),
    }
    assert BehindOthers(num_ahead=0, priority=90).sentence(0) == (
        "It waits for a free slot as the next, with priority 90."
    )


def test_key_that_is_used_up_is_the_reason_from_the_decision_on_and_counts_as_waiting_for_keys() -> None:
    limits = Limits()
    limits.set_concurrency(tenant_key("t"), 2, 0)
    limits.set_rate("mail", 1, 10, 0)
    queue = PoolQueue("p", limits)
    for number in range(4):
        queue.push(step(number))
    for number in range(2):
        queue.push(step(f"mail-{number}", tenant="u", keys=(*CAPABILITY, "mail")))
    assert [queue.pop(1.0) is None for _ in range(4)] == [False, False, False, True]
    told = queue.reasons([2, 3, "mail-1"], 1.0)
    quota = QuotaReached(key="tenant:t", num_used=2, limit=2)
    assert told == {2: quota, 3: quota, "mail-1": RateReached(key="mail", num=1, per_s=10, until_at=11.0)}
    assert sorted(queue.waiting_for_keys()) == [
        (50, CAPABILITY, 2),
        (50, (*CAPABILITY, "mail"), 1),
    ]


def test_step_may_pass_only_where_neither_priority_nor_age_nor_another_tenant_speaks_against_it() -> None:
    queue = PoolQueue("p", Limits())
    assert queue.may_pass(step("new", at=9), 1.0)
    queue.push(step("waits", at=8))
    assert queue.may_pass(step("new", at=8.5), 1.0)
    assert not queue.may_pass(step("new", at=9.5), 1.0)
    assert not queue.may_pass(step("new", tenant="u", at=8), 1.0)
    assert not queue.may_pass(step("new", priority=10, at=8), 1.0)
    queue.push(step("other", tenant="u", at=8))
    assert not queue.may_pass(step("new", at=8), 1.0)


@pytest.mark.parametrize(("cost", "limit"), [(2.0, 2), (0.05, 2), (0.05, 3)])
def test_weights_hold_where_a_key_is_the_bound_because_parked_tenants_keep_what_they_had(
    cost: float, limit: int
) -> None:
    limits = Limits()
    limits.set_concurrency(CAPABILITY[0], limit, 0)
    limits.acquire(CAPABILITY * limit, 0)
    queue = PoolQueue("p", limits, weight_of={"acme": 2.0, "beta": 1.0}.__getitem__)
    for number in range(40):
        for tenant in ("beta", "acme"):
            queue.push(step((tenant, number), tenant, at=number, cost=cost))
            assert queue.front(0) is None, "all wait for the key"
    limits.release(CAPABILITY * limit, 0)
    running: deque[QueuedStep] = deque()
    started: list[str] = []
    now = 0.0
    while queue:
        while (found := queue.pop(now)) is not None:
            running.append(found)
            started.append(found.tenant)
        now += 0.05
        ended = running.popleft()
        queue.settle(ended, 0.05)
        limits.release((tenant_key(ended.tenant), *ended.keys), now)
    first = started[:30]
    assert (first.count("acme"), first.count("beta")) == (20, 10)
