"""The worker protocol over HTTP, with a real store and the real owner of the Runs behind it."""

from __future__ import annotations

import asyncio
import hashlib
import time

import pytest
import yaml

from cluster.settings import Settings
from cluster.store.keys import PartitionKeys, WorkerKeys, partition_of
from tests.integration.serve_app.conftest import NUM_PARTITIONS

_TOKEN = {"X-Worker-Token": "secret"}
_USER = {"X-Client-Token": "client"}


@pytest.fixture
def settings(redis_url, tmp_path):
    clients = tmp_path / "clients.yaml"
    digest = hashlib.sha256(b"own-secret").hexdigest()
    clients.write_text(yaml.safe_dump([{"name": "own", "token_sha256": digest, "role": "worker"}]))
    return Settings(
        redis_url=redis_url,
        data_dir=tmp_path,
        num_partitions=NUM_PARTITIONS,
        command_wait_s=2.0,
        inline_limit_bytes=4096,
        global_worker_token="secret",
        client_token="client",
        clients_file=clients,
        worker_lease_s=30.0,
        worker_poll_s=5.0,
        api_keys={"OPS": "admin-key:admin"},
    )


def plan(*kinds, **fields):
    steps = [
        {"name": f"s{n}", "capability": f"worker:{kind}", "inputs": {"n": n}, **fields}
        for n, kind in enumerate(kinds)
    ]
    return {"name": "outside", "steps": steps}


async def until(found):
    """Ask until it is so."""
    async with asyncio.timeout(5):
        while True:
            if await found():
                return
            await asyncio.sleep(0.01)


async def _is_count(counting, wanted):
    return await counting == wanted


class Api:
    """Calls of a client and of workers."""

    def __init__(self, client):
        self.client = client

    async def submit(self, *kinds, priority=50, **fields):
        body = {"plan": plan(*kinds, **fields), "priority": priority}
        answer = await self.client.post("/api/v1/runs", json=body)
        assert answer.status_code in {200, 201, 202}, answer.text
        return answer.json()["run_id"]

    async def run(self, run_id):
        return (await self.client.get(f"/api/v1/runs/{run_id}")).json()

    async def until(self, run_id, **wanted):
        async with asyncio.timeout(10):
            while True:
                found = await self.run(run_id)
                if all(found[name] == value for name, value in wanted.items()):
                    return found
                await asyncio.sleep(0.01)

    async def register(self, worker_id="w1", *kinds, **fields):
        body = {"worker_id": worker_id, "supported_tasks": list(kinds or ("echo",)), **fields}
        return await self.client.post("/_worker/workers/register", json=body, headers=_TOKEN)

    async def poll(self, worker_id="w1", timeout=5):
        path = f"/_worker/workers/{worker_id}/tasks/next?timeout={timeout}"
        return await self.client.get(path, headers=_TOKEN)

    async def task(self, worker_id="w1"):
        answer = await self.poll(worker_id)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.json()

    async def result(self, task, worker_id="w1", **fields):
        body = {"job_id": task["job_id"], "task_id": task["task_id"], "worker_id": worker_id}
        fields.setdefault("result", {"status": "success", "data": {"ok": True}})
        return await self.client.post("/_worker/tasks/result", json={**body, **fields}, headers=_TOKEN)

    async def heartbeat(self, worker_id="w1", body=None):
        path = f"/_worker/workers/{worker_id}"
        return await self.client.patch(path, json=body, headers=_TOKEN)


@pytest.fixture
async def api(client, owner):
    return Api(client)


async def test_task_goes_to_a_worker_and_its_result_ends_the_run(api):
    assert (await api.register()).json() == {"status": "registered"}
    run_id = await api.submit("echo")
    task = await api.task()
    assert task["job_id"] == run_id
    assert task["type"] == "echo"
    assert task["params"] == {"n": 0}
    assert task["attempt"] == 1
    assert (await api.result(task)).json() == {"status": "result_accepted_success"}
    found = await api.until(run_id, status="succeeded")
    assert found["output"] == {"status": "success", "data": {"ok": True}}
    assert found["steps"][0]["agent_id"] == "w1"


async def test_waiting_poll_is_answered_when_a_task_becomes_ready(api):
    await api.register()
    polling = asyncio.create_task(api.poll())
    run_id = await api.submit("echo")
    answer = await polling
    assert answer.json()["job_id"] == run_id


async def test_poll_without_a_task_is_204_without_a_body(api):
    await api.register()
    answer = await api.poll(timeout=0.05)
    assert answer.status_code == 204
    assert answer.content == b""


@pytest.mark.parametrize("headers", [{}, {"X-Worker-Token": "wrong"}, {"X-Worker-Token": ""}])
async def test_worker_without_its_token_is_refused_in_open_mode_too(client, headers):
    for method, path in (
        ("POST", "/_worker/workers/register"),
        ("PATCH", "/_worker/workers/w1"),
        ("GET", "/_worker/workers/w1/tasks/next"),
        ("POST", "/_worker/tasks/result"),
        ("POST", "/_worker/workers/w1/drain"),
    ):
        answer = await client.request(method, path, headers=headers)
        assert answer.status_code == 401, (path, answer.text)
        assert set(answer.json()) == {"error"}


async def test_client_token_is_no_worker_token(client):
    answer = await client.get("/_worker/workers/w1/tasks/next", headers=_USER)
    assert answer.status_code == 403


async def test_worker_acts_as_no_other_and_uses_its_own_token(api):
    own = {"X-Worker-Token": "own-secret"}
    register = "/_worker/workers/register"
    assert (await api.register("own")).status_code == 403
    assert (await api.client.post(register, json={"worker_id": "w1"}, headers=own)).status_code == 403
    assert (await api.client.post(register, json={"worker_id": "own"}, headers=own)).status_code == 200
    assert (await api.poll("own", 0)).status_code == 403
    answer = await api.client.get("/_worker/workers/own/tasks/next?timeout=0", headers=own)
    assert answer.status_code == 204


@pytest.mark.parametrize("worker_id", ["", "a b", "a/b", None, 7, "x" * 200, "ä"])
async def test_malformed_worker_id_is_400(api, worker_id):
    answer = await api.client.post("/_worker/workers/register", json={"worker_id": worker_id}, headers=_TOKEN)
    assert answer.status_code == 400


async def test_unknown_worker_is_404_so_that_it_registers_again(api):
    assert (await api.poll("nobody")).status_code == 404
    assert (await api.heartbeat("nobody")).status_code == 404
    assert (await api.heartbeat("nobody", {"load": 1})).status_code == 404


async def test_heartbeat_refreshes_or_merges(api):
    await api.register(extra={"kept": 1})
    empty = await api.client.patch("/_worker/workers/w1", headers=_TOKEN)
    assert empty.json() == {"status": "ttl_refreshed"}
    merged = (await api.heartbeat(body={"load": 0.5, "status": "idle"})).json()
    assert merged == {
        "worker_id": "w1", "supported_tasks": ["echo"], "extra": {"kept": 1}, "load": 0.5, "status": "idle"
    }  # fmt: skip


@pytest.mark.parametrize(
    "form",
    [
        {"supported_tasks": ["echo"]},
        {"supported_skills": ["echo"]},
        {"supported_skills": [{"name": "echo", "type": "x"}]},
        {"supported_skills": ["echo"], "resources": {"max_concurrent_tasks": 2, "gpu_info": None}},
        {"supported_tasks": ["echo", 7, None, {"x": 1}], "max_concurrent_tasks": "many", "resources": []},
    ],
)
async def test_all_forms_of_registration_get_tasks(api, form):
    body = {"worker_id": "w1", "supported_tasks": None, **form}
    await api.client.post("/_worker/workers/register", json=body, headers=_TOKEN)
    await api.submit("echo")
    assert (await api.task())["type"] == "echo"


async def test_busy_worker_gets_none_until_it_says_otherwise_or_is_done(api):
    await api.register(max_concurrent_tasks=1)
    await api.submit("echo")
    await api.submit("echo")
    task = await api.task()
    assert (await api.poll(timeout=0.05)).status_code == 204
    polling = asyncio.create_task(api.poll())
    await api.result(task)
    assert (await polling).status_code == 200
    await api.register("w2", status="busy")
    assert (await api.poll("w2", 0.05)).status_code == 204


async def test_most_urgent_task_goes_first(api, service):
    await api.submit("echo", priority=10)
    urgent = await api.submit("echo", priority=90)
    await until(lambda: _is_count(service.store.redis.zcard(WorkerKeys.board), 2))
    await api.register()
    assert (await api.task())["job_id"] == urgent


async def test_flat_result_and_missing_status_are_understood(api):
    await api.register()
    run_id = await api.submit("echo")
    task = await api.task()
    ids = {"job_id": run_id, "task_id": task["task_id"], "worker_id": "w1"}
    answer = await api.client.post("/_worker/tasks/result", json={**ids, "data": 5}, headers=_TOKEN)
    assert answer.json() == {"status": "result_accepted_success"}
    assert (await api.until(run_id, status="succeeded"))["output"] == {"status": "success", "data": 5}


async def test_custom_status_is_an_output(api):
    await api.register()
    run_id = await api.submit("echo")
    await api.result(await api.task(), result={"status": "needs_review", "data": None})
    found = await api.until(run_id, status="succeeded")
    assert found["output"] == {"status": "needs_review", "data": None}


async def test_failure_that_may_pass_is_tried_again_and_one_that_may_not_fails(api):
    await api.register()
    retry = {"max_retries": 1, "initial_delay_s": 0.01}
    run_id = await api.submit("echo", retry=retry)
    first = await api.task()
    answer = await api.result(first, result={"status": "failure", "error": "no luck"})
    assert answer.json() == {"status": "result_accepted_failure"}
    second = await api.task()
    assert second["attempt"] == 2
    assert second["task_id"] != first["task_id"]
    error = {"code": "PERMANENT_ERROR", "message": "never"}
    await api.result(second, result={"status": "failure", "error": error})
    found = await api.until(run_id, status="failed")
    assert found["error"]["code"] == "PERMANENT_ERROR"


async def test_doubled_late_foreign_and_unknown_results_change_nothing(api):
    await api.register()
    await api.register("w2")
    run_id = await api.submit("echo")
    task = await api.task()
    assert (await api.result(task, "w2")).status_code == 403
    assert (await api.result({**task, "job_id": "other"})).status_code == 404
    assert (await api.result({**task, "task_id": "0-ffff"})).status_code == 404
    wrong = await api.result(task, lease_token="wrong")
    assert wrong.json() == {"status": "ignored", "reason": "stale_task"}
    assert (await api.result(task, lease_token=task["lease_token"])).json()["status"].endswith("success")
    again = await api.result(task, result={"data": "other"})
    assert again.json() == {"status": "ignored", "reason": "already_accepted"}
    found = await api.until(run_id, status="succeeded")
    assert found["output"]["data"] == {"ok": True}


async def test_task_of_a_silent_worker_goes_to_another_and_its_late_result_is_ignored(api, service):
    await api.register("w1")
    run_id = await api.submit("echo")
    task = await api.task("w1")
    leases = PartitionKeys(partition_of(run_id, NUM_PARTITIONS)).leases
    await service.store.redis.zadd(leases, {task["task_id"]: 1})
    await api.register("w2")
    other = await api.task("w2")
    assert (other["job_id"], other["attempt"]) == (run_id, 2)
    assert (await api.result(task, "w1")).json() == {"status": "ignored", "reason": "stale_task"}
    await api.result(other, "w2")
    await api.until(run_id, status="succeeded")


async def test_heartbeat_keeps_the_leases_it_names(api, service):
    await api.register()
    run_id = await api.submit("echo", "echo")
    tasks = [await api.task(), await api.task()]
    names = PartitionKeys(partition_of(run_id, NUM_PARTITIONS))
    before = dict(await service.store.redis.zrange(names.leases, 0, -1, withscores=True))
    await asyncio.sleep(0.005)
    await api.heartbeat(body={"current_tasks": [tasks[0]["task_id"]]})
    after = dict(await service.store.redis.zrange(names.leases, 0, -1, withscores=True))
    moved = {each for each in after if after[each] > before[each]}
    assert moved == {tasks[0]["task_id"].encode()}


async def test_cancelled_run_takes_its_task_back_and_tells_the_worker(api):
    await api.register()
    run_id = await api.submit("echo")
    task = await api.task()
    answer = await api.client.post(f"/api/v1/runs/{run_id}/cancel")
    assert answer.status_code == 200, answer.text

    async def is_told() -> bool:
        told = (await api.heartbeat(body={"load": 0})).json()
        return told.get("cancel_task_ids") == [task["task_id"]]

    await until(is_told)
    assert (await api.result(task)).json() == {"status": "ignored", "reason": "stale_task"}
    assert "cancel_task_ids" not in (await api.heartbeat(body={"load": 0})).json()


async def test_paused_run_offers_nothing_until_it_is_resumed(api):
    run_id = await api.submit("echo")
    await api.until(run_id, status="queued")
    assert (await api.client.post(f"/api/v1/runs/{run_id}/pause")).status_code == 200
    await api.register()
    assert (await api.poll(timeout=0.2)).status_code == 204
    assert (await api.client.post(f"/api/v1/runs/{run_id}/resume")).status_code == 200
    task = await api.task()
    await api.result(task)
    await api.until(run_id, status="succeeded")


async def test_progress_is_seen_and_refused_from_others(api):
    await api.register()
    run_id = await api.submit("echo")
    task = await api.task()
    body = {
        "worker_id": "w1",
        "task_id": task["task_id"],
        "job_id": run_id,
        "progress": 0.5,
        "message": "half",
    }
    answer = await api.client.post("/_worker/tasks/progress", json=body, headers=_TOKEN)
    assert answer.json() == {"status": "progress_accepted"}
    await api.until(run_id, progress=0.5)
    other = {**body, "worker_id": "w2"}
    answer = await api.client.post("/_worker/tasks/progress", json=other, headers=_TOKEN)
    assert answer.json() == {"status": "ignored", "reason": "stale_task"}


async def test_draining_worker_finishes_and_gets_no_more(api):
    await api.register()
    await api.submit("echo")
    second = await api.submit("echo")
    task = await api.task()
    path = "/_worker/workers/w1/drain"
    assert (await api.client.post(path, headers=_TOKEN)).json() == {"status": "draining"}
    assert (await api.poll(timeout=0.05)).status_code == 204
    assert (await api.result(task)).json() == {"status": "result_accepted_success"}
    await api.register()
    assert (await api.task())["job_id"] == second


async def test_worker_that_leaves_gives_its_tasks_to_others_at_once(api):
    await api.register()
    await api.register("w2")
    run_id = await api.submit("echo")
    task = await api.task()
    answer = await api.client.delete("/_worker/workers/w1", headers=_TOKEN)
    assert answer.json() == {"status": "deregistered"}
    assert (await api.task("w2"))["job_id"] == run_id
    assert (await api.result(task)).json()["status"] == "ignored"
    assert (await api.poll()).status_code == 404


async def test_operator_pauses_workers_and_types(api):
    ops = {"X-API-Key": "admin-key"}
    await api.register()
    await api.submit("echo")
    for path in ("/api/v1/workers/w1", "/api/v1/worker-types/echo"):
        assert (await api.client.post(f"{path}/pause")).status_code == 401
        assert (await api.client.post(f"{path}/pause", headers=_USER)).status_code == 403
        assert (await api.client.post(f"{path}/pause", headers=ops)).json() == {"status": "paused"}
        assert (await api.poll(timeout=0.1)).status_code == 204
        assert (await api.client.post(f"{path}/resume", headers=ops)).json() == {"status": "resumed"}
    assert (await api.poll()).status_code == 200


async def test_workers_are_listed_for_clients(api):
    await api.register(resources={"cpu_cores": 4})
    assert (await api.client.get("/api/v1/workers")).status_code == 401
    (line,) = (await api.client.get("/api/v1/workers", headers=_USER)).json()
    assert line["worker_id"] == "w1"
    assert line["status"] == "idle"
    assert line["resources"] == {"cpu_cores": 4}


async def test_client_that_hung_up_swallows_nothing(api, service):
    await api.register()
    hung_up = asyncio.get_running_loop().create_future()
    polling = asyncio.create_task(service.workers.poll("w1", 5.0, hung_up))
    await until(lambda: _is_count(service.store.redis.hlen(WorkerKeys.polls), 1))
    hung_up.set_result(None)
    assert await polling is None
    run_id = await api.submit("echo")
    await api.register("w2")
    began = time.monotonic()
    assert (await api.task("w2"))["job_id"] == run_id
    assert time.monotonic() - began < 2.5


async def test_lease_of_who_hung_up_just_then_ends_at_once(api, service):
    await api.register()
    run_id = await api.submit("echo")
    claim = await service.workers.poll("w1", 5.0, asyncio.get_running_loop().create_future())
    assert claim is not None
    await service.workers._give_up(claim, "w1")
    await api.register("w2")
    task = await api.task("w2")
    assert (task["job_id"], task["attempt"]) == (run_id, 2)


async def test_large_data_comes_and_goes_through_the_blob_store(api):
    await api.register()
    large = "x" * 10_000
    run_id = await api.submit("echo", inputs={"text": large})
    task = await api.task()
    assert task["params"] == {"text": large}
    await api.result(task, result={"status": "success", "data": {"text": large}})
    found = await api.until(run_id, status="succeeded")
    assert found["output"]["data"]["size_bytes"] > 10_000


async def test_data_may_not_name_blobs(api):
    await api.register()
    await api.submit("echo")
    answer = await api.result(await api.task(), result={"data": {"$blob": "sha256:" + "0" * 64}})
    assert answer.status_code == 422


async def test_many_workers_and_tasks_meet_once_each(api):
    names = [f"w{n}" for n in range(10)]
    for name in names:
        await api.register(name)
    seen = []

    async def work(name):
        while len(seen) < 60:
            answer = await api.poll(name, timeout=0.5)
            if answer.status_code == 200:
                seen.append(answer.json()["job_id"])
                await api.result(answer.json(), name)

    working = [asyncio.create_task(work(name)) for name in names]
    runs = [await api.submit("echo") for _ in range(60)]
    async with asyncio.timeout(30):
        await asyncio.gather(*working)
    assert sorted(seen) == sorted(runs)
    for run_id in runs:
        await api.until(run_id, status="succeeded")
