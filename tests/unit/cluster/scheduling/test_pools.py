"""Declarations of pools: what cannot be placed is refused with the reason and what would do."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import InvalidSetting
from cluster.scheduling.devices import SHARES_PER_GPU, bundle_of
from cluster.scheduling.packing import Strategy
from cluster.scheduling.pools import PoolSpec, check_pool, request_of


def pool(**fields: Any) -> PoolSpec:
    return PoolSpec(name="p", agents=("m:A",), **fields)


@pytest.mark.parametrize("num_gpus", [0, 0.5, 0.25, 0.3333, 1 / 3, 0.1, 0.01, 1, 2, 8])
def test_none_one_nth_and_whole_gpus_are_accepted(num_gpus: float) -> None:
    check_pool(pool(num_gpus=num_gpus))
    assert 0 <= pool(num_gpus=num_gpus).bundle.shares <= 8 * SHARES_PER_GPU


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_gpus": 0.4}, r"0.4 is not 1/n, .* nearest are 1/3 = 0.3333 and 1/2 = 0.5"),
        ({"num_gpus": 0.7}, r"nearest are 1/2 = 0.5 and 1/1 = 1"),
        ({"num_gpus": 1.5}, r"above 1 it must be whole, .* nearest are 1 and 2"),
        ({"num_gpus": 0.00001}, "below 1/10000"),
        ({"num_gpus": float("inf")}, "must not be negative"),
        ({"num_gpus": -1}, "must not be negative"),
        ({"resources": {"lora": -1}}, "must not be negative"),
        ({"resources": {"GPU": 1}}, "GPU has a field of its own"),
        ({"gpu_memory_gb": 16}, "needs num_gpus"),
        ({"gang_size": 2, "num_gpus": 0.5}, "must be whole, or 0, where gang_size is above 1"),
        ({"gang_size": 0}, "gang_size must be at least 1"),
        ({"strategy": "TIGHT"}, "'TIGHT' is none of PACK, STRICT_PACK, SPREAD, STRICT_SPREAD"),
        ({"priority": 101}, "priority must be 0 to 100"),
        ({"target_wait_s": 0}, "target_wait_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"min_replicas": 2, "max_replicas": 1}, "min_replicas <= max_replicas"),
    ],
)
def test_wrong_declaration_is_refused_with_the_reason(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        check_pool(pool(**fields))


def test_pool_without_agents_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="at least one agent"):
        check_pool(PoolSpec(name="p", agents=()))


def test_replica_of_a_gang_pool_asks_for_all_its_bundles() -> None:
    spec = pool(num_gpus=1, num_cpus=2, gang_size=4, strategy="STRICT_PACK", labels={"gpu": "H200"})
    check_pool(spec)
    request = request_of(spec, "agent-p-1")
    assert request.bundles == (bundle_of(1, num_cpus=2, labels={"gpu": "H200"}),) * 4
    assert request.strategy is Strategy.STRICT_PACK
    assert request.owner == "p"
