"""Named recipes: which agents a kind of work needs, and the three ways to arrange them into a Plan.

Pure builders; the result is an ordinary Plan and nothing later asks how it was arranged. Step names are the
agents' names. The Run's inputs are `{"inputs": [element, …]}`; what each agent is given stands in `_RECIPES`.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache

import msgspec

from cluster.errors import InvalidInput
from cluster.model.compiled import CompiledPlan, compile_plan
from cluster.model.plan import Json, Plan, Step, SuccessRule

__all__ = ["RECIPE_NAMES", "Arrangement", "Recipe", "arranged_plan", "recipe_of"]

_ALL_INPUTS: Json = {"$ref": "inputs.inputs"}


class Arrangement(StrEnum):
    """How the agents of a recipe are put together."""

    PARALLEL = "parallel"
    """Every agent gets the Run's inputs and works without the others; one success is enough. The output is
    that of the last agent, of the same kind as in the other arrangements; the others' stand at their Steps.
    """
    SEQUENTIAL = "sequential"
    """One after another, each on the output of the one before; the first failure ends the Run."""
    HYBRID = "hybrid"
    """The first agent works on every input element at the same time; what needs its outputs follows."""


class _Stage(msgspec.Struct, frozen=True):
    """An agent and the inputs it gets in a pipeline."""

    agent: str
    inputs: Json


class Recipe(msgspec.Struct, frozen=True):
    """A kind of work.

    Attributes:
        name: What clients call it; the name of its Plans.
        stages: Its agents in pipeline order.
        output_kind: What its output is: json_report, alerts, analysis_result or api_response.
        preferred: The arrangement for those who name none.
    """

    name: str
    stages: tuple[_Stage, ...]
    output_kind: str
    preferred: Arrangement


def _output_of(agent: str) -> Json:
    return {"$ref": f"steps.{agent}.output"}


_RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "report_generation",
            (
                _Stage("data_ingest", {"inputs": _ALL_INPUTS}),
                _Stage("data_analysis", {"data": _output_of("data_ingest")}),
                _Stage(
                    "synthesis",
                    {"analysis": _output_of("data_analysis"), "ingested": _output_of("data_ingest")},
                ),
            ),
            "json_report",
            Arrangement.SEQUENTIAL,
        ),
        Recipe(
            "real_time_monitoring",
            (
                _Stage("video_detection", {"inputs": _ALL_INPUTS}),
                _Stage("alerting", {"detections": _output_of("video_detection")}),
            ),
            "alerts",
            Arrangement.SEQUENTIAL,
        ),
        Recipe(
            "data_analysis",
            (_Stage("data_analysis", {"inputs": _ALL_INPUTS}),),
            "analysis_result",
            Arrangement.PARALLEL,
        ),
        Recipe(
            "api_call",
            (_Stage("api_caller", {"inputs": _ALL_INPUTS}),),
            "api_response",
            Arrangement.PARALLEL,
        ),
    )
}

RECIPE_NAMES = tuple(_RECIPES)


def recipe_of(name: str) -> Recipe:
    """Look a recipe up.

    Raises:
        InvalidInput: There is none of that name.
    """
    try:
        return _RECIPES[name]
    except KeyError:
        raise InvalidInput(f"{name!r} is not one of {', '.join(RECIPE_NAMES)}") from None


@lru_cache(maxsize=64)
def arranged_plan(name: str, arrangement: Arrangement) -> CompiledPlan:
    """Build the Plan of a recipe; equal arguments give the same object.

    Raises:
        InvalidInput: There is no recipe of that name.
    """
    recipe = recipe_of(name)
    if arrangement is Arrangement.PARALLEL:
        steps = tuple(_step(stage.agent, {"inputs": _ALL_INPUTS}) for stage in recipe.stages)
        output = _output_of(recipe.stages[-1].agent)
        return compile_plan(Plan(name=name, steps=steps, output=output, success=SuccessRule.ANY))
    if arrangement is Arrangement.HYBRID and len(recipe.stages) > 1:
        first, *others = recipe.stages
        spread = Step(
            name=first.agent, capability=first.agent, inputs={"inputs": [{"$ref": "item"}]}, map=_ALL_INPUTS
        )
        steps = (spread, *(_step(stage.agent, stage.inputs) for stage in others))
    else:
        steps = tuple(_step(stage.agent, stage.inputs) for stage in recipe.stages)
    return compile_plan(Plan(name=name, steps=steps))


def _step(agent: str, inputs: Json) -> Step:
    return Step(name=agent, capability=agent, inputs=inputs)
