"""What the scheduler tells orchestrators: who serves what, and how many slots each may use."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Needs", "PoolEntry", "PoolTable", "ReplicaEntry"]


class Needs(NamedTuple):
    """What an orchestrator tells the scheduler.

    Attributes:
        demand: Attempts that wait for a slot, by capability.
        in_use: Attempts that have one, by replica.
        suspects: Attempts that wait for a replica of their own or have it, by pool.
    """

    demand: dict[str, int]
    in_use: dict[str, int]
    suspects: dict[str, int]


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
    """

    name: str
    capabilities: tuple[str, ...]
    max_crashes: int
    stop_grace_s: float
    slots_per_replica: int
    total_slots: int
    trouble: str


class PoolTable(NamedTuple):
    """The table at one version, for one orchestrator."""

    version: int
    pools: tuple[PoolEntry, ...]
    replicas: tuple[ReplicaEntry, ...]
