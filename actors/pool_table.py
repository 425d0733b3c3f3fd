"""What the scheduler tells orchestrators: who serves what, and how many slots each may use."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["PoolEntry", "PoolTable", "ReplicaEntry"]


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
        total_slots: Slots of all its replicas if every one ran.
        trouble: Why it cannot start replicas, "" where it can.
    """

    name: str
    capabilities: tuple[str, ...]
    max_crashes: int
    stop_grace_s: float
    total_slots: int
    trouble: str


class PoolTable(NamedTuple):
    """The table at one version, for one orchestrator."""

    version: int
    pools: tuple[PoolEntry, ...]
    replicas: tuple[ReplicaEntry, ...]
