"""Every use case around capacity, once: which pools and limits there are, how they stand, changing them.

What is declared at run time goes before the file, the file before what is built in. It decides nothing about
Steps and starts nothing: the scheduler reads what was declared here and tells how it stands. Pools and
devices are everybody's to see; keys name tenants, so that only an operator sees those of others.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING, NamedTuple

from actors.pools import declared_pools
from cluster.errors import InvalidInput, InvalidSetting, NotFound, Unavailable
from cluster.scheduling.limits import capability_key, tenant_key
from cluster.scheduling.pools import PoolSpec, check_pool
from cluster.store.capacity import (
    CapacitySnapshot,
    CapacityStore,
    LimitSpec,
    LimitState,
    PoolState,
    check_limit,
)

if TYPE_CHECKING:
    from cluster.settings import Settings
    from serve_app.auth import Principal

__all__ = ["CapacityService", "KnownLimit", "KnownPool", "PoolOverview"]

_BUILT_IN, _AGENTS, _FILE, _RUN_TIME = "built-in", "agents", "file", "run time"
_log = logging.getLogger("tutti.capacity")


class KnownPool(NamedTuple):
    """A pool as it is declared and as it stands.

    Attributes:
        spec: What was declared last, whether or not the scheduler has taken it up.
        source: Where: built-in, agents (TUTTI_AGENTS), file (TUTTI_POOLS_FILE) or run time.
        state: How it stood last; None where the scheduler has told nothing of it.
    """

    spec: PoolSpec
    source: str
    state: PoolState | None


class PoolOverview(NamedTuple):
    """All pools by name; `at` is when the scheduler told how they stand, None where it is silent."""

    pools: list[KnownPool]
    at: float | None


class KnownLimit(NamedTuple):
    """A key: what limits it, where that was declared (file or run time), and how many have it."""

    key: str
    spec: LimitSpec
    source: str
    num_used: int


class CapacityService:
    """One per process."""

    def __init__(self, store: CapacityStore, settings: Settings) -> None:
        self.store = store
        self._settings = settings
        self._declared: dict[str, tuple[PoolSpec, str]] | None = None

    # -- pools

    async def pools(self, snapshot: CapacitySnapshot | None = None) -> PoolOverview:
        """List all pools by name, as they stood at `snapshot`; None is the present one."""
        snapshot = snapshot or await self.store.snapshot()
        changed = await self.store.pools()
        states = {} if snapshot is None else {state.name: state for state in snapshot.pools}
        known = {**await self._declarations()}
        # A file that this node does not have: the scheduler's word for what stands in it.
        known |= {name: (state.spec, _FILE) for name, state in states.items() if name not in known}
        for name, spec in changed.items():
            if spec is None:
                known.pop(name, None)
            else:
                known[name] = (spec, _RUN_TIME)
        pools = [KnownPool(spec, source, states.get(name)) for name, (spec, source) in sorted(known.items())]
        return PoolOverview(pools, None if snapshot is None else snapshot.at)

    async def pool(self, name: str) -> KnownPool:
        """Look at one pool.

        Raises:
            NotFound: There is none of that name.
        """
        for known in (await self.pools()).pools:
            if known.spec.name == name:
                return known
        raise NotFound(f"pool {name} not found")

    async def put_pool(self, principal: Principal, spec: PoolSpec) -> KnownPool:
        """Declare a pool, or change one; the scheduler takes it up within seconds.

        Raises:
            InvalidInput: A value cannot be used; the message says why and what could be.
        """
        try:
            check_pool(spec)
        except InvalidSetting as error:
            raise InvalidInput(error.message, **error.details) from None
        await self.store.put_pool(spec)
        _log.info("pool declared, pool=%s by=%s", spec.name, principal.subject)
        return await self.pool(spec.name)

    async def remove_pool(self, principal: Principal, name: str) -> None:
        """Remove a pool, wherever it was declared: its replicas finish what they have and end.

        Raises:
            NotFound: There is none of that name.
        """
        await self.pool(name)
        await self.store.remove_pool(name)
        _log.info("pool removed, pool=%s by=%s", name, principal.subject)

    async def _declarations(self) -> dict[str, tuple[PoolSpec, str]]:
        """What stands in the code and the settings, read once: the scheduler reads it when it starts, too."""
        if self._declared is None:
            self._declared = await asyncio.to_thread(_read_declarations, self._settings)
        return self._declared

    # -- limits

    async def limits(
        self, principal: Principal, snapshot: CapacitySnapshot | None = None
    ) -> list[KnownLimit]:
        """List all limited keys that the caller may see, by key.

        Under a declared pattern there are the keys that are in use, too; they are limited where it was.
        """
        snapshot = snapshot or await self.store.snapshot()
        changed = await self.store.limits()
        states = () if snapshot is None else snapshot.limits
        known = {
            key: KnownLimit(key, spec, _RUN_TIME, 0) for key, spec in changed.items() if spec is not None
        }
        for state in states:
            # A key that is declared itself goes before every pattern, as where limits are enforced.
            declared = state.key if state.key in changed else state.pattern
            if declared not in changed:
                known[state.key] = KnownLimit(state.key, _spec_of(state), _FILE, state.num_used)
            elif (spec := changed[declared]) is not None:
                known[state.key] = KnownLimit(state.key, spec, _RUN_TIME, state.num_used)
        return [limit for key, limit in sorted(known.items()) if _may_see(principal, key)]

    async def limit(self, principal: Principal, key: str) -> KnownLimit:
        """Look at one key.

        Raises:
            NotFound: It has no limit, or is not the caller's to see.
        """
        for known in await self.limits(principal):
            if known.key == key:
                return known
        raise NotFound(f"{key} has no limit")

    async def put_limit(self, principal: Principal, key: str, spec: LimitSpec) -> KnownLimit:
        """Limit a key, or change its limit.

        Raises:
            InvalidInput: See `check_limit`.
        """
        check_limit(key, spec)
        await self.store.put_limit(key, spec)
        _log.info("limit declared, key=%s by=%s", key, principal.subject)
        return await self.limit(principal, key)

    async def remove_limit(self, principal: Principal, key: str) -> None:
        """Free a key, wherever it was limited.

        Raises:
            NotFound: It has no limit.
        """
        await self.limit(principal, key)
        await self.store.remove_limit(key)
        _log.info("limit removed, key=%s by=%s", key, principal.subject)

    # -- everything

    async def snapshot(self) -> CapacitySnapshot:
        """Read what the scheduler told last.

        Raises:
            Unavailable: It has told nothing for some seconds.
        """
        found = await self.store.snapshot()
        if found is None:
            raise Unavailable("the scheduler is silent at the moment; Runs go on", retry_after_s=2.0)
        return found


def _read_declarations(settings: Settings) -> dict[str, tuple[PoolSpec, str]]:
    without_file = dataclasses.replace(settings, pools_file=None)
    built_in = {spec.name: spec for spec in declared_pools(dataclasses.replace(without_file, agents=()))}
    with_agents = {spec.name: spec for spec in declared_pools(without_file)}
    try:
        everything = {spec.name: spec for spec in declared_pools(settings)}
    except InvalidSetting as error:
        _log.warning("pools file cannot be read here: %s", error.message)
        everything = with_agents
    return {
        name: (
            spec,
            _BUILT_IN if built_in.get(name) == spec else _AGENTS if with_agents.get(name) == spec else _FILE,
        )
        for name, spec in everything.items()
    }


def _spec_of(state: LimitState) -> LimitSpec:
    return LimitSpec(max_concurrent=state.max_concurrent, rate=str(state.rate or ""), burst=state.burst)


def _may_see(principal: Principal, key: str) -> bool:
    return principal.is_operator or key == tenant_key(principal.tenant) or key.startswith(capability_key(""))
