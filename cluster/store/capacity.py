"""Capacity as clients see it: the scheduler's last snapshot, and what operators declared at run time.

The scheduler alone decides; what is written here is a wish that it reads, and what is read here is what it
told. A snapshot may say more than this module knows: unknown fields are passed over, so that a newer
scheduler does not blind an older reader.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from redis.asyncio import Redis

from cluster.errors import InvalidInput
from cluster.scheduling.pools import PoolSpec
from cluster.scheduling.reasons import QuotaReached, RateReached, Reason
from cluster.store import keys
from cluster.store.connection import redis_errors_as_ours

__all__ = [
    "CapacitySnapshot",
    "CapacityStore",
    "DeviceState",
    "Holder",
    "LimitSpec",
    "LimitState",
    "NodeState",
    "PoolState",
    "ReplicaState",
    "check_limit",
    "parse_rate",
]

_KEY = re.compile(r"[A-Za-z0-9_.:*-]{1,128}\Z")
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)/([smh])\Z")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_REMOVED = b""


class Holder(msgspec.Struct, frozen=True):
    """Who has a share of a device.

    Attributes:
        replica: Its id.
        pool: Its pool.
        share: Of the device, 0 to 1.
        since: Unix seconds.
    """

    replica: str
    pool: str
    share: float
    since: float


class DeviceState(msgspec.Struct, frozen=True):
    """A GPU: the free share of it (0 to 1), its memory and its holders."""

    index: int
    free: float
    total_gb: float = 0.0
    free_gb: float = 0.0
    holders: tuple[Holder, ...] = ()


class NodeState(msgspec.Struct, frozen=True):
    """A node with what is left of it."""

    name: str
    num_cpus: float
    free_cpus: float
    labels: dict[str, str] = {}
    devices: tuple[DeviceState, ...] = ()


class ReplicaState(msgspec.Struct, frozen=True):
    """A replica: `state` is ready, starting or retiring, `since` is in Unix seconds."""

    id: str
    node: str
    state: str
    since: float


class PoolState(msgspec.Struct, frozen=True):
    """How a pool stands.

    Attributes:
        spec: Its declaration, as it is in force.
        capabilities: What it serves.
        replicas: All of them.
        waiting: StepRuns that wait for it.
        running: StepRuns that it works on.
        oldest_s: How long the oldest of those waits.
        reason: Why it cannot grow now; None where it can, or need not.
        trouble: Why its agents do not start, "" where they do.
    """

    name: str
    spec: PoolSpec
    capabilities: tuple[str, ...] = ()
    replicas: tuple[ReplicaState, ...] = ()
    waiting: int = 0
    running: int = 0
    oldest_s: float = 0.0
    reason: Reason | None = None
    trouble: str = ""


class LimitState(msgspec.Struct, frozen=True):
    """A concurrency or rate key and its use in the whole cluster; `pattern` is the declared one that limits
    it, "" where it is declared itself.
    """

    key: str
    max_concurrent: int | None = None
    num_used: int = 0
    rate: str | float | None = None
    burst: float = 1.0
    pattern: str = ""


class CapacitySnapshot(msgspec.Struct, frozen=True):
    """Everything the scheduler decides about, at one instant.

    Attributes:
        at: Unix seconds.
        utilisation: Share of all devices (CPUs where there are none) that is held, 0 to 1.
        fragmentation: Share of the free device capacity that no whole device has, 0 to 1.
        scale_events: Counts since the scheduler began: started, retired, evicted, lost.
        wait_s: Median and 95th percentile of how long StepRuns waited that got a slot in the last minute (the
            last 512 of them), by capability.
    """

    at: float
    nodes: tuple[NodeState, ...] = ()
    pools: tuple[PoolState, ...] = ()
    limits: tuple[LimitState, ...] = ()
    utilisation: float = 0.0
    fragmentation: float = 0.0
    scale_events: dict[str, int] = {}
    wait_s: dict[str, tuple[float, float]] = {}

    def whole(self, reason: Reason) -> Reason:
        """Say a limit as the cluster has it: who decided by it knows a share of it only."""
        if not isinstance(reason, QuotaReached | RateReached):
            return reason
        limit = next((each for each in self.limits if each.key == reason.key), None)
        if limit is None:
            return reason
        if isinstance(reason, QuotaReached):
            if limit.max_concurrent is None:
                return reason
            num_used = max(limit.num_used, reason.num_used)
            return msgspec.structs.replace(reason, num_used=num_used, limit=limit.max_concurrent)
        if not isinstance(limit.rate, str) or not _RATE.match(limit.rate):
            return reason
        num, per_s = parse_rate(limit.rate)
        return msgspec.structs.replace(reason, num=num, per_s=per_s)


class LimitSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a key limits.

    Attributes:
        max_concurrent: How many StepRuns may have the key at a time, >= 0; None for any number.
        rate: How many may begin in a time, "10/s", "600/m" or "5000/h"; "" for any number.
        burst: How many may begin at once after a pause, >= 1.
    """

    max_concurrent: int | None = None
    rate: str = ""
    burst: float = 1.0


_snapshots = msgspec.json.Decoder(CapacitySnapshot)
_pools = msgspec.json.Decoder(PoolSpec)
_limits = msgspec.json.Decoder(LimitSpec)


def parse_rate(text: str) -> tuple[float, float]:
    """Read "n/s", "n/m" or "n/h" as (n, seconds).

    Raises:
        InvalidInput: It is none of these, or n is 0.
    """
    found = _RATE.match(text)
    if found is None or not float(found[1]):
        raise InvalidInput(f"rate: {text!r} is not of the form 10/s, 600/m or 5000/h", field="rate")
    return float(found[1]), _SECONDS[found[2]]


def check_limit(key: str, limit: LimitSpec) -> None:
    """Check a declaration.

    Raises:
        InvalidInput: The key has other characters than `A-Za-z0-9_.:*-`, a number is out of its range, or
            nothing is limited.
    """
    if not _KEY.match(key):
        raise InvalidInput("key: must be 1 to 128 characters of A-Z a-z 0-9 _ . : * -", field="key")
    if limit.max_concurrent is None and not limit.rate:
        raise InvalidInput("give max_concurrent, rate or both", field="max_concurrent")
    if limit.max_concurrent is not None and limit.max_concurrent < 0:
        raise InvalidInput("max_concurrent: must not be negative", field="max_concurrent")
    if limit.rate:
        parse_rate(limit.rate)
    if not 1 <= limit.burst <= 1e9:
        raise InvalidInput("burst: must be at least 1", field="burst")


class CapacityStore:
    """Reads the snapshot, keeps declarations. All methods raise Unavailable when Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def snapshot(self) -> CapacitySnapshot | None:
        """Read what the scheduler told last; None where it has told nothing for `CAPACITY_TTL_S`."""
        with redis_errors_as_ours():
            raw: Any = await self._redis.get(keys.CAPACITY)
        return None if raw is None else _snapshots.decode(raw)

    async def pools(self) -> dict[str, PoolSpec | None]:
        """Read what was declared at run time; None stands for a pool that was removed."""
        return await self._read(keys.POOLS, _pools)

    async def put_pool(self, spec: PoolSpec) -> None:
        """Declare a pool, or change it."""
        await self._write(keys.POOLS, spec.name, msgspec.json.encode(spec))

    async def remove_pool(self, name: str) -> None:
        """Remove a pool, wherever it was declared."""
        await self._write(keys.POOLS, name, _REMOVED)

    async def limits(self) -> dict[str, LimitSpec | None]:
        """Read what was declared at run time; None stands for a key that was freed."""
        return await self._read(keys.LIMITS, _limits)

    async def put_limit(self, key: str, limit: LimitSpec) -> None:
        """Limit a key, or change its limit."""
        await self._write(keys.LIMITS, key, msgspec.json.encode(limit))

    async def remove_limit(self, key: str) -> None:
        """Free a key, wherever it was limited."""
        await self._write(keys.LIMITS, key, _REMOVED)

    async def _read(self, name: str, decoder: msgspec.json.Decoder[Any]) -> dict[str, Any]:
        with redis_errors_as_ours():
            rows: Any = await self._redis.hgetall(name)
        return {key.decode(): decoder.decode(raw) if raw else None for key, raw in rows.items()}

    async def _write(self, name: str, field: str, raw: bytes) -> None:
        with redis_errors_as_ours():
            await self._redis.hset(name, field, raw)
