"""Tasks of a named type (`report_generation`, …): the dialect of document 000, for HTTP and for gRPC.

A body with `task_type` is its own. It builds Plans from recipes and renders Runs as tasks; whatever a Run of
another dialect looks like as a task is shown here too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec

from cluster.catalog import RECIPE_NAMES, Arrangement, arranged_plan, recipe_of
from cluster.errors import Conflict, InvalidInput
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model.view import Failure, RunEvent, RunView
from serve_app.dialect import Dialect, convert, default_error_shape, json_response
from serve_app.problems import wording_of
from serve_app.run_times import executions, run_times
from serve_app.service import Accepted, RunRequest

if TYPE_CHECKING:
    from fastapi import APIRouter
    from starlette.responses import Response

    from serve_app.auth import Principal
    from serve_app.service import RunService

__all__ = [
    "CANCELLED_MESSAGE",
    "DIALECT",
    "FORM",
    "RUN_WORDS",
    "STEP_WORDS",
    "AgentExecution",
    "TaskAccepted",
    "TaskBody",
    "TaskCancelBody",
    "TaskCancelled",
    "TaskError",
    "TaskInput",
    "TaskMetrics",
    "TaskOutput",
    "TaskState",
    "TaskUpdate",
    "accepted_of",
    "request_of",
    "state_of",
    "update_of",
]

_NAME = "tasks"
_SUBMITTED = "Task submitted successfully"
CANCELLED_MESSAGE = "Task cancelled successfully"
_PRIORITY_STEP = 10
_RESERVED_IDS = frozenset({"status"})
_TASK_ID = re.compile(r"[A-Za-z0-9_.:-]{1,200}\Z")

RUN_WORDS: Mapping[RunStatus, str] = {
    RunStatus.PENDING: "pending",
    RunStatus.QUEUED: "queued",
    RunStatus.RUNNING: "running",
    RunStatus.RETRYING: "retrying",
    RunStatus.WAITING: "running",
    RunStatus.PAUSED: "pending",
    RunStatus.SUCCEEDED: "completed",
    RunStatus.FAILED: "failed",
    RunStatus.CANCELLED: "cancelled",
}
STEP_WORDS: Mapping[StepStatus, str] = {
    StepStatus.BLOCKED: "pending",
    StepStatus.READY: "queued",
    StepStatus.RUNNING: "running",
    StepStatus.WAITING: "running",
    StepStatus.MAPPING: "running",
    StepStatus.BACKOFF: "retrying",
    StepStatus.SUCCEEDED: "completed",
    StepStatus.FAILED: "failed",
    StepStatus.SKIPPED: "cancelled",
    StepStatus.CANCELLED: "cancelled",
}
_ENCODINGS = {"text": "plain", "json": "json"}


class TaskInput(msgspec.Struct, kw_only=True):
    """One input: `data` (text as it is, json as a value or a string, all others base64) or `url`."""

    input_id: str = ""
    type: Literal["text", "image", "video", "audio", "json", "binary"] = "text"
    data: Any = None
    url: str | None = None
    metadata: dict[str, Any] | None = None


class TaskBody(msgspec.Struct, kw_only=True):
    """A task to do. `priority` is 0 to 10, higher first; `timeout_ms` 0 or absent means none."""

    task_type: str
    task_id: str | None = None
    inputs: list[TaskInput] | None = None
    execution_mode: str | None = None
    priority: int | None = None
    timeout_ms: int | None = None
    metadata: dict[str, Any] | None = None


class TaskAccepted(msgspec.Struct):
    """Answer to a submission; the estimate counts from the submission."""

    task_id: str
    status: str
    message: str
    estimated_completion_ms: int


class AgentExecution(msgspec.Struct):
    """What one agent did; times are Unix milliseconds, 0 where not reached."""

    agent_id: str
    agent_type: str
    status: str
    execution_time_ms: int
    start_time_ms: int
    end_time_ms: int
    error_message: str | None


class TaskMetrics(msgspec.Struct):
    """Durations: in all, before the first agent, from the first agent's start to the last one's end."""

    total_duration_ms: int
    queue_time_ms: int
    execution_time_ms: int
    retry_count: int
    agents_used: int


class TaskOutput(msgspec.Struct):
    """The result and what it is: json_report, analysis_result, alerts, api_response."""

    type: str
    data: Any


class TaskError(msgspec.Struct):
    """Why a task failed."""

    code: str
    message: str
    retryable: bool


class TaskState(msgspec.Struct):
    """How a task stands."""

    task_id: str
    status: str
    progress_percent: int
    agent_executions: list[AgentExecution]
    output: TaskOutput | None
    error: TaskError | None
    metrics: TaskMetrics


class TaskUpdate(msgspec.Struct):
    """One thing that happened to a task."""

    task_id: str
    status: str
    agent_id: str
    message: str
    progress_percent: int
    timestamp_ms: int


class TaskCancelled(msgspec.Struct):
    """Answer to a cancellation."""

    success: bool
    message: str


class TaskCancelBody(msgspec.Struct):
    """Why; for people."""

    reason: str | None = None


def request_of(body: TaskBody) -> RunRequest:
    """Make the core's request of a task.

    Raises:
        InvalidInput: A value cannot be used; `details["field"]` names it.
    """
    if body.task_type not in RECIPE_NAMES:
        raise InvalidInput(
            f"task_type: {body.task_type[:100]!r} is not one of {', '.join(RECIPE_NAMES)}", field="task_type"
        )
    arrangement = _arrangement_of(body)
    priority = 5 if body.priority is None else body.priority
    if not 0 <= priority <= 10:
        raise InvalidInput("priority: must be 0 to 10", field="priority")
    if body.timeout_ms is not None and body.timeout_ms < 0:
        raise InvalidInput("timeout_ms: must not be negative", field="timeout_ms")
    if body.task_id and (not _TASK_ID.match(body.task_id) or body.task_id in _RESERVED_IDS):
        raise InvalidInput("task_id: must match [A-Za-z0-9_.:-]{1,200} and not be 'status'", field="task_id")
    return RunRequest(
        plan=arranged_plan(body.task_type, arrangement),
        dialect=_NAME,
        inputs={"inputs": _elements(body.inputs or [])},
        run_id=body.task_id or None,
        priority=priority * _PRIORITY_STEP,
        timeout_s=body.timeout_ms / 1000 if body.timeout_ms else None,
        metadata=body.metadata or {},
    )


def _arrangement_of(body: TaskBody) -> Arrangement:
    if body.execution_mode is None:
        return recipe_of(body.task_type).preferred
    try:
        return Arrangement(body.execution_mode.lower())
    except ValueError:
        raise InvalidInput(
            f"execution_mode: {body.execution_mode[:100]!r} is not one of {', '.join(Arrangement)}",
            field="execution_mode",
        ) from None


def _elements(inputs: list[TaskInput]) -> list[dict[str, Any]]:
    seen: set[str] = set()
    elements = []
    for position, each in enumerate(inputs, 1):
        input_id = each.input_id or f"input-{position}"
        where = f"inputs[{position - 1}]"
        if input_id in seen:
            raise InvalidInput(f"{where}: input_id {input_id[:100]!r} is given twice", field=where)
        seen.add(input_id)
        if each.data is None and not each.url:
            raise InvalidInput(f"{where}: needs data or url", field=where)
        if each.url and not _is_readable(each.url):
            raise InvalidInput(f"{where}: the url cannot be read", field=where)
        if each.data is not None and each.type != "json" and not isinstance(each.data, str):
            raise InvalidInput(f"{where}: data of type {each.type} must be a string", field=where)
        elements.append(
            {
                "input_id": input_id,
                "type": each.type,
                "data": each.data,
                "encoding": _ENCODINGS.get(each.type, "base64"),
                "url": each.url or "",
                "metadata": each.metadata or {},
            }
        )
    return elements


def _is_readable(url: str) -> bool:
    try:
        urlsplit(url)
    except ValueError:
        return False
    return True


def accepted_of(accepted: Accepted) -> TaskAccepted:
    """Render the answer to a submission."""
    return TaskAccepted(accepted.run_id, RUN_WORDS[accepted.status], _SUBMITTED, accepted.estimated_ms)


def state_of(view: RunView, now: float) -> TaskState:
    """Render a Run as a task.

    Args:
        view: The Run.
        now: Unix seconds; durations of what goes on are measured up to it.
    """
    times = run_times(view, now)
    return TaskState(
        task_id=view.run_id,
        status=RUN_WORDS[view.status],
        progress_percent=_percent(view.progress),
        agent_executions=[
            AgentExecution(
                agent_id=step.agent_id,
                agent_type=step.capability,
                status=STEP_WORDS[step.status],
                execution_time_ms=_between_ms(step.started_at, step.ended_at, now),
                start_time_ms=_ms(step.started_at),
                end_time_ms=_ms(step.ended_at),
                error_message=step.error.message if step.error else None,
            )
            for step in executions(view)
        ],
        output=None if view.output is None else TaskOutput(_output_kind(view.plan_name), view.output),
        error=_error_of(view.error),
        metrics=TaskMetrics(
            times.total_ms, times.queue_ms, times.execution_ms, view.retry_count, times.num_agents
        ),
    )


def _output_kind(plan_name: str) -> str:
    return recipe_of(plan_name).output_kind if plan_name in RECIPE_NAMES else "json_report"


def _error_of(error: Failure | None) -> TaskError | None:
    return None if error is None else TaskError(error.code, error.message, error.retryable)


def update_of(run_id: str, event: RunEvent) -> TaskUpdate:
    """Render an event as an update."""
    return TaskUpdate(
        task_id=run_id,
        status=RUN_WORDS[event.status],
        agent_id=event.agent_id,
        message=_message_of(event),
        progress_percent=_percent(event.progress),
        timestamp_ms=_ms(event.at),
    )


def _message_of(event: RunEvent) -> str:
    if event.message:
        return event.message
    if event.error is not None:
        return f"{event.step + ': ' if event.step else ''}{event.error.message}"
    subject, _, verb = event.type.partition(".")
    return f"{event.step} {verb}" if event.step else f"task {verb}" if subject == "run" else event.type


def _percent(progress: float) -> int:
    return min(100, max(0, int(progress * 100 + 1e-9)))


def _ms(at: float | None) -> int:
    return 0 if at is None else round(at * 1000)


def _between_ms(start: float | None, end: float | None, now: float) -> int:
    return 0 if start is None else max(0, round(((now if end is None else end) - start) * 1000))


_encoder = msgspec.json.Encoder()


class _Form:
    """Tasks on the shared paths."""

    dialect = _NAME
    marker = "task_type"

    async def submit(self, service: RunService, principal: Principal, body: dict[str, Any]) -> Response:
        return json_response(
            accepted_of(await service.submit(principal, request_of(convert(body, TaskBody))))
        )

    def render(self, view: RunView) -> Response:
        return json_response(state_of(view, time.time()))

    async def cancel(
        self, service: RunService, principal: Principal, run_id: str, body: dict[str, Any]
    ) -> Response:
        try:
            await service.cancel(principal, run_id, convert(body, TaskCancelBody).reason or "")
        except Conflict as error:
            body = {"success": False, "message": error.message, **default_error_shape(wording_of(error))}
            return json_response(body, 409)
        return json_response(TaskCancelled(True, CANCELLED_MESSAGE))

    def render_update(self, run_id: str, event: RunEvent) -> bytes:
        return _encoder.encode(update_of(run_id, event))


FORM = _Form()


def _add_routes(_router: APIRouter, _service: RunService) -> None:
    """All its paths are shared ones: see `task_paths`."""


DIALECT = Dialect(
    name=_NAME,
    prefixes=("/api/v1/tasks",),
    run_words=RUN_WORDS,
    step_words=STEP_WORDS,
    error_shape=default_error_shape,
    add_routes=_add_routes,
    schemas=(TaskBody, TaskAccepted, TaskState, TaskUpdate, TaskCancelBody, TaskCancelled),
)
