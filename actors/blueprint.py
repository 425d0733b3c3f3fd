"""Blueprints in Python: a state machine, and the functions that work in some of its states.

    from actors.blueprint import Blueprint, outcome, ref

    flow = Blueprint("greeting", parameters={"name": str})

    @flow.handler("compose", start=True, to={"success": "send", "nameless": "refused"})
    def compose(name: str):
        return {"text": f"Hello {name}"} if name else outcome("nameless")

    flow.dispatch("send", "mail", params={"text": ref("data.text")}, to={"success": "sent"})
    flow.end("sent")
    flow.end("refused", failure=True)

A handler is given what its parameters name: `initial_data`, `data` (what was gathered; also `state_history`),
`result` (what came last), `job_id`, `state`, `attempt`, `context` (see AgentContext); else a declared
parameter, else a key of `data`. What it returns is gathered: an object is merged. It should be a function of
what it is given and of nothing else, since it may be called again.

Nothing runs here: a Blueprint is compiled to the core's model, and its handlers are called by an agent.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from cluster.errors import InvalidPlan
from cluster.model import blueprint as core
from cluster.model.blueprint import Move, Parameter, ParameterType, State, StateKind, Work

__all__ = [
    "HANDLER_CAPABILITY",
    "Blueprint",
    "Handler",
    "Outcome",
    "Way",
    "Ways",
    "agent_work",
    "outcome",
    "parameter",
    "ref",
    "task",
    "when",
]

HANDLER_CAPABILITY = "blueprint_handler"
_PATH = re.compile(r"/?[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*\Z")
_VERSION = re.compile(r"v[0-9]{1,6}\Z")
_T = TypeVar("_T", bound=Callable[..., Any])
_PARAMETER_TYPES: Mapping[type, ParameterType] = {
    str: ParameterType.STRING,
    int: ParameterType.INTEGER,
    float: ParameterType.NUMBER,
    bool: ParameterType.BOOLEAN,
    list: ParameterType.ARRAY,
    dict: ParameterType.OBJECT,
}
_SAMPLES: Mapping[ParameterType, Any] = {
    ParameterType.STRING: "",
    ParameterType.INTEGER: 0,
    ParameterType.NUMBER: 0.5,
    ParameterType.BOOLEAN: True,
    ParameterType.ARRAY: [],
    ParameterType.OBJECT: {},
}
_REFERENCES = {
    "initial_data": "inputs",
    "data": "data",
    "state_history": "data",
    "result": "result",
    "job_id": "run.id",
}
_AT_CALL = frozenset({"state", "attempt", "context"})


class Outcome(NamedTuple):
    """What a handler may return where its status is another than "success"."""

    status: str
    data: Any = None


def outcome(status: str, data: Any = None) -> Outcome:
    """Say which move to take, and what to gather."""
    return Outcome(status, data)


class Way(NamedTuple):
    """A move with a condition."""

    to: str
    condition: Any


Ways = Mapping[str, "str | Way | Sequence[str | Way]"]
"""Where to go, by status: a state, or several ways of which the first that holds is taken."""


def when(path: str, op: str = "truthy", value: Any = None, *, to: str) -> Way:
    """Make a way that is taken only if a condition holds; see docs/plans.md for the operators."""
    return Way(to, {"ref": path, "op": op, "value": value})


def ref(path: str) -> dict[str, str]:
    """Refer to `inputs.…` (the initial data), `data.…`, `result.…` or `run.id`."""
    return {"$ref": path}


def parameter(kind: type, *, required: bool = False, default: Any = None, description: str = "") -> Parameter:
    """Declare a parameter: str, int, float, bool, list or dict."""
    try:
        return Parameter(
            name="", type=_PARAMETER_TYPES[kind], required=required, default=default, description=description
        )
    except KeyError:
        raise InvalidPlan(f"a parameter cannot be of type {kind!r}") from None


def task(
    task_type: str | dict[str, str],
    params: Any = None,
    *,
    name: str = "",
    retries: int = 3,
    timeout_s: float | None = None,
    demands: dict[str, Any] | None = None,
) -> Work:
    """Describe work for a worker outside the cluster; see `Blueprint.dispatch`."""
    return Work(
        capability=task_type,
        is_outside=True,
        inputs={} if params is None else params,
        name=name,
        tells_status=True,
        max_retries=retries,
        timeout_s=timeout_s,
        demands=demands or {},
    )


def agent_work(
    capability: str, inputs: Any = None, *, name: str = "", retries: int = 3, timeout_s: float | None = None
) -> Work:
    """Describe work for an agent of the cluster: all of its output is gathered, its status is "success"."""
    return Work(
        capability=capability,
        inputs={} if inputs is None else inputs,
        name=name,
        max_retries=retries,
        timeout_s=timeout_s,
    )


class Handler:
    """A function of a Blueprint, and what it is given.

    Attributes:
        function: Sync or async.
        types: By parameter, for those that have an annotation.
        required: Parameters without a default.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        where = f"handler {function.__name__}"
        try:
            hints = typing.get_type_hints(function)
        except (NameError, TypeError) as error:
            raise InvalidPlan(f"{where}: {error}") from error
        parameters = inspect.signature(function).parameters
        if any(each.kind in (each.VAR_POSITIONAL, each.POSITIONAL_ONLY) for each in parameters.values()):
            raise InvalidPlan(f"{where}: its parameters are given by name")
        self.names = tuple(name for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD)
        self.required = frozenset(
            name for name in self.names if parameters[name].default is inspect.Parameter.empty
        )
        self.types = {name: hints[name] for name in self.names if name in hints and name != "context"}
        for name, kind in self.types.items():
            try:
                msgspec.json.schema(kind)
            except TypeError as error:
                raise InvalidPlan(f"{where}: {name}: {error}") from error

    def inputs(self, parameters: Sequence[Parameter]) -> dict[str, Any]:
        """Make the references to what it is given.

        Raises:
            InvalidPlan: A declared parameter is of another type than the handler's.
        """
        declared = {each.name: each for each in parameters}
        values: dict[str, Any] = {}
        for name in self.names:
            if name in _AT_CALL:
                continue
            if name in _REFERENCES:
                values[name] = ref(_REFERENCES[name])
            elif name in declared:
                self._check_type(name, declared[name])
                values[name] = ref(f"inputs.{name}")
            elif name in self.required:
                values[name] = ref(f"data.{name}")
        optional = [name for name in self.names if name not in values and name not in _AT_CALL]
        return {"values": values, **({"optional": optional, "data": ref("data")} if optional else {})}

    def _check_type(self, name: str, declared: Parameter) -> None:
        if name not in self.types:
            return
        try:
            msgspec.convert(_SAMPLES[declared.type], self.types[name])
        except msgspec.ValidationError:
            # A sample may break a rule that good values keep (a struct's fields, a choice of words).
            if _takes(self.types[name], declared.type):
                return
            raise InvalidPlan(
                f"handler {self.function.__name__}: {name} is declared as {declared.type}, "
                f"not as {self.types[name]}"
            ) from None


def _takes(kind: Any, declared: ParameterType) -> bool:
    schema = msgspec.json.schema(kind)
    text = msgspec.json.encode(schema).decode()
    return f'"type":"{declared}"' in text or (declared is ParameterType.STRING and '"enum"' in text)


class Blueprint:
    """A state machine under construction; see the module.

    Args:
        name: `[A-Za-z0-9_-]{1,64}`.
        version, endpoint: It is served at POST /api/{version}{endpoint}; the endpoint is /jobs/{name} unless
            given.
        parameters: Types of the initial data by name, or what `parameter` makes. None declared: any object.
        description: For people.
        on_demand: Whether it is only there for other blueprints: it is served at no path.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "v1",
        endpoint: str | None = None,
        parameters: Mapping[str, type | Parameter] | None = None,
        description: str = "",
        on_demand: bool = False,
    ) -> None:
        self.name = name
        self.description = description
        self.on_demand = on_demand
        endpoint = f"/jobs/{name}" if endpoint is None else endpoint
        if not _PATH.match(endpoint) or not _VERSION.match(version):
            raise InvalidPlan(
                f"blueprint {name}: /api/{version}/{endpoint.lstrip('/')} is no path for a blueprint"
            )
        self.path = f"/api/{version}/{endpoint.lstrip('/')}"
        self.parameters = tuple(
            msgspec.structs.replace(each if isinstance(each, Parameter) else parameter(each), name=key)
            for key, each in (parameters or {}).items()
        )
        self.handlers: dict[str, Handler] = {}
        self._states: list[State] = []
        self._starts: list[str] = []

    # -- states

    def handler(
        self,
        name: str,
        *,
        to: Ways,
        start: bool = False,
        into: str = "",
        retries: int = 3,
        timeout_s: float | None = None,
    ) -> Callable[[_T], _T]:
        """Let the decorated function work in a state.

        Args:
            name: The state.
            to: Where to go, by the status it returns.
            start: Whether it is the first.
            into: Where its result goes in the data; "" merges an object.
            retries: How often it is tried again when it raises; after that the job is quarantined.
            timeout_s: Limit of one attempt, seconds.
        """

        def note(function: _T) -> _T:
            handler = Handler(function)
            if name in self.handlers:
                raise InvalidPlan(f"blueprint {self.name}: the state {name} has two handlers")
            self.handlers[name] = handler
            work = Work(
                capability=HANDLER_CAPABILITY,
                inputs={"blueprint": self.name, "state": name, **handler.inputs(self.parameters)},
                tells_status=True,
                max_retries=retries,
                timeout_s=timeout_s,
            )
            self._add(State(name=name, kind=StateKind.WORK, moves=_moves(to), work=(work,), into=into), start)
            return function

        return note

    def dispatch(
        self,
        name: str,
        task_type: str | dict[str, str],
        *,
        to: Ways,
        params: Any = None,
        start: bool = False,
        into: str = "",
        retries: int = 3,
        timeout_s: float | None = None,
        demands: dict[str, Any] | None = None,
    ) -> None:
        """Have a worker outside the cluster do something.

        Args:
            task_type: What it must support, or a reference to it.
            params: What it is given; may hold references.
            demands: What else it must have, for who chooses it: strategy, requirements, max_cost.
        """
        work = task(task_type, params, retries=retries, timeout_s=timeout_s, demands=demands)
        self._add(State(name=name, kind=StateKind.WORK, moves=_moves(to), work=(work,), into=into), start)

    def agent(self, name: str, work: Work, *, to: Ways, start: bool = False, into: str = "") -> None:
        """Have an agent of the cluster do something; see `agent_work`."""
        self._add(State(name=name, kind=StateKind.WORK, moves=_moves(to), work=(work,), into=into), start)

    def parallel(
        self, name: str, works: Sequence[Work], *, to: Ways, start: bool = False, into: str = ""
    ) -> None:
        """Have several pieces of work done at the same time and wait for all of them.

        Their results are gathered together, `{name: {"status": …, "data": …}}`, under `into` or the state's
        name; the status is "success" where all went well, else "failure".
        """
        self._add(
            State(name=name, kind=StateKind.WORK, moves=_moves(to), work=tuple(works), into=into), start
        )

    def approval(
        self, name: str, *, to: Ways, message: Any = None, timeout_s: float | None = None, start: bool = False
    ) -> None:
        """Wait for somebody's decision; decisions are the statuses of `to`, "timeout" that of nobody's."""
        self._add(
            State(name=name, kind=StateKind.WAIT, moves=_moves(to), message=message, timeout_s=timeout_s),
            start,
        )

    def run(self, name: str, blueprint: str, *, to: Ways, inputs: Any = None, start: bool = False) -> None:
        """Go through another blueprint, on data of its own; its data is gathered as the result."""
        state = State(
            name=name, kind=StateKind.SUB, moves=_moves(to), blueprint=blueprint, inputs=inputs or {}
        )
        self._add(state, start)

    def pass_through(
        self,
        name: str,
        *,
        to: str | Way | Sequence[str | Way],
        data: dict[str, Any] | None = None,
        start: bool = False,
    ) -> None:
        """Do nothing but go on, after merging `data` into what was gathered."""
        self._add(State(name=name, kind=StateKind.PASS, moves=_moves({core.SUCCESS: to}), set=data), start)

    def end(self, name: str, *, failure: bool = False, message: Any = None, start: bool = False) -> None:
        """End the job: finished, or failed with a message."""
        self._add(State(name=name, kind=StateKind.END, is_failure=failure, message=message), start)

    def _add(self, state: State, start: bool) -> None:
        self._states.append(state)
        if start:
            self._starts.append(state.name)

    # -- the core's model

    def model(self, code: str = "") -> core.Blueprint:
        """Make the core's model, not expanded and not checked.

        Args:
            code: Digest of the code that its handlers stand in.

        Raises:
            InvalidPlan: It has not one start.
        """
        if len(self._starts) != 1:
            raise InvalidPlan(
                f"blueprint {self.name}: {len(self._starts)} states are its start, it needs one"
            )
        return core.Blueprint(
            name=self.name,
            start=self._starts[0],
            states=tuple(_with_code(state, code) for state in self._states),
            parameters=self.parameters,
            description=self.description,
        )


def _with_code(state: State, code: str) -> State:
    """Name the code that a handler stands in, so that a running job keeps to it."""
    if not any(work.capability == HANDLER_CAPABILITY for work in state.work):
        return state
    works = tuple(
        msgspec.structs.replace(work, inputs={**work.inputs, "code": code})
        if work.capability == HANDLER_CAPABILITY
        else work
        for work in state.work
    )
    return msgspec.structs.replace(state, work=works)


def _moves(to: Ways) -> tuple[Move, ...]:
    moves: list[Move] = []
    for status, ways in to.items():
        if not isinstance(status, str):
            raise InvalidPlan(f"status {status!r} is no text (YAML reads yes and no as booleans: quote them)")
        some = [ways] if isinstance(ways, str | Way) else ways
        pairs = ((way, None) if isinstance(way, str) else way for way in some)
        moves += (Move(on=status, to=target, when=condition) for target, condition in pairs)
    return tuple(moves)
