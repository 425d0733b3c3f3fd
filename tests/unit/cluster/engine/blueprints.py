"""Blueprints for tests, and a Run of one on a stage."""

from __future__ import annotations

from typing import Any

from cluster.engine import GrowingRun
from cluster.model.blueprint import Blueprint, Move, State, StateKind, Work
from tests.unit.cluster.engine.stage import Stage


def moves(**to_by_status: str) -> tuple[Move, ...]:
    return tuple(Move(on=status, to=to) for status, to in to_by_status.items())


def work(name: str, *works: Work, **fields: Any) -> State:
    """A state of work; without any of its own, one that tells its status and is given `data`."""
    more = {key: fields.pop(key) for key in ("set", "into") if key in fields}
    given = works or (Work(capability="work", tells_status=True, inputs={"data": {"$ref": "data"}}),)
    ways = fields.pop("moves", None) or moves(**fields)
    return State(name=name, kind=StateKind.WORK, work=given, moves=ways, **more)


def wait(name: str, **to_by_status: str) -> State:
    timeout_s = 10.0 if "timeout" in to_by_status else None
    return State(name=name, kind=StateKind.WAIT, moves=moves(**to_by_status), timeout_s=timeout_s)


def passing(name: str, *ways: Move, **fields: Any) -> State:
    return State(name=name, kind=StateKind.PASS, moves=ways, **fields)


def sub(name: str, blueprint: str, inputs: Any = None, **to_by_status: str) -> State:
    return State(
        name=name, kind=StateKind.SUB, blueprint=blueprint, inputs=inputs, moves=moves(**to_by_status)
    )


def end(name: str = "end", **fields: Any) -> State:
    return State(name=name, kind=StateKind.END, **fields)


def blueprint(*states: State, name: str = "machine", **fields: Any) -> Blueprint:
    return Blueprint(name=name, start=states[0].name, states=states, **fields)


def staged(*states: State, inputs: Any = None, **fields: Any) -> Stage:
    return Stage(blueprint=blueprint(*states), inputs={} if inputs is None else inputs, **fields)


def data_of(stage: Stage) -> dict[str, Any]:
    assert isinstance(stage.run, GrowingRun)
    return stage.run.scopes[""].data


def names_of(stage: Stage) -> list[str]:
    return [each.step.name for each in stage.run.plan.steps]
