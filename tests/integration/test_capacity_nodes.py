"""Several nodes with pretended GPUs and labels: gangs across them, and what dies with a node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from cluster import placement_groups
from cluster.scheduling.reasons import CapacityShort, LabelMissing, NodeTooSmall
from cluster.store import keys
from tests.integration.declared_pools import DeclaredPools
from tests.integration.running_service import RunningService, eventually

ANNEX = {"zone": "annex"}

AddNode = Callable[[], Any]


@pytest.fixture
def add_annex(ray_cluster: Cluster) -> Iterator[AddNode]:
    """Adds nodes with one GPU, labelled; those that live yet are taken away after the test."""
    added: list[Any] = []

    def add() -> Any:
        added.append(
            ray_cluster.add_node(
                num_cpus=1, num_gpus=1, object_store_memory=80 << 20, labels=ANNEX, resources={"camera": 1}
            )
        )
        return added[-1]

    yield add
    for node in added:
        if node in ray_cluster.list_all_nodes():
            ray_cluster.remove_node(node)


@pytest.fixture
def pools(service: RunningService, add_annex: AddNode, tmp_path: Path) -> Iterator[DeclaredPools]:
    declared = DeclaredPools(service, tmp_path)
    yield declared
    declared.remove_all()


def nodes_of(pools: DeclaredPools, pool: str) -> set[str]:
    told = pools.service.scheduler_status()["replicas"].values()
    return {each["node"] for each in told if each["pool"] == pool}


def test_pool_that_asks_for_a_label_starts_on_the_node_that_comes_with_it(
    pools: DeclaredPools, add_annex: AddNode
) -> None:
    pools.declare("labelled", capabilities=["one"], num_gpus=0.5, labels=ANNEX, max_replicas=2)
    pools.declare("camera", capabilities=["two"], resources={"camera": 1}, memory_bytes=1 << 20, num_cpus=0.5)
    with pools.work("one", 2), pools.work("two"):
        assert isinstance(eventually(lambda: pools.pool("labelled").reason, "it waits"), LabelMissing)
        assert isinstance(eventually(lambda: pools.pool("camera").reason, "it waits"), NodeTooSmall)
        node = add_annex()
        pools.await_replicas("labelled", 2)
        pools.await_replicas("camera", 1)
        assert nodes_of(pools, "labelled") == nodes_of(pools, "camera") == {node.node_id}
        eventually(lambda: pools.pool("labelled").reason is None, "nothing is short")


def test_gang_that_loses_a_node_ends_as_a_whole_and_begins_anew_on_others(
    pools: DeclaredPools, add_annex: AddNode, ray_cluster: Cluster
) -> None:
    pools.declare(
        "gang", capabilities=["two"], num_gpus=1, gang_size=2, strategy="STRICT_SPREAD", labels=ANNEX
    )
    first, second = add_annex(), add_annex()
    with pools.work("two") as (run_id,):
        (before,) = pools.await_replicas("gang", 1)
        assert set(placement_groups.list_groups()[before].nodes) == {first.node_id, second.node_id}
        eventually(lambda: pools.num_begun() == 1, "it works")

        ray_cluster.remove_node(second, allow_graceful=True)

        short = eventually(lambda: pools.pool("gang").reason, "it waits for another node")
        assert isinstance(short, CapacityShort)
        eventually(lambda: before not in placement_groups.list_groups(), "nothing of it is left")
        assert before.encode() not in pools.service.redis.hkeys(keys.LEDGER)
        third = add_annex()
        (after,) = pools.await_replicas("gang", 1)
        assert set(placement_groups.list_groups()[after].nodes) == {first.node_id, third.node_id}
        eventually(lambda: pools.num_begun() == 2, "its Step is done again")
    (step,) = pools.service.view(run_id).steps
    assert (step.attempt, len(step.story)) == (2, 1)


def test_replicas_of_a_node_that_was_killed_are_placed_on_another_and_the_ledger_is_clean(
    pools: DeclaredPools, add_annex: AddNode, ray_cluster: Cluster
) -> None:
    pools.declare("halves", capabilities=["one"], num_gpus=0.5, labels=ANNEX, max_replicas=2)
    doomed = add_annex()
    with pools.work("one", 2) as run_ids:
        lost = pools.await_replicas("halves", 2)
        eventually(lambda: pools.num_begun() == 2, "both work")
        spare = add_annex()

        ray_cluster.remove_node(doomed, allow_graceful=False)

        eventually(
            lambda: (
                len(pools.service.replicas("halves")) == 2 and nodes_of(pools, "halves") == {spare.node_id}
            ),
            "both are placed anew",
            60,
        )
        eventually(lambda: pools.num_begun() >= 4, "both work again")
        assert not {name.encode() for name in lost} & set(pools.service.redis.hkeys(keys.LEDGER))
        eventually(
            lambda: doomed.node_id not in {each.name for each in pools.snapshot().nodes}, "the node is gone"
        )
    assert {step.attempt for run_id in run_ids for step in pools.service.view(run_id).steps} == {2}
