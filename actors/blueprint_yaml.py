"""Blueprints in YAML, to the same model as those in Python. They have no handlers of their own.

    name: approval_flow
    parameters: {document: {type: string, required: true}}
    start: review
    states:
      review: {approval: {message: {$ref: inputs.document}}, to: {approved: done, rejected: refused}}
      done: end
      refused: {end: failure, message: the document was rejected}

A state is one of `dispatch`, `agent`, `parallel`, `approval`, `run`, `pass`, `end`, with `to`: a state, or
several `{to, when}` of which the first that holds is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from actors.blueprint import Blueprint, Way, Ways, agent_work, task
from cluster.errors import InvalidPlan
from cluster.model.blueprint import SUCCESS, Parameter, Work

__all__ = ["read_blueprints"]

_KINDS = ("dispatch", "agent", "parallel", "approval", "run", "pass", "end")
_TOP = {"name", "version", "endpoint", "parameters", "description", "start", "states", "on_demand"}
_WORK_FIELDS = {"params", "inputs", "name", "retries", "timeout_s", "demands"}


def read_blueprints(text: str) -> list[Blueprint]:
    """Read the documents of a YAML file.

    Raises:
        InvalidPlan: It is no YAML, or a document is no blueprint; the message says where.
    """
    try:
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
    except yaml.YAMLError as error:
        raise InvalidPlan(f"not YAML: {error}") from error
    return [_read(document) for document in documents]


def _read(document: Any) -> Blueprint:
    top = _object(document, "a blueprint")
    _refuse_unknown(top, _TOP, "blueprint")
    name = top.get("name")
    states = _object(top.get("states"), f"blueprint {name}: states")
    start = top.get("start")
    if not isinstance(name, str) or not isinstance(start, str) or start not in states:
        raise InvalidPlan(f"blueprint {name}: needs a name, and a start that is one of its states")
    blueprint = Blueprint(
        name,
        version=str(top.get("version", "v1")),
        endpoint=None if top.get("endpoint") is None else str(top["endpoint"]),
        parameters=_parameters(top.get("parameters") or {}),
        description=str(top.get("description", "")),
        on_demand=bool(top.get("on_demand", False)),
    )
    for key, state in states.items():
        if not isinstance(key, str):
            raise InvalidPlan(
                f"state {key!r}: its name is no text (YAML reads yes and no as booleans: quote them)"
            )
        _add_state(blueprint, key, state, start=key == start)
    return blueprint


def _parameters(given: Any) -> dict[str, type | Parameter]:
    found: dict[str, type | Parameter] = {}
    for name, each in _object(given, "parameters").items():
        fields = {"type": each} if isinstance(each, str) else _object(each, f"parameter {name}")
        try:
            found[str(name)] = msgspec.convert({"name": str(name), **fields}, Parameter)
        except msgspec.ValidationError as error:
            raise InvalidPlan(f"parameter {name}: {error}") from error
    return found


def _add_state(blueprint: Blueprint, name: str, given: Any, *, start: bool) -> None:
    where = f"state {name}"
    state = {"end": None} if given == "end" else _object(given, where)
    kinds = [kind for kind in _KINDS if kind in state]
    if len(kinds) != 1:
        raise InvalidPlan(f"{where}: must be one of {', '.join(_KINDS)}")
    kind = kinds[0]
    if kind == "end":
        _refuse_unknown(state, {"end", "message"}, where)
        if state["end"] not in (None, "failure"):
            raise InvalidPlan(f"{where}: an end is `end` or `end: failure`")
        blueprint.end(name, failure=state["end"] == "failure", message=state.get("message"), start=start)
        return
    if kind == "pass":
        _refuse_unknown(state, {"pass", "to", "set"}, where)
        blueprint.pass_through(name, to=_way(state.get("to"), where), data=state.get("set"), start=start)
        return
    to = _ways(state.get("to"), where)
    if kind == "approval":
        _refuse_unknown(state, {"approval", "to"}, where)
        wait = _object(state["approval"] or {}, where)
        _refuse_unknown(wait, {"message", "timeout_s"}, where)
        timeout_s = _seconds(wait.get("timeout_s"), where)
        blueprint.approval(name, to=to, message=wait.get("message"), timeout_s=timeout_s, start=start)
    elif kind == "run":
        _refuse_unknown(state, {"run", "to", "inputs"}, where)
        blueprint.run(name, str(state["run"]), to=to, inputs=state.get("inputs"), start=start)
    elif kind == "parallel":
        _refuse_unknown(state, {"parallel", "to", "into"}, where)
        if not isinstance(state["parallel"], list):
            raise InvalidPlan(f"{where}: parallel is a list of work")
        works = [_work(_object(each, where), where) for each in state["parallel"]]
        blueprint.parallel(name, works, to=to, start=start, into=str(state.get("into", "")))
    else:
        _refuse_unknown(state, {kind, "to", "into"} | _WORK_FIELDS - {"name"}, where)
        blueprint.agent(name, _work(state, where), to=to, start=start, into=str(state.get("into", "")))


def _work(given: dict[str, Any], where: str) -> Work:
    fields: dict[str, Any] = {
        "name": str(given.get("name", "")),
        "retries": given.get("retries", 3),
        "timeout_s": _seconds(given.get("timeout_s"), where),
    }
    if not isinstance(fields["retries"], int):
        raise InvalidPlan(f"{where}: retries must be a whole number")
    if "dispatch" in given and "agent" not in given:
        return task(given["dispatch"], given.get("params"), demands=given.get("demands"), **fields)
    if "agent" in given and "dispatch" not in given:
        return agent_work(given["agent"], given.get("inputs"), **fields)
    raise InvalidPlan(f"{where}: work is for an `agent`, or to `dispatch`")


def _ways(given: Any, where: str) -> Ways:
    if isinstance(given, str | list):
        given = {SUCCESS: given}
    return {status: _way(each, where) for status, each in _object(given, f"{where}: to").items()}


def _way(given: Any, where: str) -> str | list[str | Way]:
    if isinstance(given, str):
        return given
    found: list[str | Way] = []
    for each in given if isinstance(given, list) else [given]:
        if isinstance(each, dict) and set(each) == {"to", "when"} and isinstance(each["to"], str):
            found.append(Way(each["to"], each["when"]))
        elif isinstance(each, str):
            found.append(each)
        else:
            raise InvalidPlan(f"{where}: a way is the name of a state, or {{to, when}}")
    return found


def _object(given: Any, what: str) -> dict[Any, Any]:
    if not isinstance(given, dict):
        raise InvalidPlan(f"{what}: must be an object")
    return given


def _refuse_unknown(given: Mapping[Any, Any], known: set[str], where: str) -> None:
    if unknown := [key for key in given if key not in known]:
        raise InvalidPlan(f"{where}: {unknown[0]!r} is none of {', '.join(sorted(known))}")


def _seconds(given: Any, where: str) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise InvalidPlan(f"{where}: timeout_s must be a number of seconds")
    return float(given)
