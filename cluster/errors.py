"""The one tree of errors. A dialect maps the `code` of a class to its own shape; nothing else is raised on
purpose.

TuttiError
├── InvalidInput            VALIDATION_ERROR    what the client sent cannot be accepted
│   ├── InvalidPlan         VALIDATION_ERROR    a Plan breaks a rule of the model
│   └── PayloadTooLarge     PAYLOAD_TOO_LARGE   a body or value is over its limit
├── NotFound                NOT_FOUND           no such thing, or not this tenant's
├── AlreadyExists           ALREADY_EXISTS      the id is taken by something different
├── Conflict                CONFLICT            the thing exists but its status forbids the request
├── Unauthenticated         UNAUTHENTICATED     a credential is missing or wrong
├── Forbidden               FORBIDDEN           the credential does not reach this far
├── LimitExceeded           RESOURCE_EXHAUSTED  a bound of the system or the tenant is reached
├── Unavailable             UNAVAILABLE         a part is away for the moment; try again after `retry_after_s`
├── InvalidTransition       INVALID_TRANSITION  a lifecycle table has no such move
├── StaleOwner              STALE_OWNER         a commit under an epoch that is over
├── StepError               (its own code)      what an agent reports about its work
├── RunFailed               (the Run's code)    raised to a driver that asked for the result of a failed Run
├── InvalidSetting          INVALID_SETTING     a setting cannot be used
└── LaunchFailed            LAUNCH_FAILED       the service cannot start, with the reason in one line
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

__all__ = [
    "AlreadyExists",
    "Conflict",
    "FailureCode",
    "Forbidden",
    "InvalidInput",
    "InvalidPlan",
    "InvalidSetting",
    "InvalidTransition",
    "LaunchFailed",
    "LimitExceeded",
    "NotFound",
    "PayloadTooLarge",
    "RunFailed",
    "StaleOwner",
    "StepError",
    "TuttiError",
    "Unauthenticated",
    "Unavailable",
]


class FailureCode(StrEnum):
    """Why a Step or a Run failed, as clients see it."""

    VALIDATION_ERROR = "VALIDATION_ERROR"
    """The agent refused its input."""
    AGENT_UNAVAILABLE = "AGENT_UNAVAILABLE"
    """No healthy agent serves the capability."""
    EXECUTION_FAILED = "EXECUTION_FAILED"
    """The agent's own code failed."""
    TIMEOUT = "TIMEOUT"
    """A deadline passed."""
    CANCELLED = "CANCELLED"
    """A client asked for the end."""


class TuttiError(Exception):
    """Root of all errors raised on purpose. Arguments are attributes as well as text."""

    code = "INTERNAL"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.details))


def _rebuild(kind: type[TuttiError], message: str, details: dict[str, Any]) -> TuttiError:
    return kind(message, **details)


class InvalidInput(TuttiError):
    """Raised when what a client sent cannot be accepted; `details["field"]` names the place where there is
    one.
    """

    code = "VALIDATION_ERROR"


class InvalidPlan(InvalidInput):
    """Raised when a Plan breaks a rule of the model: a cycle, an unknown reference, a doubled name."""


class PayloadTooLarge(InvalidInput):
    """Raised when a body or a value is over its limit (`details["limit_bytes"]`)."""

    code = "PAYLOAD_TOO_LARGE"


class NotFound(TuttiError):
    """Raised when an id is unknown, or belongs to another tenant: the two are not told apart."""

    code = "NOT_FOUND"


class AlreadyExists(TuttiError):
    """Raised when an id was given before with a different request."""

    code = "ALREADY_EXISTS"


class Conflict(TuttiError):
    """Raised when the thing exists but its status forbids the request (cancel of an ended Run)."""

    code = "CONFLICT"


class Unauthenticated(TuttiError):
    """Raised when a credential is missing or wrong."""

    code = "UNAUTHENTICATED"


class Forbidden(TuttiError):
    """Raised when a valid credential lacks the role or scope."""

    code = "FORBIDDEN"


class LimitExceeded(TuttiError):
    """Raised when a bound of the tenant or the system is reached; `retry_after_s` says when to try again."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_s: float = 1.0, **details: Any) -> None:
        super().__init__(message, retry_after_s=retry_after_s, **details)
        self.retry_after_s = retry_after_s


class Unavailable(TuttiError):
    """Raised when a part is away for the moment (Redis down, no verdict in time)."""

    code = "UNAVAILABLE"

    def __init__(self, message: str, retry_after_s: float = 1.0, **details: Any) -> None:
        super().__init__(message, retry_after_s=retry_after_s, **details)
        self.retry_after_s = retry_after_s


class InvalidTransition(TuttiError):
    """Raised when a lifecycle table has no move for the pair (status, event); nothing was changed."""

    code = "INVALID_TRANSITION"

    def __init__(self, entity: str, status: str, event: str) -> None:
        super().__init__(f"{entity} in status {status} does not accept {event}")
        self.entity, self.status, self.event = entity, status, event

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.entity, self.status, self.event))


class StaleOwner(TuttiError):
    """Raised when a commit carries an epoch that is over; the commit changed nothing."""

    code = "STALE_OWNER"


class StepError(TuttiError):
    """What an agent reports about its work. Agents raise it; anything else they raise becomes one.

    Args:
        message: One sentence for the client.
        code: The failure code.
        retryable: Whether the same attempt may succeed later (a connection, a timeout, a lack of capacity).
    """

    code: str = FailureCode.EXECUTION_FAILED

    def __init__(
        self,
        message: str,
        code: str = FailureCode.EXECUTION_FAILED,
        retryable: bool = False,
        **details: Any,
    ) -> None:
        super().__init__(message, code=code, retryable=retryable, **details)
        self.code = code
        self.retryable = retryable


class RunFailed(TuttiError):
    """Raised to a driver that asks for the result of a Run that failed or was cancelled."""

    code: str = FailureCode.EXECUTION_FAILED

    def __init__(
        self, message: str, run_id: str = "", code: str = FailureCode.EXECUTION_FAILED, **details: Any
    ) -> None:
        super().__init__(message, run_id=run_id, code=code, **details)
        self.run_id = run_id
        self.code = code


class InvalidSetting(TuttiError):
    """Raised at start-up when a setting cannot be used; the message begins with its name."""

    code = "INVALID_SETTING"


class LaunchFailed(TuttiError):
    """Raised when the service cannot start: a port in use, an unwritable directory, a Redis too old."""

    code = "LAUNCH_FAILED"
