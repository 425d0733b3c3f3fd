"""The Blueprint: a state machine that may loop, as data. A Run of it grows as its states are entered.

A state does nothing (pass), has work done by one agent or by several at the same time (work), waits for an
answer from outside (wait), runs through another blueprint (sub), or ends the Run (end). What comes of it is a
status ("success", "approved", …), and the first move for that status whose condition holds says where to go.

A Blueprint holds no code: work names a capability, like a Step. `compiled_blueprint.py` checks it and
prepares it for the engine.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

__all__ = [
    "CANCELLED",
    "FAILURE",
    "SUCCESS",
    "TIMEOUT",
    "Blueprint",
    "Move",
    "Parameter",
    "ParameterType",
    "State",
    "StateKind",
    "Work",
]

SUCCESS = "success"
"""Status of work that names none, of passing, of a parallel state where all went well, of a sub-blueprint."""
FAILURE = "failure"
"""Status of work that failed for good because of what it was given, or of a sub-blueprint that failed."""
TIMEOUT = "timeout"
"""Status of a wait whose time is over."""
CANCELLED = "cancelled"
"""Status of work that was called off; without a move for it the Run ends cancelled."""

Json = Any


class StateKind(StrEnum):
    """What being in a state means."""

    PASS = "pass"  # noqa: S105 - a word, no secret
    """Nothing to do: the moves for "success" are looked at right away."""
    WORK = "work"
    """Agents work; several pieces of work run at the same time and are waited for together."""
    WAIT = "wait"
    """Somebody outside answers; the answers are the statuses of its moves."""
    SUB = "sub"
    """The states of another blueprint are gone through, on data of their own."""
    END = "end"
    """The Run ends."""


class ParameterType(StrEnum):
    """JSON type of a parameter."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    ARRAY = "array"
    OBJECT = "object"


class Parameter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a Run's inputs may or must hold; `default` stands in where it is missing and not required."""

    name: str
    type: ParameterType
    required: bool = False
    default: Json = None
    description: str = ""


class Move(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A way from one state to another.

    Attributes:
        to: Name of the next state.
        on: The status it is for.
        when: Condition (see `references.Condition`) on `inputs`, `data` and `result`; what is not there is
            null. None always holds.
    """

    to: str
    on: str = SUCCESS
    when: Json = None


class Work(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One piece of work.

    Attributes:
        capability: What it needs from an agent, or a reference to it.
        is_outside: For workers outside the cluster: `worker:` goes before the capability.
        inputs: JSON handed to the agent after its references (`inputs`, `data`, `result`, `run.id`) are
            resolved.
        name: Names its result among several.
        tells_status: Its output is `{"status": …, "data": …}`; else all of it is data and the status is
            "success".
        max_retries: How often a retryable failure is tried again, 0 to 100.
        timeout_s: Limit of one attempt in seconds, > 0; None means the setting `step_timeout_s`.
        model, keys: See Step.
        demands: What else matters to who chooses an outside worker; opaque to the engine.
    """

    capability: Json
    is_outside: bool = False
    inputs: Json = msgspec.field(default_factory=dict)
    name: str = ""
    tells_status: bool = False
    max_retries: int = 3
    timeout_s: float | None = None
    model: str = ""
    keys: tuple[str, ...] = ()
    demands: dict[str, Any] = msgspec.field(default_factory=dict)


class State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One state.

    Attributes:
        name: Unique, `[A-Za-z0-9_-]{1,64}`; expanded from a sub-blueprint: with its state's name and a dot
            before.
        kind: What being in it means.
        moves: Where to go, in order; none for an end.
        set: Object merged into the data when it is entered; may hold references.
        work: WORK: one or more.
        into: Where the result goes in the data; "" merges an object (several results, and what is no object,
            go under the state's name).
        message: WAIT: JSON shown to who answers; END: why a Run failed.
        timeout_s: WAIT: how long, in seconds; None for ever.
        blueprint: SUB: its name.
        inputs: SUB: its inputs; may hold references.
        start: SUB, expanded: its first state.
        parameters: SUB, expanded: what its inputs must be.
        scope: Expanded: the SUB state it belongs to, "" for none.
        is_failure: END: the Run fails.
    """

    name: str
    kind: StateKind
    moves: tuple[Move, ...] = ()
    set: Json = None
    work: tuple[Work, ...] = ()
    into: str = ""
    message: Json = None
    timeout_s: float | None = None
    blueprint: str = ""
    inputs: Json = None
    start: str = ""
    parameters: tuple[Parameter, ...] = ()
    scope: str = ""
    is_failure: bool = False


class Blueprint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A state machine.

    Attributes:
        name: `[A-Za-z0-9_-]{1,64}`.
        start: Name of the state it begins with.
        states: In the order they were declared.
        parameters: What its inputs must be; none declared: any object.
        description: For people.
    """

    name: str
    start: str
    states: tuple[State, ...]
    parameters: tuple[Parameter, ...] = ()
    description: str = ""
