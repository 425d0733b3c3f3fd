"""The scheduler actor: it owns capacity. Pools, their replicas, the placement groups under them, and who may
use a slot.

It may die: replicas and placement groups are detached and stand in a ledger, orchestrators go on with the
slots they have, and a new one rebuilds itself from the ledger. What stands in no ledger is freed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson
import ray
import structlog
from ray.exceptions import RayError

from actors import handles
from actors.blob_upkeep import BlobUpkeep
from actors.pool_table import Needs, PoolEntry, PoolTable, ReplicaEntry
from actors.pools import capabilities_of, declared_pools
from actors.replica import Replica, ReplicaConfig
from actors.webhook_sender import WebhookSender
from cluster import placement_groups
from cluster.errors import InvalidSetting, TuttiError
from cluster.scheduling.grants import fair_targets, raise_limits
from cluster.scheduling.pool_size import replicas_wanted
from cluster.scheduling.pools import PoolSpec
from cluster.store import keys
from cluster.store.connection import connect_redis, redis_errors_as_ours

if TYPE_CHECKING:
    from cluster.settings import Settings

__all__ = ["Scheduler"]

_log = structlog.get_logger("tutti.scheduler")
_HOLD_S = 1.0
_TICK_S = 0.2
_RESERVATION_S = 30.0
_LOAD_S = 120.0
_CLAIMANT_SILENCE_S = 6.0
_MAX_FAILED_STARTS = 3
_TROUBLE_KEPT_S = 30.0
_RECLAIM_EVERY_S = 30.0

ReplicaActor = ray.remote(Replica)


class _Claimant:
    """An orchestrator, as far as slots are concerned."""

    __slots__ = ("needs", "seen_at")

    def __init__(self) -> None:
        self.seen_at = time.monotonic()
        self.needs = Needs({}, {}, {})

    def waiting(self, pool: _Pool) -> int:
        """Count what waits for a pool."""
        return sum(sum(self.needs.demand.get(capability, {}).values()) for capability in pool.capabilities)

    def used(self, replica_id: str) -> int:
        """Count what runs on a replica."""
        return self.needs.in_use.get(replica_id, 0)


class _ReplicaState:
    """A replica that is ready.

    Attributes:
        held: Slots each orchestrator may still be using.
        limits: Slots each was told.
        offered_at: Table version of its limits.
    """

    __slots__ = (
        "handle",
        "held",
        "idle_since",
        "is_retiring",
        "limits",
        "node_id",
        "offered_at",
        "pool",
        "replica_id",
        "socket",
    )

    def __init__(self, replica_id: str, pool: str, handle: Any, answer: dict[str, Any]) -> None:
        self.replica_id, self.pool, self.handle = replica_id, pool, handle
        self.node_id: str = answer["node_id"]
        self.socket: tuple[str, str] | None = answer["socket"]
        self.held: dict[str, int] = {}
        self.limits: dict[str, int] = {}
        self.offered_at = 0
        self.idle_since = time.monotonic()
        self.is_retiring = False


class _Pool:
    """A pool at run time; `alone` names the orchestrator whose suspects have a replica for themselves."""

    __slots__ = ("alone", "capabilities", "failed_starts", "num_starting", "spec", "trouble", "trouble_at")

    def __init__(self, spec: PoolSpec, capabilities: tuple[str, ...]) -> None:
        self.spec = spec
        self.capabilities = capabilities
        self.alone = ""
        self.num_starting = 0
        self.failed_starts = 0
        self.trouble = ""
        self.trouble_at = 0.0


class Scheduler:
    """A Ray actor with async methods; one per cluster, named and detached."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = connect_redis(settings.redis_url)
        self._pools: dict[str, _Pool] = {}
        self._replicas: dict[str, _ReplicaState] = {}
        self._claimants: dict[str, _Claimant] = {}
        # Higher than any version of the scheduler before: who has its table must not take ours for the same.
        self._version = time.time_ns() // 1_000_000
        self._changed = asyncio.Event()
        self._numbers: dict[str, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_draining = False
        # Ray calls __init__ again when it restarts the actor, and nothing else: so it begins by itself.
        self._beginning = asyncio.get_running_loop().create_task(self._begin())

    # -- life

    async def start(self) -> None:
        """Return when it works."""
        await asyncio.shield(self._beginning)

    async def _begin(self) -> None:
        """Read the declarations, rebuild from the ledger, begin to work."""
        for spec in declared_pools(self._settings):
            pool = _Pool(spec, spec.capabilities)
            try:
                pool.capabilities = capabilities_of(spec)
            except InvalidSetting as error:
                pool.trouble, pool.trouble_at = error.message, float("inf")
            self._pools[spec.name] = pool
        while True:
            try:
                await self._reconcile()
                break
            except TuttiError as error:
                _log.warning("scheduler waits", reason=error.message)
                await asyncio.sleep(_TICK_S)
        self._bump()
        self._spawn(self._tick_loop())
        self._spawn(self._reclaim_loop())
        self._spawn(WebhookSender(self._settings, self._redis).run())
        self._spawn(BlobUpkeep(self._settings, self._redis).run())

    async def drain(self) -> None:
        """End all replicas and free all groups."""
        self._is_draining = True
        for task in self._tasks:
            task.cancel()
        for replica in list(self._replicas.values()):
            self._remove(replica, "the service ends")
        for name in placement_groups.list_named():
            placement_groups.free_named(name)
        with redis_errors_as_ours():
            await self._redis.delete(keys.LEDGER)
        await self._redis.aclose()

    def status(self) -> dict[str, Any]:
        """Tell pools and replicas, for operators and tests."""
        return {
            "version": self._version,
            "pools": {
                name: {"capabilities": list(p.capabilities), "starting": p.num_starting, "trouble": p.trouble}
                for name, p in self._pools.items()
            },
            "replicas": {
                r.replica_id: {"pool": r.pool, "limits": dict(r.limits)} for r in self._replicas.values()
            },
        }

    async def replica_pid(self, replica_id: str) -> int:
        """Return a replica's process id, for operators and tests."""
        return int((await handles.start_replica_check(self._replicas[replica_id].handle))["pid"])

    async def _reconcile(self) -> None:
        """Take back what the ledger and Ray both know; free what only one of them does."""
        for replica_id, entry in (await self._reclaim()).items():
            handle = handles.find_actor(_actor_name(replica_id))
            self._numbers[entry["pool"]] = max(self._numbers.get(entry["pool"], 0), entry["number"])
            if handle is None or entry["pool"] not in self._pools:
                await self._forget(replica_id)
                continue
            try:
                async with asyncio.timeout(10):
                    answer = await handles.start_replica_check(handle)
            except (handles.ReplicaGone, TimeoutError):
                await self._forget(replica_id)
                continue
            self._replicas[replica_id] = _ReplicaState(replica_id, entry["pool"], handle, answer)
            self._spawn(self._watch(replica_id, handle))

    async def _reclaim(self) -> dict[str, Any]:
        """Free what stands in no ledger; return the ledger. An entry is older than what it names."""
        groups, actors = placement_groups.list_named(), handles.list_actors(_actor_name(""))
        with redis_errors_as_ours():
            rows: Any = await self._redis.hgetall(keys.LEDGER)
        known = {replica_id.decode(): orjson.loads(entry) for replica_id, entry in rows.items()}
        for replica_id in {*groups, *actors} - known.keys():
            _log.warning("nobody owns this replica", replica=replica_id)
            await self._forget(replica_id)
        return known

    async def _reclaim_loop(self) -> None:
        while True:
            await asyncio.sleep(_RECLAIM_EVERY_S)
            with suppress(TuttiError, RayError):
                await self._reclaim()

    # -- orchestrators

    async def attend(self, orchestrator_id: str, version: int, needs: Needs) -> PoolTable:
        """Answer with the table as soon as it is newer than `version`, at the latest after a second."""
        await self.start()  # a table made in the middle of the rebuilding would take replicas away
        claimant = self._note(orchestrator_id, needs)
        for replica in self._replicas.values():
            if version >= replica.offered_at:
                limit = replica.limits.get(orchestrator_id, 0)
                replica.held[orchestrator_id] = max(limit, needs.in_use.get(replica.replica_id, 0))
        self._share()
        deadline = time.monotonic() + _HOLD_S
        while self._version <= version and (left_s := deadline - time.monotonic()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left_s)
            except TimeoutError:
                break
        claimant.seen_at = time.monotonic()
        return self._table(orchestrator_id)

    async def note_demand(self, orchestrator_id: str, needs: Needs) -> None:
        """Take note of what waits."""
        self._note(orchestrator_id, needs)
        self._share()
        self._scale()

    def _note(self, orchestrator_id: str, needs: Needs) -> _Claimant:
        claimant = self._claimants.get(orchestrator_id)
        if claimant is None:
            claimant = self._claimants[orchestrator_id] = _Claimant()
        claimant.seen_at = time.monotonic()
        claimant.needs = needs
        return claimant

    def _table(self, orchestrator_id: str) -> PoolTable:
        pools = tuple(
            PoolEntry(
                name,
                pool.capabilities,
                pool.spec.max_crashes,
                pool.spec.stop_grace_s,
                pool.spec.concurrency,
                pool.spec.max_replicas * pool.spec.concurrency,
                pool.trouble,
                pool.spec,
            )
            for name, pool in self._pools.items()
        )
        replicas = tuple(
            ReplicaEntry(
                r.replica_id, r.pool, r.handle, r.limits.get(orchestrator_id, 0), r.node_id, r.socket
            )
            for r in self._replicas.values()
            if not r.is_retiring or r.held.get(orchestrator_id, 0)
        )
        return PoolTable(self._version, pools, replicas)

    def _bump(self) -> None:
        self._version += 1
        self._changed.set()

    # -- slots

    def _share(self) -> None:
        """Share each replica's slots anew where somebody waits in vain, or a limit was never told."""
        if turn := sorted(self._claimants):
            shift = int(time.monotonic()) % len(turn)
            turn = turn[shift:] + turn[:shift]
        changed = [r for r in self._replicas.values() if self._share_replica(r, turn)]
        if changed:
            self._bump()
            for replica in changed:
                replica.offered_at = self._version

    def _share_replica(self, replica: _ReplicaState, turn: list[str]) -> bool:
        pool = self._pools[replica.pool]
        for gone in replica.held.keys() - self._claimants.keys():
            replica.held.pop(gone)
            replica.limits.pop(gone, None)
        # One slot each stays with those who have nothing to do, where there are enough: a lone Step need not
        # ask.
        least = 1 if pool.spec.concurrency >= 2 * len(turn) else 0
        wanted: dict[str, int] = {}
        starving = not replica.limits
        for name in turn:
            claimant = self._claimants[name]
            waiting, used = claimant.waiting(pool), claimant.used(replica.replica_id)
            wanted[name] = 0 if replica.is_retiring else max(used + waiting, least)
            limit = replica.limits.get(name, 0)
            starving |= limit < least or (waiting > 0 and used >= limit)
        alone = self._alone_on(replica, pool, turn)
        if not starving and not alone and not replica.is_retiring:
            return False
        slots = 0 if replica.is_retiring else pool.spec.concurrency
        if alone:
            targets = {name: slots if name == alone else 0 for name in turn}
        else:
            targets = fair_targets(slots, wanted, turn)
        limits = raise_limits(pool.spec.concurrency, replica.held, targets)
        if limits == replica.limits:
            return False
        for name, limit in limits.items():
            replica.held[name] = max(replica.held.get(name, 0), limit)
        replica.limits = limits
        return True

    def _alone_on(self, replica: _ReplicaState, pool: _Pool, turn: list[str]) -> str:
        """Name who must have this replica for itself: one who has suspects, on the pool's first replica."""
        serving = (r for r in self._replicas.values() if r.pool == replica.pool and not r.is_retiring)
        if pool.spec.concurrency == 1 or replica is not next(serving, None):
            return ""
        suspecting = [name for name in turn if self._claimants[name].needs.suspects.get(replica.pool)]
        if pool.alone not in suspecting:
            pool.alone = suspecting[0] if suspecting else ""
        return pool.alone

    # -- replicas

    async def _tick_loop(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            for name, claimant in list(self._claimants.items()):
                if now - claimant.seen_at > _CLAIMANT_SILENCE_S:
                    del self._claimants[name]
            self._share()
            self._scale()

    def _scale(self) -> None:
        """Start what is wanted, end what is idle."""
        if self._is_draining:
            return
        now = time.monotonic()
        for name, pool in self._pools.items():
            if pool.trouble and now - pool.trouble_at > _TROUBLE_KEPT_S:
                pool.trouble, pool.failed_starts = "", 0
                self._bump()
            mine = [r for r in self._replicas.values() if r.pool == name and not r.is_retiring]
            waiting = sum(claimant.waiting(pool) for claimant in self._claimants.values())
            used = {
                r.replica_id: sum(claimant.used(r.replica_id) for claimant in self._claimants.values())
                for r in mine
            }
            wanted = replicas_wanted(pool.spec, waiting, sum(used.values()))
            if len(mine) + pool.num_starting < wanted and not pool.trouble:
                pool.num_starting += 1
                self._spawn(self._start_replica(pool))
            for replica in mine:
                if used[replica.replica_id] or waiting:
                    replica.idle_since = now
            idle = [r for r in mine if now - r.idle_since > pool.spec.idle_timeout_s]
            for replica in idle[: max(len(mine) - max(wanted, pool.spec.min_replicas), 0)]:
                replica.is_retiring = True
        for replica in [r for r in self._replicas.values() if r.is_retiring and not any(r.held.values())]:
            self._remove(replica, "idle")

    async def _start_replica(self, pool: _Pool) -> None:
        spec = pool.spec
        number = self._numbers[spec.name] = self._numbers.get(spec.name, 0) + 1
        replica_id = f"agent-{spec.name}-{number}"
        try:
            handle, answer = await self._place(spec, replica_id, number)
        except (TuttiError, handles.ReplicaGone, TimeoutError) as error:
            pool.failed_starts += 1
            reason = str(error) or "its agents took too long to load"
            _log.warning("replica did not start", replica=replica_id, reason=reason)
            await self._forget(replica_id)
            if pool.failed_starts >= _MAX_FAILED_STARTS or isinstance(error, InvalidSetting):
                pool.trouble, pool.trouble_at = reason, time.monotonic()
                self._bump()
            return
        finally:
            pool.num_starting -= 1
        pool.failed_starts = 0
        self._replicas[replica_id] = _ReplicaState(replica_id, spec.name, handle, answer)
        self._share()
        self._bump()
        self._spawn(self._watch(replica_id, handle))

    async def _place(self, spec: PoolSpec, replica_id: str, number: int) -> tuple[Any, dict[str, Any]]:
        bundle = {"CPU": spec.num_cpus, "GPU": spec.num_gpus, "memory": float(spec.memory_bytes)}
        bundle = {key: value for key, value in bundle.items() if value > 0} or {"CPU": 0.001}
        if not placement_groups.fits_cluster(bundle):
            raise InvalidSetting(f"no node has {bundle}")
        entry = orjson.dumps({"pool": spec.name, "number": number, "created_at": time.time()})
        await self._insist(lambda: self._redis.hset(keys.LEDGER, replica_id, entry))
        group = placement_groups.reserve(replica_id, [bundle])
        while not await placement_groups.wait_reserved(group, _RESERVATION_S):
            _log.info("replica waits for resources", replica=replica_id, needs=bundle)
        settings = self._settings
        config = ReplicaConfig(
            replica_id,
            spec.agents,
            spec.concurrency,
            str(settings.blobs_dir),
            settings.inline_limit_bytes,
            settings.input_dirs,
            settings.egress_allow,
        )
        handle = ReplicaActor.options(
            name=_actor_name(replica_id),
            namespace=handles.NAMESPACE,
            lifetime="detached",
            num_cpus=spec.num_cpus,
            num_gpus=spec.num_gpus,
            memory=spec.memory_bytes or None,
            max_concurrency=10_000,
            scheduling_strategy=placement_groups.strategy_in(group),
        ).remote(config)
        async with asyncio.timeout(_LOAD_S):
            return handle, await handles.start_replica_check(handle)

    async def _watch(self, replica_id: str, handle: Any) -> None:
        """Notice the death of a replica that nobody talks to."""
        while replica_id in self._replicas:
            await asyncio.sleep(1.0)
            try:
                async with asyncio.timeout(60):
                    await handles.check_alive(handle)
            except handles.ReplicaGone:
                replica = self._replicas.get(replica_id)
                if replica is not None:
                    self._remove(replica, "its process died")
            except (handles.ReplicaUnreachable, TimeoutError):
                continue

    async def replace(self, replica_id: str, reason: str) -> None:
        """Kill a replica that does not obey; demand starts another."""
        replica = self._replicas.get(replica_id)
        if replica is not None:
            self._remove(replica, reason)

    def _remove(self, replica: _ReplicaState, reason: str) -> None:
        _log.info("replica ends", replica=replica.replica_id, reason=reason)
        self._replicas.pop(replica.replica_id, None)
        ray.kill(replica.handle)
        self._bump()
        if not self._is_draining:
            self._spawn(self._forget(replica.replica_id))

    async def _forget(self, replica_id: str) -> None:
        """Free what a replica had."""
        handle = handles.find_actor(_actor_name(replica_id))
        if handle is not None:
            ray.kill(handle)
        placement_groups.free_named(replica_id)
        await self._insist(lambda: self._redis.hdel(keys.LEDGER, replica_id))

    async def _insist(self, write: Callable[[], Any]) -> None:
        """Write to the ledger, however long the store is away: that is no fault of a replica's."""
        while True:
            try:
                with redis_errors_as_ours():
                    await write()
                return
            except TuttiError:
                await asyncio.sleep(_TICK_S)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._settle)

    def _settle(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("background work failed", reason=repr(task.exception()))


def _actor_name(replica_id: str) -> str:
    return f"tutti:replica:{replica_id}"
