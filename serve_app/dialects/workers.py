"""Outside workers: the dialect of document 003 for those who do the work, over plain HTTP.

Every route asks for a worker's token, in open mode too, and no worker acts as another. What it says of tasks
is what leases say of Steps; it holds no rule of its own.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import orjson
from fastapi import APIRouter, Depends
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from cluster.errors import Forbidden, InvalidInput, TuttiError
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model.worker_result import CANCELLED, FAILURE
from cluster.store.step_leases import Claim, Completion
from cluster.store.worker_board import WorkerLine
from serve_app.access import requires
from serve_app.auth import Principal
from serve_app.dialect import Dialect, json_response, read_object
from serve_app.openapi import described
from serve_app.reason_lines import instant_text
from serve_app.worker_forms import named_leases, profile_of, result_of
from serve_app.worker_service import WorkerService, check_worker_id

if TYPE_CHECKING:
    from serve_app.problems import Wording
    from serve_app.service import RunService

__all__ = ["DIALECT", "WorkerAnswer", "WorkerTask"]

_SCOPE = "worker"
_Worker = Annotated[Principal, Depends(requires("worker", _SCOPE, needs_credential=True))]
_User = Annotated[Principal, Depends(requires("user", needs_credential=True))]
_Operator = Annotated[Principal, Depends(requires("admin", is_for_operators=True, needs_credential=True))]
_POLICY_VIOLATION, _GOING_AWAY = 1008, 1001
_ANSWERS = {FAILURE: "result_accepted_failure", CANCELLED: "result_accepted_cancelled"}
_REASONS = {Completion.LATE: "stale_task", Completion.REPEATED: "already_accepted"}


class WorkerAnswer(msgspec.Struct, omit_defaults=True):
    """What became of a call; `reason` says why a result was ignored."""

    status: str
    reason: str = ""
    cancel_task_ids: list[str] = []


class WorkerTask(msgspec.Struct):
    """A task. `lease_token` may be echoed with the result, `attempt` counts from 1, `deadline_at` is UTC."""

    job_id: str
    task_id: str
    type: str
    params: Any
    tracing_context: dict[str, Any]
    params_metadata: dict[str, Any]
    attempt: int
    lease_token: str
    priority: int
    timeout_s: float
    deadline_at: str | None


def _add_routes(router: APIRouter, service: RunService) -> None:
    _add_worker_routes(router, service.workers)
    _add_task_routes(router, service.workers, service.settings.worker_poll_s)
    _add_sockets(router, service.workers)
    _add_operator_routes(router, service.workers)


def _add_worker_routes(router: APIRouter, workers: WorkerService) -> None:
    @router.post("/_worker/workers/register", summary="Register a worker", **described("WorkerAnswer"))
    async def register(request: Request, principal: _Worker) -> Response:
        document = await read_object(request)
        worker_id = check_worker_id(document.get("worker_id"))
        _check_identity(request, principal, worker_id)
        await workers.register(profile_of(worker_id, document), document)
        return json_response(WorkerAnswer("registered"))

    @router.patch(
        "/_worker/workers/{worker_id}", summary="Heartbeat, with news or without", **described("WorkerAnswer")
    )
    async def heartbeat(worker_id: str, request: Request, principal: _Worker) -> Response:
        _check_identity(request, principal, check_worker_id(worker_id))
        news = await read_object(request)
        document = await workers.document(worker_id)
        if news:
            document = {**document, **news, "worker_id": worker_id}
            await workers.update(profile_of(worker_id, document), document)
        await workers.renew(worker_id, named_leases(news))
        to_stop = await workers.to_stop(worker_id)
        if not news:
            return json_response(WorkerAnswer("ttl_refreshed", cancel_task_ids=to_stop))
        return json_response({**document, "cancel_task_ids": to_stop} if to_stop else document)

    @router.post(
        "/_worker/workers/{worker_id}/drain",
        summary="Get no more tasks until registering again",
        **described("WorkerAnswer"),
    )
    async def drain(worker_id: str, request: Request, principal: _Worker) -> Response:
        _check_identity(request, principal, check_worker_id(worker_id))
        await workers.drain(worker_id)
        return json_response(WorkerAnswer("draining"))

    @router.delete(
        "/_worker/workers/{worker_id}",
        summary="Leave: what the worker has goes to others",
        **described("WorkerAnswer"),
    )
    async def deregister(worker_id: str, request: Request, principal: _Worker) -> Response:
        _check_identity(request, principal, check_worker_id(worker_id))
        await workers.leave(worker_id)
        return json_response(WorkerAnswer("deregistered"))


def _add_task_routes(router: APIRouter, workers: WorkerService, most_s: float) -> None:
    @router.get(
        "/_worker/workers/{worker_id}/tasks/next",
        summary="Wait for the next task; 204 where none came",
        **described("WorkerTask"),
    )
    async def next_task(worker_id: str, request: Request, principal: _Worker) -> Response:
        _check_identity(request, principal, check_worker_id(worker_id))
        wait_s = _wait_s(request.query_params.get("timeout"), most_s)
        hung_up = asyncio.get_running_loop().create_task(_hung_up(request))
        try:
            claim = await workers.poll(worker_id, wait_s, hung_up)
        finally:
            hung_up.cancel()
        if claim is None:
            return Response(status_code=204)
        task = _task_of(claim, await workers.body_of(claim))
        if not claim.to_stop:
            return json_response(task)
        return json_response({**msgspec.structs.asdict(task), "cancel_task_ids": claim.to_stop})

    @router.post("/_worker/tasks/result", summary="Hand a result in", **described("WorkerAnswer"))
    async def take_result(request: Request, principal: _Worker) -> Response:
        body = await read_object(request)
        worker_id = check_worker_id(body.get("worker_id"))
        _check_identity(request, principal, worker_id)
        result = result_of(body)
        completion = await workers.complete(
            worker_id, _text(body, "task_id"), _text(body, "job_id"), _token(body), result
        )
        if completion is Completion.ACCEPTED:
            return json_response(WorkerAnswer(_ANSWERS.get(result.status, "result_accepted_success")))
        return json_response(WorkerAnswer("ignored", _REASONS.get(completion, completion.value)))

    @router.post("/_worker/tasks/progress", summary="Tell of progress", **described("WorkerAnswer"))
    async def take_progress(request: Request, principal: _Worker) -> Response:
        body = await read_object(request)
        worker_id = check_worker_id(body.get("worker_id"))
        _check_identity(request, principal, worker_id)
        has_it = await _tell_progress(workers, worker_id, body)
        to_stop = await workers.to_stop(worker_id)
        status, reason = ("progress_accepted", "") if has_it else ("ignored", "stale_task")
        return json_response(WorkerAnswer(status, reason, to_stop))


def _add_sockets(router: APIRouter, workers: WorkerService) -> None:
    @router.websocket("/_worker/ws/{worker_id}")
    async def socket_of(socket: WebSocket, worker_id: str, principal: _Worker) -> None:
        await _serve_socket(socket, principal, worker_id, workers)

    @router.websocket("/_worker/ws")
    async def socket(socket: WebSocket, principal: _Worker) -> None:
        named = next((scope for scope in principal.scopes if scope.startswith("worker:")), "")
        worker_id = socket.headers.get("x-worker-id") or named.removeprefix("worker:")
        await _serve_socket(socket, principal, worker_id, workers)


async def _serve_socket(
    socket: WebSocket, principal: Principal, worker_id: str, workers: WorkerService
) -> None:
    try:
        if worker_id:
            _check_identity(socket, principal, check_worker_id(worker_id))
    except TuttiError as error:
        await socket.close(_POLICY_VIOLATION, error.message)
        return
    await socket.accept()

    async def told(kind: str, offer_id: str, run_id: str) -> None:
        with suppress(RuntimeError, WebSocketDisconnect):  # it is closed already
            if kind == "stop":
                command = {"command": "cancel_task", "type": "cancel_task"}
                await socket.send_json({**command, "task_id": offer_id, "job_id": run_id})
            elif kind == "replaced":
                await socket.close(_POLICY_VIOLATION, "another connection of this worker took over")
            else:
                await socket.close(_GOING_AWAY)

    listener_id = await workers.listen(worker_id, told)
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await _take_message(workers, worker_id or None, message.get("text") or message.get("bytes") or "")
    finally:
        workers.listen_no_more(worker_id, listener_id)


async def _take_message(workers: WorkerService, worker_id: str | None, raw: str | bytes) -> None:
    """Take what a worker says over its socket; what is not understood is no reason to hang up."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return
    if isinstance(body, dict) and "progress_update" in (body.get("event"), body.get("type")):
        with suppress(TuttiError):
            holder = worker_id or await workers.holder_of(_text(body, "task_id"))
            await _tell_progress(workers, holder, body)


def _add_operator_routes(router: APIRouter, workers: WorkerService) -> None:
    @router.get("/api/v1/workers", summary="List living workers", **described("WorkerAnswer"))
    async def list_workers(principal: _User) -> Response:
        return json_response([_line(each) for each in await workers.workers()])

    def add(path: str, prefix: str, what: str) -> None:
        @router.post(f"{path}/pause", summary=f"Let {what} get no tasks", **described("WorkerAnswer"))
        async def pause(name: str, principal: _Operator) -> Response:
            await workers.board.pause(f"{prefix}:{name}")
            return json_response(WorkerAnswer("paused"))

        @router.post(f"{path}/resume", summary=f"Let {what} get tasks again", **described("WorkerAnswer"))
        async def resume(name: str, principal: _Operator) -> Response:
            await workers.board.resume(f"{prefix}:{name}")
            return json_response(WorkerAnswer("resumed"))

    add("/api/v1/workers/{name}", "worker", "a worker")
    add("/api/v1/worker-types/{name}", "type", "a type of task")


def _check_identity(connection: HTTPConnection, principal: Principal, worker_id: str) -> None:
    """Let no worker act as another.

    Raises:
        Forbidden: The token is another worker's, or the worker has one of its own.
    """
    own = {scope for scope in principal.scopes if scope.startswith("worker:")}
    if own and f"worker:{worker_id}" not in own:
        raise Forbidden("the token belongs to another worker")
    if not own and principal.role == _SCOPE and worker_id in connection.app.state.gate.individual_workers:
        raise Forbidden("this worker has a token of its own")


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _wait_s(asked: str | None, most_s: float) -> float:
    """Read how long a poll is to be held.

    Raises:
        InvalidInput: It is no number, or negative.
    """
    if asked is None:
        return most_s
    try:
        wait_s = float(asked)
    except ValueError:
        wait_s = math.nan
    if not wait_s >= 0:
        raise InvalidInput("timeout: must be a number of seconds, 0 or more", field="timeout", malformed=True)
    return min(wait_s, most_s)


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"{name}: is missing", field=name, malformed=True)
    return value


def _token(body: dict[str, Any]) -> str:
    token = body.get("lease_token")
    return token if isinstance(token, str) else ""


async def _tell_progress(workers: WorkerService, worker_id: str, body: dict[str, Any]) -> bool:
    progress, message = body.get("progress"), body.get("message")
    if isinstance(progress, bool) or not isinstance(progress, int | float) or not math.isfinite(progress):
        raise InvalidInput("progress: must be a number from 0 to 1", field="progress", malformed=True)
    text = message if isinstance(message, str) else ""
    return await workers.progress(worker_id, _text(body, "task_id"), float(progress), text, _token(body))


def _task_of(claim: Claim, body: dict[str, Any]) -> WorkerTask:
    deadline_at = body["deadline_at"]
    return WorkerTask(
        job_id=body["run_id"],
        task_id=claim.offer_id,
        type=body["kind"],
        params=body["inputs"],
        tracing_context={},
        params_metadata={},
        attempt=claim.attempt,
        lease_token=claim.token,
        priority=body["priority"],
        timeout_s=body["timeout_s"],
        deadline_at=None if deadline_at is None else instant_text(deadline_at),
    )


def _line(each: WorkerLine) -> dict[str, Any]:
    profile = each.profile
    status = "busy" if profile.is_busy or each.num_running >= profile.max_running else "idle"
    return {
        **each.document,
        "worker_id": profile.worker_id,
        "status": "draining" if each.is_draining else status,
        "supported_tasks": sorted(profile.capabilities),
        "num_running": each.num_running,
        "is_paused": each.is_paused,
    }


def _error_shape(wording: Wording) -> Any:
    return {"error": wording.message}


DIALECT = Dialect(
    name="workers",
    prefixes=("/_worker", "/api/v1/workers", "/api/v1/worker-types"),
    run_words={status: status.value for status in RunStatus},
    step_words={status: status.value for status in StepStatus},
    error_shape=_error_shape,
    add_routes=_add_routes,
    schemas=(WorkerAnswer, WorkerTask),
)
