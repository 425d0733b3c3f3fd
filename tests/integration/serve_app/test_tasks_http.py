"""Document 000 over HTTP, as printed and as misused, on a real Redis."""

import asyncio
import json
from pathlib import Path

import orjson
import pytest

from cluster.settings import Settings
from serve_app.service import RunService
from tests.golden_pairs import replay

pytestmark = pytest.mark.integration

GOLDEN = Path(__file__).parents[2] / "golden" / "000"
BODY = json.loads((GOLDEN / "submit.json").read_text())["request"]["body"]


async def _replay(client, name):
    await replay(client, "000", name)


def _frames(text):
    frames = [frame for frame in text.split("\n\n") if frame.startswith("id:")]
    return [(int(f.split("\n")[0][4:]), json.loads(f.split("\n")[1][6:])) for f in frames]


async def test_documented_examples_answer_as_printed(client, owner):
    await _replay(client, "health")
    await _replay(client, "submit")
    await owner.succeed(
        "task-001", {"type": "ingested_data"}, {"type": "analysis_result"}, {"title": "My Report"}
    )
    assert (await _end(client, "task-001"))["status"] == "completed"
    await _replay(client, "status")


async def test_documented_cancellation_answers_as_printed_and_keeps_its_reason(client, owner):
    await _replay(client, "submit")
    await _replay(client, "cancel")
    state = (await client.get("/api/v1/tasks/task-001")).json()
    assert state["status"] == "cancelled"
    assert state["error"]["code"] == "CANCELLED"
    assert (await client.get("/api/v1/runs/task-001")).json()[
        "cancel_reason"
    ] == "User requested cancellation"


async def _end(client, task_id):
    """Follow a task to its end and return how it stands then."""
    async with asyncio.timeout(5):
        await client.get(f"/api/v1/tasks/{task_id}/events")
    return (await client.get(f"/api/v1/tasks/{task_id}")).json()


async def test_cancellation_of_an_ended_task_is_a_conflict(client, owner):
    await _replay(client, "submit")
    await owner.succeed("task-001", {}, {}, {})
    assert (await _end(client, "task-001"))["status"] == "completed"
    response = await client.delete("/api/v1/tasks/task-001")
    assert response.status_code == 409
    assert response.json()["success"] is False
    assert response.json()["error"]["code"] == "CONFLICT"


async def test_command_without_a_verdict_in_time_is_answered_with_when_to_try_again(client):
    await _replay(client, "submit")
    response = await client.delete("/api/v1/tasks/task-001")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


async def test_failure_of_an_agent_is_told_with_its_code(client, owner):
    await _replay(client, "submit")
    await owner.fail("task-001", 0, "AGENT_UNAVAILABLE", "nobody serves data_ingest")
    state = await _end(client, "task-001")
    assert state["status"] == "failed"
    assert state["error"] == {
        "code": "AGENT_UNAVAILABLE",
        "message": state["error"]["message"],
        "retryable": False,
    }
    assert state["agent_executions"][0]["status"] == "failed"
    assert state["agent_executions"][0]["error_message"] == "nobody serves data_ingest"
    assert state["output"] is None


async def test_same_task_again_gets_the_same_answer_and_another_is_refused(client):
    first = await client.post("/api/v1/tasks", json=BODY)
    again = await client.post("/api/v1/tasks", json=dict(reversed(BODY.items())))
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    other = await client.post("/api/v1/tasks", json={**BODY, "priority": 6})
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "ALREADY_EXISTS"


async def test_task_of_another_tenant_is_unseen_and_its_id_free(client):
    await client.post("/api/v1/tasks", json=BODY)
    other = {"X-Tenant-ID": "other"}
    assert (await client.get("/api/v1/tasks/task-001", headers=other)).status_code == 404
    assert (await client.get("/api/v1/tasks/task-001/events", headers=other)).status_code == 404
    assert (await client.delete("/api/v1/tasks/task-001", headers=other)).status_code == 404
    different = {**BODY, "priority": 1}
    answer = await client.post("/api/v1/tasks", json=different, headers=other)
    assert (answer.status_code, answer.json()["task_id"]) == (200, "task-001")
    assert (await client.get("/api/v1/tasks/task-001", headers=other)).json()["task_id"] == "task-001"


async def test_task_with_nothing_but_its_type_gets_an_id(client):
    response = await client.post("/api/v1/tasks", json={"task_type": "api_call"})
    assert response.status_code == 200
    assert (await client.get(f"/api/v1/tasks/{response.json()['task_id']}")).status_code == 200


REFUSED = {
    "bad JSON": (b"{", 400),
    "not an object": (b"[]", 422),
    "empty": (b"", 422),
    "no type": ({"task_id": "x"}, 422),
    "unknown type": ({**BODY, "task_type": "poetry"}, 422),
    "type of another kind": ({**BODY, "task_type": 5}, 422),
    "wrong mode": ({**BODY, "execution_mode": "circular"}, 422),
    "negative timeout": ({**BODY, "timeout_ms": -1}, 422),
    "endless timeout": ({**BODY, "timeout_ms": 10**18}, 422),
    "timeout as text": ({**BODY, "timeout_ms": "5"}, 422),
    "priority above 10": ({**BODY, "priority": 11}, 422),
    "priority below 0": ({**BODY, "priority": -1}, 422),
    "priority as text": ({**BODY, "priority": "high"}, 422),
    "priority as boolean": ({**BODY, "priority": True}, 422),
    "malformed id": ({**BODY, "task_id": "a b"}, 422),
    "id with a line break": ({**BODY, "task_id": "a\n"}, 422),
    "overlong id": ({**BODY, "task_id": "a" * 201}, 422),
    "reserved id": ({**BODY, "task_id": "status"}, 422),
    "unknown input type": ({**BODY, "inputs": [{"type": "smell", "data": "x"}]}, 422),
    "task type and template": ({**BODY, "template": "git-script-execution"}, 422),
    "template alone": ({"template": "git-script-execution"}, 422),
    "url that is none": ({**BODY, "inputs": [{"type": "text", "url": "http://["}]}, 422),
    "input without content": ({**BODY, "inputs": [{"type": "text"}]}, 422),
    "text that is no text": ({**BODY, "inputs": [{"type": "text", "data": {}}]}, 422),
    "input given twice": ({**BODY, "inputs": [{"input_id": "a", "data": "x"}] * 2}, 422),
    "inputs that are no list": ({**BODY, "inputs": {}}, 422),
    "reference to a blob": (
        {**BODY, "inputs": [{"type": "json", "data": [{"$blob": "sha256:" + "0" * 64}]}]},
        422,
    ),
    "reference to a blob in an input's metadata": (
        {**BODY, "inputs": [{"data": "x", "metadata": {"$blob": {"a": 1}}}]},
        422,
    ),
    "reference to a blob in the metadata": ({**BODY, "metadata": {"a": [{"$blob": None}]}}, 422),
    "metadata that is no object": ({**BODY, "metadata": []}, 422),
    "oversize metadata": ({**BODY, "metadata": {"a": "x" * 5000}}, 413),
    "oversize body": ({**BODY, "metadata": {"a": "x" * 65_536}}, 413),
}


@pytest.mark.parametrize(("body", "status"), REFUSED.values(), ids=REFUSED)
async def test_wrong_request_is_refused_in_the_documented_shape_and_nothing_is_stored(
    client, service, body, status
):
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    response = await client.post("/api/v1/tasks", content=content)
    assert response.status_code == status
    told = response.json()
    code = "PAYLOAD_TOO_LARGE" if status == 413 else "VALIDATION_ERROR"
    assert told["error"]["code"] == code
    assert told["error"]["message"] == told["detail"] != ""
    assert (await service.store.totals()).submitted == 0


async def test_oversize_body_is_refused_while_it_comes_where_its_length_was_not_told(client):
    sent = 0

    async def pieces():
        nonlocal sent
        while sent < 100:
            sent += 1
            yield b"x" * 8192

    response = await client.post("/api/v1/tasks", content=pieces())
    assert response.status_code == 413
    assert sent < 20


async def test_large_input_goes_to_the_blob_store_and_only_its_reference_to_redis(client, service):
    text = "long " * 2000
    inputs = [{"input_id": "a", "type": "text", "data": text}, {"input_id": "b", "data": "short"}]
    response = await client.post("/api/v1/tasks", json={**BODY, "inputs": inputs})
    assert response.status_code == 200
    run_key = service.store.keys_of("task-001").run("task-001")
    stored = orjson.loads(await service.store.redis.hget(run_key, "inputs"))["inputs"]
    assert stored[0]["data"]["media_type"] == "application/json"
    assert stored[1]["data"] == "short"
    assert (await client.post("/api/v1/tasks", json={**BODY, "inputs": inputs})).status_code == 200
    assert (await client.post("/api/v1/tasks", json={**BODY, "inputs": inputs[:1]})).status_code == 409


async def test_events_tell_every_transition_once_in_order_and_can_be_resumed(client, owner):
    await _replay(client, "submit")
    await owner.begin("task-001", 0)
    await owner.fail("task-001", 0, "EXECUTION_FAILED", "broken")
    response = await client.get("/api/v1/tasks/task-001/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = _frames(response.text)
    assert [seq for seq, _ in frames] == list(range(1, len(frames) + 1))
    assert frames[0][1]["status"] == "queued"
    assert frames[-1][1] == {
        "task_id": "task-001",
        "status": "failed",
        "agent_id": "",
        "message": frames[-1][1]["message"],
        "progress_percent": frames[-1][1]["progress_percent"],
        "timestamp_ms": frames[-1][1]["timestamp_ms"],
    }
    assert any(update["message"] == "half way" and update["agent_id"] == "agent-0" for _, update in frames)
    rest = await client.get("/api/v1/tasks/task-001/events", headers={"Last-Event-ID": "2"})
    assert _frames(rest.text) == frames[2:]
    over = await client.get("/api/v1/tasks/task-001/events", headers={"Last-Event-ID": str(len(frames))})
    assert over.status_code == 204


async def test_unknown_task_is_not_found_everywhere(client):
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        response = await client.request(method, f"/api/v1/tasks/nobody{path}")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "NOT_FOUND"


async def test_paused_and_foreign_runs_can_be_read_as_tasks(client, owner):
    plan = {"name": "mine", "steps": [{"name": "a", "capability": "noop"}]}
    await client.post("/api/v1/runs", json={"plan": plan, "run_id": "r-1"})
    await owner.take("r-1")
    assert (await client.post("/api/v1/runs/r-1/pause")).json()["status"] == "paused"
    assert (await client.get("/api/v1/tasks/r-1")).json()["status"] == "pending"


async def test_absence_of_the_store_is_503_and_unhealthy(tmp_path, make_client):
    settings = Settings(redis_url="unix:///nowhere/redis.sock", data_dir=tmp_path)
    service = RunService.connect(settings)
    async with make_client(service, settings) as client:
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        submitted = await client.post("/api/v1/tasks", json=BODY)
        assert submitted.status_code == 503
        assert int(submitted.headers["retry-after"]) >= 1
        assert submitted.json()["error"]["code"] == "UNAVAILABLE"
        assert "tutti_store_up 0.0" in (await client.get("/metrics")).text
    await service.close()


async def test_metrics_count_what_was_submitted(client):
    await client.post("/api/v1/tasks", json=BODY)
    text = (await client.get("/metrics")).text
    assert "tasks_submitted_total 1.0" in text
    assert (await client.get("/_public/metrics")).status_code == 200


async def test_tenant_at_its_limit_is_told_to_wait(service, settings, make_client):
    import dataclasses

    settings = dataclasses.replace(settings, max_unfinished_runs=1)
    limited = RunService.connect(settings)
    async with make_client(limited, settings) as client:
        assert (await client.post("/api/v1/tasks", json=BODY)).status_code == 200
        response = await client.post("/api/v1/tasks", json={"task_type": "api_call"})
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "RESOURCE_EXHAUSTED"
        assert "retry-after" in response.headers
    await limited.close()
