"""What a pool of agent replicas is. A declaration only: no replica, no cluster."""

from __future__ import annotations

import math

import msgspec

from cluster.errors import InvalidSetting

__all__ = ["PoolSpec", "check_pool"]


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A pool of equal agent replicas.

    Attributes:
        name: Unique, `[a-z0-9-]+`; replicas are called `agent-<name>-<n>`.
        agents: Import paths `package.module:Name` of the agents one replica serves.
        capabilities: What they serve; filled from the agents' own declaration when empty.
        num_cpus: CPUs reserved per replica, >= 0.
        num_gpus: GPUs reserved per replica: 0, 1/n, or a whole number.
        memory_bytes: Memory reserved per replica; 0 reserves none.
        concurrency: Executions at a time per replica, >= 1.
        min_replicas: Kept warm even when idle.
        max_replicas: Never more than this.
        idle_timeout_s: An idle replica above the minimum ends after this long.
        max_crashes: A step whose replica died this often under it is quarantined.
        stop_grace_s: A cancelled execution that has not ended after this long costs the replica its life.
    """

    name: str
    agents: tuple[str, ...]
    capabilities: tuple[str, ...] = ()
    num_cpus: float = 0.25
    num_gpus: float = 0.0
    memory_bytes: int = 0
    concurrency: int = 4
    min_replicas: int = 0
    max_replicas: int = 1
    idle_timeout_s: float = 600.0
    max_crashes: int = 3
    stop_grace_s: float = 5.0


def check_pool(pool: PoolSpec) -> None:
    """Check a declaration.

    Raises:
        InvalidSetting: A number is out of range, or `num_gpus` is a fraction that is not 1/n: Ray places
            replicas by arithmetic on fractions, and only 1/n fills a device without remainder.
    """
    if not pool.agents:
        raise InvalidSetting(f"pool {pool.name}: needs at least one agent")
    if pool.num_gpus < 0 or pool.num_cpus < 0:
        raise InvalidSetting(f"pool {pool.name}: resources must not be negative")
    if 0 < pool.num_gpus < 1:
        shares = 1 / pool.num_gpus
        if not math.isclose(shares, round(shares), rel_tol=1e-6):
            raise InvalidSetting(f"pool {pool.name}: num_gpus {pool.num_gpus} is not 1/n")
    elif pool.num_gpus != int(pool.num_gpus):
        raise InvalidSetting(f"pool {pool.name}: num_gpus above 1 must be whole")
    if not 0 <= pool.min_replicas <= pool.max_replicas or pool.max_replicas < 1:
        raise InvalidSetting(
            f"pool {pool.name}: need 0 <= min_replicas <= max_replicas and max_replicas >= 1"
        )
    if pool.concurrency < 1:
        raise InvalidSetting(f"pool {pool.name}: concurrency must be at least 1")
