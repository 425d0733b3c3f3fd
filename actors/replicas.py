"""Starting and ending replicas: the ledger first, then the placement groups, then the actor; and backwards.

It carries out what `sizing` decides. A start that fails leaves nothing behind; a replica whose process, group
or node is gone is cleared away with all it had.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import ray
import structlog
from ray.exceptions import RayError

from actors import handles
from actors.fleet import FleetReplica
from actors.ledger import DeviceEntry, ReplicaRecord
from actors.placing import bundle_resources, own_bundle, where_of
from actors.replica import Replica, ReplicaConfig
from cluster import placement_groups
from cluster.scheduling.devices import SHARES_PER_GPU

if TYPE_CHECKING:
    from actors.background_tasks import BackgroundTasks
    from actors.fleet import Fleet, FleetPool
    from actors.ledger import Ledger
    from actors.placing import DevicePlace, Placing
    from cluster.scheduling.packing import Placement
    from cluster.scheduling.pools import PoolSpec
    from cluster.settings import Settings

__all__ = ["ACTOR_PREFIX", "Replicas"]

_log = structlog.get_logger("tutti.scheduler")
ACTOR_PREFIX = "tutti:replica:"
_RESERVATION_S = 30.0
_LOAD_S = 600.0
_WATCH_EVERY_S = 1.0
_CHECKS_PER_S = 50.0
_SILENCE_S = 60.0
_MAX_FAILED_STARTS = 3
_RETRY_S = 2.0
_DISTRUST_S = 60.0
_PARTS = 10_000

ReplicaActor = ray.remote(Replica)


class _NoRoom(Exception):
    """Ray did not place what the packer had found room for."""


class Replicas:
    """All replicas of a fleet, as actors in Ray."""

    def __init__(
        self, settings: Settings, fleet: Fleet, placing: Placing, ledger: Ledger, tasks: BackgroundTasks
    ) -> None:
        self._settings, self._fleet, self._placing = settings, fleet, placing
        self._ledger, self._tasks = ledger, tasks
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._openings: dict[str, asyncio.Task[Any]] = {}
        self._ending: set[str] = set()
        self._kept_away: dict[str, float] = {}

    @property
    def names(self) -> set[str]:
        """Name all that have something, or are just giving it back."""
        return {*self._fleet.ready, *self._fleet.starting, *self._ending, *self._kept_away}

    def group_names(self) -> set[str]:
        """Name all placement groups that replicas have: their own, and those around shared devices."""
        return self.names | self._placing.shared_groups

    # -- starting

    def start(self, pool: FleetPool, placement: Placement) -> None:
        """Start a replica where it was placed."""
        replica_id = placement.request.request_id
        replica = FleetReplica(replica_id, pool.spec, time.time())
        self._fleet.starting[replica_id] = replica
        device = self._placing.share_device(placement)
        self._starts[replica_id] = self._tasks.spawn(self._start(pool, replica, placement, device))

    async def _start(
        self, pool: FleetPool, replica: FleetReplica, placement: Placement, device: DevicePlace | None
    ) -> None:
        record = ReplicaRecord(
            pool=replica.pool,
            number=pool.number,
            created_at=replica.created_at,
            spec=replica.spec,
            where=where_of(placement),
            device_group=device.group if device is not None else "",
        )
        await self._bring_up(pool, replica, record, lambda: self._launch(replica, placement, record, device))

    async def _bring_up(
        self,
        pool: FleetPool,
        replica: FleetReplica,
        record: ReplicaRecord,
        launch: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        """Wait until a replica is ready, or clear away what there is of it."""
        replica_id = replica.replica_id
        try:
            answer = await launch()
            if answer["distrust"]:
                await self._keep_away(replica, record, answer["distrust"])
                return
        except _NoRoom:
            _log.info("replica finds no room", replica=replica_id)
            pool.retry_at = time.monotonic() + _RETRY_S
        except (handles.ReplicaGone, TimeoutError, RayError, ValueError) as error:
            self._count_failure(pool, replica_id, str(error) or "its agents took too long to load")
        else:
            self._starts.pop(replica_id, None)
            if self._fleet.starting.pop(replica_id, None) is not None:
                pool.failed_starts = 0
                self._take_up(replica, answer)
                return
        self._starts.pop(replica_id, None)
        self._fleet.starting.pop(replica_id, None)
        await self._clear(replica_id)

    async def _launch(
        self, replica: FleetReplica, placement: Placement, record: ReplicaRecord, device: DevicePlace | None
    ) -> dict[str, Any]:
        replica_id, spec = replica.replica_id, replica.spec
        bundles = [held.bundle for held in placement.held]
        pinned = [placement_groups.on_node(held.node.name) for held in placement.held]
        shared = self._open(device) if device is not None else None
        await self._ledger.write(replica_id, record)
        own = [own_bundle(each) if device is not None else bundle_resources(each) for each in bundles]
        group = placement_groups.reserve(replica_id, own, "PACK", pinned)
        if not await placement_groups.wait_reserved(group, _RESERVATION_S):
            raise _NoRoom
        if shared is not None:
            # What it has beside its part of the device is reserved in its own group; it lives in the other.
            group = await asyncio.shield(shared)
            if group is None:
                raise _NoRoom
            first = {"GPU": _parts_down(bundles[0].shares)}
        else:
            first = dict(own[0])
        settings = self._settings
        config = ReplicaConfig(
            replica_id,
            spec.agents,
            spec.concurrency,
            str(settings.blobs_dir),
            settings.inline_limit_bytes,
            settings.input_dirs,
            settings.egress_allow,
            spec.num_gpus,
            spec.gpu_memory_gb,
            str(settings.code_dir),
        )
        replica.handle = ReplicaActor.options(
            name=ACTOR_PREFIX + replica_id,
            namespace=handles.NAMESPACE,
            lifetime="detached",
            num_cpus=first.pop("CPU", 0.0),
            num_gpus=first.pop("GPU", 0.0),
            memory=int(first.pop("memory", 0.0)) or None,
            resources=first or None,
            max_concurrency=10_000,
            scheduling_strategy=placement_groups.strategy_in(group, with_children=len(bundles) > 1),
        ).remote(config)
        self._fleet.scale_events["started"] += 1
        return await self._await_ready(replica)

    async def _await_ready(self, replica: FleetReplica) -> dict[str, Any]:
        async with asyncio.timeout(_LOAD_S):
            return await handles.start_replica_check(replica.handle)

    def _open(self, device: DevicePlace) -> asyncio.Task[Any]:
        """Reserve a device that replicas share, once for all of them."""
        opening = self._openings.get(device.group)
        if opening is None:
            opening = self._openings[device.group] = self._tasks.spawn(self._open_group(device))
        return opening

    async def _open_group(self, device: DevicePlace) -> Any:
        entry = DeviceEntry(node=device.node, index=device.number, created_at=time.time())
        await self._ledger.write(device.group, entry)
        pinned = [placement_groups.on_node(device.node)]
        group = placement_groups.find(device.group)  # it may be older than this scheduler
        if group is None:
            group = placement_groups.reserve(device.group, [{"GPU": 1.0}], "PACK", pinned)
        return group if await placement_groups.wait_reserved(group, _RESERVATION_S) else None

    def _count_failure(self, pool: FleetPool, replica_id: str, reason: str) -> None:
        pool.failed_starts += 1
        _log.warning("replica did not start", replica=replica_id, reason=reason)
        if pool.failed_starts >= _MAX_FAILED_STARTS:
            pool.set_trouble(reason, time.monotonic())
            self._fleet.bump()

    async def _keep_away(self, replica: FleetReplica, record: ReplicaRecord, reason: str) -> None:
        """Keep devices that somebody else uses: what is held for a replica that does not run is nobody's."""
        _log.warning("device is not trusted", replica=replica.replica_id, reason=reason)
        replica_id = replica.replica_id
        self._starts.pop(replica_id, None)
        self._fleet.starting.pop(replica_id, None)
        self._kept_away[replica_id] = time.monotonic() + _DISTRUST_S
        ray.kill(replica.handle)
        kept = {name: getattr(record, name) for name in record.__struct_fields__}
        await self._ledger.write(replica_id, ReplicaRecord(**{**kept, "distrusted": reason}))

    def look_at_kept_away(self) -> None:
        """Give devices back for another try whose time is over."""
        now = time.monotonic()
        for replica_id in [each for each, until in self._kept_away.items() if until <= now]:
            del self._kept_away[replica_id]
            self._tasks.spawn(self._clear(replica_id))

    def _take_up(self, replica: FleetReplica, answer: dict[str, Any]) -> None:
        replica.node_id, replica.socket = answer["node_id"], answer["socket"]
        replica.gpu_ids = tuple(answer["gpu_ids"])
        replica.ready_at = replica.idle_since = time.monotonic()
        self._fleet.ready[replica.replica_id] = replica
        self._fleet.bump()
        self._tasks.spawn(self._watch(replica))

    def adopt(self, pool: FleetPool, replica_id: str, record: ReplicaRecord) -> asyncio.Task[None] | None:
        """Begin to take up a replica of a scheduler before; None where its actor does not live."""
        handle = handles.find_actor(ACTOR_PREFIX + replica_id)
        if handle is None:
            return None
        replica = FleetReplica(replica_id, record.spec, record.created_at)
        replica.handle, replica.is_adopted = handle, True
        self._fleet.starting[replica_id] = replica
        start = self._tasks.spawn(self._bring_up(pool, replica, record, lambda: self._await_ready(replica)))
        self._starts[replica_id] = start
        return start

    async def _watch(self, replica: FleetReplica) -> None:
        """Notice the death of a replica that nobody talks to."""
        while replica.replica_id in self._fleet.ready:
            # Each question costs a millisecond: many replicas are asked less often.
            await asyncio.sleep(max(_WATCH_EVERY_S, len(self._fleet.ready) / _CHECKS_PER_S))
            try:
                async with asyncio.timeout(_SILENCE_S):
                    await handles.check_alive(replica.handle)
            except handles.ReplicaGone:
                self.end(replica.replica_id, "its process died", "lost")
            except (handles.ReplicaUnreachable, TimeoutError):
                continue

    # -- changing

    def reshape(self, replica: FleetReplica, spec: PoolSpec) -> None:
        """Let a replica that is ready follow a declaration that asks for nothing but other numbers."""
        if replica.spec.concurrency != spec.concurrency:
            handles.set_concurrency(replica.handle, spec.concurrency)
        replica.spec = spec

    # -- ending

    def end(self, replica_id: str, reason: str, event: str) -> None:
        """End a replica that is ready or starting; one that is neither is no error.

        Args:
            replica_id: Which.
            reason: For the log.
            event: What it counts as: retired, evicted, lost.
        """
        replica = self._fleet.ready.pop(replica_id, None)
        if replica is not None:
            self._fleet.scale_events[event] += 1
            self._fleet.bump()
        elif (starting := self._fleet.starting.pop(replica_id, None)) is not None:
            replica = starting
        else:
            return
        _log.info("replica ends", replica=replica_id, reason=reason)
        if replica.handle is not None:
            ray.kill(replica.handle)
        self._tasks.spawn(self._clear(replica_id, self._starts.pop(replica_id, None)))

    async def _clear(self, replica_id: str, start: asyncio.Task[None] | None = None) -> None:
        """Free what a replica had, its part of a shared device and the device too where it was the last."""
        if replica_id in self._ending:
            return
        self._ending.add(replica_id)
        try:
            if start is not None:
                start.cancel()
                await asyncio.wait({start})
            await self.forget(replica_id)
            device_group = self._placing.release(replica_id)
            if device_group:
                await self.forget_device(device_group)
        finally:
            self._ending.discard(replica_id)

    async def forget(self, replica_id: str) -> None:
        """Free what a name stands for in Ray and in the ledger, whatever of it there is."""
        handle = handles.find_actor(ACTOR_PREFIX + replica_id)
        if handle is not None:
            ray.kill(handle)
        placement_groups.free_named(replica_id)
        await self._ledger.remove(replica_id)

    async def forget_device(self, device_group: str) -> None:
        """Free the group around a shared device."""
        opening = self._openings.pop(device_group, None)
        if opening is not None:
            opening.cancel()
        placement_groups.free_named(device_group)
        await self._ledger.remove(device_group)

    def drain(self) -> None:
        """End all of them, and free everything that has a name of ours."""
        self._fleet.ready.clear()
        self._fleet.starting.clear()
        for name in handles.list_actors(ACTOR_PREFIX):
            if (handle := handles.find_actor(ACTOR_PREFIX + name)) is not None:
                ray.kill(handle)
        for name in placement_groups.list_groups():
            placement_groups.free_named(name)


def _parts_down(shares: int) -> float:
    """Say a part of a device as Ray counts, in 1/10,000, rounded down so that n of 1/n still fit."""
    return (shares * _PARTS // SHARES_PER_GPU) / _PARTS
