"""A snapshot as the scheduler would write it, for tests of those who read it."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import redis

from cluster.scheduling.pools import PoolSpec
from cluster.store import keys

LLM = PoolSpec(name="llm", agents=("my.agents:Llm",), num_gpus=0.25, max_replicas=4)
BASIC = PoolSpec(name="basic", agents=("actors.agents.basic:Noop",), num_cpus=0.1)


def snapshot(**fields: Any) -> dict[str, Any]:
    """One node with one device, a pool that has a quarter of it and waits for more, and some keys."""
    now = time.time()
    holder = {"replica": "agent-llm-1", "pool": "llm", "share": 0.25, "since": now - 60}
    device = {"index": 0, "free": 0.75, "total_gb": 80.0, "free_gb": 60.0, "holders": [holder]}
    return {
        "at": now,
        "nodes": [
            {
                "name": "n1",
                "labels": {"zone": "a"},
                "num_cpus": 8.0,
                "free_cpus": 3.5,
                "devices": [device],
            }
        ],
        "pools": [
            {
                "name": "llm",
                "spec": msgspec.to_builtins(LLM),
                "capabilities": ["llm"],
                "replicas": [{"id": "agent-llm-1", "node": "n1", "state": "ready", "since": now - 60}],
                "waiting": 3,
                "running": 4,
                "oldest_s": 2.5,
                "reason": {
                    "kind": "capacity_short",
                    "num_bundles": 1,
                    "missing": "GPU",
                    "num_missing": 0.25,
                    "until_at": now + 30,
                },
                "trouble": "",
            },
            {
                "name": "basic",
                "spec": msgspec.to_builtins(BASIC),
                "capabilities": ["noop"],
                "replicas": [],
                "waiting": 0,
                "running": 0,
                "oldest_s": 0.0,
                "reason": None,
                "trouble": "",
            },
        ],
        "limits": [
            {"key": "tenant:acme", "max_concurrent": 4, "num_used": 4, "rate": "", "burst": 1},
            {"key": "tenant:shop", "max_concurrent": 2, "num_used": 1, "rate": "", "burst": 1},
            {"key": "capability:llm", "max_concurrent": 8, "num_used": 4, "rate": "10/s", "burst": 5},
            {"key": "user-7", "max_concurrent": 1, "num_used": 1, "rate": "", "burst": 1},
        ],
        "utilisation": 0.25,
        "fragmentation": 0.5,
        "scale_events": {"started": 3, "retired": 1, "evicted": 1, "lost": 0},
        "wait_s": {"llm": [0.5, 2.0]},
        **fields,
    }


def tell(redis_url: str, told: dict[str, Any]) -> None:
    """Write it as the scheduler does."""
    with redis.Redis.from_url(redis_url) as client:
        client.set(keys.CAPACITY, msgspec.json.encode(told), ex=keys.CAPACITY_TTL_S)
