"""Replicas follow the work; what works is never ended, what is idle makes room for what is worth more."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling.devices import NodeSpec, bundle_of
from cluster.scheduling.elasticity import (
    IdleReplica,
    PoolLoad,
    choose_evictions,
    choose_retirements,
    replicas_for,
)
from cluster.scheduling.packing import Packer, Placement, Request
from cluster.scheduling.pools import PoolSpec

quick = settings(max_examples=100, deadline=None)


def pool(**fields: Any) -> PoolSpec:
    return PoolSpec(name="p", agents=("m:A",), **{"max_replicas": 10, "target_wait_s": 5.0, **fields})


def packer(num_gpus: int) -> Packer:
    found = Packer()
    found.add_node(NodeSpec(name="a", gpu_memory_gb=(0.0,) * num_gpus))
    return found


def gpus(name: str, num_gpus: float) -> Request:
    return Request(name, (bundle_of(num_gpus),))


def test_everything_that_waits_gets_a_slot_while_nobody_knows_how_long_it_takes() -> None:
    assert replicas_for(pool(), PoolLoad(num_waiting=9, num_running=4), 1) == 4


def test_short_attempts_share_slots_as_long_as_they_are_done_in_time() -> None:
    assert replicas_for(pool(), PoolLoad(1000, 4, mean_s=0.01), 1) == 2
    assert replicas_for(pool(), PoolLoad(1000, 4, mean_s=60.0), 1) == 10


def test_one_more_when_somebody_waits_longer_than_promised() -> None:
    assert replicas_for(pool(), PoolLoad(300, 4, oldest_s=6.0, mean_s=0.01), 3) == 4
    assert replicas_for(pool(), PoolLoad(300, 4, oldest_s=6.0, mean_s=0.01), 10) == 10


def test_no_more_than_have_a_use_however_long_somebody_waits() -> None:
    one_each = pool(concurrency=1)
    assert replicas_for(one_each, PoolLoad(1, 0, oldest_s=60.0), 1) == 1
    assert replicas_for(one_each, PoolLoad(4, 0, oldest_s=60.0), 4) == 4
    assert replicas_for(one_each, PoolLoad(1, 4, oldest_s=60.0), 4) == 5
    assert replicas_for(pool(), PoolLoad(1, 1, oldest_s=60.0, has_suspects=True), 1) == 2


def test_zero_without_work_and_one_for_the_first_attempt() -> None:
    assert replicas_for(pool(), PoolLoad(0, 0), 3) == 0
    assert replicas_for(pool(), PoolLoad(1, 0, mean_s=1e-9), 0) == 1
    assert replicas_for(pool(min_replicas=2), PoolLoad(0, 0), 3) == 2


@quick
@given(
    num_waiting=st.integers(0, 10_000),
    num_running=st.integers(0, 1000),
    oldest_s=st.floats(0, 100),
    mean_s=st.one_of(st.none(), st.floats(1e-6, 1e4)),
    num_now=st.integers(0, 12),
)
def test_bounds_hold_and_work_never_meets_zero_replicas(
    num_waiting: int, num_running: int, oldest_s: float, mean_s: float | None, num_now: int
) -> None:
    load = PoolLoad(num_waiting, num_running, oldest_s, mean_s)
    wanted = replicas_for(pool(min_replicas=1, max_replicas=7), load, num_now)
    assert 1 <= wanted <= 7
    of_use = -(-(num_waiting + num_running) // pool().concurrency)
    assert replicas_for(pool(), load, num_now) <= max(of_use, 1 if num_waiting else 0)
    assert replicas_for(pool(), load, num_now) >= (1 if num_waiting or num_running else 0)


def test_idle_replica_ends_after_its_time_and_the_longest_idle_first() -> None:
    idle = [IdleReplica(name, "p", 50, idle_s) for name, idle_s in (("a", 700), ("b", 900), ("c", 10))]
    spec = pool(idle_timeout_s=600)
    assert choose_retirements(spec, idle, num_now=4, wanted=1) == ["b", "a"]
    assert choose_retirements(spec, idle, num_now=2, wanted=1) == ["b"]
    assert choose_retirements(pool(min_replicas=4), idle, num_now=4, wanted=0) == []


def test_idle_replica_of_the_lowest_priority_goes_and_only_if_it_helps() -> None:
    nodes = packer(2)
    for name, size in (("half", 0.5), ("other half", 0.5), ("whole", 1)):
        assert isinstance(nodes.place(gpus(name, size), 0), Placement)
    idle = [
        IdleReplica("half", "a", 10, 100),
        IdleReplica("other half", "b", 20, 100),
        IdleReplica("whole", "c", 30, 5),
    ]
    assert choose_evictions(nodes, gpus("new", 1), 50, idle, 0) == ["whole"]
    assert choose_evictions(nodes, gpus("new", 1), 25, idle, 0) == ["half", "other half"]
    assert choose_evictions(nodes, gpus("new", 0.5), 50, idle, 0) == ["half"]
    assert choose_evictions(nodes, gpus("new", 1), 20, idle, 0) is None
    assert choose_evictions(nodes, gpus("new", 1), 25, idle[:1], 0) is None, "the other half works"
    nodes.release("whole")
    assert choose_evictions(nodes, gpus("new", 1), 50, idle, 0) == []


@quick
@given(
    st.lists(
        st.tuples(st.sampled_from((0.25, 0.5, 1.0)), st.integers(0, 100), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 100),
    st.sampled_from((0.5, 1.0, 2.0)),
)
def test_evictions_make_room_and_none_could_be_spared(
    replicas: list[tuple[float, int, bool]], priority: int, size: float
) -> None:
    nodes = packer(3)
    idle = []
    for number, (part, own_priority, is_idle) in enumerate(replicas):
        placed = isinstance(nodes.place(gpus(str(number), part), 0), Placement)
        if placed and is_idle:
            idle.append(IdleReplica(str(number), "p", own_priority, number))
    before = (nodes.free_shares, set(nodes.placements))
    chosen = choose_evictions(nodes, gpus("new", size), priority, idle, 0)
    assert (nodes.free_shares, set(nodes.placements)) == before
    if chosen is None:
        return
    assert set(chosen) <= {each.placement_id for each in idle if each.priority < priority}
    assert nodes.would_fit(gpus("new", size), chosen, 0)
    for name in chosen:
        assert not nodes.would_fit(gpus("new", size), [each for each in chosen if each != name], 0)
