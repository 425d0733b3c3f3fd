"""What the scheduler knows of its pools and replicas: plain state that its parts share.

It counts and finds; who starts, ends or gets slots is decided by `sizing`, `replicas` and `slots`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from cluster.scheduling.packing import Request
from cluster.scheduling.pools import PoolSpec
from cluster.scheduling.reasons import Reason

__all__ = ["Fleet", "FleetPool", "FleetReplica"]


class FleetReplica:
    """A replica that is starting, ready, or retiring.

    Attributes:
        spec: The declaration it was started under.
        created_at: Unix seconds.
        handle: The Ray actor; None before it was made.
        ready_at: Since when it serves, on the monotonic clock.
        gpu_ids: Ray's ids of its GPUs on its node.
        held: Slots each orchestrator may still be using.
        limits: Slots each was told.
        offered_at: Table version of its limits.
        is_adopted: A scheduler before started it, and may have given slots of it to orchestrators.
        end_event: What its end counts as in `scale_events` once it retires.
    """

    __slots__ = (
        "created_at",
        "end_event",
        "gpu_ids",
        "handle",
        "held",
        "idle_since",
        "is_adopted",
        "is_retiring",
        "limits",
        "node_id",
        "offered_at",
        "pool",
        "ready_at",
        "replica_id",
        "socket",
        "spec",
    )

    def __init__(self, replica_id: str, spec: PoolSpec, created_at: float) -> None:
        self.replica_id, self.pool, self.spec, self.created_at = replica_id, spec.name, spec, created_at
        self.handle: Any = None
        self.node_id = ""
        self.socket: tuple[str, str] | None = None
        self.gpu_ids: tuple[str, ...] = ()
        self.held: dict[str, int] = {}
        self.limits: dict[str, int] = {}
        self.offered_at = 0
        self.ready_at = self.idle_since = time.monotonic()
        self.is_retiring = self.is_adopted = False
        self.end_event = "retired"

    def retire(self, event: str = "retired") -> None:
        """Give out no slot of it any more; it ends when the last one has come back."""
        self.is_retiring, self.end_event = True, event


class FleetPool:
    """A pool at run time.

    Attributes:
        alone: The orchestrator whose suspects have a replica for themselves.
        is_removed: Nobody declares it any more; it goes with its last replica.
        trouble: Why its replicas do not start, "" where they do.
        reason: Why it cannot grow although it should, None where it can.
        wish: The replica that there should be and is no room for, None where there is none.
        retry_at: Nothing is started before; Ray had no room where the packer saw some.
        number: The n of its youngest replica.
    """

    __slots__ = (
        "alone",
        "capabilities",
        "failed_starts",
        "is_removed",
        "number",
        "reason",
        "retry_at",
        "spec",
        "trouble",
        "trouble_at",
        "wish",
    )

    def __init__(self, spec: PoolSpec, capabilities: tuple[str, ...]) -> None:
        self.spec = spec
        self.capabilities = capabilities
        self.alone = ""
        self.is_removed = False
        self.failed_starts = 0
        self.trouble = ""
        self.trouble_at = 0.0
        self.reason: Reason | None = None
        self.wish: Request | None = None
        self.retry_at = 0.0
        self.number = 0

    def set_trouble(self, trouble: str, at: float) -> None:
        """Say why its replicas do not start; `at` infinite: until the declaration changes."""
        self.trouble, self.trouble_at = trouble, at


class Fleet:
    """Pools, replicas, and the version of the table that is made of them.

    Attributes:
        starting: Replicas that have their place, but are not ready.
        ready: Replicas that are, those that retire too.
        scale_events: Replicas started, retired, evicted, lost since this scheduler began.
        version: Higher than any of a scheduler before: who has its table must not take ours for the same.
        changed: Set with each version.
        weights: Of tenants in the fair order.
    """

    def __init__(self) -> None:
        self.pools: dict[str, FleetPool] = {}
        self.starting: dict[str, FleetReplica] = {}
        self.ready: dict[str, FleetReplica] = {}
        self.scale_events: Counter[str] = Counter(started=0, retired=0, evicted=0, lost=0)
        self.version = time.time_ns() // 1_000_000
        self.changed = asyncio.Event()
        self.weights: dict[str, float] = {}

    def weigh(self, weights: dict[str, float]) -> None:
        """Take the tenants' weights over."""
        if weights != self.weights:
            self.weights = weights
            self.bump()

    def bump(self) -> None:
        """Make a new version of the table."""
        self.version += 1
        self.changed.set()

    def serving(self, pool: str) -> Iterator[FleetReplica]:
        """Yield a pool's replicas that are ready and do not retire."""
        return (each for each in self.ready.values() if each.pool == pool and not each.is_retiring)

    def num_retiring(self, pool: str) -> int:
        """Count a pool's replicas that retire."""
        return sum(each.pool == pool and each.is_retiring for each in self.ready.values())

    def has_ready(self, pool: str) -> bool:
        """Whether a pool has a replica that is ready, or retires."""
        return any(each.pool == pool for each in self.ready.values())

    def num_starting(self, pool: str) -> int:
        """Count a pool's replicas that start."""
        return sum(each.pool == pool for each in self.starting.values())
