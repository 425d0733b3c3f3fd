"""What is declared now: what stood in code and file at the start, and over it what operators changed since.

It reads and compares; what a change means for replicas is `sizing`'s business. A declaration that cannot be
used is left out with a line in the log, and the one before it stays in force.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import msgspec
import structlog

from actors.fleet import Fleet, FleetPool
from actors.pools import capabilities_of, declared_pools, read_pools_file
from cluster.errors import InvalidInput, InvalidSetting
from cluster.scheduling.pools import PoolSpec, check_pool
from cluster.store.capacity import CapacityStore, LimitSpec, check_limit

if TYPE_CHECKING:
    from cluster.settings import Settings

__all__ = ["Declarations"]

_log = structlog.get_logger("tutti.scheduler")


class Declarations:
    """Pools go into the fleet; limits and weights are kept here. `load` comes first.

    Attributes:
        limits: In force, by key or pattern.
        weights: Of tenants.
    """

    def __init__(self, store: CapacityStore, fleet: Fleet) -> None:
        self._store, self._fleet = store, fleet
        self._first_pools: dict[str, PoolSpec] = {}
        self._first_limits: dict[str, LimitSpec] = {}
        self._refused: dict[str, str] = {}
        self.limits: dict[str, LimitSpec] = {}
        self.weights: dict[str, float] = {}

    def load(self, settings: Settings) -> None:
        """Read what is built in, and the pools file.

        Raises:
            InvalidSetting: The file cannot be read, or a declaration is wrong.
        """
        declared = read_pools_file(settings)
        self._first_pools = {spec.name: spec for spec in declared_pools(settings)}
        self._first_limits = dict(declared.limits)
        self.weights = {name: tenant.weight for name, tenant in declared.tenants.items()}

    async def refresh(self) -> None:
        """Read what was changed at run time, and take it over.

        Raises:
            Unavailable: Redis is away; everything stays as it was.
        """
        try:
            pools, limits = await self._store.pools(), await self._store.limits()
        except msgspec.MsgspecError as error:
            self._refuse("what was declared at run time", str(error))
            return
        self.limits = self._limits_with(limits)
        wanted = dict(self._first_pools)
        for name, spec in pools.items():
            if spec is None:
                wanted.pop(name, None)
            elif self._is_sound(name, spec):
                wanted[name] = spec
            elif name in self._fleet.pools and not self._fleet.pools[name].is_removed:
                wanted[name] = self._fleet.pools[name].spec
        for name, pool in self._fleet.pools.items():
            if name not in wanted and not pool.is_removed:
                pool.is_removed = True
                _log.info("pool is removed", pool=name)
                self._fleet.bump()
        for spec in wanted.values():
            await self._take(spec)

    def _limits_with(self, changed: dict[str, LimitSpec | None]) -> dict[str, LimitSpec]:
        limits = dict(self._first_limits)
        for key, limit in changed.items():
            if limit is None:
                limits.pop(key, None)
                continue
            try:
                check_limit(key, limit)
            except InvalidInput as error:
                self._refuse(f"limit {key}", error.message)
                continue
            limits[key] = limit
        return limits

    def _is_sound(self, name: str, spec: PoolSpec) -> bool:
        try:
            check_pool(spec)
        except InvalidSetting as error:
            self._refuse(f"pool {name}", error.message)
            return False
        return spec.name == name

    def _refuse(self, what: str, reason: str) -> None:
        if self._refused.get(what) != reason:
            self._refused[what] = reason
            _log.warning("declaration is not used", what=what, reason=reason)

    async def _take(self, spec: PoolSpec) -> None:
        """Put a pool into the fleet, or change it there."""
        pool = self._fleet.pools.get(spec.name)
        if pool is not None and pool.spec == spec and not pool.is_removed:
            return
        trouble, capabilities = "", spec.capabilities
        if not capabilities:
            try:
                # Importing agents may take long, and others want to be answered meanwhile.
                capabilities = await asyncio.to_thread(capabilities_of, spec)
            except InvalidSetting as error:
                trouble = error.message
        pool = self._fleet.pools.get(spec.name)
        if pool is None:
            pool = self._fleet.pools[spec.name] = FleetPool(spec, capabilities)
        else:
            _log.info("pool is changed", pool=spec.name)
            pool.spec, pool.capabilities, pool.is_removed = spec, capabilities, False
        pool.failed_starts = 0
        pool.set_trouble(trouble, math.inf)
        self._fleet.bump()
