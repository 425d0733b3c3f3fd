"""The native API on a real Redis."""

import asyncio
import json

import pytest

pytestmark = pytest.mark.integration

PLAN = {
    "name": "mine",
    "steps": [
        {"name": "a", "capability": "echo", "inputs": {"$ref": "inputs.x"}},
        {"name": "b", "capability": "echo", "inputs": {"$ref": "steps.a.output"}},
    ],
}


async def _submit(client, **fields):
    response = await client.post("/api/v1/runs", json={"plan": PLAN, "inputs": {"x": 1}, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def test_run_is_accepted_worked_on_and_read_with_its_output(client, owner):
    accepted = await _submit(client, run_id="r-1", priority=70, metadata={"why": "test"})
    assert accepted["created"] is True
    assert accepted["status"] == "queued"
    assert (await _submit(client, run_id="r-1", priority=70, metadata={"why": "test"}))["created"] is False
    await owner.succeed("r-1", "first", "second")
    async with asyncio.timeout(5):
        text = (await client.get("/api/v1/runs/r-1/events")).text
    run = (await client.get("/api/v1/runs/r-1")).json()
    assert run["status"] == "succeeded"
    assert run["output"] == "second"
    assert [step["output"] for step in run["steps"]] == ["first", "second"]
    assert run["priority"] == 70
    assert run["progress"] == 1.0
    assert run["created_at"].endswith("Z")
    updates = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
    assert [update["seq"] for update in updates] == list(range(1, len(updates) + 1))
    assert (updates[0]["type"], updates[-1]["type"]) == ("run.submitted", "run.succeeded")
    dot = await client.get("/api/v1/runs/r-1/graph")
    assert dot.headers["content-type"].startswith("text/vnd.graphviz")
    assert '"a" -> "b";' in dot.text


async def test_list_is_newest_first_filtered_and_paged(client):
    ids = [(await _submit(client, run_id=f"r-{number}"))["run_id"] for number in range(5)]
    await client.post("/api/v1/tasks", json={"task_type": "api_call", "task_id": "t"})
    page = (await client.get("/api/v1/runs", params={"dialect": "runs", "limit": 3})).json()
    assert [run["run_id"] for run in page["runs"]] == ids[:1:-1]
    rest = await client.get(
        "/api/v1/runs", params={"dialect": "runs", "limit": 3, "cursor": page["next_cursor"]}
    )
    assert [run["run_id"] for run in rest.json()["runs"]] == ids[1::-1]
    assert len((await client.get("/api/v1/runs?status=queued&status=running")).json()["runs"]) == 6
    assert (await client.get("/api/v1/runs?status=failed")).json()["runs"] == []
    other = await client.get("/api/v1/runs", headers={"X-Tenant-ID": "other"})
    assert other.json()["runs"] == []


@pytest.mark.parametrize(
    "query", ["status=odd", "limit=0", "limit=1001", "limit=x", "cursor=x", "dialect=zzz", "dialect="]
)
async def test_wrong_query_is_refused(client, query):
    response = await client.get(f"/api/v1/runs?{query}")
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "VALIDATION_ERROR"


async def test_commands_change_a_run_and_illegal_ones_are_conflicts(client, owner):
    await _submit(client, run_id="r-1")
    await owner.take("r-1")
    assert (await client.post("/api/v1/runs/r-1/resume")).status_code == 409
    assert (await client.post("/api/v1/runs/r-1/pause")).json()["status"] == "paused"
    assert (await client.post("/api/v1/runs/r-1/resume")).json()["status"] == "queued"
    changed = await client.put("/api/v1/runs/r-1/priority", json={"priority": 90})
    assert changed.json()["priority"] == 90
    assert (await client.put("/api/v1/runs/r-1/priority", json={"priority": 101})).status_code == 422
    assert (await client.put("/api/v1/runs/r-1/priority", json={})).status_code == 422
    cancelled = await client.post("/api/v1/runs/r-1/cancel", json={"reason": "enough"})
    assert cancelled.json()["status"] == "cancelled"
    assert (await client.post("/api/v1/runs/r-1/cancel")).status_code == 409
    assert (await client.post("/api/v1/runs/nobody/cancel")).status_code == 404


async def test_same_command_again_gets_the_same_verdict(client, owner):
    await _submit(client, run_id="r-1")
    await owner.take("r-1")
    again = {"Idempotency-Key": "once"}
    assert (await client.post("/api/v1/runs/r-1/cancel", headers=again)).status_code == 200
    assert (await client.post("/api/v1/runs/r-1/cancel", headers=again)).status_code == 200
    assert (await client.post("/api/v1/runs/r-1/pause", headers=again)).status_code == 409


async def test_id_that_another_tenant_uses_is_free_and_tells_nothing(client, owner):
    """A taken id was 409 for everybody, so that a tenant could find out which ids another one uses."""
    shop, bank = {"X-Tenant-ID": "shop"}, {"X-Tenant-ID": "bank"}
    body = {"plan": {**PLAN, "output": {"id": {"$ref": "run.id"}}}, "inputs": {"x": 1}, "run_id": "r-1"}
    for headers in ({}, shop, bank):
        answer = (
            await client.post("/api/v1/runs", json={**body, "metadata": headers}, headers=headers)
        ).json()
        assert (answer["run_id"], answer["created"]) == ("r-1", True)
    again = await client.post("/api/v1/runs", json={**body, "metadata": shop}, headers=shop)
    assert (again.json()["run_id"], again.json()["created"]) == ("r-1", False)
    other = await client.post("/api/v1/runs", json=body, headers=shop)
    assert (other.status_code, other.json()["detail"]) == (409, "run r-1 exists with a different request")
    await owner.take("shop~r-1")
    assert (await client.post("/api/v1/runs/r-1/cancel", headers=shop)).json()["run_id"] == "r-1"
    statuses = [
        (await client.get("/api/v1/runs/r-1", headers=each)).json()["status"] for each in (shop, bank)
    ]
    assert statuses == ["cancelled", "queued"]
    ended = await client.post("/api/v1/runs/r-1/cancel", headers=shop)
    assert ended.json()["detail"].startswith("run r-1 has already ended")
    await owner.succeed("bank~r-1", "first", "second")
    async with asyncio.timeout(5):
        updates = (await client.get("/api/v1/runs/r-1/events", headers=bank)).text
    assert "bank~" not in updates
    run = (await client.get("/api/v1/runs/r-1", headers=bank)).json()
    assert (run["run_id"], run["output"]) == ("r-1", {"id": "r-1"})
    listed = (await client.get("/api/v1/runs", headers=bank)).json()["runs"]
    assert [each["run_id"] for each in listed] == ["r-1"]


async def test_runs_of_a_tenant_wait_for_its_own_only_and_are_named_as_it_named_them(client, owner):
    shop, bank = {"X-Tenant-ID": "shop"}, {"X-Tenant-ID": "bank"}
    for headers in ({}, shop):
        await client.post("/api/v1/runs", json={"plan": PLAN, "run_id": "r-1"}, headers=headers)
    body = {"plan": PLAN, "run_id": "r-2", "after": ["r-1"]}
    refused = await client.post("/api/v1/runs", json=body, headers=bank)
    assert (refused.status_code, refused.json()["detail"]) == (422, "after: there is no run r-1")
    assert (await client.post("/api/v1/runs", json=body, headers=shop)).json()["status"] == "pending"
    await owner.take("shop~r-2")
    waits = (await client.get("/api/v1/runs/r-2/why", headers=shop)).json()["waits"]
    assert waits[0]["reason"]["details"]["names"] == ["r-1"]


async def test_run_that_waits_for_another_is_pending(client):
    await _submit(client, run_id="r-1")
    accepted = await _submit(client, run_id="r-2", after=["r-1"])
    assert accepted["status"] == "pending"


FORGED = {"$blob": {"$ref": "inputs.digest"}, "media_type": "application/json", "path": "a"}


def one_step_with(**fields):
    return {"name": "p", "steps": [{"name": "a", "capability": "b", **fields}]}


REFUSED = {
    "no plan": {},
    "no steps": {"plan": {"name": "p", "steps": []}},
    "unknown field": {"plan": PLAN, "colour": "red"},
    "unknown step field": {"plan": {"name": "p", "steps": [{"name": "a", "capability": "b", "odd": 1}]}},
    "circle": {"plan": {"name": "p", "steps": [{"name": "a", "capability": "b", "needs": ["a"]}]}},
    "dangling reference": {
        "plan": {
            "name": "p",
            "steps": [{"name": "a", "capability": "b", "inputs": {"$ref": "steps.z.output"}}],
        }
    },
    "priority": {"plan": PLAN, "priority": 101},
    "timeout": {"plan": PLAN, "timeout_s": 0},
    "waits for an unknown run": {"plan": PLAN, "after": ["nobody"]},
    "waits for itself": {"plan": PLAN, "run_id": "r", "after": ["r"]},
    "empty id": {"plan": PLAN, "run_id": ""},
    "private webhook": {"plan": PLAN, "webhook_url": "http://127.0.0.1:1/"},
    "webhook that cannot be read": {"plan": PLAN, "webhook_url": "http://["},
    "webhook whose host is too long": {"plan": PLAN, "webhook_url": "http://" + "a" * 64 + ".example/"},
    "webhook of another scheme": {"plan": PLAN, "webhook_url": "file:///etc/passwd"},
    "blob reference in the plan": {"plan": one_step_with(inputs={"$blob": "sha256:" + "0" * 64})},
    "blob reference built of parts": {
        "plan": one_step_with(inputs={"x": [FORGED]}),
        "inputs": {"digest": ""},
    },
    "blob reference to map over": {"plan": one_step_with(map=[FORGED])},
    "blob reference in a condition": {
        "plan": one_step_with(when={"ref": "inputs.a", "op": "eq", "value": {"$blob": 1}})
    },
    "blob reference in the output": {"plan": {**PLAN, "output": {"x": FORGED}}},
    "malformed reference in the inputs": {
        "plan": PLAN,
        "inputs": {"x": [{"$blob": "sha256:00", "y": 1}]},
    },
    "blob reference in the metadata": {"plan": PLAN, "metadata": {"x": {"$blob": "sha256:" + "0" * 64}}},
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
async def test_wrong_run_is_refused_and_nothing_is_stored(client, service, body):
    response = await client.post("/api/v1/runs", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "VALIDATION_ERROR"
    assert (await service.store.totals()).submitted == 0


async def test_step_that_waits_is_answered_over_http_once(client, owner):
    gate = {"name": "gate", "capability": "approval", "answers": ["yes", "no"], "inputs": {"ok": "go on?"}}
    body = {"plan": {"name": "gated", "steps": [gate]}, "run_id": "r-gate"}
    await client.post("/api/v1/runs", json=body)
    await owner.take("r-gate")
    async with asyncio.timeout(5):
        while (run := (await client.get("/api/v1/runs/r-gate")).json())["status"] != "waiting":
            await owner.take("r-gate")
    assert (run["steps"][0]["answers"], run["steps"][0]["question"]) == (["yes", "no"], {"ok": "go on?"})
    path = "/api/v1/runs/r-gate/steps/gate/answer"
    assert (await client.post(path, json={"answer": "perhaps"})).status_code == 422
    assert (await client.post(path, json={"answer": "no", "data": {"why": 1}})).status_code == 200
    again = await client.post(path, json={"answer": "yes"})
    assert again.status_code == 409
    run = (await client.get("/api/v1/runs/r-gate")).json()
    assert (run["status"], run["output"]) == (
        "succeeded",
        {"answer": "no", "by": "anonymous", "data": {"why": 1}},
    )


async def test_blueprint_in_a_plan_is_refused(client):
    states = [{"name": "end", "kind": "end"}]
    plan = {"name": "x", "blueprint": {"name": "x", "start": "end", "states": states}}
    assert (await client.post("/api/v1/runs", json={"plan": plan})).status_code == 422
