"""Document 003's clients over HTTP, as printed and as misused, on a real Redis."""

import asyncio
import dataclasses

import pytest

from cluster.model.view import Failure
from cluster.settings import Settings
from cluster.store.step_leases import offer_id_of
from serve_app.service import RunService
from tests.golden_pairs import replay
from tests.integration.serve_app.conftest import Owner

pytestmark = pytest.mark.integration

TOKEN = {"X-Client-Token": "client-token"}
LOOP = """
name: mine
parameters: {n: {type: integer, required: true}}
start: check
states:
  check: {dispatch: check, params: {n: {$ref: inputs.n}}, retries: 1, to: {again: check, success: done}}
  done: end
"""


@pytest.fixture
def settings(redis_url, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine.yaml").write_text(LOOP)
    return Settings(
        redis_url=redis_url,
        data_dir=tmp_path,
        num_partitions=2,
        command_wait_s=2.0,
        client_token="client-token",
        api_keys={"ADMIN": "admin-key:admin"},
        webhook_secret="webhook-secret",
        blueprints_dir=folder,
    )


@pytest.fixture
async def client(service, settings, make_client):
    async with make_client(service, settings, headers=TOKEN) as client:
        yield client


async def create(client, name, **body):
    response = await client.post(f"/api/v1/jobs/{name}", json=body)
    assert response.status_code == 202, response.text
    return response.json()["job_id"]


async def job_of(client, job_id):
    response = await client.get(f"/api/v1/jobs/{job_id}")
    assert response.status_code == 200, response.text
    return response.json()


async def until(client, job_id, status):
    async with asyncio.timeout(5):
        while (job := await job_of(client, job_id))["status"] != status:  # noqa: ASYNC110 - Redis tells nobody
            await asyncio.sleep(0.01)
    return job


async def test_documented_examples_answer_as_printed(client, owner):
    await replay(client, "003", "public_status")
    job_id = (await replay(client, "003", "create"))["job_id"]
    await owner.succeed(
        job_id,
        {"status": "success", "data": {"greeting": "Hello, Ada!"}},
        {"status": "success", "data": {"letters": 8}},
    )
    await until(client, job_id, "finished")
    await replay(client, "003", "status", job_id=job_id)
    await replay(client, "003", "unknown")
    history = (await client.get(f"/api/v1/jobs/{job_id}/history")).json()
    kinds = [each["event_type"] for each in history]
    assert kinds == [
        "job_created",
        "state_started",
        "task_dispatched",
        "task_finished",
        "state_finished",
        "state_started",
        "task_dispatched",
        "task_finished",
        "state_finished",
        "state_started",
        "job_finished",
    ]
    assert (history[4]["state"], history[4]["next_state"]) == ("greet", "count")
    assert (history[5]["previous_state"], history[5]["state"]) == ("greet", "count")
    assert len({each["event_id"] for each in history}) == len(history)


async def test_job_goes_in_circles_and_tells_which_worker_it_waits_for(client, owner, settings):
    job_id = await create(client, "mine", n=3)
    await owner.take(job_id)
    job = await until(client, job_id, "waiting_for_worker")
    assert (job["current_state"], job["initial_data"]) == ("check", {"n": 3})
    await owner.succeed(job_id, {"status": "again"}, {"status": "again", "data": {"x": 1}})
    await owner.begin(job_id, 2)
    job = await job_of(client, job_id)
    async with asyncio.timeout(5):
        while job["task_worker_id"] is None:
            job = await job_of(client, job_id)
    offer_id = offer_id_of(job_id, 2, -1, 1, settings.num_partitions)
    assert (job["current_task_id"], job["task_worker_id"]) == (offer_id, "agent-2")
    graph = await client.get(f"/api/v1/jobs/{job_id}/graph")
    assert '"check" -> "check" [label="again"];' in graph.text
    assert graph.headers["content-type"].startswith("text/vnd.graphviz")


async def test_approval_is_given_once_with_its_token_and_an_unknown_decision_is_400(client, owner):
    job_id = await create(client, "approval_flow", initial_data={"title": "plan"})
    job = await until(client, job_id, "waiting_for_human")
    approval = job["approval"]
    assert (approval["message"], approval["decisions"]) == ({"title": "plan"}, ["approved", "rejected"])
    path = f"/_public/webhooks/approval/{job_id}"
    assert (await client.post(path, json={"decision": "perhaps"})).status_code == 400
    answered = await client.post(path, params={"token": approval["token"]}, json={"decision": "rejected"})
    assert answered.status_code == 200, answered.text
    job = await until(client, job_id, "failed")
    assert (job["error_message"], job["state_history"]["review"]["answer"]) == ("rejected", "rejected")
    again = await client.post(
        path, headers={"X-Approval-Token": approval["token"]}, json={"decision": "approved"}
    )
    assert (again.status_code, list(again.json())) == (409, ["error"])
    assert (await client.post("/_public/webhooks/approval/none", json={"decision": "x"})).status_code == 404


async def test_documented_approval_answers_as_printed_in_open_mode(client, owner):
    job_id = await create(client, "approval_flow")
    await until(client, job_id, "waiting_for_human")
    await replay(client, "003", "approval", job_id=job_id)
    await until(client, job_id, "finished")


async def test_approval_webhook_needs_the_jobs_own_token_where_credentials_are_required(
    settings, owner, make_client
):
    required = dataclasses.replace(settings, auth="required")
    service = RunService.connect(required)
    async with make_client(service, required) as stranger:
        first, second = [await create(stranger_with(stranger), "approval_flow") for _ in range(2)]
        job = await until(stranger_with(stranger), first, "waiting_for_human")
        for token in ("", "x", "x.y", job["approval"]["token"] + "0"):
            path = f"/_public/webhooks/approval/{first}"
            refused = await stranger.post(path, params={"token": token}, json={"decision": "approved"})
            assert refused.status_code == 401, token
        params = {"token": job["approval"]["token"]}
        body = {"decision": "approved"}
        other = await stranger.post(f"/_public/webhooks/approval/{second}", params=params, json=body)
        assert other.status_code == 401
        own = await stranger.post(f"/_public/webhooks/approval/{first}", params=params, json=body)
        assert own.status_code == 200
    await service.close()


def stranger_with(client):
    """The same client, with a credential."""

    class WithToken:
        async def get(self, path):
            return await client.get(path, headers=TOKEN)

        async def post(self, path, json):
            return await client.post(path, json=json, headers=TOKEN)

    return WithToken()


async def test_failed_work_waits_in_quarantine_until_somebody_retries_or_discards(client, owner):
    job_id = await create(client, "mine", initial_data={"n": 1})
    await owner.fail(job_id, 0, "PERMANENT_ERROR", "no such codec")
    job = await until(client, job_id, "quarantined")
    assert job["error_message"] == "no such codec"
    for path in ("/api/v1/quarantine", "/_public/jobs/quarantined", "/api/v1/jobs?status=quarantined"):
        assert [each["id"] for each in (await client.get(path)).json()] == [job_id]
    assert (
        await client.post(f"/_public/webhooks/approval/{job_id}", json={"decision": "retry"})
    ).status_code == 409
    assert (await client.post(f"/api/v1/quarantine/{job_id}/retry")).status_code == 200
    await until(client, job_id, "waiting_for_worker")
    assert (await client.post(f"/api/v1/quarantine/{job_id}/retry")).status_code == 409
    await owner.fail(job_id, 2, "PERMANENT_ERROR", "no such codec")
    await until(client, job_id, "quarantined")
    assert (await client.post(f"/api/v1/quarantine/{job_id}/discard")).status_code == 200
    assert (await until(client, job_id, "failed"))["error_message"] == "no such codec"
    assert (await client.get("/api/v1/quarantine")).json() == []


async def test_job_whose_work_fails_again_and_again_is_quarantined_with_the_count(client, owner):
    from cluster.model import events as ev

    job_id = await create(client, "mine", initial_data={"n": 1})
    await owner.take(job_id)
    flaky = Failure("TRANSIENT_ERROR", "away", retryable=True)
    for attempt in (1, 2):
        await owner.apply(job_id, ev.StepAssigned(0, -1, "w"), ev.StepFailed(0, -1, attempt, flaky, 0.0))
        await owner.apply(job_id, ev.TimerFired(0, -1, 0.0))
    job = await until(client, job_id, "quarantined")
    assert job["error_message"] == "Task failed after 2 attempts: away"


async def test_cancel_answers_as_printed_and_of_an_ended_job_is_409(client, owner):
    job_id = await create(client, "mine", n=1)
    await owner.take(job_id)
    await replay(client, "003", "cancel", job_id=job_id)
    await until(client, job_id, "cancelled")
    again = await client.post(f"/api/v1/jobs/{job_id}/cancel")
    assert again.status_code == 409
    assert "already ended" in again.json()["error"]


async def test_every_route_of_clients_needs_a_credential_in_open_mode_too(service, settings, make_client):
    async with make_client(service, settings) as stranger:
        for method, path in (
            ("POST", "/api/v1/jobs/simple_flow"),
            ("POST", "/api/v1/jobs/mine"),
            ("POST", "/api/v1/jobs/unknown"),
            ("GET", "/api/v1/jobs"),
            ("GET", "/api/v1/jobs/x"),
            ("GET", "/api/v1/jobs/x/history"),
            ("POST", "/api/v1/jobs/x/cancel"),
            ("GET", "/api/v1/quarantine"),
            ("GET", "/_public/jobs/quarantined"),
            ("GET", "/api/v1/blueprints"),
            ("GET", "/api/v1/blueprints/simple_flow/graph"),
            ("POST", "/api/v1/blueprints/reload"),
        ):
            refused = await stranger.request(method, path)
            assert (refused.status_code, list(refused.json())) == (401, ["error"]), path
        headers = {"X-Tenant-ID": "shop"}
        assert (await stranger.get("/api/v1/jobs", headers=headers)).status_code == 401


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("mine", {"initial_data": {}}),
        ("mine", {"initial_data": {"n": "x"}}),
        ("mine", {"initial_data": {"n": 1, "other": 2}}),
        ("mine", {"initial_data": [1]}),
        ("mine", {"n": 1, "initial_data": {"n": 1}, "webhook_url": 5}),
        ("simple_flow", {"initial_data": {}, "webhook_url": "http://127.0.0.1/x"}),
        ("ext_task", {"params": {}}),
    ],
)
async def test_what_a_blueprint_cannot_begin_with_is_400(client, name, body):
    refused = await client.post(f"/api/v1/jobs/{name}", json=body)
    assert (refused.status_code, list(refused.json())) == (400, ["error"]), refused.text


async def test_jobs_are_listed_newest_first_by_status_and_offset(client, owner):
    ids = [await create(client, "approval_flow") for _ in range(3)]
    other = await create(client, "mine", n=1)
    for job_id in ids:
        await until(client, job_id, "waiting_for_human")
    await until(client, other, "waiting_for_worker")
    listed = (await client.get("/api/v1/jobs?status=waiting_for_human&limit=2&offset=1")).json()
    assert [each["id"] for each in listed] == [ids[1], ids[0]]
    assert len((await client.get("/api/v1/jobs")).json()) == 4
    for query in ("status=odd", "limit=0", "limit=x", "offset=-1", "offset=10001"):
        assert (await client.get(f"/api/v1/jobs?{query}")).status_code == 400, query


async def test_run_of_another_dialect_is_no_job(client):
    plan = {"name": "x", "steps": [{"name": "a", "capability": "echo"}]}
    await client.post("/api/v1/runs", json={"plan": plan, "run_id": "r"})
    for path in ("", "/history", "/graph"):
        assert (await client.get(f"/api/v1/jobs/r{path}")).status_code == 404
    assert (await client.post("/api/v1/jobs/r/cancel")).status_code == 404


async def test_job_of_another_tenant_is_not_there(client, service, settings, make_client, owner):
    job_id = await create(client, "approval_flow")
    await until(client, job_id, "waiting_for_human")
    async with make_client(
        service, settings, headers={"X-API-Key": "admin-key", "X-Tenant-ID": "shop"}
    ) as other:
        assert (await other.get(f"/api/v1/jobs/{job_id}")).status_code == 404
        decided = await other.post(f"/api/v1/jobs/{job_id}/approval", json={"decision": "approved"})
        assert decided.status_code == 404


async def test_reloaded_blueprint_is_served_and_a_running_job_ends_on_its_version(
    client, service, settings, make_client, owner
):
    job_id = await create(client, "mine", n=1)
    await owner.take(job_id)
    folder = settings.blueprints_dir
    (folder / "mine.yaml").write_text(LOOP.replace("done", "over"))
    (folder / "new.yaml").write_text(LOOP.replace("name: mine", "name: new"))
    (folder / "bad.yaml").write_text("name: [")
    unknown = await client.post("/api/v1/jobs/new", json={"n": 1})
    assert (unknown.status_code, unknown.json()) == (
        404,
        {"error": "no blueprint is served at /api/v1/jobs/new"},
    )
    wrong = await client.put("/api/v1/jobs/mine", json={"n": 1})
    assert (wrong.status_code, wrong.json()) == (405, {"error": "Method Not Allowed"})
    async with make_client(service, settings, headers={"X-API-Key": "admin-key"}) as admin:
        page = (await admin.post("/api/v1/blueprints/reload")).json()
    assert [problem["origin"].rpartition("/")[2] for problem in page["problems"]] == ["bad.yaml"]
    await owner.succeed(job_id, {"status": "success"})
    assert (await until(client, job_id, "finished"))["current_state"] == "done"
    later = await create(client, "mine", n=1)
    await owner.succeed(later, {"status": "success"})
    assert (await until(client, later, "finished"))["current_state"] == "over"
    (folder / "mine.yaml").unlink()
    await service.blueprints.reload()
    assert (await client.post("/api/v1/jobs/mine", json={"n": 1})).status_code == 404


async def test_shipped_ext_task_passes_a_custom_status_through_its_state(client, owner):
    job_id = await create(client, "ext_task", initial_data={"task_type": "review", "params": {"a": 1}})
    await until(client, job_id, "waiting_for_worker")
    await owner.succeed(job_id, {"status": "needs_review", "data": {"score": 0.4}})
    job = await until(client, job_id, "finished")
    assert job["state_history"] == {"result": {"score": 0.4}, "reviewed": True}
    history = (await client.get(f"/api/v1/jobs/{job_id}/history")).json()
    states = [each["state"] for each in history if each["event_type"] == "state_started"]
    assert states == ["dispatch", "needs_review", "finished"]


async def test_shipped_ext_parallel_gathers_what_its_echoes_say(client, owner):
    job_id = await create(client, "ext_parallel", x=1)
    await until(client, job_id, "waiting_for_parallel_tasks")
    await owner.succeed(job_id, *({"status": "success", "data": {"part": n}} for n in (1, 2, 3)))
    job = await until(client, job_id, "finished")
    results = job["aggregation_results"]["results"]
    assert {name: each["data"]["part"] for name, each in results.items()} == {
        "first": 1,
        "second": 2,
        "third": 3,
    }


async def test_jobs_that_wait_for_workers_outside_keep_no_other_run_out(service, settings, make_client):
    owner = Owner(dataclasses.replace(settings, max_loaded_runs=1))
    await owner.start()
    async with make_client(service, settings, headers=TOKEN) as client:
        waiting = [await create(client, "mine", n=1) for _ in range(3)]
        for job_id in waiting:
            await until(client, job_id, "waiting_for_worker")
        job_id = await create(client, "simple_flow")
        await owner.succeed(job_id, {"data": {"greeting": "Hello"}}, {"data": {"letters": 5}})
        await until(client, job_id, "finished")
    await owner.close()


async def test_job_reads_as_a_task_and_as_a_run_too(client, owner):
    job_id = await create(client, "approval_flow")
    await until(client, job_id, "waiting_for_human")
    assert (await client.get(f"/api/v1/tasks/{job_id}")).json()["status"] == "running"
    run = (await client.get(f"/api/v1/runs/{job_id}")).json()
    assert (run["status"], run["dialect"], run["steps"][0]["name"]) == ("waiting", "jobs", "review:0")
    assert '"review:0"' in (await client.get(f"/api/v1/runs/{job_id}/graph")).text
    (wait,) = (await client.get(f"/api/v1/runs/{job_id}/why")).json()["waits"]
    assert wait["reason"]["kind"] == "approval"
    assert len((await client.get("/api/v1/runs?status=waiting&dialect=jobs")).json()["runs"]) == 1
