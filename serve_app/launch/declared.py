"""What settings say of keys, clients, pools, agents and blueprints, checked before anything is started.

The processes that use these settings check them too; there a mistake is found after half a minute, and told
by Ray or Serve. Agents are looked for and not imported: that may take long, and other nodes may have what
this one lacks, so that one which is not found is a warning.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from actors.pools import declared_pools
from cluster.errors import InvalidSetting
from serve_app.auth import Authenticator
from serve_app.http_app import build_app
from serve_app.service import RunService

if TYPE_CHECKING:
    from cluster.settings import Settings

__all__ = ["check_declared"]

_NO_REDIS = "unix:///nowhere/redis.sock"


def check_declared(settings: Settings) -> tuple[str, ...]:
    """Check what can be checked without starting anything.

    Returns:
        Warnings, one line each, that begin with the setting's name.

    Raises:
        InvalidSetting: A key's role or tenant, the clients file or the pools file cannot be used, or a
            blueprint wants a path that is not free.
    """
    Authenticator(settings)
    warnings = []
    if settings.has_short_jwt_secret:
        warnings.append(
            "ORCHESTRATOR_JWT_SECRET: is shorter than 32 bytes: whoever finds it out can sign tokens, "
            "and with TUTTI_AUTH=required it is refused"
        )
    own = frozenset(settings.agents)
    for pool in declared_pools(settings):
        for path in pool.agents:
            module = path.partition(":")[0]
            if not _is_there(module):
                variable = "TUTTI_AGENTS" if path in own else f"TUTTI_POOLS_FILE: pool {pool.name}"
                warnings.append(
                    f"{variable}: there is no module {module} here: "
                    f"unless the Ray cluster's nodes have it, nothing serves {path}"
                )
    warnings += _blueprint_warnings(settings)
    return tuple(warnings)


def _blueprint_warnings(settings: Settings) -> list[str]:
    """Put the routes together as ingress replicas do; nothing is sent to the store for that."""
    with TemporaryDirectory() as folder:
        service = RunService.connect(replace(settings, redis_url=_NO_REDIS, data_dir=Path(folder)))
        try:
            build_app(service, settings)
        except ValueError as error:
            raise InvalidSetting(f"TUTTI_BLUEPRINTS_DIR: {error}") from error
    problems = service.blueprints.problems
    return [f"TUTTI_BLUEPRINTS_DIR: {each.origin}: {' '.join(each.reason.split())}" for each in problems]


def _is_there(module: str) -> bool:
    """Whether a module can be found, without importing it or the packages around it."""
    # Ray adds the working directory to what its workers search.
    places: list[str] | None = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        places = _places_in(name, places)
        if places is None:
            return False
    return True


def _places_in(name: str, places: list[str] | None) -> list[str] | None:
    """Where the parts of a module lie, [] where it has none; None where it is not found."""
    searches = [finder.find_spec for finder in sys.meta_path]
    if places is None:
        places_here = [str(Path.cwd())]
        searches.append(lambda name, _places, _target=None: PathFinder.find_spec(name, places_here))
    for search in searches:
        try:
            found = search(name, places)
        except KeyError:
            # A folder without __init__.py in another such: Python wants the outer one imported first.
            folder = name.rpartition(".")[2]
            return [
                str(Path(place) / folder) for place in places or () if (Path(place) / folder).is_dir()
            ] or None
        if found is not None:
            return list(found.submodule_search_locations or ())
    return None
