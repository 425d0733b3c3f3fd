"""What can happen to a Run, in the past tense: the only way to change one is `advance(run, event, now)`.

`step` and `item` name the StepRun: the Step's index in the Plan, and the mapped item's index or -1. Events
are frozen values; whatever is random (jitter) or comes from a clock is decided before and carried in them.
"""

from __future__ import annotations

from typing import NamedTuple

from cluster.lifecycle.run_status import RunStatus
from cluster.model.view import Failure

__all__ = [
    "AnswerGiven",
    "AttemptLost",
    "CancelRequested",
    "Event",
    "PauseRequested",
    "PredecessorEnded",
    "PriorityRequested",
    "ResumeRequested",
    "RunAdopted",
    "StepAssigned",
    "StepFailed",
    "StepProgressed",
    "StepSucceeded",
    "StepUnserved",
    "TimerFired",
]


class RunAdopted(NamedTuple):
    """The owner has it in memory now: freshly submitted, or loaded after a predecessor owner's end."""


class PredecessorEnded(NamedTuple):
    """A Run named in `after` ended."""

    run_id: str
    status: RunStatus


class CancelRequested(NamedTuple):
    """A client asked for the end."""

    reason: str


class PauseRequested(NamedTuple):
    """A client asked that nothing new starts."""


class ResumeRequested(NamedTuple):
    """A client asked a paused Run to go on."""


class PriorityRequested(NamedTuple):
    """A client asked for another priority, 0 to 100."""

    priority: int


class AnswerGiven(NamedTuple):
    """Somebody answered a Step that waits.

    Attributes:
        step: Its name; "" for the only one that waits.
        answer: One of the Step's `answers`.
        data: Raw JSON that came with it.
        by: Who it was.
    """

    step: str
    answer: str
    data: bytes
    by: str


class StepAssigned(NamedTuple):
    """The dispatcher has a slot on `agent_id` for a ready StepRun."""

    step: int
    item: int
    agent_id: str


class StepSucceeded(NamedTuple):
    """An attempt came back with raw JSON."""

    step: int
    item: int
    attempt: int
    output: bytes


class StepFailed(NamedTuple):
    """An attempt came back with a failure. `jitter` is uniform in [0, 1); `retry_after_s` is the other
    side's wish.
    """

    step: int
    item: int
    attempt: int
    failure: Failure
    jitter: float
    retry_after_s: float = 0.0


class StepProgressed(NamedTuple):
    """An attempt told how far it is, 0 to 1."""

    step: int
    item: int
    attempt: int
    progress: float
    message: str


class AttemptLost(NamedTuple):
    """An attempt will not come back. `crashed`: its replica died under it, so it may be the cause."""

    step: int
    item: int
    attempt: int
    reason: str
    crashed: bool
    max_crashes: int = 3


class StepUnserved(NamedTuple):
    """No pool serves the capability, or none of its replicas can start."""

    step: int
    item: int
    message: str


class TimerFired(NamedTuple):
    """A timer set for the StepRun, or for the Run where step is -1, came due. It only wakes: `now`
    decides.
    """

    step: int
    item: int
    jitter: float


Event = (
    RunAdopted
    | PredecessorEnded
    | CancelRequested
    | PauseRequested
    | ResumeRequested
    | PriorityRequested
    | AnswerGiven
    | StepAssigned
    | StepSucceeded
    | StepFailed
    | StepProgressed
    | AttemptLost
    | StepUnserved
    | TimerFired
)
