"""What the ledger, Ray and the scheduler's memory say of the same things, made to agree.

Nodes that are gone take with them what lay there. What Ray has and the ledger does not belongs to nobody and
is freed; an entry that stands for nothing is removed. A new scheduler takes up what the one before left. It
asks Ray's control store only: no dashboard is needed.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from actors import handles
from actors.ray_nodes import foreign_use, read_free, read_nodes
from actors.replicas import ACTOR_PREFIX
from cluster import placement_groups
from cluster.scheduling.pools import request_of

if TYPE_CHECKING:
    from actors.fleet import Fleet
    from actors.ledger import Ledger, ReplicaRecord
    from actors.placing import Placing
    from actors.replicas import Replicas
    from actors.unmet import UnmetDemand

__all__ = ["Reconciler"]

_log = structlog.get_logger("tutti.scheduler")
_ANSWER_S = 3.0


class Reconciler:
    """Compares; `rebuild` once, then `look` and `reclaim` again and again."""

    def __init__(
        self, fleet: Fleet, placing: Placing, ledger: Ledger, replicas: Replicas, unmet: UnmetDemand
    ) -> None:
        self._fleet, self._placing, self._ledger = fleet, placing, ledger
        self._replicas, self._unmet = replicas, unmet

    async def rebuild(self) -> None:
        """Take back what the ledger and Ray both know; free what only one of them does.

        Raises:
            Unavailable: Redis is away; call it again.
        """
        self._placing.set_nodes(await asyncio.to_thread(read_nodes))
        groups, actors = await asyncio.to_thread(_names_in_ray)
        records, devices, others = await self._ledger.read()
        for record in records.values():
            if (pool := self._fleet.pools.get(record.pool)) is not None:
                pool.number = max(pool.number, record.number)
        starts = []
        for name, record in records.items():
            if (start := self._take_back(name, record)) is not None:
                starts.append(start)
            elif name not in self._replicas.names:
                await self._replicas.forget(name)
                self._placing.release(name)
        if starts:
            # Those that are ready answer at once; who still loads its agents goes on doing so.
            await asyncio.wait(starts, timeout=_ANSWER_S)
        for name in devices:
            if not self._placing.sharers(name):
                await self._replicas.forget_device(name)
        for name in others | ((groups | actors) - records.keys() - devices.keys()):
            _log.warning("nobody owns this", name=name)
            await self._replicas.forget(name)

    def _take_back(self, name: str, record: ReplicaRecord) -> asyncio.Task[None] | None:
        """Begin to take up a replica; None where there is nothing to take up."""
        pool = self._fleet.pools.get(record.pool)
        if pool is None or record.distrusted or name in self._replicas.names:
            return None
        request = request_of(record.spec, name)
        if self._placing.restore(request, record.where, record.device_group, time.monotonic()) is None:
            return None
        return self._replicas.adopt(pool, name, record)

    async def look(self) -> None:
        """Look at nodes and at what others use of them."""
        nodes, free, groups = await asyncio.to_thread(
            lambda: (read_nodes(), read_free(), placement_groups.list_groups())
        )
        for name in self._placing.set_nodes(nodes):
            self._replicas.end(name, "its node is gone", "lost")
        for name in list(self._fleet.ready):
            group = groups.get(name)
            # A group that was made after Ray was asked is not in the answer; one that is ready is older.
            if group is not None and group.state == "RESCHEDULING":
                self._replicas.end(name, "a node of its placement group is gone", "lost")
        self._placing.set_foreign(foreign_use(self._placing.totals, free, groups.values()), time.monotonic())
        self._unmet.note_groups(groups)

    async def reclaim(self) -> None:
        """Free what nobody owns."""
        # Ray first: an entry is older than what it names, so that what stands in none now never did.
        ready_before = set(self._fleet.ready)
        groups, actors = await asyncio.to_thread(_names_in_ray)
        records, devices, others = await self._ledger.read()
        mine = self._replicas.names
        for name in (groups | actors) - records.keys() - devices.keys() - mine - self._unmet.names:
            if not self._placing.sharers(name):
                _log.warning("nobody owns this", name=name)
                await self._replicas.forget(name)
        for name in (records.keys() | others) - self._replicas.names - self._unmet.names:
            _log.warning("ledger entry stands for nothing", name=name)
            await self._replicas.forget(name)
        for name in devices:
            if not self._placing.sharers(name):
                await self._replicas.forget_device(name)
        for name in ready_before - (groups & actors):
            self._replicas.end(name, "its placement group or its process is gone", "lost")


def _names_in_ray() -> tuple[set[str], set[str]]:
    """Name our placement groups, and replicas by their actors."""
    return set(placement_groups.list_groups()), set(handles.list_actors(ACTOR_PREFIX))
