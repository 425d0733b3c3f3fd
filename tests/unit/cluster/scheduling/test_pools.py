"""Declarations of pools: what cannot be placed is refused with the reason and what would do."""

from __future__ import annotations

from typing import Any

import msgspec
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
        ({"num_gpus": float("inf")}, "num_gpus must be 0 to 100,000, not inf"),
        ({"num_gpus": -1}, "num_gpus must be 0 to 100,000, not -1"),
        ({"resources": {"lora": -1}}, "resources lora must be 0 to 1,000,000,000, not -1"),
        ({"resources": {"GPU": 1}}, "GPU has a field of its own"),
        ({"gpu_memory_gb": 16}, "needs num_gpus"),
        ({"gang_size": 2, "num_gpus": 0.5}, "must be whole, or 0, where gang_size is above 1"),
        ({"gang_size": 0}, "gang_size must be 1 to 1,000, not 0"),
        ({"strategy": "TIGHT"}, "'TIGHT' is none of PACK, STRICT_PACK, SPREAD, STRICT_SPREAD"),
        ({"priority": 101}, "priority must be 0 to 100"),
        ({"target_wait_s": 0}, "target_wait_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"min_replicas": 2, "max_replicas": 1}, "min_replicas must not be above max_replicas, 1"),
    ],
)
def test_wrong_declaration_is_refused_with_the_reason(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        check_pool(pool(**fields))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "A b"),
        ("name", "x" * 64),
        ("name", ""),
        ("agents", ["nonsense"]),
        ("agents", ["os.system"]),
        ("agents", ["my agents:A"]),
        ("agents", ["m:A\n"]),
        ("capabilities", ["A B\0"]),
        ("capabilities", [""]),
        ("capabilities", ["c"] * 1_001),
        ("num_cpus", 1e308),
        ("num_cpus", float("nan")),
        ("num_gpus", 1e308),
        ("gpu_memory_gb", 1e308),
        ("memory_bytes", 1 << 60),
        ("resources", {"": 1}),
        ("resources", {"lora": 1e308}),
        ("resources", {"lora": float("nan")}),
        ("labels", {"": "x"}),
        ("labels", {"gpu": "\0"}),
        ("model", "a b"),
        ("gang_size", 2_000_000),
        ("concurrency", 10**12),
        ("min_replicas", -1),
        ("max_replicas", 10**9),
        ("target_wait_s", float("nan")),
        ("target_wait_s", float("inf")),
        ("idle_timeout_s", float("inf")),
        ("max_crashes", 0),
        ("max_crashes", -5),
        ("stop_grace_s", -5),
        ("stop_grace_s", float("inf")),
    ],
)
def test_value_out_of_its_range_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    fields = {"name": "p", "agents": ["m:A"], "num_gpus": 1, field: value}
    with pytest.raises(InvalidSetting, match=f": {field} ") as caught:
        check_pool(msgspec.convert(fields, PoolSpec))
    assert caught.value.details == {"field": field}


def test_values_at_the_ends_of_their_ranges_are_accepted() -> None:
    least = {"num_cpus": 0, "concurrency": 1, "max_crashes": 1, "stop_grace_s": 0, "idle_timeout_s": 0}
    most = {"num_cpus": 100_000, "gang_size": 1_000, "concurrency": 10_000, "max_replicas": 10_000}
    check_pool(pool(**least, target_wait_s=0.001))
    check_pool(pool(**most, capabilities=("a.b:c-1_D",), resources={"lora/x": 1e9}, labels={"zone": ""}))


def test_pool_without_agents_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="agents must be at least one"):
        check_pool(PoolSpec(name="p", agents=()))


def test_replica_of_a_gang_pool_asks_for_all_its_bundles() -> None:
    spec = pool(num_gpus=1, num_cpus=2, gang_size=4, strategy="STRICT_PACK", labels={"gpu": "H200"})
    check_pool(spec)
    request = request_of(spec, "agent-p-1")
    assert request.bundles == (bundle_of(1, num_cpus=2, labels={"gpu": "H200"}),) * 4
    assert request.strategy is Strategy.STRICT_PACK
    assert request.owner == "p"
