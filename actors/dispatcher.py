"""From ready to running: the queues of one orchestrator and the slots it may use.

Order: priority, then the older Run: what has begun goes on before something new begins, so that few Runs are
under way at a time and a Step that ends hands its slot to the next of its Run. A suspect (its replicas died
under it before, and once more would be once too often) runs alone on a replica, so that only the guilty one
is counted: it waits until this orchestrator was given every slot of one, where no other can have an attempt
then. Where the slots come from is the scheduler's business; this module only asks and uses.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from actors.pool_table import Needs
from actors.replica_link import LinkOwner, ReplicaLink

if TYPE_CHECKING:
    from actors.pool_table import PoolEntry, PoolTable
    from cluster.engine import Run

__all__ = ["Dispatcher", "Ready"]

_MAX_CRASHES = 3
_NOTICEABLE_S = 1.0
_PRIORITY = 50


class Ready(NamedTuple):
    """A StepRun that waits for a slot; sorts by who goes first."""

    order: int
    created_at: float
    run_id: str
    step: int
    item: int
    priority: int


Assign = Callable[[Ready, ReplicaLink], bool]
"""Gives the StepRun to the replica; False where it no longer waits."""
Unserve = Callable[[Ready, str], None]


class Dispatcher:
    """Queues by capability and links by replica.

    Args:
        caller: This orchestrator's id.
        owner: Who hears from the links.
        assign: Called with what goes first and where.
        unserve: Called with what nobody will ever serve, and why.
        ask: Called when something waits and no slot is free.
    """

    def __init__(
        self, caller: str, owner: LinkOwner, assign: Assign, unserve: Unserve, ask: Callable[[], None]
    ) -> None:
        self.links: dict[str, ReplicaLink] = {}
        self.version = 0
        self._caller, self._owner = caller, owner
        self._assign, self._unserve, self._ask = assign, unserve, ask
        self._queues: dict[str, list[Ready]] = {}
        self._suspects: dict[str, list[Ready]] = {}
        self._pool_by_capability: dict[str, PoolEntry] = {}
        self._links_by_pool: dict[str, list[ReplicaLink]] = {}
        self._pools: dict[str, PoolEntry] = {}
        self._dead: dict[str, Any] = {}

    # -- what waits

    def queue(self, run: Run, step: int, item: int, capability: str, suspect: bool) -> None:
        """Let a ready StepRun wait, and start it at once where a slot is free."""
        queues = self._suspects if suspect else self._queues
        waiting = queues.get(capability)
        if waiting is None:
            waiting = queues[capability] = []
        priority = run.record.priority
        ready = Ready(-priority, run.record.created_at, run.run_id, step, item, priority)
        if not suspect and waiting and self._hand_on(ready, waiting[0], capability):
            return
        heapq.heappush(waiting, ready)
        self.serve(capability)

    def _hand_on(self, ready: Ready, first: Ready, capability: str) -> bool:
        """Give a slot that has just become free to the next Step of the Run that had it, so that both are
        one commit, unless who waits first is more urgent or noticeably older.
        """
        if ready.order > first.order or ready.created_at - first.created_at > _NOTICEABLE_S:
            return False
        pool = self._pool_by_capability.get(capability)
        if pool is None or self._suspects:
            return False
        link = max(self._links_by_pool.get(pool.name, ()), key=_num_free, default=None)
        return link is not None and link.num_free > 0 and self._assign(ready, link)

    def demand(self) -> dict[str, int]:
        """Count what waits, by capability."""
        counts = {capability: len(waiting) for capability, waiting in self._queues.items() if waiting}
        for capability, waiting in self._suspects.items():
            counts[capability] = counts.get(capability, 0) + len(waiting)
        return counts

    def in_use(self) -> dict[str, int]:
        """Count attempts, by replica."""
        return {
            name: len(link.held) + len(link.stopping) for name, link in self.links.items() if not link.lost
        }

    def needs(self) -> Needs:
        """Say what the scheduler must know."""
        suspects: dict[str, int] = {}
        for capability, waiting in self._suspects.items():
            pool = self._pool_by_capability.get(capability)
            if pool is not None:
                suspects[pool.name] = suspects.get(pool.name, 0) + len(waiting)
        for link in self.links.values():
            if link.exclusive:
                suspects[link.entry.pool] = suspects.get(link.entry.pool, 0) + 1
        demand = {capability: {_PRIORITY: count} for capability, count in self.demand().items()}
        return Needs(demand, self.in_use(), suspects)

    def is_suspect(self, capability: str, crashes: int) -> bool:
        """Whether one more crash would quarantine a StepRun that has been under `crashes` of them."""
        if not crashes:
            return False
        pool = self._pool_by_capability.get(capability)
        return crashes >= (pool.max_crashes if pool else _MAX_CRASHES) - 1

    def serve(self, capability: str) -> None:
        """Give free slots to what waits for a capability."""
        waiting = self._queues.get(capability)
        if not waiting and capability not in self._suspects:
            return
        pool = self._pool_by_capability.get(capability)
        if pool is None:
            if self.version:
                self._refuse(capability, f"no pool serves the capability {capability!r}")
            return
        links: Sequence[ReplicaLink] = self._links_by_pool.get(pool.name, ())
        if not links and pool.trouble:
            self._refuse(capability, f"pool {pool.name} has no healthy agent: {pool.trouble}")
            return
        if self._suspects:
            links = self._serve_suspects(capability, pool, links)
        while waiting:
            link = max(links, key=_num_free, default=None)
            if link is None or link.num_free <= 0:
                break
            self._assign(heapq.heappop(waiting), link)
        if waiting or capability in self._suspects:
            self._ask()

    def _serve_suspects(
        self, capability: str, pool: PoolEntry, links: Sequence[ReplicaLink]
    ) -> Sequence[ReplicaLink]:
        """Set one replica aside while suspects of a pool wait, and start one as soon as nobody else is there.

        Returns:
            The links that are left for all others.
        """
        if not any(name in self._suspects for name in pool.capabilities):
            return links
        whole = (link for link in links if link.slots >= pool.slots_per_replica and not link.was_replaced)
        aside = next(whole, None)
        if aside is None:
            return links
        waiting = self._suspects.get(capability, [])
        while waiting and not aside.held and not aside.stopping:
            if self._assign(heapq.heappop(waiting), aside):
                aside.exclusive = True
        if not waiting:
            self._suspects.pop(capability, None)
        return [link for link in links if link is not aside]

    def _refuse(self, capability: str, reason: str) -> None:
        for queues in (self._queues, self._suspects):
            for ready in sorted(queues.pop(capability, ())):
                self._unserve(ready, reason)

    def serve_pool(self, pool: str) -> None:
        """Give free slots of a pool to what waits for any of its capabilities."""
        entry = self._pools.get(pool)
        for capability in entry.capabilities if entry else ():
            self.serve(capability)

    # -- who serves

    def update(self, table: PoolTable) -> None:
        """Take the scheduler's table over."""
        self.version = table.version
        self._pools = {pool.name: pool for pool in table.pools}
        self._pool_by_capability = {name: pool for pool in table.pools for name in pool.capabilities}
        listed = {entry.replica_id: entry for entry in table.replicas}
        # By handle: a scheduler that was restarted may use a name again.
        self._dead = {
            name: h for name, h in self._dead.items() if name in listed and listed[name].handle == h
        }
        for replica_id in self._dead:
            del listed[replica_id]
        for replica_id, entry in listed.items():
            link = self.links.get(replica_id)
            if link is None:
                self.links[replica_id] = ReplicaLink(entry, self._caller, self._owner)
            else:
                link.slots = entry.slots
        for replica_id, link in list(self.links.items()):
            if replica_id not in listed and not link.held and not link.stopping:
                link.close()
                del self.links[replica_id]
            elif replica_id not in listed:
                link.slots = 0
        self._regroup()
        for capability in self._queues.keys() | self._suspects.keys():
            self.serve(capability)

    def drop(self, link: ReplicaLink) -> None:
        """Forget a replica that is gone, also while the scheduler has not noticed yet and still lists it."""
        self.links.pop(link.replica_id, None)
        self._dead[link.replica_id] = link.entry.handle
        self._regroup()

    def _regroup(self) -> None:
        grouped: dict[str, list[ReplicaLink]] = {}
        for link in self.links.values():
            grouped.setdefault(link.entry.pool, []).append(link)
        self._links_by_pool = grouped

    def max_crashes(self, link: ReplicaLink) -> int:
        """How many crashes a step may be under before it is quarantined."""
        pool = self._pools.get(link.entry.pool)
        return pool.max_crashes if pool else _MAX_CRASHES

    def check_links(self) -> None:
        """Look for silent and stuck replicas."""
        now = time.monotonic()
        for link in list(self.links.values()):
            pool = self._pools.get(link.entry.pool)
            link.check(now, pool.stop_grace_s if pool else 5.0)

    def waits_s(self, mean_s_by_capability: dict[str, float]) -> dict[str, float]:
        """Estimate how long a new StepRun would wait, by capability."""
        waits = {}
        for capability, count in self.demand().items():
            pool = self._pool_by_capability.get(capability)
            slots = max(pool.total_slots, 1) if pool else 1
            waits[capability] = count * mean_s_by_capability.get(capability, 0.0) / slots
        return waits

    def close(self) -> None:
        """Give all lines up."""
        for link in self.links.values():
            link.close()


def _num_free(link: ReplicaLink) -> int:
    return link.num_free
