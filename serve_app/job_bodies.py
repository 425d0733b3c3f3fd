"""Bodies of the dialect of jobs; instants are UTC, ISO 8601."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "ApprovalLine",
    "BlueprintLine",
    "BlueprintPage",
    "BlueprintProblem",
    "DecisionBody",
    "JobAccepted",
    "JobAnswer",
    "JobCancelled",
    "JobDetail",
    "JobLine",
    "PublicStatus",
]


class JobAccepted(msgspec.Struct):
    """Answer to the creation of a job."""

    status: str
    job_id: str


class JobLine(msgspec.Struct, kw_only=True):
    """A job in a list; instants are UTC, ISO 8601."""

    id: str
    blueprint_name: str
    current_state: str
    status: str
    progress: float
    error_message: str | None
    created_at: str
    started_at: str | None
    ended_at: str | None


class ApprovalLine(msgspec.Struct):
    """What a job asks of people, and the token with which one may answer without a credential."""

    message: Any
    decisions: list[str]
    token: str | None


class JobDetail(JobLine, kw_only=True):
    """A job as it stands. `state_history` is what was gathered."""

    initial_data: Any
    state_history: Any
    tracing_context: dict[str, Any]
    webhook_url: str | None
    retry_count: int
    current_task_id: str | None
    task_worker_id: str | None
    progress_message: str | None
    aggregation_results: dict[str, Any]
    parent_job_id: str | None
    child_job_ids: list[str]
    updated_at: str
    blueprint_version: str | None
    approval: ApprovalLine | None


class DecisionBody(msgspec.Struct):
    """Somebody's decision on a step of a job, with any `data` beside it."""

    decision: str
    data: Any = None


class JobAnswer(msgspec.Struct):
    """What was done with a job."""

    status: str
    job_id: str


class JobCancelled(msgspec.Struct):
    """Answer to a cancellation."""

    status: str


class BlueprintLine(msgspec.Struct):
    """A blueprint; `path` is where jobs of it are created, null where it is only part of others."""

    name: str
    description: str
    version: str
    path: str | None
    parameters: list[dict[str, Any]]


class BlueprintProblem(msgspec.Struct):
    """A file that cannot be used, and why."""

    origin: str
    reason: str


class BlueprintPage(msgspec.Struct):
    """All blueprints; to operators also what could not be used."""

    blueprints: list[BlueprintLine]
    problems: list[BlueprintProblem]


class PublicStatus(msgspec.Struct):
    """That the service runs."""

    status: str
