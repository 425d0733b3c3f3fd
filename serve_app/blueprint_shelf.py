"""Which blueprints are served, at which paths, in which version. One shelf per process.

At the start a path that belongs to another route, or to two blueprints, is a mistake that ends it; when the
folder changes later, what cannot be used is told of and what was there before stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from actors.blueprint_files import (
    CodeArchive,
    FoundBlueprint,
    LoadProblem,
    LoadReport,
    find_blueprints,
    folder_state,
)
from cluster.errors import InvalidInput, NotFound
from cluster.model.compiled import CompiledPlan, compile_plan
from cluster.model.compiled_blueprint import accepted_inputs
from cluster.model.expansion import expand
from cluster.model.plan import Json, Plan, Step
from cluster.scheduling.worker_demands import board_offer_fields

if TYPE_CHECKING:
    from cluster.model.blueprint import Blueprint
    from cluster.settings import Settings

__all__ = ["BlueprintShelf", "ServedBlueprint"]

_log = logging.getLogger("tutti.blueprints")
_LOOK_S = 2.0


class ServedBlueprint(NamedTuple):
    """One blueprint.

    Attributes:
        path: Where jobs of it are created; "" where it is only part of others.
        digest: Of its content, sub-blueprints and code.
        model: As its author wrote it.
        plan: What its Runs are made of.
        origin: Where it stands.
    """

    name: str
    path: str
    digest: str
    model: Blueprint
    plan: CompiledPlan
    origin: str

    def inputs(self, given: Json) -> Json:
        """Check initial data and put defaults in.

        Raises:
            InvalidInput: It is no object, or not what the parameters say.
        """
        if not isinstance(given, dict):
            raise InvalidInput("initial_data: must be an object", field="initial_data")
        return accepted_inputs(self.model.parameters, given)


class BlueprintShelf:
    """Blueprints by name and by path.

    Attributes:
        problems: What could not be used when it was last loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.blueprints_dir
        self._archive = CodeArchive(settings.code_dir)
        self._by_name: dict[str, ServedBlueprint] = {}
        self._by_path: dict[str, ServedBlueprint] = {}
        self._is_taken: Callable[[str], str | None] = lambda _path: None
        self._put_up: Callable[[str], None] = lambda _path: None
        self._seen: object = None
        self._watcher: asyncio.Task[None] | None = None
        self._loading = asyncio.Lock()
        self.problems: list[LoadProblem] = []

    @property
    def by_name(self) -> Mapping[str, ServedBlueprint]:
        """All of them."""
        return self._by_name

    def get(self, name: str) -> ServedBlueprint:
        """Find one by name.

        Raises:
            NotFound: There is none.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise NotFound(f"blueprint {name} not found") from None

    def at(self, path: str) -> ServedBlueprint:
        """Find one by its path.

        Raises:
            NotFound: It was there and is gone.
        """
        try:
            return self._by_path[path]
        except KeyError:
            raise NotFound(f"no blueprint is served at {path}") from None

    # -- loading

    def open(self, is_taken: Callable[[str], str | None], put_up: Callable[[str], None]) -> None:
        """Load for the first time.

        Args:
            is_taken: Tells which other route has a path, None where none has.
            put_up: Called with each path that must be routed from now on.

        Raises:
            ValueError: Two want one path.
        """
        self._is_taken, self._put_up = is_taken, put_up
        self._seen = folder_state(self._folder)
        for clash in self._take(find_blueprints(self._folder, self._archive)):
            raise ValueError(f"{clash.origin}: {clash.reason}")
        for problem in self.problems:
            _log.error("blueprint left out: %s: %s", problem.origin, problem.reason)

    async def reload(self) -> None:
        """Load again. Jobs that have begun are not touched: each has its blueprint with it."""
        async with self._loading:
            self._seen = folder_state(self._folder)
            # In a thread: a file may import what takes long.
            report = await asyncio.to_thread(find_blueprints, self._folder, self._archive)
            clashes = self._take(report)
            self.problems += clashes
        for problem in self.problems:
            _log.error("blueprint left out: %s: %s", problem.origin, problem.reason)

    def watch_from_now_on(self) -> None:
        """Look at the folder from time to time, so that all replicas follow it."""
        if self._folder is not None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Look no more."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            if await asyncio.to_thread(folder_state, self._folder) != self._seen:
                await self.reload()

    def _take(self, report: LoadReport) -> list[LoadProblem]:
        """Take over what can be used.

        Returns:
            Paths that are not free.
        """
        self.problems = list(report.problems)
        found = self._chosen(report.found)
        by_name: dict[str, ServedBlueprint] = {}
        by_path: dict[str, ServedBlueprint] = {}
        clashes: list[LoadProblem] = []
        for name, each in found.items():
            served = self._compiled(each, found) or self._by_name.get(name)
            if served is None:
                continue
            if served.path:
                other = by_path[served.path].name if served.path in by_path else self._is_taken(served.path)
                if other is not None:
                    clashes.append(LoadProblem(each.origin, f"POST {served.path} clashes with {other}"))
                    continue
                by_path[served.path] = served
            by_name[name] = served
        self._by_name, self._by_path = by_name, by_path
        for path in by_path:
            self._put_up(path)
        return clashes

    def _chosen(self, found: list[FoundBlueprint]) -> dict[str, FoundBlueprint]:
        """Choose among those of one name: a later kind of source goes before, two of one folder do not."""
        chosen: dict[str, FoundBlueprint] = {}
        for each in found:
            name = each.blueprint.name
            other = chosen.get(name)
            if other is not None and self._is_of_folder(other) and self._is_of_folder(each):
                self.problems.append(
                    LoadProblem(each.origin, f"blueprint {name} stands in {other.origin} too")
                )
                continue
            chosen[name] = each
        return chosen

    def _is_of_folder(self, found: FoundBlueprint) -> bool:
        return self._folder is not None and found.origin.startswith(str(self._folder))

    def _compiled(
        self, found: FoundBlueprint, others: Mapping[str, FoundBlueprint]
    ) -> ServedBlueprint | None:
        def find(name: str) -> Blueprint | None:
            other = others.get(name)
            return None if other is None else other.blueprint.model(other.code)

        blueprint = found.blueprint
        try:
            model = blueprint.model(found.code)
            plan = compile_plan(Plan(name=blueprint.name, blueprint=expand(model, find)))
            _check_demands(model)
        except InvalidInput as error:
            self.problems.append(LoadProblem(found.origin, f"blueprint {blueprint.name}: {error.message}"))
            return None
        digest = hashlib.blake2b(plan.raw, digest_size=16).hexdigest()
        path = "" if blueprint.on_demand else blueprint.path
        return ServedBlueprint(blueprint.name, path, digest, model, plan, found.origin)


def _check_demands(model: Blueprint) -> None:
    """Check what is demanded of workers outside.

    Raises:
        InvalidInput: No worker could ever be compared with it.
    """
    for state in model.states:
        for work in state.work:
            if work.is_outside:
                board_offer_fields(Step(name=state.name, capability="worker:any", demands=work.demands))
