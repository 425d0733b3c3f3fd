"""What the store keeps of a Run: a header that never changes, a small record that does, one record per
StepRun.

Steps have no record while they are blocked or ready: both follow from the others (see `Run.restore`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model.plan import Submission
from cluster.model.view import Failure

__all__ = ["Growth", "RunHeader", "RunRecord", "StepRecord", "header_of", "initial_record"]


class RunHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of a Submission that the engine and readers need beside Plan and inputs; see Submission.

    Attributes:
        created_at: Unix seconds of acceptance.
        plan_name: Name of the Plan, so that lists need not decode it.
    """

    run_id: str
    tenant: str
    plan_name: str
    created_at: float
    timeout_s: float | None = None
    after: tuple[str, ...] = ()
    dialect: str = "runs"
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    webhook_url: str | None = None
    submitted_by: str = ""
    webhook_words: dict[str, str] = msgspec.field(default_factory=dict)


class RunRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The changing part of a Run. Instants are Unix seconds.

    Attributes:
        deadline_at: After it the Run fails with TIMEOUT; None means never.
        event_seq: Number of the last event written.
        retry_count: Failed attempts that were tried again.
        progress: 0 to 1.
        waiting_for: Ids of Runs whose end it still waits for.
        num_open: Steps that have not ended.
        state: Of a Run of a Blueprint: where it is, or was last.
        phase: What it does or waits for there; "" when it has ended.
    """

    status: RunStatus
    priority: int
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    deadline_at: float | None = None
    error: Failure | None = None
    cancel_reason: str = ""
    event_seq: int = 0
    retry_count: int = 0
    progress: float = 0.0
    waiting_for: tuple[str, ...] = ()
    num_open: int = 0
    state: str = ""
    phase: str = ""


class StepRecord(msgspec.Struct, array_like=True, omit_defaults=True):
    """A StepRun that has left READY at least once. Instants are Unix seconds."""

    status: StepStatus
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    agent_id: str = ""
    progress: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    deadline_at: float | None = None
    not_before_at: float | None = None
    error: Failure | None = None
    story: tuple[str, ...] = ()
    num_items: int = -1


class Growth(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One visit of a state of a Blueprint: what it made a Run grow by. Visits are numbered 0, 1, 2, …

    Attributes:
        state: The state visited; that of the last visit where the Run ended without another.
        notes: What happened to the gathered data before, in order; see `blueprint_data`.
        works: Positions of the state's work that it is about; -1 for a wait.
        capabilities: What its Steps ask for, one for each.
        failure: Why it waits in quarantine, for somebody to say "retry" or "discard": its only Step is for
            that, and `works` is what would be done again. None where it does not.
        is_retry: It does again what failed in the visit before.
    """

    state: str
    notes: tuple[tuple[Any, ...], ...] = ()
    works: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = ()
    failure: Failure | None = None
    is_retry: bool = False


def header_of(submission: Submission, now: float) -> RunHeader:
    """Keep what is needed of a Submission accepted at `now` (Unix seconds)."""
    return RunHeader(
        run_id=submission.run_id,
        tenant=submission.tenant,
        plan_name=submission.plan.name,
        created_at=now,
        timeout_s=submission.timeout_s,
        after=submission.after,
        dialect=submission.dialect,
        metadata=submission.metadata,
        webhook_url=submission.webhook_url,
        submitted_by=submission.submitted_by,
        webhook_words=submission.webhook_words,
    )


def initial_record(submission: Submission, now: float) -> RunRecord:
    """Make the record a Submission begins with: queued, or pending where it waits for other Runs."""
    return RunRecord(
        status=RunStatus.PENDING if submission.after else RunStatus.QUEUED,
        priority=submission.priority,
        created_at=now,
        deadline_at=None if submission.timeout_s is None else now + submission.timeout_s,
        waiting_for=submission.after,
        event_seq=1,
        num_open=len(submission.plan.steps),
    )
