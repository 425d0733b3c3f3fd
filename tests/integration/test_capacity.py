"""Pools on one node with four pretended GPUs: who gets which, in which order, and how it is given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster import placement_groups
from cluster.scheduling.reasons import CapacityShort, LabelMissing, NodeTooSmall
from cluster.store import keys
from tests.integration.declared_pools import DeclaredPools
from tests.integration.running_service import RunningService, eventually
from tests.integration.test_scheduler_death import await_new_scheduler, kill_scheduler


@pytest.fixture
def pools(service: RunningService, tmp_path: Path) -> Iterator[DeclaredPools]:
    declared = DeclaredPools(service, tmp_path)
    yield declared
    declared.remove_all()


def device_groups() -> list[str]:
    return [name for name in placement_groups.list_groups() if name.startswith("gpu-")]


def test_quarters_share_one_device_so_that_three_whole_ones_still_fit(pools: DeclaredPools) -> None:
    pools.declare("quarters", capabilities=["one"], num_gpus=0.25, max_replicas=4)
    pools.declare("wholes", capabilities=["two"], num_gpus=3)

    with pools.work("one", 4), pools.work("two"):
        quarters, wholes = pools.await_replicas("quarters", 4), pools.await_replicas("wholes", 1)
        assert len({tuple(gpus) for gpus in pools.gpus_of(quarters)}) == 1
        assert len(pools.gpus_of(wholes)[0]) == 3
        assert not {*pools.gpus_of(wholes)[0]} & {*pools.gpus_of(quarters)[0]}
        assert len(device_groups()) == 1
        eventually(lambda: pools.snapshot().utilisation == 1.0, "all is in use")

        shared = [each for each in pools.snapshot().nodes[0].devices if len(each.holders) == 4]
        assert [holder.share for holder in shared[0].holders] == [0.25] * 4

    pools.declare("quarters", capabilities=["one"], num_gpus=0.25, max_replicas=4, idle_timeout_s=0.0)
    pools.await_replicas("quarters", 0)
    eventually(lambda: not device_groups(), "the device is given back")


def test_fraction_that_is_not_one_nth_changes_nothing(pools: DeclaredPools, service: RunningService) -> None:
    pools.declare("thirds", capabilities=["one"], num_gpus=1 / 3)

    service.redis.hset(
        keys.POOLS,
        "thirds",
        b'{"name":"thirds","agents":["tests.integration.agents_for_tests:held"],"num_gpus":0.3}',
    )
    pools.declare("last", capabilities=["two"])

    assert pools.pool("thirds").spec.num_gpus == 1 / 3


def test_gang_waits_for_all_its_devices_and_keeps_others_off_what_is_free_meanwhile(
    pools: DeclaredPools,
) -> None:
    pools.declare("wholes", capabilities=["one"], num_gpus=1, max_replicas=3, idle_timeout_s=0.0)
    pools.declare("gang", capabilities=["two"], num_gpus=1, gang_size=2, strategy="STRICT_PACK")
    pools.declare("late", capabilities=["three"], num_gpus=0.5, priority=40)

    with ExitStack() as first_to_end, pools.work("one", 2):
        first_to_end.enter_context(pools.work("one"))
        pools.await_replicas("wholes", 3)
        with pools.work("two"):
            short = eventually(lambda: pools.pool("gang").reason, "the gang waits")
            assert isinstance(short, CapacityShort)
            assert (short.num_bundles, short.missing, short.num_missing) == (2, "GPU", 1.0)
            with pools.work("three") as late:
                eventually(lambda: pools.pool("late").reason, "who came later waits, although one is free")
                assert sorted(each.free for each in pools.snapshot().nodes[0].devices) == [0, 0, 0, 1]
                groups = placement_groups.list_groups().values()
                assert not [each for each in groups if len(each.bundles) == 2 and each.is_placed]

                first_to_end.close()

                (gang,) = pools.await_replicas("gang", 1)
                assert len(placement_groups.list_groups()[gang].bundles) == 2
                assert not pools.service.replicas("late")
                pools.service.command(late, "cancel")


def test_idle_replica_of_lower_priority_ends_for_one_that_is_needed(pools: DeclaredPools) -> None:
    pools.declare("low", capabilities=["one"], num_gpus=4, priority=10)
    pools.declare("high", capabilities=["two"], num_gpus=1, priority=90)
    with ExitStack() as low_works:
        low_works.enter_context(pools.work("one"))
        (low,) = pools.await_replicas("low", 1)
        before = pools.snapshot().scale_events["evicted"]
        with pools.work("two"):
            eventually(lambda: pools.pool("high").reason, "it waits while the other works")
            assert pools.service.replicas("low") == [low]

            low_works.close()

            pools.await_replicas("high", 1)
            assert not pools.service.replicas("low"), "it was evicted"
            eventually(lambda: pools.snapshot().scale_events["evicted"] == before + 1, "it is counted")
    assert pools.num_begun() == 2, "what worked was let finish"


def test_idle_pool_goes_to_zero_and_comes_back_with_no_more_than_have_work(pools: DeclaredPools) -> None:
    pools.declare(
        "brief", capabilities=["one"], num_gpus=0.5, idle_timeout_s=0.3, max_replicas=4, target_wait_s=0.001
    )
    before = pools.snapshot().scale_events["started"]
    with pools.work("one"):
        (first,) = pools.await_replicas("brief", 1)
        eventually(lambda: pools.pool("brief").running == 1, "the scheduler knows that nothing waits")
        assert pools.snapshot().scale_events["started"] == before + 1, "what waited meanwhile has its replica"
    pools.await_replicas("brief", 0)
    eventually(lambda: not device_groups(), "the device is given back")
    with pools.work("one"):
        assert pools.await_replicas("brief", 1) != [first]


def test_pool_grows_with_what_waits_up_to_its_bound(pools: DeclaredPools) -> None:
    pools.declare("grows", capabilities=["one"], concurrency=2, max_replicas=3, min_replicas=1)
    pools.await_replicas("grows", 1)
    with pools.work("one", 10):
        pools.await_replicas("grows", 3)
        eventually(lambda: pools.num_begun() == 6, "all slots are in use")
        eventually(
            lambda: pools.snapshot().wait_s.get("one", (0.0, 0.0))[1] > 0.0, "what they waited is told"
        )
        pools.declare("grows", capabilities=["one"], concurrency=2, max_replicas=4, min_replicas=1)
        eventually(lambda: pools.num_begun() == 8, "one more works")


def test_more_concurrency_acts_at_once_on_replicas_that_run(pools: DeclaredPools) -> None:
    pools.declare("wide", capabilities=["one"])
    with pools.work("one", 3):
        (only,) = pools.await_replicas("wide", 1)
        eventually(lambda: pools.num_begun() == 1, "one has the only slot")
        pools.declare("wide", capabilities=["one"], concurrency=3)
        eventually(lambda: pools.num_begun() == 3, "all have slots")
        assert pools.service.replicas("wide") == [only]


def test_change_of_resources_replaces_replicas_and_lets_them_finish(pools: DeclaredPools) -> None:
    pools.declare("changed", capabilities=["one"], min_replicas=1)
    with pools.work("one"):
        (old,) = pools.await_replicas("changed", 1)
        eventually(lambda: pools.num_begun() == 1, "it works")
        pools.declare("changed", capabilities=["one"], min_replicas=1, num_cpus=0.2)
        eventually(
            lambda: {each.state for each in pools.pool("changed").replicas} == {"ready", "retiring"},
            "a new one is ready beside the old one",
        )
    assert pools.await_replicas("changed", 1) != [old]
    assert pools.num_begun() == 1, "nothing was done twice"


def test_what_no_node_has_is_told_as_the_reason_and_as_demand_for_the_autoscaler(
    pools: DeclaredPools,
) -> None:
    pools.declare("huge", capabilities=["one"], num_gpus=9)
    pools.declare("special", capabilities=["two"], num_gpus=0.5, labels={"zone": "moon"})
    with pools.work("one") as (huge,), pools.work("two") as (special,):
        assert isinstance(eventually(lambda: pools.pool("huge").reason, "a reason"), NodeTooSmall)
        assert isinstance(eventually(lambda: pools.pool("special").reason, "a reason"), LabelMissing)
        asked = eventually(
            lambda: (
                sorted(
                    (name.rpartition("-")[0], each.state, each.bundles)
                    for name, each in placement_groups.list_groups().items()
                    if name.startswith("demand-")
                )
                if len(placement_groups.list_groups()) >= 2
                else None
            ),
            "both are asked for",
        )
        assert asked == [
            ("demand-huge", "PENDING", ({"GPU": 9.0},)),
            ("demand-special", "PENDING", ({"GPU": 1.0},)),
        ]
        pools.service.command([huge, special], "cancel")
        eventually(lambda: not placement_groups.list_groups(), "nothing is asked for any more")


def test_key_limited_at_run_time_holds_for_all_orchestrators_together(pools: DeclaredPools) -> None:
    pools.declare("wide", capabilities=["one"], concurrency=64)
    pools.limit("user:*", max_concurrent=3)
    eventually(lambda: pools.snapshot().limits, "the limit is known")
    with pools.work("one", 12, step={"keys": ("user:ann",)}):
        eventually(lambda: pools.num_begun() == 3, "three have the key")
        used = eventually(
            lambda: [each for each in pools.snapshot().limits if each.num_used == 3], "all is told as used"
        )
        assert used[0].key == "user:ann"
        assert pools.num_begun() == 3
        pools.limit("user:*", max_concurrent=5)
        eventually(lambda: pools.num_begun() == 5, "five have the key")


def test_killed_scheduler_finds_parts_of_devices_again_and_doubles_nothing(pools: DeclaredPools) -> None:
    pools.declare("halves", capabilities=["one"], num_gpus=0.5, max_replicas=3)
    with pools.work("one", 3):
        before = pools.await_replicas("halves", 3)
        eventually(lambda: pools.num_begun() == 3, "all work")
        groups = set(placement_groups.list_groups())

        await_new_scheduler(pools.service, kill_scheduler(pools.service))

        assert pools.await_replicas("halves", 3) == before
        assert set(placement_groups.list_groups()) == groups
        eventually(
            lambda: sorted(each.free for each in pools.snapshot().nodes[0].devices) == [0.0, 0.5, 1.0, 1.0],
            "shares are as they were",
        )
        pools.declare("halves", capabilities=["one"], num_gpus=0.5, max_replicas=4)
        with pools.work("one"):
            pools.await_replicas("halves", 4)
            assert set(device_groups()) == {name for name in groups if name.startswith("gpu-")}
    assert pools.num_begun() == 4


def test_groups_that_stand_in_no_ledger_are_freed_while_the_scheduler_lives(pools: DeclaredPools) -> None:
    placement_groups.reserve("gpu-nobodys", [{"GPU": 1.0}])
    placement_groups.reserve("demand-nobodys-1", [{"GPU": 1.0}])
    pools.service.redis.hset(keys.LEDGER, "agent-nobodys-7", b"{}")

    eventually(lambda: not placement_groups.list_groups(), "the groups are freed")
    eventually(lambda: not pools.service.redis.hexists(keys.LEDGER, "agent-nobodys-7"), "the entry is gone")


def test_replica_whose_group_was_taken_away_is_replaced(pools: DeclaredPools) -> None:
    pools.declare("robbed", capabilities=["one"], num_gpus=0.5, min_replicas=1)
    (first,) = pools.await_replicas("robbed", 1)

    placement_groups.free_named(first)

    eventually(lambda: pools.service.replicas("robbed") not in ([first], []), "another took its place")
    assert pools.snapshot().scale_events["lost"] >= 1
