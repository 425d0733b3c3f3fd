"""Which pools there are: the built-in ones, the user's agents, and what the pools file says of either."""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from actors.agent import declaration_of
from cluster.errors import InvalidSetting
from cluster.scheduling.pools import PoolSpec, check_pool

if TYPE_CHECKING:
    from cluster.settings import Settings

__all__ = ["capabilities_of", "declared_pools"]

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
    PoolSpec(name="api-caller", agents=("actors.agents.api_caller:ApiCaller",), concurrency=64, num_cpus=0.1),
)


def declared_pools(settings: Settings) -> tuple[PoolSpec, ...]:
    """Collect the pools.

    Raises:
        InvalidSetting: The file cannot be read, or a declaration is wrong.
    """
    pools = {pool.name: pool for pool in _BUILT_IN}
    for path in settings.agents:
        name = re.sub(r"[^a-z0-9]+", "-", path.rpartition(":")[2].lower()).strip("-")
        pools[name] = PoolSpec(name=name, agents=(path,))
    if settings.pools_file is not None:
        for spec in _read(settings.pools_file):
            pools[spec.name] = spec
    for pool in pools.values():
        check_pool(pool)
    return tuple(pools.values())


def _read(path: Any) -> list[PoolSpec]:
    try:
        document = yaml.safe_load(path.read_text())
        return msgspec.convert(document["pools"], list[PoolSpec])
    except (OSError, yaml.YAMLError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise InvalidSetting(f"TUTTI_POOLS_FILE: {path}: {error}") from error


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
