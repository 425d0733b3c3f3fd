"""Whole Plans: the native API, which says all that the core can do and nothing else.

Its statuses are the core's own words, and a Run of any dialect can be read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from cluster.errors import InvalidInput
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model.compiled import compile_plan
from cluster.model.plan import Plan
from cluster.model.view import Failure, RunEvent, RunSummary, RunView
from serve_app.access import requires
from serve_app.auth import Principal
from serve_app.dialect import Dialect, convert, default_error_shape, json_response, read_object
from serve_app.openapi import body_schema, described
from serve_app.reason_lines import ReasonLine, instant_text, step_reason_line
from serve_app.run_graph import draw_run
from serve_app.service import RunRequest
from serve_app.streams import event_stream, last_event_id

if TYPE_CHECKING:
    from serve_app.service import RunService

__all__ = [
    "DIALECT",
    "RUN_WORDS",
    "STEP_WORDS",
    "AnswerBody",
    "PriorityBody",
    "ReasonBody",
    "RunAccepted",
    "RunBody",
    "RunDetail",
    "RunLine",
    "RunPage",
    "RunUpdate",
    "RunWaits",
    "StepLine",
    "StepWaitLine",
]

_NAME = "runs"
_User = Annotated[Principal, Depends(requires("user"))]

RUN_WORDS: Mapping[RunStatus, str] = {status: status.value for status in RunStatus}
STEP_WORDS: Mapping[StepStatus, str] = {status: status.value for status in StepStatus}


class RunBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A Plan to run. `run_id` is the idempotency key; `priority` is 0 to 100, higher first."""

    plan: Plan
    inputs: Any = msgspec.field(default_factory=dict)
    run_id: str | None = None
    priority: int = 50
    timeout_s: float | None = None
    after: list[str] = []
    webhook_url: str | None = None
    metadata: dict[str, Any] = {}


class RunAccepted(msgspec.Struct):
    """Answer to a submission; `created` is false where the same was given before."""

    run_id: str
    status: str
    created: bool
    estimated_completion_ms: int


class RunLine(msgspec.Struct):
    """A Run in a list; instants are UTC, ISO 8601."""

    run_id: str
    dialect: str
    plan_name: str
    status: str
    priority: int
    progress: float
    created_at: str
    started_at: str | None
    ended_at: str | None
    error: Failure | None
    metadata: dict[str, Any]


class RunPage(msgspec.Struct):
    """Some Runs, newest first, and the cursor of the next page."""

    runs: list[RunLine]
    next_cursor: str | None


class StepLine(msgspec.Struct):
    """One Step, or one item of a mapped Step (`item` >= 0)."""

    name: str
    capability: str
    item: int
    status: str
    attempt: int
    failures: int
    agent_id: str
    progress: float
    started_at: str | None
    ended_at: str | None
    error: Failure | None
    output: Any
    story: list[str]
    answers: list[str]
    question: Any


class RunDetail(RunLine):
    """A Run with its Steps and its output."""

    steps: list[StepLine]
    output: Any
    retry_count: int
    cancel_reason: str
    plan: Any


class RunUpdate(msgspec.Struct):
    """One thing that happened to a Run; `seq` is the event's id in the stream."""

    run_id: str
    seq: int
    type: str
    at: str
    status: str
    step: str
    item: int
    attempt: int
    agent_id: str
    progress: float
    step_progress: float
    message: str
    error: Failure | None


class StepWaitLine(msgspec.Struct):
    """Why a Step waits (`step` "": the whole Run), or `num` items of it that wait for the same."""

    step: str
    item: int
    num: int
    reason: ReasonLine


class RunWaits(msgspec.Struct):
    """What of a Run waits now, and why; empty where nothing does."""

    run_id: str
    status: str
    waits: list[StepWaitLine]


class ReasonBody(msgspec.Struct):
    """Why; for people."""

    reason: str | None = None


class AnswerBody(msgspec.Struct, forbid_unknown_fields=True):
    """The answer to a Step that waits: one of its `answers`, with any `data` beside it."""

    answer: str
    data: Any = None


class PriorityBody(msgspec.Struct):
    """0 to 100, higher first."""

    priority: int


def _request_of(body: dict[str, Any]) -> RunRequest:
    given = convert(body, RunBody)
    if given.run_id == "":
        raise InvalidInput("run_id: must not be empty", field="run_id")
    if given.plan.blueprint is not None:
        raise InvalidInput(
            "plan.blueprint: Runs of a Blueprint are not made of Plans", field="plan.blueprint"
        )
    return RunRequest(
        plan=compile_plan(given.plan),
        dialect=_NAME,
        inputs=given.inputs,
        run_id=given.run_id,
        priority=given.priority,
        timeout_s=given.timeout_s,
        after=tuple(given.after),
        webhook_url=given.webhook_url,
        metadata=given.metadata,
    )


def _instant(at: float | None) -> str | None:
    return None if at is None else instant_text(at)


def _line_fields(summary: RunSummary) -> dict[str, Any]:
    return {
        "run_id": summary.run_id,
        "dialect": summary.dialect,
        "plan_name": summary.plan_name,
        "status": RUN_WORDS[summary.status],
        "priority": summary.priority,
        "progress": summary.progress,
        "created_at": instant_text(summary.created_at),
        "started_at": _instant(summary.started_at),
        "ended_at": _instant(summary.ended_at),
        "error": summary.error,
        "metadata": summary.metadata,
    }


def _detail_of(view: RunView) -> RunDetail:
    steps = [
        StepLine(
            name=step.name,
            capability=step.capability,
            item=step.item,
            status=STEP_WORDS[step.status],
            attempt=step.attempt,
            failures=step.failures,
            agent_id=step.agent_id,
            progress=step.progress,
            started_at=_instant(step.started_at),
            ended_at=_instant(step.ended_at),
            error=step.error,
            output=step.output,
            story=list(step.story),
            answers=list(step.answers),
            question=step.question,
        )
        for step in view.steps
    ]
    return RunDetail(
        **_line_fields(view),
        steps=steps,
        output=view.output,
        retry_count=view.retry_count,
        cancel_reason=view.cancel_reason,
        plan=view.plan,
    )


_encoder = msgspec.json.Encoder()


def _update_of(run_id: str, event: RunEvent) -> bytes:
    return _encoder.encode(
        RunUpdate(
            run_id=run_id,
            seq=event.seq,
            type=event.type,
            at=instant_text(event.at),
            status=RUN_WORDS[event.status],
            step=event.step,
            item=event.item,
            attempt=event.attempt,
            agent_id=event.agent_id,
            progress=event.progress,
            step_progress=event.step_progress,
            message=event.message,
            error=event.error,
        )
    )


def _statuses_of(words: list[str]) -> list[RunStatus]:
    try:
        return [RunStatus(word) for word in words]
    except ValueError:
        raise InvalidInput(f"status: must be one of {', '.join(RunStatus)}", field="status") from None


def _whole(text: str, name: str) -> int:
    if not (text.isascii() and text.removeprefix("-").isdigit()) or len(text) > 15:
        raise InvalidInput(f"{name}: must be a whole number", field=name)
    return int(text)


def _add_routes(router: APIRouter, service: RunService) -> None:
    @router.post(
        "/api/v1/runs", summary="Run a Plan", openapi_extra=body_schema("RunBody"), **described("RunAccepted")
    )
    async def submit_run(request: Request, principal: _User) -> Response:
        accepted = await service.submit(principal, _request_of(await read_object(request)))
        return json_response(
            RunAccepted(accepted.run_id, RUN_WORDS[accepted.status], accepted.created, accepted.estimated_ms)
        )

    @router.get("/api/v1/runs", summary="List Runs, newest first", **described("RunPage"))
    async def list_runs(
        request: Request,
        principal: _User,
        limit: str = "50",
        cursor: str | None = None,
        dialect: str | None = None,
    ) -> Response:
        statuses = _statuses_of(request.query_params.getlist("status"))
        known: Sequence[str] = request.app.state.dialects
        if dialect is not None and dialect not in known:
            raise InvalidInput(f"dialect: must be one of {', '.join(known)}", field="dialect")
        runs, next_cursor = await service.list_runs(
            principal, statuses=statuses, dialect=dialect, limit=_whole(limit, "limit"), cursor=cursor
        )
        return json_response(RunPage([RunLine(**_line_fields(run)) for run in runs], next_cursor))

    @router.get("/api/v1/runs/{run_id}", summary="Get a Run with its Steps", **described("RunDetail"))
    async def get_run(run_id: str, principal: _User) -> Response:
        return json_response(_detail_of(await service.get(principal, run_id)))

    @router.get(
        "/api/v1/runs/{run_id}/events",
        summary="Follow a Run: server-sent events, resumable with Last-Event-ID",
        **described("RunUpdate", media_type="text/event-stream"),
    )
    async def follow_run(run_id: str, request: Request, principal: _User) -> Response:
        after_seq = last_event_id(request)
        summary, events = await service.follow(principal, run_id, after_seq)
        return await event_stream(events, lambda event: _update_of(run_id, event), summary.status.is_terminal)

    @router.get(
        "/api/v1/runs/{run_id}/graph",
        summary="Draw a Run in DOT",
        **described(None, media_type="text/vnd.graphviz"),
    )
    async def draw(run_id: str, principal: _User) -> Response:
        return Response(draw_run(await service.get(principal, run_id)), media_type="text/vnd.graphviz")

    @router.get("/api/v1/runs/{run_id}/why", summary="Why Steps of a Run wait", **described("RunWaits"))
    async def explain(run_id: str, principal: _User) -> Response:
        summary, waits = await service.why(principal, run_id)
        lines = [StepWaitLine(each.step, each.item, each.num, step_reason_line(each)) for each in waits]
        return json_response(RunWaits(run_id, RUN_WORDS[summary.status], lines))

    async def answer(principal: Principal, run_id: str) -> Response:
        return json_response(RunLine(**_line_fields(await service.summary(principal, run_id))))

    def command_id(request: Request) -> str | None:
        return request.headers.get("idempotency-key")

    @router.post(
        "/api/v1/runs/{run_id}/cancel",
        summary="Cancel a Run",
        openapi_extra=body_schema("ReasonBody", is_required=False),
        **described("RunLine"),
    )
    async def cancel_run(run_id: str, request: Request, principal: _User) -> Response:
        body = convert(await read_object(request), ReasonBody)
        await service.cancel(principal, run_id, body.reason or "", command_id(request))
        return await answer(principal, run_id)

    @router.post(
        "/api/v1/runs/{run_id}/pause",
        summary="Pause a Run: steps in flight finish, none starts",
        **described("RunLine"),
    )
    async def pause_run(run_id: str, request: Request, principal: _User) -> Response:
        await service.pause(principal, run_id, command_id(request))
        return await answer(principal, run_id)

    @router.post("/api/v1/runs/{run_id}/resume", summary="Resume a paused Run", **described("RunLine"))
    async def resume_run(run_id: str, request: Request, principal: _User) -> Response:
        await service.resume(principal, run_id, command_id(request))
        return await answer(principal, run_id)

    @router.post(
        "/api/v1/runs/{run_id}/steps/{step}/answer",
        summary="Answer a Step that waits for an answer",
        openapi_extra=body_schema("AnswerBody"),
        **described("RunLine"),
    )
    async def answer_step(run_id: str, step: str, request: Request, principal: _User) -> Response:
        body = convert(await read_object(request), AnswerBody)
        await service.answer(
            principal, run_id, body.answer, step=step, data=body.data, command_id=command_id(request)
        )
        return await answer(principal, run_id)

    @router.put(
        "/api/v1/runs/{run_id}/priority",
        summary="Change a Run's priority",
        openapi_extra=body_schema("PriorityBody"),
        **described("RunLine"),
    )
    async def set_priority(run_id: str, request: Request, principal: _User) -> Response:
        body = convert(await read_object(request), PriorityBody)
        await service.set_priority(principal, run_id, body.priority, command_id(request))
        return await answer(principal, run_id)


DIALECT = Dialect(
    name=_NAME,
    prefixes=("/api/v1/runs",),
    run_words=RUN_WORDS,
    step_words=STEP_WORDS,
    error_shape=default_error_shape,
    add_routes=_add_routes,
    schemas=(
        RunBody,
        RunAccepted,
        RunPage,
        RunLine,
        RunDetail,
        RunUpdate,
        RunWaits,
        ReasonBody,
        AnswerBody,
        PriorityBody,
    ),
)
