"""What the scheduler told and what operators declare, on a real Redis of each kind."""

from __future__ import annotations

import msgspec
import pytest
import redis as sync_redis

from cluster.errors import InvalidInput
from cluster.scheduling.pools import PoolSpec
from cluster.scheduling.reasons import CapacityShort
from cluster.store import keys
from cluster.store.capacity import CapacityStore, LimitSpec, check_limit, parse_rate
from cluster.store.run_store import RunStore

pytestmark = pytest.mark.integration

POOL = PoolSpec(name="llm", agents=("my.agents:Llm",), num_gpus=0.25, max_replicas=4)


async def test_what_the_scheduler_told_is_read_whole_and_what_is_new_in_it_is_passed_over(
    url: str, store: RunStore
) -> None:
    told = {
        "at": 5.0,
        "mood": "unknown to this reader",
        "nodes": [
            {
                "name": "n1",
                "labels": {"zone": "a"},
                "num_cpus": 8.0,
                "free_cpus": 3.5,
                "devices": [
                    {
                        "index": 0,
                        "free": 0.75,
                        "total_gb": 80.0,
                        "free_gb": 60.0,
                        "holders": [{"replica": "agent-llm-1", "pool": "llm", "share": 0.25, "since": 1.0}],
                    }
                ],
            }
        ],
        "pools": [
            {
                "name": "llm",
                "spec": msgspec.to_builtins(POOL),
                "capabilities": ["llm"],
                "replicas": [{"id": "agent-llm-1", "node": "n1", "state": "ready", "since": 1.0}],
                "waiting": 3,
                "running": 4,
                "oldest_s": 2.5,
                "reason": {"kind": "capacity_short", "num_bundles": 1, "missing": "GPU", "num_missing": 0.25},
                "trouble": "",
            }
        ],
        "limits": [{"key": "tenant:acme", "max_concurrent": 4, "num_used": 4, "rate": "10/s", "burst": 5}],
        "utilisation": 0.25,
        "fragmentation": 0.5,
        "scale_events": {"started": 1, "retired": 0, "evicted": 0, "lost": 0},
        "wait_s": {"llm": [0.5, 2.0]},
    }
    capacity = CapacityStore(store.redis)
    assert await capacity.snapshot() is None
    with sync_redis.Redis.from_url(url) as client:
        client.set(keys.CAPACITY, msgspec.json.encode(told), ex=keys.CAPACITY_TTL_S)
    found = await capacity.snapshot()
    assert found is not None
    assert found.pools[0].spec == POOL
    assert found.pools[0].reason == CapacityShort(num_bundles=1, missing="GPU", num_missing=0.25)
    assert found.nodes[0].devices[0].holders[0].replica == "agent-llm-1"
    assert found.limits[0].num_used == 4
    assert found.wait_s == {"llm": (0.5, 2.0)}


async def test_declaration_is_kept_replaced_and_its_removal_remembered(store: RunStore) -> None:
    capacity = CapacityStore(store.redis)
    changed = msgspec.structs.replace(POOL, max_replicas=8)
    await capacity.put_pool(POOL)
    await capacity.put_pool(changed)
    await capacity.remove_pool("basic")
    assert await capacity.pools() == {"llm": changed, "basic": None}
    await capacity.put_limit("tenant:acme", LimitSpec(max_concurrent=4, rate="10/s", burst=5))
    await capacity.remove_limit("user-*")
    assert await capacity.limits() == {
        "tenant:acme": LimitSpec(max_concurrent=4, rate="10/s", burst=5),
        "user-*": None,
    }


@pytest.mark.parametrize(
    ("text", "rate"), [("10/s", (10.0, 1.0)), ("0.5/m", (0.5, 60.0)), ("5000/h", (5000.0, 3600.0))]
)
def test_rate_is_a_number_in_a_second_a_minute_or_an_hour(text: str, rate: tuple[float, float]) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("key", "limit", "field"),
    [
        ("with blank", LimitSpec(max_concurrent=1), "key"),
        ("k" * 129, LimitSpec(max_concurrent=1), "key"),
        ("k", LimitSpec(), "max_concurrent"),
        ("k", LimitSpec(max_concurrent=-1), "max_concurrent"),
        ("k", LimitSpec(rate="0/s"), "rate"),
        ("k", LimitSpec(rate="10/d"), "rate"),
        ("k", LimitSpec(rate="1e9/s"), "rate"),
        ("k", LimitSpec(max_concurrent=1, burst=0.5), "burst"),
        ("k", LimitSpec(max_concurrent=1, burst=float("nan")), "burst"),
    ],
)
def test_limit_that_cannot_be_kept_is_refused_by_its_field(key: str, limit: LimitSpec, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_limit(key, limit)
    assert caught.value.details["field"] == field
