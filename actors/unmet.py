"""Replicas that find no room, as pending placement groups: Ray's autoscaler reads those.

Nobody lives in such a group. As soon as Ray has placed one there is room, and it is freed again, so that the
packer decides who gets it. Without an autoscaler the groups just wait.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple
from uuid import uuid4

from actors.ledger import DemandEntry
from actors.placing import bundle_resources
from cluster import placement_groups
from cluster.scheduling.devices import SHARES_PER_GPU, Bundle
from cluster.scheduling.packing import Request

if TYPE_CHECKING:
    from actors.background_tasks import BackgroundTasks
    from actors.ledger import Ledger
    from cluster.placement_groups import Group

__all__ = ["PREFIX", "UnmetDemand"]

PREFIX = "demand-"
_PATIENCE_S = 3.0
_PAUSE_AFTER_PLACING_S = 10.0
_MAX_PER_POOL = 16


class _Ask(NamedTuple):
    """A group that asks: whose, and for what."""

    pool: str
    bundles: tuple[Bundle, ...]
    strategy: str


class UnmetDemand:
    """All groups that ask for room."""

    def __init__(self, ledger: Ledger, tasks: BackgroundTasks) -> None:
        self._ledger, self._tasks = ledger, tasks
        self._asks: dict[str, _Ask] = {}
        self._ending: set[str] = set()
        self._short_since: dict[str, float] = {}
        self._quiet_until: dict[str, float] = {}

    @property
    def names(self) -> set[str]:
        """Name all groups that ask, or are just being freed."""
        return self._asks.keys() | self._ending

    def tell(self, missing: Mapping[str, tuple[Request, int]]) -> None:
        """Ask for what is missing now, and for nothing else any more.

        Args:
            missing: By pool, the request of one replica and how many there is no room for, >= 1. What is
                missing for a moment only is not asked for.
        """
        now = time.monotonic()
        self._short_since = {pool: self._short_since.get(pool, now) for pool in missing}
        wanted: dict[str, tuple[_Ask, int]] = {}
        for pool, (request, num) in missing.items():
            if now - self._short_since[pool] >= _PATIENCE_S and now >= self._quiet_until.get(pool, 0.0):
                wanted[pool] = _ask_of(pool, request, num)
        for name, ask in list(self._asks.items()):
            found = wanted.get(ask.pool)
            if found is not None and found[0] == ask and found[1] > 0:
                wanted[ask.pool] = (ask, found[1] - 1)
            else:
                self._free(name)
        for ask, num in wanted.values():
            for _ in range(num):
                self._tasks.spawn(self._make(f"{PREFIX}{ask.pool}-{uuid4().hex[:8]}", ask))

    async def _make(self, name: str, ask: _Ask) -> None:
        self._asks[name] = ask
        await self._ledger.write(name, DemandEntry(pool=ask.pool, created_at=time.time()))
        if name in self._asks:
            selectors = [dict(bundle.labels) for bundle in ask.bundles]
            bundles = [bundle_resources(bundle) for bundle in ask.bundles]
            placement_groups.reserve(name, bundles, ask.strategy, selectors if any(selectors) else ())

    def note_groups(self, groups: Mapping[str, Group]) -> None:
        """Free those that Ray has placed: there is room, and the packer will find it."""
        for name, ask in list(self._asks.items()):
            if name in groups and groups[name].is_placed:
                # Where the packer still finds none, e.g. because it keeps devices for a gang, asking again
                # would only hold what others may need.
                self._quiet_until[ask.pool] = time.monotonic() + _PAUSE_AFTER_PLACING_S
                self._free(name)

    def _free(self, name: str) -> None:
        del self._asks[name]
        self._ending.add(name)
        self._tasks.spawn(self._end(name))

    async def _end(self, name: str) -> None:
        try:
            placement_groups.free_named(name)
            await self._ledger.remove(name)
        finally:
            self._ending.discard(name)


def _ask_of(pool: str, request: Request, num: int) -> tuple[_Ask, int]:
    """Make the groups that stand for missing replicas; parts of devices ask for whole ones together."""
    bundles = request.bundles
    if len(bundles) == 1 and 0 < bundles[0].shares < SHARES_PER_GPU:
        num_devices = -(-num * bundles[0].shares // SHARES_PER_GPU)
        whole = bundles[0]._replace(shares=SHARES_PER_GPU)
        return _Ask(pool, (whole,), request.strategy.value), min(num_devices, _MAX_PER_POOL)
    return _Ask(pool, bundles, request.strategy.value), min(num, _MAX_PER_POOL)
