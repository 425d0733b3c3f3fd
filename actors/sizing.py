"""How many replicas each pool has, and what happens to those that are too many, out of date, or in the way.

It looks at all pools together several times a second and gives what there is to whose priority is highest,
in turns where that is equal. What finds no room is remembered with the packer's reason: devices are kept for
what needs whole ones, idle replicas of lower priority end for it. One that works never does. How it is done
in Ray is `replicas`' business.
"""

from __future__ import annotations

import heapq
import math
import time
from typing import TYPE_CHECKING

from cluster.scheduling.elasticity import (
    IdleReplica,
    PoolLoad,
    choose_evictions,
    choose_retirements,
    replicas_for,
)
from cluster.scheduling.packing import Placement, Request
from cluster.scheduling.pools import PoolSpec, request_of

if TYPE_CHECKING:
    from actors.claimants import Claimants
    from actors.fleet import Fleet, FleetPool, FleetReplica
    from actors.placing import Placing
    from actors.replicas import Replicas
    from cluster.scheduling.packing import Short
    from cluster.scheduling.reasons import Reason

__all__ = ["Sizing"]

_TROUBLE_KEPT_S = 30.0
_CHANCE_S = 2.0
"""How long it takes at most until a new replica's slots are known, taken, and told of."""
_MAX_STARTING = 16
_SHAPE = (
    "agents",
    "num_cpus",
    "num_gpus",
    "gpu_memory_gb",
    "memory_bytes",
    "resources",
    "labels",
    "gang_size",
    "strategy",
    "model",
)
"""What a replica cannot change while it lives."""


class Sizing:
    """Decides; call `settle` often."""

    def __init__(self, fleet: Fleet, claimants: Claimants, placing: Placing, replicas: Replicas) -> None:
        self._fleet, self._claimants, self._placing, self._replicas = fleet, claimants, placing, replicas
        self._missing: dict[str, tuple[Request, int]] = {}
        self._of_pool: dict[str, list[FleetReplica]] = {}

    @property
    def missing(self) -> dict[str, tuple[Request, int]]:
        """What there was no room for the last time: by pool, a replica's request and how many."""
        return self._missing

    def settle(self) -> None:
        """Start what is wanted and has room, let go what nobody needs."""
        now = time.monotonic()
        self._of_pool = {name: [] for name in self._fleet.pools}
        for replica in self._fleet.ready.values():
            self._of_pool[replica.pool].append(replica)
        wanted = {name: self._num_wanted(pool, now) for name, pool in self._fleet.pools.items()}
        for name, pool in list(self._fleet.pools.items()):
            self._renew(pool)
            self._shrink(pool, wanted[name], now)
        self._grow(wanted, now)
        self._end_retired()
        for name, pool in list(self._fleet.pools.items()):
            if pool.is_removed and not self._fleet.num_starting(name) and not self._fleet.has_ready(name):
                del self._fleet.pools[name]

    # -- how many

    def _num_wanted(self, pool: FleetPool, now: float) -> int:
        if pool.trouble and now - pool.trouble_at > _TROUBLE_KEPT_S:
            pool.set_trouble("", 0.0)
            pool.failed_starts = 0
            self._fleet.bump()
        if pool.is_removed:
            return 0
        name = pool.spec.name
        num_waiting, num_running = self._claimants.num_waiting(pool), 0
        with_all_s = math.inf
        for replica in self._serving(name):
            with_all_s = min(with_all_s, now - replica.ready_at - _CHANCE_S)
            used = self._claimants.used(replica.replica_id)
            num_running += used
            if used or num_waiting:
                replica.idle_since = now
        num_starting = self._fleet.num_starting(name)
        load = PoolLoad(
            num_waiting,
            num_running,
            # What waited for a replica to start says nothing about how many there should be.
            0.0 if num_starting else max(min(self._claimants.oldest_s(pool), with_all_s), 0.0),
            self._claimants.mean_s(pool.capabilities),
            self._claimants.has_suspects(pool),
        )
        return replicas_for(pool.spec, load, self._num_now(name))

    def _num_now(self, pool: str) -> int:
        return len(self._serving(pool)) + self._fleet.num_starting(pool)

    def _serving(self, pool: str) -> list[FleetReplica]:
        return [each for each in self._of_pool.get(pool, ()) if not each.is_retiring]

    # -- growing

    def _grow(self, wanted: dict[str, int], now: float) -> None:
        late = {request.request_id for request in self._placing.reservations.expire(now)}
        for placement in self._placing.reservations.start(now):
            self._begin_reserved(placement, wanted)
        self._missing = {}
        turns: list[tuple[int, bool, int, str]] = []
        for name, pool in self._fleet.pools.items():
            num_now = self._num_now(name)
            if wanted[name] <= num_now or pool.trouble:
                self._wish_nothing(pool)
            elif now >= pool.retry_at:
                is_late = pool.wish is not None and pool.wish.request_id in late
                turns.append((-pool.spec.priority, is_late, num_now, name))
        heapq.heapify(turns)
        while turns:
            priority, is_late, num_now, name = heapq.heappop(turns)
            pool = self._fleet.pools[name]
            if self._fleet.num_starting(name) >= _MAX_STARTING:
                continue
            if not self._grow_by_one(pool, now):
                if pool.wish is not None and pool.reason is not None:
                    self._missing[name] = (pool.wish, wanted[name] - num_now)
            elif num_now + 1 < wanted[name]:
                heapq.heappush(turns, (priority, is_late, num_now + 1, name))

    def _begin_reserved(self, placement: Placement, wanted: dict[str, int]) -> None:
        """Start what was waiting for its devices, where it is wanted yet."""
        pool = self._fleet.pools.get(placement.request.owner)
        name = placement.request.owner
        is_wanted = pool is not None and wanted.get(name, 0) > self._num_now(name) and not pool.trouble
        if pool is None or not is_wanted or pool.wish != placement.request:
            self._placing.release(placement.request.request_id)
            return
        pool.wish = None
        self._say(pool, None)
        self._replicas.start(pool, placement)

    def _grow_by_one(self, pool: FleetPool, now: float) -> bool:
        request = self._wish_of(pool)
        found: Placement | Short | None = None
        is_reserved = request.request_id in self._placing.reservations
        if not is_reserved:
            found = self._placing.place(request, now)
            if isinstance(found, Placement):
                pool.wish = None
                self._say(pool, None)
                self._replicas.start(pool, found)
                return True
            self._say(pool, found)
        self._make_room(pool, request, now)
        if not is_reserved and request.bundles[0].num_whole:
            self._placing.reservations.reserve(request, now)
        return False

    def _wish_of(self, pool: FleetPool) -> Request:
        """Find the replica that is wanted next, or make it."""
        if pool.wish is not None:
            request = request_of(pool.spec, pool.wish.request_id)
            if request == pool.wish:
                return request
            self._placing.release(pool.wish.request_id)
        pool.number += 1
        pool.wish = request_of(pool.spec, f"agent-{pool.spec.name}-{pool.number}")
        return pool.wish

    def _wish_nothing(self, pool: FleetPool) -> None:
        if pool.wish is not None:
            self._placing.release(pool.wish.request_id)
            pool.wish = None
        self._say(pool, None)

    def _say(self, pool: FleetPool, reason: Reason | None) -> None:
        if reason != pool.reason:
            pool.reason = reason
            self._fleet.bump()

    def _make_room(self, pool: FleetPool, request: Request, now: float) -> None:
        """Let idle replicas of lower priority end where that makes room, and no more of them than needed."""
        packer = self._placing.packer
        leaving = [name for name, each in self._fleet.ready.items() if each.is_retiring]
        idle = [
            each
            for name, other in self._fleet.pools.items()
            if other.spec.priority < pool.spec.priority
            for each in self._to_spare(name, now)
        ]
        if not idle:
            return
        with self._placing.reservations.lifted(request.request_id):
            if leaving and packer.would_fit(request, leaving, now):
                return  # there is room as soon as those are gone
            chosen = choose_evictions(packer, request, pool.spec.priority, idle, now)
        for replica_id in chosen or ():
            self._fleet.ready[replica_id].retire("evicted")

    # -- shrinking

    def _idle(self, pool: FleetPool, now: float) -> list[IdleReplica]:
        """List a pool's replicas that have nothing to do, idle longest first."""
        name, priority = pool.spec.name, pool.spec.priority
        found = [
            IdleReplica(each.replica_id, name, priority, now - each.idle_since)
            for each in self._serving(name)
            if now > each.idle_since
        ]
        return sorted(found, key=lambda each: -each.idle_s)

    def _to_spare(self, name: str, now: float) -> list[IdleReplica]:
        """List idle replicas of a pool that others may have: it keeps its minimum."""
        pool = self._fleet.pools[name]
        most = len(self._serving(name)) - pool.spec.min_replicas
        return self._idle(pool, now)[: max(most, 0)]

    def _shrink(self, pool: FleetPool, wanted: int, now: float) -> None:
        name = pool.spec.name
        serving = self._serving(name)
        if len(serving) > pool.spec.max_replicas and not pool.is_removed:
            busiest_last = sorted(serving, key=lambda each: self._claimants.used(each.replica_id))
            for replica in busiest_last[: len(serving) - pool.spec.max_replicas]:
                replica.retire()
        idle = self._idle(pool, now)
        for replica_id in choose_retirements(pool.spec, idle, self._num_now(name), wanted) if idle else ():
            self._fleet.ready[replica_id].retire()

    def _renew(self, pool: FleetPool) -> None:
        """Let replicas follow their declaration: those that can change, others end one after the other."""
        serving = self._serving(pool.spec.name)
        if pool.is_removed:
            for replica in serving:
                replica.retire()
            for name in [
                each.replica_id for each in self._fleet.starting.values() if each.pool == pool.spec.name
            ]:
                self._replicas.end(name, "its pool is removed", "retired")
            self._wish_nothing(pool)
            return
        old: list[FleetReplica] = []
        for replica in serving:
            if not _is_same_shape(replica.spec, pool.spec):
                old.append(replica)
            elif replica.spec != pool.spec:
                self._replicas.reshape(replica, pool.spec)
        if old and not self._fleet.num_retiring(pool.spec.name):
            old[0].retire()

    def _end_retired(self) -> None:
        for replica in [each for each in self._fleet.ready.values() if each.is_retiring]:
            if not any(replica.held.values()):
                self._replicas.end(replica.replica_id, replica.end_event, replica.end_event)


def _is_same_shape(one: PoolSpec, other: PoolSpec) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in _SHAPE)
