"""The lifecycle of a StepRun: a Step, or one item of a mapped Step, inside a Run."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from cluster.errors import InvalidTransition

__all__ = ["STEP_TRANSITIONS", "StepEventKind", "StepStatus", "next_step_status"]


class StepStatus(StrEnum):
    """Where a StepRun stands. Stored by value; BLOCKED and READY are derived from the others when a Run is
    loaded.
    """

    BLOCKED = "blocked"
    """Waits for Steps it needs; their end moves it on."""
    READY = "ready"
    """Waits for a slot; the dispatcher moves it on."""
    RUNNING = "running"
    """An attempt is out; its result, its deadline or its loss moves it on."""
    WAITING = "waiting"
    """Waits for an answer from outside; the answer or its deadline moves it on."""
    MAPPING = "mapping"
    """Its items run; the last one's end moves it on."""
    BACKOFF = "backoff"
    """A retryable attempt failed; the timer moves it on."""
    SUCCEEDED = "succeeded"
    """Has a result; nothing moves it on."""
    FAILED = "failed"
    """Has an error; nothing moves it on."""
    SKIPPED = "skipped"
    """Its condition was false, or all it needs was skipped; nothing moves it on."""
    CANCELLED = "cancelled"
    """The Run ended before it did; nothing moves it on."""

    @property
    def is_terminal(self) -> bool:
        """Whether nothing moves a StepRun on from here."""
        return self in _TERMINAL


_TERMINAL = frozenset({StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.CANCELLED})


class StepEventKind(StrEnum):
    """What can happen to a StepRun. The values are the names clients see in event streams
    (`step.started`).
    """

    READY = "step.ready"
    STARTED = "step.started"
    WAITING = "step.waiting"
    MAPPED = "step.mapped"
    PROGRESSED = "step.progress"
    RETRYING = "step.retrying"
    LOST = "step.lost"
    SUCCEEDED = "step.succeeded"
    FAILED = "step.failed"
    SKIPPED = "step.skipped"
    CANCELLED = "step.cancelled"


def _table() -> Mapping[tuple[StepStatus, StepEventKind], StepStatus]:
    s, e = StepStatus, StepEventKind
    table = {
        (s.BLOCKED, e.READY): s.READY,
        (s.BLOCKED, e.SKIPPED): s.SKIPPED,
        (s.BLOCKED, e.FAILED): s.FAILED,
        (s.BLOCKED, e.MAPPED): s.MAPPING,
        (s.BLOCKED, e.WAITING): s.WAITING,
        (s.BLOCKED, e.SUCCEEDED): s.SUCCEEDED,
        (s.READY, e.STARTED): s.RUNNING,
        (s.READY, e.FAILED): s.FAILED,
        (s.RUNNING, e.PROGRESSED): s.RUNNING,
        (s.RUNNING, e.SUCCEEDED): s.SUCCEEDED,
        (s.RUNNING, e.FAILED): s.FAILED,
        (s.RUNNING, e.RETRYING): s.BACKOFF,
        (s.RUNNING, e.LOST): s.READY,
        (s.BACKOFF, e.READY): s.READY,
        (s.WAITING, e.SUCCEEDED): s.SUCCEEDED,
        (s.WAITING, e.FAILED): s.FAILED,
        (s.MAPPING, e.SUCCEEDED): s.SUCCEEDED,
        (s.MAPPING, e.FAILED): s.FAILED,
    }
    for status in (s.BLOCKED, s.READY, s.RUNNING, s.WAITING, s.MAPPING, s.BACKOFF):
        table[(status, e.CANCELLED)] = s.CANCELLED
    return table


STEP_TRANSITIONS: Mapping[tuple[StepStatus, StepEventKind], StepStatus] = _table()


def next_step_status(status: StepStatus, event: StepEventKind) -> StepStatus:
    """Look up the move.

    Raises:
        InvalidTransition: The table has no such pair.
    """
    try:
        return STEP_TRANSITIONS[(status, event)]
    except KeyError:
        raise InvalidTransition("StepRun", status, event) from None
