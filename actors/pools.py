"""What is declared when the service starts: the built-in pools, the user's agents, and what the pools file
says of pools, limits and tenants. What is changed at run time is `declarations`' business.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING

import msgspec
import yaml

from actors.agent import declaration_of
from cluster.errors import InvalidInput, InvalidSetting
from cluster.scheduling.pools import PoolSpec, check_pool
from cluster.store.capacity import LimitSpec, check_limit

if TYPE_CHECKING:
    from cluster.settings import Settings

__all__ = ["PoolsFile", "TenantSpec", "capabilities_of", "declared_pools", "read_pools_file"]

_MAX_WEIGHT = 1e6
_BUILT_IN = (
    PoolSpec(
        name="basic",
        agents=("actors.agents.basic:Noop", "actors.agents.basic:Sleep", "actors.agents.basic:Fail"),
        concurrency=256,
        num_cpus=0.1,
    ),
    PoolSpec(name="data-ingest", agents=("actors.agents.data_ingest:DataIngest",), concurrency=8),
    PoolSpec(name="data-analysis", agents=("actors.agents.data_analysis:DataAnalysis",), concurrency=2),
    PoolSpec(name="synthesis", agents=("actors.agents.synthesis:Synthesis",), concurrency=4),
    PoolSpec(
        name="blueprint-handlers",
        agents=("actors.agents.blueprint_handler:BlueprintHandler",),
        concurrency=16,
        num_cpus=0.1,
    ),
    PoolSpec(name="api-caller", agents=("actors.agents.api_caller:ApiCaller",), concurrency=64, num_cpus=0.1),
)


class TenantSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant: `weight` is its part in the fair order, > 0; 1 is everybody's."""

    weight: float = 1.0


class PoolsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands in TUTTI_POOLS_FILE; every part may be missing."""

    pools: tuple[PoolSpec, ...] = ()
    limits: dict[str, LimitSpec] = {}
    tenants: dict[str, TenantSpec] = {}


def read_pools_file(settings: Settings) -> PoolsFile:
    """Read the pools file; without one nothing is declared.

    Raises:
        InvalidSetting: It cannot be read, or a limit or weight is wrong. Pools are checked by whoever uses
            them.
    """
    path = settings.pools_file
    if path is None:
        return PoolsFile()
    try:
        declared = msgspec.convert(yaml.safe_load(path.read_text()), PoolsFile)
        for key, limit in declared.limits.items():
            check_limit(key, limit)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise InvalidSetting(f"TUTTI_POOLS_FILE: {path}: {' '.join(str(error).split())}") from error
    except InvalidInput as error:
        raise InvalidSetting(f"TUTTI_POOLS_FILE: {path}: limit {key}: {error.message}") from error
    for name, tenant in declared.tenants.items():
        if not 0 < tenant.weight <= _MAX_WEIGHT:
            raise InvalidSetting(
                f"TUTTI_POOLS_FILE: {path}: tenant {name}: weight must be above 0, at most 1e6"
            )
    return declared


def declared_pools(settings: Settings) -> tuple[PoolSpec, ...]:
    """Collect the pools.

    Raises:
        InvalidSetting: The file cannot be read, or a declaration is wrong.
    """
    pools = {pool.name: pool for pool in _BUILT_IN}
    for path in settings.agents:
        name = re.sub(r"[^a-z0-9]+", "-", path.rpartition(":")[2].lower()).strip("-")
        pools[name] = PoolSpec(name=name, agents=(path,))
    for spec in read_pools_file(settings).pools:
        try:
            check_pool(spec)
        except InvalidSetting as error:
            raise InvalidSetting(f"TUTTI_POOLS_FILE: {settings.pools_file}: {error.message}") from None
        pools[spec.name] = spec
    return tuple(pools.values())


def capabilities_of(pool: PoolSpec) -> tuple[str, ...]:
    """Return what a pool serves, asking its agents where it does not say.

    Raises:
        InvalidSetting: An agent cannot be imported, or was never declared.
    """
    if pool.capabilities:
        return pool.capabilities
    found: list[str] = []
    for path in pool.agents:
        module, _, name = path.partition(":")
        try:
            found += declaration_of(getattr(import_module(module), name)).capabilities
        except (ImportError, AttributeError, TypeError, SyntaxError) as error:
            raise InvalidSetting(f"agent {path}: {error}") from error
    return tuple(found)
