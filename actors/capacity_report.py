"""What there is, who has it and what waits, as the scheduler tells it to readers once a second.

It only tells: whoever reads it in Redis may trust it as far as its time stamp.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from actors.placing import FOREIGN
from cluster.scheduling.devices import SHARES_PER_GPU, Device, gpus_of
from cluster.scheduling.limits import capability_key
from cluster.store import keys
from cluster.store.capacity import (
    CapacitySnapshot,
    DeviceState,
    Holder,
    LimitState,
    NodeState,
    PoolState,
    ReplicaState,
)
from cluster.store.connection import redis_errors_as_ours

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from actors.claimants import Claimants
    from actors.fleet import Fleet, FleetPool
    from actors.key_division import KeyDivision
    from actors.placing import Placing

__all__ = ["CapacityReport"]

_REPEAT_S = 5.0
_MEMORY = 512
_WAITS_KEPT_S = 60.0
_PARTS = 10_000
_MIB_PER_GIB = 1024
_OTHERS = "others"


class CapacityReport:
    """Writes the snapshot."""

    def __init__(
        self, redis: Redis, fleet: Fleet, claimants: Claimants, placing: Placing, division: KeyDivision
    ) -> None:
        self._redis, self._fleet, self._claimants = redis, fleet, claimants
        self._placing, self._division = placing, division
        self._waits: dict[str, deque[tuple[float, float]]] = {}
        self._last: bytes = b""
        self._written_at = -math.inf

    async def publish(self) -> None:
        """Write the snapshot where something has changed, or the last one is some seconds old.

        Raises:
            Unavailable: Redis is away.
        """
        self._observe_waits()
        snapshot = self.snapshot()
        told = msgspec.json.encode(msgspec.structs.replace(snapshot, at=0.0))
        if told == self._last and snapshot.at - self._written_at < _REPEAT_S:
            return
        with redis_errors_as_ours():
            await self._redis.set(keys.CAPACITY, msgspec.json.encode(snapshot), ex=keys.CAPACITY_TTL_S)
        self._last, self._written_at = told, snapshot.at

    def _observe_waits(self) -> None:
        """Note how long those waited that got a slot; what is older than a minute is forgotten."""
        now = time.monotonic()
        for key, waited in self._claimants.take_begun():
            capability = key.removeprefix(capability_key(""))
            self._waits.setdefault(capability, deque(maxlen=_MEMORY)).append((now, waited))
        for capability, seen in list(self._waits.items()):
            while seen and seen[0][0] < now - _WAITS_KEPT_S:
                seen.popleft()
            if not seen:
                del self._waits[capability]

    def snapshot(self) -> CapacitySnapshot:
        """Make it."""
        packer = self._placing.packer
        waits = {name: sorted(waited for _, waited in seen) for name, seen in self._waits.items()}
        return CapacitySnapshot(
            at=time.time(),
            nodes=tuple(self._nodes()),
            pools=tuple(self._pool(pool) for _, pool in sorted(self._fleet.pools.items())),
            limits=tuple(
                LimitState(key, spec.max_concurrent, num_used, spec.rate or None, spec.burst, pattern)
                for key, (spec, num_used, pattern) in self._division.uses().items()
            ),
            utilisation=round(packer.utilisation if packer.total_shares else self._cpu_utilisation(), 4),
            fragmentation=round(packer.fragmentation, 4),
            scale_events=dict(self._fleet.scale_events),
            wait_s={name: (_rank(seen, 0.5), _rank(seen, 0.95)) for name, seen in waits.items()},
        )

    def _cpu_utilisation(self) -> float:
        nodes = self._placing.packer.nodes.values()
        total = sum(node.cpu_parts for node in nodes)
        return 1.0 - sum(node.free_cpu_parts for node in nodes) / total if total else 0.0

    def _nodes(self) -> list[NodeState]:
        return [
            NodeState(
                name=node.name,
                num_cpus=node.cpu_parts / _PARTS,
                free_cpus=node.free_cpu_parts / _PARTS,
                labels=dict(sorted(node.labels)),
                devices=tuple(self._device(device) for device in node.devices),
            )
            for _, node in sorted(self._placing.packer.nodes.items())
        ]

    def _device(self, device: Device) -> DeviceState:
        return DeviceState(
            index=device.index,
            free=round(gpus_of(device.free), 4),
            total_gb=device.total_mib / _MIB_PER_GIB,
            free_gb=device.free_mib / _MIB_PER_GIB,
            holders=tuple(self._holder(name, device) for name in device.holders),
        )

    def _holder(self, name: str, device: Device) -> Holder:
        placement = self._placing.packer.placements[name]
        shares = sum(held.shares for held in placement.held if device in held.devices)
        since = self._placing.since_unix(placement)
        replica = self._fleet.ready.get(name) or self._fleet.starting.get(name)
        if replica is not None:
            since = replica.created_at
        is_foreign = name.startswith(FOREIGN)
        return Holder(
            _OTHERS if is_foreign else name,
            "" if is_foreign else placement.request.owner,
            round(shares / SHARES_PER_GPU, 4),
            round(since, 3),
        )

    def _pool(self, pool: FleetPool) -> PoolState:
        name = pool.spec.name
        replicas: list[ReplicaState] = []
        num_running = 0
        for each in self._fleet.ready.values():
            if each.pool == name:
                state = "retiring" if each.is_retiring else "ready"
                replicas.append(ReplicaState(each.replica_id, each.node_id, state, each.created_at))
                num_running += self._claimants.used(each.replica_id)
        for each in self._fleet.starting.values():
            if each.pool == name:
                placement = self._placing.packer.placements.get(each.replica_id)
                node = placement.held[0].node.name if placement is not None else ""
                replicas.append(ReplicaState(each.replica_id, node, "starting", each.created_at))
        return PoolState(
            name=name,
            spec=pool.spec,
            capabilities=pool.capabilities,
            replicas=tuple(replicas),
            waiting=self._claimants.num_waiting(pool),
            running=num_running,
            oldest_s=round(self._claimants.oldest_s(pool), 1),
            reason=pool.reason,
            trouble=pool.trouble,
        )


def _rank(ordered: Sequence[float], fraction: float) -> float:
    """Nearest rank."""
    return float(round(ordered[min(int(fraction * len(ordered)), len(ordered) - 1)], 3))
