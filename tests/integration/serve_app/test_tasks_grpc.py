"""Document 000 over gRPC: the servicer behind a plain gRPC server, on a real Redis."""

import asyncio
import dataclasses
import json

import grpc
import pytest

from protos.orchestrator.v1 import orchestrator_pb2 as pb
from protos.orchestrator.v1 import orchestrator_pb2_grpc as pb_grpc
from serve_app.access import Gate
from serve_app.grpc_servicer import OrchestratorServicer, add_to_server
from serve_app.request_figures import RequestFigures

pytestmark = pytest.mark.integration


class _Served:
    def __init__(self, service, settings):
        servicer = OrchestratorServicer()
        servicer.service, servicer.gate, servicer.figures = service, Gate(settings), RequestFigures()
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        add_to_server(servicer, self._server)
        self._port = self._server.add_insecure_port("127.0.0.1:0")

    async def __aenter__(self):
        await self._server.start()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}")
        stub = pb_grpc.OrchestratorServiceStub(self._channel)
        stub.channel = self._channel
        return stub

    async def __aexit__(self, *_):
        await self._channel.close()
        await self._server.stop(None)


@pytest.fixture
async def stub(service, settings):
    async with _Served(service, settings) as stub:
        yield stub


def _example(**fields):
    return pb.TaskRequest(
        **{
            "task_id": "task-001",
            "task_type": "report_generation",
            "execution_mode": pb.SEQUENTIAL,
            "priority": 5,
            "timeout_ms": 30000,
            **fields,
        }
    )


async def _code(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_documented_example_is_accepted_and_accepted_again(stub):
    first = await stub.SubmitTask(_example())
    assert (first.task_id, first.status, first.estimated_completion_ms) == ("task-001", pb.QUEUED, 3000)
    assert await stub.SubmitTask(_example()) == first


async def test_same_task_over_http_and_grpc_is_one(stub, client):
    http = await client.post(
        "/api/v1/tasks",
        json={
            "task_id": "task-001",
            "task_type": "report_generation",
            "execution_mode": "sequential",
            "priority": 5,
            "timeout_ms": 30000,
            "inputs": [{"input_id": "a", "type": "text", "data": "x"}, {"type": "image", "data": "AAE="}],
        },
    )
    assert http.status_code == 200
    inputs = [pb.Input(input_id="a", data=b"x"), pb.Input(type=pb.IMAGE, data=b"\0\1")]
    assert (await stub.SubmitTask(_example(inputs=inputs))).task_id == "task-001"
    assert await _code(stub.SubmitTask(_example())) is grpc.StatusCode.ALREADY_EXISTS


async def test_completed_task_has_executions_output_and_metrics(stub, owner):
    await stub.SubmitTask(_example())
    await owner.succeed("task-001", {}, {}, {"title": "My Report"})
    updates = [update async for update in stub.StreamTaskUpdates(pb.TaskStatusRequest(task_id="task-001"))]
    state = await stub.GetTaskStatus(pb.TaskStatusRequest(task_id="task-001"))
    assert updates[-1].status == state.status == pb.COMPLETED
    assert updates[-1].progress_percent == 100
    assert [each.agent_type for each in state.agent_executions] == [
        "data_ingest",
        "data_analysis",
        "synthesis",
    ]
    assert all(each.end_time_ms >= each.start_time_ms > 0 for each in state.agent_executions)
    assert state.output.type == pb.JSON_REPORT
    assert json.loads(state.output.json_data) == {"title": "My Report"}
    assert state.metrics.agents_used == 3
    assert not state.HasField("error")


async def test_stream_sends_the_past_then_the_present_once_each_and_ends(stub, owner):
    await stub.SubmitTask(_example())
    await owner.begin("task-001", 0)
    seen = []
    async for update in stub.StreamTaskUpdates(pb.TaskStatusRequest(task_id="task-001")):
        seen.append(update)
        if update.message == "half way":
            await owner.fail("task-001", 1, "EXECUTION_FAILED", "x")  # not ready: changes nothing
            assert (await stub.CancelTask(pb.TaskCancelRequest(task_id="task-001", reason="why"))).success
    assert [each.status for each in seen][:1] == [pb.QUEUED]
    assert seen[-1].status == pb.CANCELLED
    late = [each async for each in stub.StreamTaskUpdates(pb.TaskStatusRequest(task_id="task-001"))]
    assert late == seen


async def test_cancellation_of_an_ended_task_has_no_success(stub, owner):
    await stub.SubmitTask(_example())
    await owner.take("task-001")
    assert (await stub.CancelTask(pb.TaskCancelRequest(task_id="task-001"))).success
    answer = await stub.CancelTask(pb.TaskCancelRequest(task_id="task-001"))
    assert not answer.success
    assert "ended" in answer.message


WRONG = {
    "unknown type": {"task_type": "poetry"},
    "no type": {"task_type": ""},
    "unknown mode": {"execution_mode": 9},
    "negative timeout": {"timeout_ms": -1},
    "priority above 10": {"priority": 11},
    "malformed id": {"task_id": "a b"},
    "text that is no UTF-8": {"inputs": [pb.Input(data=b"\xff\xfe")]},
    "image without content": {"inputs": [pb.Input(type=pb.IMAGE)]},
    "unknown input type": {"inputs": [pb.Input(type=77, data=b"x")]},
}


@pytest.mark.parametrize("fields", WRONG.values(), ids=WRONG)
async def test_wrong_task_is_an_invalid_argument_and_nothing_is_stored(stub, service, fields):
    assert await _code(stub.SubmitTask(_example(**fields))) is grpc.StatusCode.INVALID_ARGUMENT
    assert (await service.store.totals()).submitted == 0


async def test_unknown_task_is_not_found(stub):
    request = pb.TaskStatusRequest(task_id="nobody")
    assert await _code(stub.GetTaskStatus(request)) is grpc.StatusCode.NOT_FOUND
    assert await _code(stub.CancelTask(pb.TaskCancelRequest(task_id="nobody"))) is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [update async for update in stub.StreamTaskUpdates(request)]
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert await _code(stub.GetTaskStatus(pb.TaskStatusRequest())) is grpc.StatusCode.INVALID_ARGUMENT


async def test_oversize_metadata_and_full_tenant_exhaust_a_resource(stub):
    oversize = _example(metadata={"a": "x" * 5000})
    assert await _code(stub.SubmitTask(oversize)) is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_message_over_the_limit_of_bodies_exhausts_a_resource(stub, service):
    oversize = _example(inputs=[pb.Input(data=b"x" * service.settings.max_body_bytes)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SubmitTask(oversize)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "PAYLOAD_TOO_LARGE: the message is over the limit of 65536 bytes"
    assert (await service.store.totals()).submitted == 0


@pytest.mark.parametrize("method", ["SubmitTask", "GetTaskStatus", "CancelTask", "HealthCheck"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(stub, method):
    call = stub.channel.unary_unary(f"/orchestrator.OrchestratorService/{method}")
    assert await _code(call(b"\xff\xff\xff")) is grpc.StatusCode.INVALID_ARGUMENT


async def test_bytes_that_are_no_message_end_a_stream_as_an_invalid_argument(stub):
    call = stub.channel.unary_stream("/orchestrator.OrchestratorService/StreamTaskUpdates")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [update async for update in call(b"\xff\xff\xff")]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_command_without_a_verdict_is_unavailable(stub):
    await stub.SubmitTask(_example())
    assert (
        await _code(stub.CancelTask(pb.TaskCancelRequest(task_id="task-001"))) is grpc.StatusCode.UNAVAILABLE
    )


async def test_callers_deadline_is_kept(stub):
    await stub.SubmitTask(_example())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(5):
            async for _ in stub.StreamTaskUpdates(pb.TaskStatusRequest(task_id="task-001"), timeout=0.2):
                pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_credentials_come_as_metadata(service, settings):
    required = dataclasses.replace(settings, auth="required", api_keys={"U": "user-key:user"})
    async with _Served(service, required) as stub:
        assert await _code(stub.SubmitTask(_example())) is grpc.StatusCode.UNAUTHENTICATED
        wrong = stub.SubmitTask(_example(), metadata=(("x-api-key", "wrong"),))
        assert await _code(wrong) is grpc.StatusCode.UNAUTHENTICATED
        right = await stub.SubmitTask(_example(), metadata=(("x-api-key", "user-key"),))
        assert right.task_id == "task-001"
        assert (await stub.HealthCheck(pb.HealthCheckRequest())).healthy


async def test_health_tells_version_and_counts(stub):
    await stub.SubmitTask(_example())
    health = await stub.HealthCheck(pb.HealthCheckRequest())
    assert health.healthy
    assert health.stats["active_tasks"] == "1"
    assert health.stats["tasks_submitted_total"] == "1"
