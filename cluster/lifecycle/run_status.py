"""The lifecycle of a Run. The diagram in docs/lifecycle.md is generated from this table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from cluster.errors import InvalidTransition

__all__ = ["RUN_TRANSITIONS", "RunEventKind", "RunStatus", "next_run_status"]


class RunStatus(StrEnum):
    """Where a Run stands. Stored by value."""

    PENDING = "pending"
    """Waits for Runs named in `after`; their end moves it on."""
    QUEUED = "queued"
    """Accepted, no Step started yet; a free slot moves it on."""
    RUNNING = "running"
    """At least one Step was started; its Steps move it on."""
    RETRYING = "retrying"
    """All that could go on waits for a backoff to pass; the timer moves it on."""
    WAITING = "waiting"
    """All that could go on waits for an answer from outside; the answer or its deadline moves it on."""
    PAUSED = "paused"
    """Steps in flight finish, none starts; a client resumes or cancels it."""
    SUCCEEDED = "succeeded"
    """Ended well; nothing moves it on."""
    FAILED = "failed"
    """Ended badly, with a failure code; nothing moves it on."""
    CANCELLED = "cancelled"
    """Ended on request; nothing moves it on."""

    @property
    def is_terminal(self) -> bool:
        """Whether nothing moves a Run on from here."""
        return self in _TERMINAL


_TERMINAL = frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED})


class RunEventKind(StrEnum):
    """What can happen to a Run. The values are the names clients see in event streams (`run.started`).

    SUBMITTED, REPRIORITISED and ENTERED (a state of its Blueprint) move nothing.
    """

    SUBMITTED = "run.submitted"
    QUEUED = "run.queued"
    STARTED = "run.started"
    RETRYING = "run.retrying"
    WAITING = "run.waiting"
    ENTERED = "run.entered"
    RESUMED = "run.resumed"
    PAUSED = "run.paused"
    SUCCEEDED = "run.succeeded"
    FAILED = "run.failed"
    CANCELLED = "run.cancelled"
    REPRIORITISED = "run.reprioritised"


def _table() -> Mapping[tuple[RunStatus, RunEventKind], RunStatus]:
    s, e = RunStatus, RunEventKind
    table = {
        (s.PENDING, e.QUEUED): s.QUEUED,
        (s.QUEUED, e.STARTED): s.RUNNING,
        (s.RUNNING, e.RETRYING): s.RETRYING,
        (s.RETRYING, e.STARTED): s.RUNNING,
        (s.QUEUED, e.WAITING): s.WAITING,
        (s.RUNNING, e.WAITING): s.WAITING,
        (s.WAITING, e.RESUMED): s.RUNNING,
        (s.PAUSED, e.RESUMED): s.RUNNING,
        (s.PAUSED, e.QUEUED): s.QUEUED,
        (s.RUNNING, e.SUCCEEDED): s.SUCCEEDED,
        (s.RETRYING, e.SUCCEEDED): s.SUCCEEDED,
        (s.QUEUED, e.SUCCEEDED): s.SUCCEEDED,
        (s.PAUSED, e.SUCCEEDED): s.SUCCEEDED,
    }
    for status in (s.QUEUED, s.RUNNING, s.RETRYING, s.WAITING):
        table[(status, e.PAUSED)] = s.PAUSED
    for status in (s.PENDING, s.QUEUED, s.RUNNING, s.RETRYING, s.WAITING, s.PAUSED):
        table[(status, e.FAILED)] = s.FAILED
        table[(status, e.CANCELLED)] = s.CANCELLED
    return table


RUN_TRANSITIONS: Mapping[tuple[RunStatus, RunEventKind], RunStatus] = _table()


def next_run_status(status: RunStatus, event: RunEventKind) -> RunStatus:
    """Look up the move.

    Raises:
        InvalidTransition: The table has no such pair.
    """
    try:
        return RUN_TRANSITIONS[(status, event)]
    except KeyError:
        raise InvalidTransition("Run", status, event) from None
