"""Jobs: Runs of blueprints, the dialect of document 003 for clients (its workers have another).

Every route asks for a credential, in open mode too, but the approval webhook, which has tokens of its own.
What cannot be used is 400 here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from cluster.errors import InvalidInput
from cluster.lifecycle.phase import Phase
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model.blueprint import Blueprint
from cluster.model.view import RunSummary, RunView, StepView
from serve_app.access import public, requires
from serve_app.auth import Principal
from serve_app.blueprint_graph import draw_blueprint
from serve_app.dialect import Dialect, convert, json_response, read_object
from serve_app.job_bodies import (
    ApprovalLine,
    BlueprintLine,
    BlueprintPage,
    BlueprintProblem,
    DecisionBody,
    JobAccepted,
    JobAnswer,
    JobCancelled,
    JobDetail,
    JobLine,
    PublicStatus,
)
from serve_app.job_history import HistoryEntry, history_of
from serve_app.job_service import DIALECT_NAME, JobService, waiting_step
from serve_app.openapi import body_schema, described
from serve_app.reason_lines import instant_text

if TYPE_CHECKING:
    from serve_app.blueprint_shelf import BlueprintShelf, ServedBlueprint
    from serve_app.problems import Wording
    from serve_app.service import RunService

__all__ = [
    "DIALECT",
    "RUN_WORDS",
    "START_PATH",
    "STEP_WORDS",
    "job_word",
    "start_route",
]

_User = Annotated[Principal, Depends(requires("user", needs_credential=True))]
_Operator = Annotated[Principal, Depends(requires("admin", is_for_operators=True, needs_credential=True))]

START_PATH = "/api/v1/jobs/{blueprint}"
"""Where blueprints are that name no path of their own; it also answers where there is none."""

RUN_WORDS: Mapping[RunStatus, str] = {
    RunStatus.PENDING: "pending",
    RunStatus.QUEUED: "pending",
    RunStatus.RUNNING: "running",
    RunStatus.RETRYING: "awaiting_retry",
    RunStatus.WAITING: "waiting_for_human",
    RunStatus.PAUSED: "pending",
    RunStatus.SUCCEEDED: "finished",
    RunStatus.FAILED: "failed",
    RunStatus.CANCELLED: "cancelled",
}
STEP_WORDS: Mapping[StepStatus, str] = {
    StepStatus.BLOCKED: "pending",
    StepStatus.READY: "pending",
    StepStatus.RUNNING: "running",
    StepStatus.WAITING: "waiting_for_human",
    StepStatus.MAPPING: "running",
    StepStatus.BACKOFF: "awaiting_retry",
    StepStatus.SUCCEEDED: "finished",
    StepStatus.FAILED: "failed",
    StepStatus.SKIPPED: "cancelled",
    StepStatus.CANCELLED: "cancelled",
}
_PHASE_WORDS: Mapping[str, str] = {
    Phase.OUTSIDE: "waiting_for_worker",
    Phase.PARALLEL: "waiting_for_parallel_tasks",
    Phase.SUB: "waiting_for_sub_job",
    Phase.PERSON: "waiting_for_human",
    Phase.QUARANTINED: "quarantined",
}
_WORDS: Mapping[tuple[RunStatus, str], str] = {
    (status, phase): _PHASE_WORDS.get(phase, word) if word != "awaiting_retry" else word
    for status, word in RUN_WORDS.items()
    for phase in ("", *Phase)
}


_WEBHOOK_WORDS: Mapping[str, str] = {
    "run_id": "job_id",
    "output": "result",
    "succeeded": "finished",
    "run_succeeded": "job_finished",
    "run_failed": "job_failed",
    "run_cancelled": "job_cancelled",
    "run_quarantined": "job_quarantined",
}


def job_word(summary: RunSummary) -> str:
    """Say how a job stands in its document's words."""
    return _WORDS[summary.status, summary.phase]


def _line_fields(job: RunSummary) -> dict[str, Any]:
    return {
        "id": job.run_id,
        "blueprint_name": job.plan_name,
        "current_state": job.state,
        "status": job_word(job),
        "progress": job.progress,
        "error_message": None if job.error is None else job.error.message,
        "created_at": instant_text(job.created_at),
        "started_at": None if job.started_at is None else instant_text(job.started_at),
        "ended_at": None if job.ended_at is None else instant_text(job.ended_at),
    }


def _detail_of(jobs: JobService, principal: Principal, view: RunView) -> JobDetail:
    waiting = waiting_step(view)
    approval = None
    fields = _line_fields(view)
    if waiting is not None and view.phase == Phase.PERSON:
        token = jobs.token_of(principal, view.run_id, waiting)
        approval = ApprovalLine(waiting.question, list(waiting.answers), token)
    elif waiting is not None:
        fields["error_message"] = _why_quarantined(view, waiting)
    working = next((step for step in view.steps if not _is_over(step) and not step.answers), None)
    instants = [at for step in view.steps for at in (step.started_at, step.ended_at) if at is not None]
    return JobDetail(
        **fields,
        initial_data=view.inputs,
        state_history=view.data,
        tracing_context=view.metadata.get("tracing_context") or {},
        webhook_url=view.webhook_url,
        retry_count=view.retry_count,
        current_task_id=None if working is None else jobs.task_id_of(principal, view, working),
        task_worker_id=(working.agent_id or None) if working is not None else None,
        progress_message=None,
        aggregation_results=_aggregated(view),
        parent_job_id=None,
        child_job_ids=[],
        updated_at=instant_text(max([view.created_at, view.ended_at or 0.0, *instants])),
        blueprint_version=view.metadata.get("blueprint_version"),
        approval=approval,
    )


def _is_over(step: StepView) -> bool:
    return step.status.is_terminal


def _why_quarantined(view: RunView, waiting: StepView) -> str:
    message = str(waiting.question["message"]) if isinstance(waiting.question, dict) else "failed"
    failed = next((step for step in reversed(view.steps) if step.error is not None), None)
    if failed is None or not failed.failures:
        return message
    return f"Task failed after {failed.failures + 1} attempts: {message}"


def _aggregated(view: RunView) -> dict[str, Any]:
    """What states of several pieces of work have gathered."""
    states = view.plan["blueprint"]["states"]
    names = [state.get("into") or state["name"] for state in states if len(state.get("work", ())) > 1]
    return {name: view.data[name] for name in names if name in view.data}


def _shape(wording: Wording) -> Any:
    return {"error": wording.message}


async def _as_bad_request(work: Awaitable[Any]) -> Any:
    """Answer what cannot be used as 400, as the document does."""
    try:
        return await work
    except InvalidInput as error:
        raise type(error)(error.message, **{"malformed": True, **error.details}) from error


def _tracing_context(request: Request) -> dict[str, str]:
    names = ("traceparent", "tracestate")
    return {name: value[:512] for name in names if (value := request.headers.get(name)) is not None}


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidInput(f"{name}: must be a whole number", field=name, malformed=True)
    return int(text)


def start_route(jobs: JobService, path: str) -> Callable[..., Awaitable[Response]]:
    """Make the handler that creates jobs of whatever blueprint is served at a path."""

    async def start_job(request: Request, principal: _User) -> Response:
        async def start() -> Response:
            blueprint = jobs.shelf.at(path)
            body = await read_object(request)
            initial_data, webhook_url = _parts_of(body)
            accepted = await jobs.start(
                principal,
                blueprint,
                initial_data,
                webhook_url=webhook_url,
                webhook_words=_WEBHOOK_WORDS,
                tracing_context=_tracing_context(request),
            )
            return json_response(JobAccepted("accepted", accepted.run_id), 202)

        answered: Response = await _as_bad_request(start())
        return answered

    return start_job


def _parts_of(body: dict[str, Any]) -> tuple[Any, str | None]:
    """Take a body apart; one that has neither field is itself the initial data."""
    if "initial_data" not in body and "webhook_url" not in body:
        return body, None
    webhook_url = body.get("webhook_url")
    if webhook_url is not None and not isinstance(webhook_url, str):
        raise InvalidInput("webhook_url: must be a string", field="webhook_url")
    initial_data = body.get("initial_data")
    return ({} if initial_data is None else initial_data), webhook_url


def _page(shelf: BlueprintShelf, principal: Principal) -> BlueprintPage:
    problems = shelf.problems if principal.is_operator else []
    return BlueprintPage(
        [_blueprint_line(each) for _, each in sorted(shelf.by_name.items())],
        [BlueprintProblem(each.origin, each.reason) for each in problems],
    )


def _blueprint_line(served: ServedBlueprint) -> BlueprintLine:
    parameters = [msgspec.to_builtins(each) for each in served.model.parameters]
    return BlueprintLine(
        served.name, served.model.description, served.digest, served.path or None, parameters
    )


def _add_routes(router: APIRouter, service: RunService) -> None:
    jobs = JobService(service, service.blueprints)
    shelf = jobs.shelf
    dot = described(None, media_type="text/vnd.graphviz")

    @router.get(
        "/_public/status",
        summary="Whether the service runs",
        dependencies=[Depends(public())],
        **described("PublicStatus", has_errors=False),
    )
    async def public_status() -> Response:
        return json_response(PublicStatus("ok"))

    @router.post(
        "/_public/webhooks/approval/{job_id}",
        summary="Approve or reject a step of a job, with its token",
        dependencies=[Depends(public())],
        openapi_extra=body_schema("DecisionBody"),
        **described("JobAnswer"),
    )
    async def approve_by_token(job_id: str, request: Request) -> Response:
        token = request.headers.get("x-approval-token") or request.query_params.get("token") or ""

        async def decide() -> None:
            body = convert(await read_object(request), DecisionBody)
            await jobs.decide_by_token(job_id, token, body.decision, body.data)

        await _as_bad_request(decide())
        return json_response(JobAnswer("approval_received", job_id))

    @router.get("/api/v1/jobs", summary="List jobs, newest first", **described(None))
    async def list_jobs(request: Request, principal: _User) -> Response:
        word = request.query_params.get("status")
        kinds = None if word is None else [kind for kind, other in _WORDS.items() if other == word]
        if kinds == []:
            words = ", ".join(dict.fromkeys(_WORDS.values()))
            raise InvalidInput(f"status: must be one of {words}", field="status", malformed=True)
        found = await _as_bad_request(
            jobs.list_jobs(
                principal,
                kinds=kinds,
                limit=_number(request, "limit", 100),
                offset=_number(request, "offset", 0),
            )
        )
        return json_response([JobLine(**_line_fields(job)) for job in found])

    @router.post(
        START_PATH,
        summary="Create a job of a blueprint at its usual path",
        **described("JobAccepted", status_code=202),
    )
    async def start_any(blueprint: str, request: Request, principal: _User) -> Response:
        path = START_PATH.replace("{blueprint}", blueprint)
        return await start_route(jobs, path)(request, principal)

    @router.get("/api/v1/jobs/{job_id}", summary="Get a job", **described("JobDetail"))
    async def get_job(job_id: str, principal: _User) -> Response:
        return json_response(_detail_of(jobs, principal, await jobs.get(principal, job_id)))

    @router.get("/api/v1/jobs/{job_id}/history", summary="What happened to a job", **described(None))
    async def get_history(job_id: str, principal: _User) -> Response:
        return json_response(history_of(job_id, await jobs.history(principal, job_id)))

    @router.get("/api/v1/jobs/{job_id}/graph", summary="Draw a job's blueprint and where it is", **dot)
    async def draw_job(job_id: str, principal: _User) -> Response:
        view = await jobs.get(principal, job_id)
        return Response(_drawn(view), media_type="text/vnd.graphviz")

    @router.post("/api/v1/jobs/{job_id}/cancel", summary="Cancel a job", **described("JobCancelled"))
    async def cancel_job(job_id: str, principal: _User) -> Response:
        await jobs.cancel(principal, job_id)
        return json_response(JobCancelled("cancellation_request_accepted"))

    @router.post(
        "/api/v1/jobs/{job_id}/approval",
        summary="Approve or reject a step of a job, with a credential",
        openapi_extra=body_schema("DecisionBody"),
        **described("JobAnswer"),
    )
    async def approve(job_id: str, request: Request, principal: _User) -> Response:
        async def decide() -> None:
            body = convert(await read_object(request), DecisionBody)
            await jobs.decide(principal, job_id, body.decision, body.data)

        await _as_bad_request(decide())
        return json_response(JobAnswer("approval_received", job_id))

    @router.get("/api/v1/quarantine", summary="List jobs in quarantine", **described(None))
    @router.get("/_public/jobs/quarantined", summary="List jobs in quarantine", **described(None))
    async def list_quarantined(principal: _User) -> Response:
        kinds = [kind for kind, word in _WORDS.items() if word == "quarantined"]
        found = await jobs.list_jobs(principal, kinds=kinds, limit=1000)
        return json_response([JobLine(**_line_fields(job)) for job in found])

    @router.post(
        "/api/v1/quarantine/{job_id}/retry",
        summary="Let a quarantined job try again what failed",
        **described("JobAnswer"),
    )
    async def retry_job(job_id: str, principal: _User) -> Response:
        await jobs.release(principal, job_id, is_retry=True)
        return json_response(JobAnswer("retrying", job_id))

    @router.post(
        "/api/v1/quarantine/{job_id}/discard",
        summary="Let a quarantined job fail for good",
        **described("JobAnswer"),
    )
    async def discard_job(job_id: str, principal: _User) -> Response:
        await jobs.release(principal, job_id, is_retry=False)
        return json_response(JobAnswer("discarded", job_id))

    @router.get("/api/v1/blueprints", summary="List blueprints", **described("BlueprintPage"))
    async def list_blueprints(principal: _User) -> Response:
        return json_response(_page(shelf, principal))

    @router.post(
        "/api/v1/blueprints/reload",
        summary="Load blueprints again; other replicas follow by themselves",
        **described("BlueprintPage"),
    )
    async def reload(principal: _Operator) -> Response:
        await shelf.reload()
        return json_response(_page(shelf, principal))

    @router.get("/api/v1/blueprints/{name}/graph", summary="Draw a blueprint in DOT", **dot)
    async def draw(name: str, principal: _User) -> Response:
        return Response(draw_blueprint(shelf.get(name).model), media_type="text/vnd.graphviz")


def _drawn(view: RunView) -> str:
    return draw_blueprint(msgspec.convert(view.plan["blueprint"], Blueprint), view.state)


DIALECT = Dialect(
    name=DIALECT_NAME,
    prefixes=(
        "/api/v1/jobs",
        "/api/v1/blueprints",
        "/api/v1/quarantine",
        "/_public/webhooks",
        "/_public/jobs",
    ),
    run_words=RUN_WORDS,
    step_words=STEP_WORDS,
    error_shape=_shape,
    add_routes=_add_routes,
    schemas=(
        JobAccepted,
        JobLine,
        JobDetail,
        DecisionBody,
        JobAnswer,
        JobCancelled,
        BlueprintPage,
        PublicStatus,
        HistoryEntry,
    ),
)
