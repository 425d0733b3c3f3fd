"""What a result of an outside worker means: one table, whatever wire it came by.

Success and statuses of the worker's own are outputs, `{"status": …, "data": …}`: a Plan refers to either, a
Blueprint moves by the status. Of failures the code says whether another attempt may help. It refuses to know
statuses of Runs: the engine says what follows.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.errors import FailureCode
from cluster.model.view import Failure

__all__ = ["CANCELLED", "FAILURE", "NOT_RETRYABLE", "SUCCESS", "WorkerResult", "meaning_of"]

SUCCESS = "success"
FAILURE = "failure"
CANCELLED = "cancelled"

NOT_RETRYABLE = frozenset(
    {
        "PERMANENT_ERROR",
        "SECURITY_ERROR",
        "DEPENDENCY_ERROR",
        "INVALID_INPUT_ERROR",
        "INTEGRITY_MISMATCH_ERROR",
        "CONTRACT_VIOLATION",
        "CONTRACT_VIOLATION_ERROR",
    }
)
"""Codes after which the same would fail again. All others, and none, may pass."""


class WorkerResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """A result.

    Attributes:
        status: SUCCESS, FAILURE, CANCELLED or a word of the worker's own.
        data: JSON.
        code: Of a failure; "" for none.
        message: Of a failure; "" for none.
    """

    status: str = SUCCESS
    data: Any = None
    code: str = ""
    message: str = ""


def meaning_of(result: WorkerResult, *, moves_by_status: bool) -> bytes | Failure:
    """Say what a result is to the engine: an output (raw JSON), or a failure.

    Args:
        result: As the worker told it.
        moves_by_status: The Run has moves for statuses, also for that of work that was called off.
    """
    if result.status == FAILURE:
        code = result.code or FailureCode.EXECUTION_FAILED
        message = result.message or "the worker told of a failure without saying why"
        return Failure(code, message, retryable=code not in NOT_RETRYABLE)
    if result.status == CANCELLED and not moves_by_status:
        return Failure(FailureCode.CANCELLED, result.message or "called off by its worker")
    return msgspec.json.encode({"status": result.status, "data": result.data})
