"""The five methods of OrchestratorService, for the deployment class: gRPC messages to core calls and back.

It is the gRPC side of the task dialect and shares its parsing and rendering. Errors become status codes on
the context, never exceptions: Serve would log a stack trace for each client's mistake. For the same reason
requests arrive as bytes and are parsed here: what a generated deserializer raises, gRPC calls INTERNAL.
AgentService is not served.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import orjson
from google.protobuf.message import DecodeError, Message

from cluster.catalog import Arrangement
from cluster.errors import Conflict, Forbidden, InvalidInput, PayloadTooLarge, TuttiError
from protos.orchestrator.v1 import orchestrator_pb2 as pb
from serve_app.access import AccessRule, Gate, grpc_peer_address
from serve_app.auth import CREDENTIAL_NAMES, Principal
from serve_app.client_address import FORWARDED_FOR
from serve_app.dialects import tasks
from serve_app.operations import report_of
from serve_app.problems import wording_of
from serve_app.request_figures import RequestFigures, measured, measured_stream

if TYPE_CHECKING:
    from ray.serve.grpc_util import RayServegRPCContext

    from serve_app.service import RunService

__all__ = ["OrchestratorServicer", "add_to_server"]

_Message = TypeVar("_Message", bound=Message)
_log = logging.getLogger("tutti.grpc")
_USER = AccessRule("user")
_ANYBODY = AccessRule(None)
_MODES = {
    pb.PARALLEL: Arrangement.PARALLEL,
    pb.SEQUENTIAL: Arrangement.SEQUENTIAL,
    pb.HYBRID: Arrangement.HYBRID,
}
_INPUT_WORDS: Mapping[int, str] = {number: name.lower() for name, number in pb.InputType.items()}
_STATUS_NUMBERS: Mapping[str, int] = {name.lower(): number for name, number in pb.TaskStatus.items()}
_OUTPUT_NUMBERS: Mapping[str, int] = {"alerts": pb.ALERT}


class OrchestratorServicer:
    """Mixin with the methods that Serve finds by name.

    Attributes:
        service: The use cases.
        gate: Credentials and peers.
        figures: What is counted of the calls.
    """

    service: RunService
    gate: Gate
    figures: RequestFigures

    @measured
    async def SubmitTask(self, request: bytes, grpc_context: RayServegRPCContext) -> Any:  # noqa: N802 - wire name
        """Submit a task."""
        try:
            principal = await self._admit(grpc_context)
            body = _body_of(self._parse(request, pb.TaskRequest))
            accepted = await self.service.submit(principal, tasks.request_of(body))
        except TuttiError as error:
            return _fail(grpc_context, error, pb.TaskResponse())
        answer = tasks.accepted_of(accepted)
        return pb.TaskResponse(
            task_id=answer.task_id,
            status=_STATUS_NUMBERS[answer.status],
            message=answer.message,
            estimated_completion_ms=answer.estimated_completion_ms,
        )

    @measured
    async def GetTaskStatus(self, request: bytes, grpc_context: RayServegRPCContext) -> Any:  # noqa: N802 - wire name
        """Read a task."""
        try:
            principal = await self._admit(grpc_context)
            view = await self.service.get(principal, _id_of(self._parse(request, pb.TaskStatusRequest)))
        except TuttiError as error:
            return _fail(grpc_context, error, pb.TaskStatusResponse())
        return _state_message(tasks.state_of(view, time.time()))

    @measured_stream
    async def StreamTaskUpdates(  # noqa: N802 - wire name
        self, request: bytes, grpc_context: RayServegRPCContext
    ) -> AsyncIterator[Any]:
        """Send every update of a task from its beginning; end after the terminal one."""
        try:
            principal = await self._admit(grpc_context)
            run_id = _id_of(self._parse(request, pb.TaskStatusRequest))
            _, events = await self.service.follow(principal, run_id)
            async for event in events:
                update = tasks.update_of(run_id, event)
                yield pb.TaskUpdate(
                    task_id=update.task_id,
                    status=_STATUS_NUMBERS[update.status],
                    agent_id=update.agent_id,
                    message=update.message,
                    progress_percent=update.progress_percent,
                    timestamp_ms=update.timestamp_ms,
                )
        except TuttiError as error:
            _fail(grpc_context, error, None)

    @measured
    async def CancelTask(self, request: bytes, grpc_context: RayServegRPCContext) -> Any:  # noqa: N802 - wire name
        """Cancel a task; one that has ended is answered with `success` false."""
        try:
            principal = await self._admit(grpc_context)
            asked = self._parse(request, pb.TaskCancelRequest)
            await self.service.cancel(principal, _id_of(asked), asked.reason)
        except Conflict as error:
            return pb.TaskCancelResponse(success=False, message=error.message)
        except TuttiError as error:
            return _fail(grpc_context, error, pb.TaskCancelResponse())
        return pb.TaskCancelResponse(success=True, message=tasks.CANCELLED_MESSAGE)

    @measured
    async def HealthCheck(self, request: bytes, grpc_context: RayServegRPCContext) -> Any:  # noqa: N802 - wire name
        """Tell whether the service can take tasks."""
        try:
            self._check_peer(grpc_context)
            self._parse(request, pb.HealthCheckRequest)
            report = report_of(await self.service.health())
        except TuttiError as error:
            return _fail(grpc_context, error, pb.HealthCheckResponse())
        stats = {"status": report.status, "redis": report.redis, "active_tasks": report.stats.active_tasks}
        return pb.HealthCheckResponse(
            healthy=report.healthy,
            version=report.version,
            uptime_seconds=report.uptime_seconds,
            stats={name: str(value) for name, value in {**stats, **report.stats.metrics}.items()},
        )

    def _parse(self, request: bytes, kind: type[_Message]) -> _Message:
        """Read a message, under the limit that HTTP bodies have.

        Raises:
            PayloadTooLarge: It is over the limit.
            InvalidInput: It is none of this kind.
        """
        limit_bytes = self.service.settings.max_body_bytes
        if len(request) > limit_bytes:
            raise PayloadTooLarge(
                f"the message is over the limit of {limit_bytes} bytes", limit_bytes=limit_bytes
            )
        try:
            return kind.FromString(request)
        except DecodeError:
            raise InvalidInput(f"the message is no {kind.DESCRIPTOR.full_name}", malformed=True) from None

    def _check_peer(self, grpc_context: RayServegRPCContext) -> None:
        if self.gate.is_open and not self.gate.peers.has_grpc_peer(grpc_context.peer()):
            raise Forbidden("without authentication only this machine is served")

    async def _admit(self, grpc_context: RayServegRPCContext) -> Principal:
        self._check_peer(grpc_context)
        texts = [pair for pair in grpc_context.invocation_metadata() if isinstance(pair[1], str)]
        return await self.gate.admit(
            [pair for pair in texts if pair[0] in CREDENTIAL_NAMES],
            _USER,
            peer=grpc_peer_address(grpc_context.peer()),
            forwarded=[value for name, value in texts if name == FORWARDED_FOR],
        )


def add_to_server(servicer: Any, server: Any) -> None:
    """Register the service as the generated function does, save that its methods get requests as bytes.

    Args:
        servicer: Has the methods of the service.
        server: A gRPC server, or what Serve has in place of one.
    """
    service = pb.DESCRIPTOR.services_by_name["OrchestratorService"]
    handlers = {}
    for method in service.methods:
        streams = method.server_streaming
        kind = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        handlers[method.name] = kind(
            getattr(servicer, method.name), response_serializer=lambda answer: answer.SerializeToString()
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    server.add_registered_method_handlers(service.full_name, handlers)


def _fail(grpc_context: RayServegRPCContext, error: TuttiError, answer: Any) -> Any:
    """Put the error's status on the context; `answer` must be given back all the same, and is not sent."""
    wording = wording_of(error)
    if wording.problem.http_status == 500:
        _log.error("unexpected error", exc_info=error)
    grpc_context.set_code(getattr(grpc.StatusCode, wording.problem.grpc_status))
    grpc_context.set_details(f"{wording.code}: {wording.message}")
    if wording.retry_after_s is not None:
        grpc_context.set_trailing_metadata([("retry-after", str(wording.retry_after_s))])
    return answer


def _id_of(request: Any) -> str:
    if not request.task_id:
        raise InvalidInput("task_id: is missing", field="task_id")
    return str(request.task_id)


def _body_of(request: Any) -> tasks.TaskBody:
    """Make the dialect's body of a message. `timeout_ms` 0 means none; `priority` 0 is the lowest."""
    mode = _MODES.get(request.execution_mode)
    if mode is None:
        raise InvalidInput(f"execution_mode: there is no {request.execution_mode}", field="execution_mode")
    return tasks.TaskBody(
        task_type=request.task_type,
        task_id=request.task_id or None,
        inputs=[_input_of(each, position) for position, each in enumerate(request.inputs)],
        execution_mode=mode.value,
        priority=request.priority,
        timeout_ms=request.timeout_ms,
        metadata=dict(request.metadata),
    )


def _input_of(message: Any, position: int) -> tasks.TaskInput:
    kind = _INPUT_WORDS.get(message.type)
    if kind is None:
        raise InvalidInput(
            f"inputs[{position}]: there is no type {message.type}", field=f"inputs[{position}]"
        )
    return tasks.TaskInput(
        input_id=message.input_id,
        type=kind,  # type: ignore[arg-type]
        data=_data_of(message, kind, position),
        url=message.url or None,
        metadata=dict(message.metadata),
    )


def _data_of(message: Any, kind: str, position: int) -> str | None:
    """Text and JSON come as UTF-8, all else as bytes that become base64; nothing beside a url is no data."""
    if not message.data:
        return "" if kind == "text" and not message.url else None
    if kind not in ("text", "json"):
        return base64.b64encode(message.data).decode("ascii")
    try:
        return str(message.data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"inputs[{position}]: data of type {kind} is not UTF-8 ({error.reason})",
            field=f"inputs[{position}]",
        ) from None


def _state_message(state: tasks.TaskState) -> Any:
    metrics = state.metrics
    return pb.TaskStatusResponse(
        task_id=state.task_id,
        status=_STATUS_NUMBERS[state.status],
        agent_executions=[
            pb.AgentExecution(
                agent_id=each.agent_id,
                agent_type=each.agent_type,
                status=_STATUS_NUMBERS[each.status],
                start_time_ms=each.start_time_ms,
                end_time_ms=each.end_time_ms,
                error_message=each.error_message or "",
            )
            for each in state.agent_executions
        ],
        output=None
        if state.output is None
        else pb.Output(
            type=_OUTPUT_NUMBERS.get(state.output.type, pb.JSON_REPORT),
            json_data=orjson.dumps(state.output.data).decode(),
            metadata={"kind": state.output.type},
        ),
        error=None
        if state.error is None
        else pb.Error(
            error_code=state.error.code, message=state.error.message, retryable=state.error.retryable
        ),
        metrics=pb.TaskMetrics(
            total_duration_ms=metrics.total_duration_ms,
            queue_time_ms=metrics.queue_time_ms,
            execution_time_ms=metrics.execution_time_ms,
            retry_count=metrics.retry_count,
            agents_used=metrics.agents_used,
        ),
    )
