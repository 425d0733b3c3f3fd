from protos.generate import stale_modules
from protos.orchestrator.v1 import orchestrator_pb2 as pb


def test_generated_modules_are_what_the_proto_says():
    assert stale_modules() == []


def _numbers(message):
    return {field.name: field.number for field in message.DESCRIPTOR.fields}


def test_messages_keep_the_documented_numbers():
    assert _numbers(pb.TaskRequest) == {
        "task_id": 1,
        "task_type": 2,
        "metadata": 3,
        "inputs": 4,
        "execution_mode": 5,
        "priority": 6,
        "timeout_ms": 7,
    }
    assert _numbers(pb.TaskUpdate) == {
        "task_id": 1,
        "status": 2,
        "agent_id": 3,
        "message": 4,
        "progress_percent": 5,
        "timestamp_ms": 6,
    }
    assert _numbers(pb.Output) == {"type": 1, "data": 2, "json_data": 3, "metadata": 4}
    assert _numbers(pb.Error) == {"error_code": 1, "message": 2, "stack_trace": 3, "retryable": 4}


def test_enums_keep_the_documented_numbers():
    assert dict(pb.ExecutionMode.items()) == {"PARALLEL": 0, "SEQUENTIAL": 1, "HYBRID": 2}
    assert dict(pb.TaskStatus.items()) == {
        "PENDING": 0,
        "QUEUED": 1,
        "RUNNING": 2,
        "COMPLETED": 3,
        "FAILED": 4,
        "CANCELLED": 5,
        "RETRYING": 6,
    }
    assert pb.InputType.values() == list(range(6))
    assert pb.OutputType.values() == list(range(4))


def test_services_have_the_documented_methods():
    services = pb.DESCRIPTOR.services_by_name
    assert [method.name for method in services["OrchestratorService"].methods] == [
        "SubmitTask",
        "GetTaskStatus",
        "StreamTaskUpdates",
        "CancelTask",
        "HealthCheck",
    ]
    assert pb.DESCRIPTOR.package == "orchestrator"
    assert "AgentService" in services
