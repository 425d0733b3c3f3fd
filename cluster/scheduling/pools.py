"""What a pool of agent replicas is. A declaration only: no replica, no cluster."""

from __future__ import annotations

import math

import msgspec

from cluster.errors import InvalidSetting
from cluster.scheduling.devices import Bundle, bundle_of
from cluster.scheduling.packing import Request, Strategy

__all__ = ["PoolSpec", "check_pool", "request_of"]

_RESERVED_RESOURCES = frozenset({"CPU", "GPU", "memory", "object_store_memory"})
_MAX_PARTS = 10_000
_TOP_PRIORITY = 100


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A pool of equal agent replicas.

    Attributes:
        name: Unique, `[a-z0-9-]+`; replicas are called `agent-<name>-<n>`.
        agents: Import paths `package.module:Name` of the agents one replica serves.
        capabilities: What they serve; filled from the agents' own declaration when empty.
        num_cpus: CPUs reserved per replica, >= 0; per bundle in a gang.
        num_gpus: GPUs reserved per replica: 0, 1/n, or a whole number; per bundle in a gang.
        gpu_memory_gb: Memory it needs on each of its devices; 0 means in proportion to its share.
        memory_bytes: Memory reserved per replica; 0 reserves none.
        resources: Custom resources reserved per replica, by name.
        labels: What its nodes must be labelled.
        gang_size: Bundles of one replica, >= 1; more than one is a gang that gets all or none.
        strategy: How the bundles of a gang lie: PACK, STRICT_PACK, SPREAD, STRICT_SPREAD.
        model: The model that its replicas hold; "" where they load none, or several by turns.
        priority: 0 to 100: a pool that needs room may evict idle replicas of a lower one.
        concurrency: Executions at a time per replica, >= 1.
        min_replicas: Kept warm even when idle.
        max_replicas: Never more than this.
        target_wait_s: Replicas are started so that nothing waits longer than this, > 0.
        idle_timeout_s: An idle replica above the minimum ends after this long.
        max_crashes: A step whose replica died this often under it is quarantined.
        stop_grace_s: A cancelled execution that has not ended after this long costs the replica its life.
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
    """Check a declaration.

    Raises:
        InvalidSetting: A number is out of range, or `num_gpus` is a fraction that is not 1/n: only 1/n fills
            a device without remainder. The message names the nearest fractions that do.
    """
    if not pool.agents:
        raise InvalidSetting(f"pool {pool.name}: needs at least one agent")
    _check_resources(pool)
    _check_gang(pool)
    if not 0 <= pool.min_replicas <= pool.max_replicas or pool.max_replicas < 1:
        raise InvalidSetting(
            f"pool {pool.name}: need 0 <= min_replicas <= max_replicas and max_replicas >= 1"
        )
    if pool.concurrency < 1:
        raise InvalidSetting(f"pool {pool.name}: concurrency must be at least 1")
    if not 0 <= pool.priority <= _TOP_PRIORITY:
        raise InvalidSetting(f"pool {pool.name}: priority must be 0 to {_TOP_PRIORITY}")
    if pool.target_wait_s <= 0 or pool.idle_timeout_s < 0:
        raise InvalidSetting(f"pool {pool.name}: target_wait_s must be above 0, idle_timeout_s not negative")


def _check_resources(pool: PoolSpec) -> None:
    amounts = (pool.num_gpus, pool.num_cpus, pool.gpu_memory_gb, pool.memory_bytes, *pool.resources.values())
    if not all(math.isfinite(amount) and amount >= 0 for amount in amounts):
        raise InvalidSetting(f"pool {pool.name}: resources must not be negative")
    if 0 < pool.num_gpus < 1:
        _check_fraction(pool)
    elif pool.num_gpus != int(pool.num_gpus):
        below, above = math.floor(pool.num_gpus), math.ceil(pool.num_gpus)
        raise InvalidSetting(
            f"pool {pool.name}: num_gpus {pool.num_gpus:g}: above 1 it must be whole, because a replica "
            f"cannot have part of a second device; nearest are {below} and {above}"
        )
    if pool.gpu_memory_gb and not pool.num_gpus:
        raise InvalidSetting(f"pool {pool.name}: gpu_memory_gb needs num_gpus above 0")
    if reserved := _RESERVED_RESOURCES & pool.resources.keys():
        raise InvalidSetting(f"pool {pool.name}: resources: {min(reserved)} has a field of its own")


def _check_fraction(pool: PoolSpec) -> None:
    parts = 1 / pool.num_gpus
    if math.isclose(parts, round(parts), rel_tol=1e-3) and round(parts) <= _MAX_PARTS:
        return
    if parts > _MAX_PARTS:
        raise InvalidSetting(f"pool {pool.name}: num_gpus {pool.num_gpus:g} is below 1/{_MAX_PARTS}")
    fewer, more = math.floor(parts), math.ceil(parts)
    raise InvalidSetting(
        f"pool {pool.name}: num_gpus {pool.num_gpus:g} is not 1/n, so that equal replicas would leave a rest "
        f"of each device that nobody can use; nearest are 1/{more} = {1 / more:.4g} and "
        f"1/{fewer} = {1 / fewer:.4g}"
    )


def _check_gang(pool: PoolSpec) -> None:
    if pool.gang_size < 1:
        raise InvalidSetting(f"pool {pool.name}: gang_size must be at least 1")
    if pool.gang_size > 1 and 0 < pool.num_gpus < 1:
        raise InvalidSetting(f"pool {pool.name}: num_gpus must be whole, or 0, where gang_size is above 1")
    if pool.strategy not in set(Strategy):
        raise InvalidSetting(f"pool {pool.name}: strategy {pool.strategy!r} is none of {', '.join(Strategy)}")
