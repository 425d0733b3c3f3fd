"""What a pool of agent replicas is. A declaration only: no replica, no cluster."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import msgspec

from cluster.errors import InvalidSetting
from cluster.scheduling.devices import Bundle, bundle_of
from cluster.scheduling.packing import Request, Strategy

__all__ = ["PoolSpec", "check_pool", "request_of"]

_RESERVED_RESOURCES = frozenset({"CPU", "GPU", "memory", "object_store_memory"})
_MAX_PARTS = 10_000
_DAY_S = 86_400
_YEAR_S = 365 * _DAY_S
_MAX_NAMES = 1_000
_RANGES: dict[str, tuple[float, float]] = {
    "num_cpus": (0, 100_000),
    "num_gpus": (0, 100_000),
    "gpu_memory_gb": (0, 100_000),
    "memory_bytes": (0, 1 << 50),
    "gang_size": (1, 1_000),
    "priority": (0, 100),
    "concurrency": (1, 10_000),
    "min_replicas": (0, 10_000),
    "max_replicas": (1, 10_000),
    "target_wait_s": (0.001, _YEAR_S),
    "idle_timeout_s": (0, _YEAR_S),
    "max_crashes": (1, 1_000),
    "stop_grace_s": (0, _DAY_S),
}
_MAX_RESOURCE = 1e9
_POOL_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_AGENT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*\Z")
_CAPABILITY = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")
_WORD = re.compile(r"[A-Za-z0-9_.:/@+-]{1,200}\Z")


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A pool of equal agent replicas; `check_pool` holds each field to its range.

    Attributes:
        name: Unique, `[a-z0-9-]`, up to 63 characters; replicas are called `agent-<name>-<n>`.
        agents: Import paths `package.module:Name` of the agents one replica serves, 1 to 1,000.
        capabilities: What they serve, `[A-Za-z0-9_.:-]{1,128}`; filled from the agents' own declaration when
            empty.
        num_cpus: CPUs reserved per replica, 0 to 100,000; per bundle in a gang.
        num_gpus: GPUs reserved per replica: 0, 1/n, or a whole number up to 100,000; per bundle in a gang.
        gpu_memory_gb: Memory it needs on each of its devices, up to 100,000; 0 means in proportion to its
            share.
        memory_bytes: Memory reserved per replica, up to 2**50; 0 reserves none.
        resources: Custom resources reserved per replica, by name (`[A-Za-z0-9_.:/@+-]{1,200}`), 0 to 1e9.
        labels: What its nodes must be labelled; names and values of the same characters.
        gang_size: Bundles of one replica, 1 to 1,000; more than one is a gang that gets all or none.
        strategy: How the bundles of a gang lie: PACK, STRICT_PACK, SPREAD, STRICT_SPREAD.
        model: The model that its replicas hold; "" where they load none, or several by turns.
        priority: 0 to 100: a pool that needs room may evict idle replicas of a lower one.
        concurrency: Executions at a time per replica, 1 to 10,000.
        min_replicas: Kept warm even when idle, 0 to `max_replicas`.
        max_replicas: Never more than this, 1 to 10,000.
        target_wait_s: Replicas are started so that nothing waits longer than this, 1 ms to a year.
        idle_timeout_s: An idle replica above the minimum ends after this long, 0 to a year.
        max_crashes: A step whose replica died this often under it is quarantined, 1 to 1,000.
        stop_grace_s: A cancelled execution that has not ended after this long (0 to a day) costs the replica
            its life.
    """

    name: str
    agents: tuple[str, ...]
    capabilities: tuple[str, ...] = ()
    num_cpus: float = 0.25
    num_gpus: float = 0.0
    gpu_memory_gb: float = 0.0
    memory_bytes: int = 0
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}
    gang_size: int = 1
    strategy: str = "PACK"
    model: str = ""
    priority: int = 50
    concurrency: int = 4
    min_replicas: int = 0
    max_replicas: int = 1
    target_wait_s: float = 5.0
    idle_timeout_s: float = 600.0
    max_crashes: int = 3
    stop_grace_s: float = 5.0

    @property
    def bundle(self) -> Bundle:
        """What one bundle of a replica needs.

        Raises:
            ValueError: The pool was never checked.
        """
        return bundle_of(
            self.num_gpus, self.gpu_memory_gb, self.num_cpus, self.memory_bytes, self.resources, self.labels
        )


def request_of(pool: PoolSpec, replica_id: str) -> Request:
    """Make the request of one replica; how long it lives nobody knows, so that it never passes a gang."""
    return Request(replica_id, (pool.bundle,) * pool.gang_size, Strategy(pool.strategy), None, pool.name)


def check_pool(pool: PoolSpec) -> None:
    """Check a declaration, wherever it comes from.

    Raises:
        InvalidSetting: A name has other characters than it may, a number is out of range, or `num_gpus` is a
            fraction that is not 1/n: only 1/n fills a device without remainder; the message names the
            nearest fractions that do. `details["field"]` is the field at fault.
    """
    if not _POOL_NAME.match(pool.name):
        raise InvalidSetting(
            f"pool {pool.name[:80]!r}: name must be 1 to 63 characters of a-z 0-9 -", field="name"
        )
    _check_names(pool)
    for field, (least, most) in _RANGES.items():
        value = getattr(pool, field)
        if not least <= value <= most:
            raise _wrong(pool, field, f"must be {least:,} to {most:,}, not {value:g}")
    for name, amount in pool.resources.items():
        if not 0 <= amount <= _MAX_RESOURCE:
            raise _wrong(pool, "resources", f"{name} must be 0 to {_MAX_RESOURCE:,.0f}, not {amount:g}")
    _check_gpus(pool)
    _check_gang(pool)
    if pool.min_replicas > pool.max_replicas:
        raise _wrong(pool, "min_replicas", f"must not be above max_replicas, {pool.max_replicas}")


def _wrong(pool: PoolSpec, field: str, message: str) -> InvalidSetting:
    return InvalidSetting(f"pool {pool.name}: {field} {message}", field=field)


def _check_names(pool: PoolSpec) -> None:
    if not pool.agents:
        raise _wrong(pool, "agents", "must be at least one")
    words: list[tuple[str, Iterable[str], re.Pattern[str], str]] = [
        ("agents", pool.agents, _AGENT, "a path package.module:Name"),
        ("capabilities", pool.capabilities, _CAPABILITY, "1 to 128 characters of A-Z a-z 0-9 _ . : -"),
        ("resources", pool.resources, _WORD, "1 to 200 characters of A-Z a-z 0-9 _ . : / @ + -"),
        ("labels", pool.labels, _WORD, "1 to 200 characters of A-Z a-z 0-9 _ . : / @ + -"),
        (
            "labels",
            filter(None, pool.labels.values()),
            _WORD,
            "up to 200 characters of A-Z a-z 0-9 _ . : / @ + -",
        ),
        ("model", filter(None, [pool.model]), _WORD, "up to 200 characters of A-Z a-z 0-9 _ . : / @ + -"),
    ]
    for field, found, pattern, shape in words:
        for number, word in enumerate(found):
            if number >= _MAX_NAMES:
                raise _wrong(pool, field, f"must be {_MAX_NAMES:,} at most")
            if not pattern.match(word):
                raise _wrong(pool, field, f"{word[:80]!r} is not {shape}")
    if reserved := _RESERVED_RESOURCES & pool.resources.keys():
        raise _wrong(pool, "resources", f"{min(reserved)} has a field of its own")


def _check_gpus(pool: PoolSpec) -> None:
    if 0 < pool.num_gpus < 1:
        _check_fraction(pool)
    elif pool.num_gpus != int(pool.num_gpus):
        below, above = math.floor(pool.num_gpus), math.ceil(pool.num_gpus)
        raise _wrong(
            pool,
            "num_gpus",
            f"{pool.num_gpus:g}: above 1 it must be whole, because a replica cannot have part of a second "
            f"device; nearest are {below} and {above}",
        )
    if pool.gpu_memory_gb and not pool.num_gpus:
        raise _wrong(pool, "gpu_memory_gb", "needs num_gpus above 0")


def _check_fraction(pool: PoolSpec) -> None:
    parts = 1 / pool.num_gpus
    if math.isclose(parts, round(parts), rel_tol=1e-3) and round(parts) <= _MAX_PARTS:
        return
    if parts > _MAX_PARTS:
        raise _wrong(pool, "num_gpus", f"{pool.num_gpus:g} is below 1/{_MAX_PARTS}")
    fewer, more = math.floor(parts), math.ceil(parts)
    raise _wrong(
        pool,
        "num_gpus",
        f"{pool.num_gpus:g} is not 1/n, so that equal replicas would leave a rest of each device that nobody "
        f"can use; nearest are 1/{more} = {1 / more:.4g} and 1/{fewer} = {1 / fewer:.4g}",
    )


def _check_gang(pool: PoolSpec) -> None:
    if pool.gang_size > 1 and 0 < pool.num_gpus < 1:
        raise _wrong(pool, "num_gpus", "must be whole, or 0, where gang_size is above 1")
    if pool.strategy not in set(Strategy):
        raise _wrong(pool, "strategy", f"{pool.strategy[:80]!r} is none of {', '.join(Strategy)}")
