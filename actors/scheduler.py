"""The scheduler actor: it owns capacity. Pools, their replicas, the placement groups under them, and who may
use a slot or a limited key.

It puts the parts together and answers orchestrators; each part decides one thing. It may die: replicas and
placement groups are detached and stand in a ledger, orchestrators go on with the slots they have, and a new
one rebuilds itself from the ledger and from Ray.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import structlog
from ray.exceptions import RayError

from actors import handles
from actors.background_tasks import BackgroundTasks
from actors.blob_upkeep import BlobUpkeep
from actors.capacity_report import CapacityReport
from actors.claimants import Claimants
from actors.declarations import Declarations
from actors.fleet import Fleet
from actors.key_division import KeyDivision
from actors.ledger import Ledger
from actors.placing import Placing
from actors.pool_table import Needs, PoolEntry, PoolTable, ReplicaEntry
from actors.reconciler import Reconciler
from actors.replicas import Replicas
from actors.sizing import Sizing
from actors.slots import Slots
from actors.unmet import UnmetDemand
from actors.webhook_sender import WebhookSender
from cluster.errors import TuttiError
from cluster.store import keys
from cluster.store.capacity import CapacityStore
from cluster.store.connection import connect_redis, redis_errors_as_ours

if TYPE_CHECKING:
    from cluster.settings import Settings

__all__ = ["Scheduler"]

_log = structlog.get_logger("tutti.scheduler")
_HOLD_S = 1.0
_TICK_S = 0.2
_LOOK_EVERY_S = 1.0
_RECLAIM_EVERY_S = 5.0
_ALIVE_S = 5.0


class Scheduler:
    """A Ray actor with async methods; one per cluster, named and detached."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = connect_redis(settings.redis_url)
        self._tasks = BackgroundTasks()
        self._fleet = Fleet()
        self._claimants = Claimants()
        self._placing = Placing()
        self._ledger = Ledger(self._redis)
        self._slots = Slots(self._fleet, self._claimants)
        self._division = KeyDivision(self._fleet, self._claimants, settings.num_orchestrators)
        self._declarations = Declarations(CapacityStore(self._redis), self._fleet)
        self._replicas = Replicas(settings, self._fleet, self._placing, self._ledger, self._tasks)
        self._sizing = Sizing(self._fleet, self._claimants, self._placing, self._replicas)
        self._unmet = UnmetDemand(self._ledger, self._tasks)
        self._reconciler = Reconciler(self._fleet, self._placing, self._ledger, self._replicas, self._unmet)
        self._report = CapacityReport(
            self._redis, self._fleet, self._claimants, self._placing, self._division
        )
        self._is_draining = False
        # Ray calls __init__ again when it restarts the actor, and nothing else: so it begins by itself.
        self._beginning = asyncio.get_running_loop().create_task(self._begin())

    # -- life

    async def start(self) -> None:
        """Return when it works."""
        await asyncio.shield(self._beginning)

    async def _begin(self) -> None:
        """Read the declarations, rebuild from the ledger, begin to work."""
        self._declarations.load(self._settings)
        while True:
            try:
                await self._declarations.refresh()
                self._division.declare(self._declarations.limits)
                names = await self._living_orchestrators()
                self._division.begin(names)
                self._slots.begin(names)
                await self._reconciler.rebuild()
                break
            except (TuttiError, RayError) as error:
                _log.warning("scheduler waits", reason=str(error).partition("\n")[0])
                await asyncio.sleep(_TICK_S)
        self._fleet.bump()
        self._tasks.repeat(self._tick, _TICK_S)
        self._tasks.repeat(self._look, _LOOK_EVERY_S)
        self._tasks.repeat(self._look_at_nodes, _LOOK_EVERY_S)
        self._tasks.repeat(self._reconciler.reclaim, _RECLAIM_EVERY_S)
        self._tasks.spawn(WebhookSender(self._settings, self._redis).run())
        self._tasks.spawn(BlobUpkeep(self._settings, self._redis).run())

    async def _living_orchestrators(self) -> list[str]:
        """Name those who may hold shares that a scheduler before gave them."""
        with redis_errors_as_ours():
            names: Any = await self._redis.zrangebyscore(keys.ORCHESTRATORS, time.time() - _ALIVE_S, "+inf")
        return [name.decode() for name in names]

    async def _tick(self) -> None:
        self._claimants.drop_silent()
        self._divide()
        self._sizing.settle()

    async def _look(self) -> None:
        """Look at what operators changed, and tell how things stand."""
        await self._declarations.refresh()
        self._division.declare(self._declarations.limits)
        self._fleet.weigh(self._declarations.weights)
        await self._report.publish()

    async def _look_at_nodes(self) -> None:
        """Look at nodes, and at what others use of them; say what is short."""
        await self._reconciler.look()
        self._replicas.look_at_kept_away()
        self._unmet.tell(self._sizing.missing)

    async def drain(self) -> None:
        """End all replicas and free all groups."""
        self._is_draining = True
        self._tasks.cancel_all()
        self._replicas.drain()
        await self._ledger.clear()
        with redis_errors_as_ours():
            await self._redis.delete(keys.CAPACITY)
        await self._redis.aclose()

    # -- orchestrators

    async def attend(self, orchestrator_id: str, version: int, needs: Needs) -> PoolTable:
        """Answer with the table as soon as it is newer than `version`, at the latest after a second."""
        await self.start()  # a table made in the middle of the rebuilding would take replicas away
        claimant = self._claimants.note(orchestrator_id, needs)
        self._slots.confirm(orchestrator_id, version, needs)
        self._division.confirm(orchestrator_id, version, needs)
        self._divide()
        deadline = time.monotonic() + _HOLD_S
        while self._fleet.version <= version and (left_s := deadline - time.monotonic()) > 0:
            self._fleet.changed.clear()
            try:
                await asyncio.wait_for(self._fleet.changed.wait(), left_s)
            except TimeoutError:
                break
        claimant.seen_at = time.monotonic()
        return self._table(orchestrator_id)

    async def note_demand(self, orchestrator_id: str, needs: Needs) -> None:
        """Take note of what waits."""
        await self.start()
        self._claimants.note(orchestrator_id, needs)
        self._division.note(orchestrator_id, needs)
        self._divide()
        if not self._is_draining:
            self._sizing.settle()

    def _divide(self) -> None:
        self._slots.share()
        self._division.share()

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
                pool.reason,
            )
            for name, pool in self._fleet.pools.items()
            if not pool.is_removed
        )
        replicas = tuple(
            ReplicaEntry(
                r.replica_id, r.pool, r.handle, r.limits.get(orchestrator_id, 0), r.node_id, r.socket
            )
            for r in self._fleet.ready.values()
            if not r.is_retiring or r.held.get(orchestrator_id, 0)
        )
        limits = self._division.limits_for(orchestrator_id)
        return PoolTable(self._fleet.version, pools, replicas, limits, self._fleet.weights)

    async def replace(self, replica_id: str, reason: str) -> None:
        """Kill a replica that does not obey; demand starts another."""
        self._replicas.end(replica_id, reason, "lost")

    # -- for operators and tests

    def status(self) -> dict[str, Any]:
        """Tell pools and replicas."""
        return {
            "version": self._fleet.version,
            "pools": {
                name: {
                    "capabilities": list(pool.capabilities),
                    "starting": self._fleet.num_starting(name),
                    "trouble": pool.trouble,
                }
                for name, pool in self._fleet.pools.items()
            },
            "replicas": {
                each.replica_id: {
                    "pool": each.pool,
                    "limits": dict(each.limits),
                    "node": each.node_id,
                    "gpus": list(each.gpu_ids),
                }
                for each in self._fleet.ready.values()
            },
            "groups": sorted(self._replicas.group_names() | self._unmet.names),
        }

    async def replica_pid(self, replica_id: str) -> int:
        """Return a replica's process id."""
        return int((await handles.start_replica_check(self._fleet.ready[replica_id].handle))["pid"])
