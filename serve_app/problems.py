"""What each error of the core is to a client: one table from its class to an HTTP and a gRPC status.

Dialects choose the shape of an error's body, never its status. gRPC statuses stand by name, so that HTTP-only
processes need not load gRPC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from cluster.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    InvalidInput,
    InvalidPlan,
    InvalidSetting,
    InvalidTransition,
    LaunchFailed,
    LimitExceeded,
    NotFound,
    PayloadTooLarge,
    RunFailed,
    StaleOwner,
    StepError,
    TuttiError,
    Unauthenticated,
    Unavailable,
)

__all__ = ["PROBLEMS", "Problem", "Wording", "problem_of", "wording_of"]


class Problem(NamedTuple):
    """Statuses of an error: HTTP number, name of a `grpc.StatusCode`."""

    http_status: int
    grpc_status: str


_INTERNAL = Problem(500, "INTERNAL")

PROBLEMS: Mapping[type[TuttiError], Problem] = {
    TuttiError: _INTERNAL,
    InvalidInput: Problem(422, "INVALID_ARGUMENT"),
    InvalidPlan: Problem(422, "INVALID_ARGUMENT"),
    PayloadTooLarge: Problem(413, "RESOURCE_EXHAUSTED"),
    NotFound: Problem(404, "NOT_FOUND"),
    AlreadyExists: Problem(409, "ALREADY_EXISTS"),
    Conflict: Problem(409, "FAILED_PRECONDITION"),
    Unauthenticated: Problem(401, "UNAUTHENTICATED"),
    Forbidden: Problem(403, "PERMISSION_DENIED"),
    LimitExceeded: Problem(429, "RESOURCE_EXHAUSTED"),
    Unavailable: Problem(503, "UNAVAILABLE"),
    InvalidTransition: Problem(409, "FAILED_PRECONDITION"),
    StaleOwner: Problem(503, "UNAVAILABLE"),
    StepError: _INTERNAL,
    RunFailed: _INTERNAL,
    InvalidSetting: _INTERNAL,
    LaunchFailed: _INTERNAL,
}
"""Every class of the tree; a test compares."""

_MALFORMED = Problem(400, "INVALID_ARGUMENT")
_DEADLINE = Problem(504, "DEADLINE_EXCEEDED")


def problem_of(error: TuttiError) -> Problem:
    """Look up an error's statuses, by its class or the nearest class above it.

    Two things a class does not say are in the error itself: `details["malformed"]` marks a request that could
    not be read at all (400, where content that breaks a rule is 422), and the code TIMEOUT is a deadline.
    """
    if error.details.get("malformed"):
        return _MALFORMED
    if error.code == "TIMEOUT":
        return _DEADLINE
    return next(PROBLEMS[kind] for kind in type(error).__mro__ if kind in PROBLEMS)


class Wording(NamedTuple):
    """An error as every dialect tells it; `field` and `retry_after_s` (seconds) where there is one."""

    problem: Problem
    code: str
    message: str
    field: str | None
    retry_after_s: int | None


def wording_of(error: TuttiError) -> Wording:
    """Word an error for a client. Errors that are our own fault tell nothing of the inside."""
    problem = problem_of(error)
    wait_s = error.details.get("retry_after_s")
    internal = problem.http_status == 500
    return Wording(
        problem,
        "INTERNAL" if internal else str(error.code),
        "internal error" if internal else error.message,
        error.details.get("field"),
        None if wait_s is None else max(1, math.ceil(wait_s)),
    )
