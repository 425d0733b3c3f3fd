"""A Blueprint, checked and prepared: what the engine works on. Compiling is the only validation one gets.

It is refused as a whole where anything dangles, can never be reached, or could never end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from cluster.errors import InvalidInput, InvalidPlan
from cluster.model.blueprint import (
    SUCCESS,
    TIMEOUT,
    Blueprint,
    Json,
    Parameter,
    ParameterType,
    State,
    StateKind,
    Work,
)
from cluster.model.references import (
    Condition,
    Reference,
    Template,
    compile_condition,
    compile_template,
)

__all__ = [
    "MAX_STATES",
    "CompiledBlueprint",
    "CompiledState",
    "CompiledWork",
    "accepted_inputs",
    "compile_blueprint",
]

MAX_STATES = 1000
_MAX_WORK = 1000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_STATE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}\Z")
_STATUS = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_CAPABILITY = re.compile(r"[A-Za-z0-9_.:-]{1,121}\Z")
_ROOTS = frozenset({"inputs", "data", "result", "run"})
_TYPES: Mapping[ParameterType, tuple[type, ...]] = {
    ParameterType.STRING: (str,),
    ParameterType.INTEGER: (int,),
    ParameterType.NUMBER: (int, float),
    ParameterType.BOOLEAN: (bool,),
    ParameterType.ARRAY: (list, tuple),
    ParameterType.OBJECT: (dict,),
}


class CompiledWork:
    """A piece of work; `capability` and `inputs` are templates."""

    __slots__ = ("capability", "inputs", "work")

    def __init__(self, work: Work, capability: Template, inputs: Template) -> None:
        self.work, self.capability, self.inputs = work, capability, inputs


class CompiledState:
    """A state.

    Attributes:
        moves: (condition or None, next state) in order, by status.
        answers: Statuses that a wait can be answered with.
        set, inputs, message: Templates, or None.
    """

    __slots__ = ("answers", "inputs", "message", "moves", "set", "state", "works")

    def __init__(self, state: State) -> None:
        self.state = state
        where = f"state {state.name}"
        self.set = None if state.set is None else _template(state.set, f"{where}.set")
        self.inputs = None if state.inputs is None else _template(state.inputs, f"{where}.inputs")
        self.message = None if state.message is None else _template(state.message, f"{where}.message")
        self.works = tuple(_compile_work(work, where) for work in state.work)
        self.moves: dict[str, list[tuple[Condition | None, str]]] = {}
        for move in state.moves:
            condition = None if move.when is None else compile_condition(move.when, f"{where}.when")
            _check_roots(() if condition is None else condition.references, where)
            self.moves.setdefault(move.on, []).append((condition, move.to))
        self.answers = tuple(status for status in self.moves if status != TIMEOUT)

    @property
    def references(self) -> Iterator[Reference]:
        """All references of the state."""
        for template in (self.set, self.inputs, self.message):
            if template is not None:
                yield from template.references
        for each in self.works:
            yield from each.capability.references
            yield from each.inputs.references
        for ways in self.moves.values():
            for condition, _ in ways:
                if condition is not None:
                    yield from condition.references


class CompiledBlueprint:
    """A checked Blueprint; `states` by name."""

    __slots__ = ("blueprint", "states")

    def __init__(self, blueprint: Blueprint, states: dict[str, CompiledState]) -> None:
        self.blueprint, self.states = blueprint, states


def compile_blueprint(blueprint: Blueprint) -> CompiledBlueprint:
    """Check an expanded Blueprint and prepare it.

    Raises:
        InvalidPlan: A name or number is out of range, a state stands twice or has what its kind has not, a
            move leads nowhere or can never be taken, a state cannot be reached or leads to no end, states do
            nothing in a circle, a reference names a parameter that is not declared.
    """
    if not _NAME.match(blueprint.name):
        raise InvalidPlan(f"blueprint name {blueprint.name!r} must match {_NAME.pattern}", field="name")
    if not 1 <= len(blueprint.states) <= MAX_STATES:
        raise InvalidPlan(f"blueprint {blueprint.name}: needs 1 to {MAX_STATES} states", field="states")
    _check_parameters(blueprint.parameters)
    states: dict[str, CompiledState] = {}
    for state in blueprint.states:
        if not _STATE_NAME.match(state.name):
            raise InvalidPlan(f"state name {state.name!r} must match {_NAME.pattern}", field="states")
        if state.name in states:
            raise InvalidPlan(f"state {state.name} stands twice", field="states")
        _check_state(state)
        states[state.name] = CompiledState(state)
    if blueprint.start not in states:
        raise InvalidPlan(f"the start {blueprint.start!r} is no state", field="start")
    for compiled in states.values():
        _check_ways(compiled, states)
    _check_reach(blueprint.start, states)
    _refuse_idle_circles(states)
    _check_parameter_references(blueprint, states)
    return CompiledBlueprint(blueprint, states)


def _template(value: Json, where: str) -> Template:
    template = compile_template(value, where)
    _check_roots(template.references, where)
    return template


def _check_roots(references: Iterable[Reference], where: str) -> None:
    for reference in references:
        if reference.root not in _ROOTS:
            raise InvalidPlan(
                f"{where}: {reference.text} must begin with inputs, data, result or be run.id", field=where
            )


def _compile_work(work: Work, where: str) -> CompiledWork:
    is_reference = isinstance(work.capability, dict) and set(work.capability) == {"$ref"}
    if not is_reference and not (isinstance(work.capability, str) and _CAPABILITY.match(work.capability)):
        raise InvalidPlan(
            f"{where}: capability {work.capability!r} must match {_CAPABILITY.pattern} or be a reference",
            field=where,
        )
    if not 0 <= work.max_retries <= 100:
        raise InvalidPlan(f"{where}: max_retries must be 0 to 100", field=where)
    _check_timeout(work.timeout_s, where)
    return CompiledWork(
        work, _template(work.capability, f"{where}.capability"), _template(work.inputs, f"{where}.inputs")
    )


def _check_timeout(timeout_s: float | None, where: str) -> None:
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        raise InvalidPlan(f"{where}: timeout_s must be above 0", field=where)


def _check_state(state: State) -> None:
    where = f"state {state.name}"
    kind = state.kind
    if bool(state.work) != (kind is StateKind.WORK) or len(state.work) > _MAX_WORK:
        raise InvalidPlan(
            f"{where}: a state of kind work, and no other, has 1 to {_MAX_WORK} pieces of it", field=where
        )
    names = [work.name for work in state.work]
    if len(state.work) > 1 and (len(set(names)) < len(names) or not all(map(_NAME.match, names))):
        raise InvalidPlan(
            f"{where}: several pieces of work need different names that match {_NAME.pattern}", field=where
        )
    if bool(state.start) != (kind is StateKind.SUB):
        raise InvalidPlan(
            f"{where}: a state of kind sub, and no other, has a blueprint, expanded", field=where
        )
    if bool(state.moves) == (kind is StateKind.END):
        raise InvalidPlan(f"{where}: every state but an end has moves", field=where)
    _check_timeout(state.timeout_s, where)
    if state.timeout_s is not None and kind is not StateKind.WAIT:
        raise InvalidPlan(f"{where}: only a wait has a timeout_s of its own", field=where)
    if state.is_failure and kind is not StateKind.END:
        raise InvalidPlan(f"{where}: only an end can be a failure", field=where)
    if state.set is not None and not isinstance(state.set, dict):
        raise InvalidPlan(f"{where}: set must be an object", field=where)
    if kind is StateKind.WAIT:
        has_way = any(move.on == TIMEOUT for move in state.moves)
        if has_way != (state.timeout_s is not None):
            raise InvalidPlan(
                f"{where}: a wait with timeout_s has a move for {TIMEOUT!r}, no other", field=where
            )
        if not any(move.on != TIMEOUT for move in state.moves):
            raise InvalidPlan(f"{where}: a wait needs a move for at least one answer", field=where)
    if kind is StateKind.PASS and any(move.on != SUCCESS for move in state.moves):
        raise InvalidPlan(f"{where}: a state that does nothing has moves for {SUCCESS!r} only", field=where)


def _check_ways(compiled: CompiledState, states: dict[str, CompiledState]) -> None:
    state = compiled.state
    where = f"state {state.name}"
    if state.kind is StateKind.SUB and state.start not in states:
        raise InvalidPlan(f"{where}: its start {state.start!r} is no state", field=where)
    if state.scope and state.scope not in states:
        raise InvalidPlan(f"{where}: its scope {state.scope!r} is no state", field=where)
    for status, ways in compiled.moves.items():
        if not _STATUS.match(status):
            raise InvalidPlan(f"{where}: status {status!r} must match {_STATUS.pattern}", field=where)
        for position, (condition, to) in enumerate(ways):
            if to not in states:
                raise InvalidPlan(
                    f"{where}: the move for {status!r} leads to {to!r}, which is no state", field=where
                )
            if states[to].state.scope != state.scope:
                raise InvalidPlan(f"{where}: {to!r} belongs to another blueprint", field=where)
            if condition is None and position < len(ways) - 1:
                raise InvalidPlan(
                    f"{where}: a move for {status!r} without condition stands before others", field=where
                )


def _next(compiled: CompiledState, states: dict[str, CompiledState]) -> Iterator[str]:
    """The states that may follow one, of a sub-blueprint's end those behind its state."""
    state = compiled.state
    if state.kind is StateKind.SUB:
        yield state.start
    if state.kind is StateKind.END and state.scope:
        compiled = states[state.scope]
    if state.kind is not StateKind.SUB:
        for ways in compiled.moves.values():
            for _, to in ways:
                yield to


def _check_reach(start: str, states: dict[str, CompiledState]) -> None:
    before: dict[str, list[str]] = {name: [] for name in states}
    reached, pending = {start}, [start]
    while pending:
        name = pending.pop()
        for to in _next(states[name], states):
            before[to].append(name)
            if to not in reached:
                reached.add(to)
                pending.append(to)
    if unreached := [name for name in states if name not in reached]:
        raise InvalidPlan(f"nothing leads to the state {', '.join(unreached)[:300]}", field="states")
    ends = [
        name for name, each in states.items() if each.state.kind is StateKind.END and not each.state.scope
    ]
    ending, pending = set(ends), list(ends)
    while pending:
        for name in before[pending.pop()]:
            if name not in ending:
                ending.add(name)
                pending.append(name)
    if endless := [name for name in states if name not in ending]:
        raise InvalidPlan(f"no end can be reached from the state {', '.join(endless)[:300]}", field="states")


def _refuse_idle_circles(states: dict[str, CompiledState]) -> None:
    """Refuse circles of states in which nothing is done: nothing would ever stop a Run in one."""
    idle = {StateKind.PASS, StateKind.SUB, StateKind.END}
    followers = {
        name: [to for to in _next(each, states) if states[to].state.kind in idle]
        for name, each in states.items()
        if each.state.kind in idle
    }
    num_before = dict.fromkeys(followers, 0)
    for followed in followers.values():
        for to in followed:
            num_before[to] += 1
    free = [name for name, num in num_before.items() if not num]
    while free:
        for to in followers.pop(free.pop()):
            num_before[to] -= 1
            if not num_before[to]:
                free.append(to)
    if followers:
        raise InvalidPlan(f"nothing is done in the circle of {', '.join(followers)[:300]}", field="states")


def _check_parameters(parameters: tuple[Parameter, ...]) -> None:
    names = [each.name for each in parameters]
    if len(set(names)) < len(names):
        raise InvalidPlan("a parameter stands twice", field="parameters")
    for each in parameters:
        if not _NAME.match(each.name):
            raise InvalidPlan(f"parameter {each.name!r} must match {_NAME.pattern}", field="parameters")
        if each.default is not None and (each.required or not _is_of(each.default, each.type)):
            raise InvalidPlan(
                f"parameter {each.name}: only an optional one has a default, and it is of its type",
                field="parameters",
            )


def _check_parameter_references(blueprint: Blueprint, states: dict[str, CompiledState]) -> None:
    if not blueprint.parameters:
        return
    declared = {each.name for each in blueprint.parameters}
    for name, compiled in states.items():
        if compiled.state.scope:
            continue
        for reference in compiled.references:
            if reference.root == "inputs" and reference.path and reference.path[0] not in declared:
                raise InvalidPlan(
                    f"state {name}: {reference.text} is none of the parameters {', '.join(sorted(declared))}",
                    field=f"state {name}",
                )


def _is_of(value: Json, kind: ParameterType) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind is ParameterType.BOOLEAN or not isinstance(value, bool))


def accepted_inputs(parameters: tuple[Parameter, ...], inputs: dict[str, Json]) -> dict[str, Json]:
    """Check inputs against the parameters of a Blueprint and put defaults in.

    Raises:
        InvalidInput: One is missing, has another type, or is not declared; without parameters all will do.
    """
    if not parameters:
        return inputs
    declared = {each.name: each for each in parameters}
    if unknown := [name for name in inputs if name not in declared]:
        raise InvalidInput(f"{unknown[0][:100]}: is none of {', '.join(declared)}", field=unknown[0][:100])
    found = dict(inputs)
    for name, each in declared.items():
        if found.get(name) is None:
            if each.required:
                raise InvalidInput(f"{name}: is missing", field=name)
            found[name] = each.default
        elif not _is_of(found[name], each.type):
            raise InvalidInput(f"{name}: must be of type {each.type}", field=name)
    return found
