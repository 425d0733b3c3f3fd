"""What orchestrators and the scheduler tell each other: what waits; who serves what, and how many slots and
which shares of the limits each may use. Plain values; it decides nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from cluster.scheduling.pools import PoolSpec
from cluster.scheduling.reasons import Reason

__all__ = ["KeyLimit", "KeyUse", "Needs", "PoolEntry", "PoolTable", "ReplicaEntry"]


class KeyUse(NamedTuple):
    """How an orchestrator uses a concurrency key.

    Attributes:
        num_used: StepRuns of its that hold the key.
        num_wanted: StepRuns of its that wait and would need it.
    """

    num_used: int
    num_wanted: int


class Needs(NamedTuple):
    """What an orchestrator tells the scheduler.

    Attributes:
        demand: StepRuns that wait for a slot, by pool and priority; not those that wait for keys.
        in_use: Attempts that have one, by replica.
        suspects: StepRuns that wait for a replica of their own or have it, by pool.
        oldest_s: How long the one that waits longest has waited, by pool.
        begun: Of StepRuns that got a slot since the last time: the key of the capability and the seconds it
            waited, of the youngest few hundred.
        mean_s: Mean seconds of an attempt, by capability.
        grants: Slots it was told it may use, by replica: a new scheduler learns it from here.
        keys: Use of declared concurrency keys only; concrete keys, not patterns.
    """

    demand: dict[str, dict[int, int]]
    in_use: dict[str, int]
    suspects: dict[str, int]
    oldest_s: dict[str, float] = {}  # noqa: RUF012 - nobody writes to it
    begun: tuple[tuple[str, float], ...] = ()
    mean_s: dict[str, float] = {}  # noqa: RUF012 - nobody writes to it
    grants: dict[str, int] = {}  # noqa: RUF012 - nobody writes to it
    keys: dict[str, KeyUse] = {}  # noqa: RUF012 - nobody writes to it


class KeyLimit(NamedTuple):
    """The asking orchestrator's share of a limit.

    Attributes:
        key: The concrete key; a declared pattern where nobody has used a key of it yet, so that who does
            knows that it must ask first.
        max_concurrent: How many of its StepRuns may hold it; None: as many as like.
        rate_num: How many may begin in `rate_per_s`; 0: no rate.
        rate_per_s: Seconds.
        burst: How many may begin at one instant, >= 1.
    """

    key: str
    max_concurrent: int | None
    rate_num: float = 0.0
    rate_per_s: float = 1.0
    burst: float = 1.0


class ReplicaEntry(NamedTuple):
    """A replica that is ready.

    Attributes:
        handle: The Ray actor handle.
        slots: How many attempts the asking orchestrator may have there at a time.
        node_id: Ray's id of the node it lives on.
        socket: Where it listens for its own node, or None.
    """

    replica_id: str
    pool: str
    handle: Any
    slots: int
    node_id: str = ""
    socket: tuple[str, str] | None = None


class PoolEntry(NamedTuple):
    """A pool.

    Attributes:
        slots_per_replica: Slots of one replica; who was given all of them is alone there.
        total_slots: Slots of all its replicas if every one ran.
        trouble: Why it cannot start replicas, "" where it can.
        spec: The declaration as it is now.
        reason: Why it cannot grow now although it should, None where it can.
    """

    name: str
    capabilities: tuple[str, ...]
    max_crashes: int
    stop_grace_s: float
    slots_per_replica: int
    total_slots: int
    trouble: str
    spec: PoolSpec
    reason: Reason | None = None


class PoolTable(NamedTuple):
    """The table at one version, for one orchestrator.

    Attributes:
        limits: Its shares of all limits that are declared.
        weights: Of tenants in the fair order; one that is not named has 1.
    """

    version: int
    pools: tuple[PoolEntry, ...]
    replicas: tuple[ReplicaEntry, ...]
    limits: tuple[KeyLimit, ...] = ()
    weights: dict[str, float] = {}  # noqa: RUF012 - nobody writes to it
