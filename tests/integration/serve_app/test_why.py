"""Why a Run waits, asked over HTTP; the test answers as the Run's owner would."""

import asyncio
import time

import msgspec
import orjson
import pytest

from cluster.scheduling.reasons import DependencyUnfinished, QuotaReached, RateReached, StepWait
from cluster.store import keys
from tests.snapshots import snapshot, tell

pytestmark = pytest.mark.integration

PLAN = {
    "name": "two",
    "steps": [
        {"name": "a", "capability": "echo"},
        {"name": "b", "capability": "echo", "inputs": {"$ref": "steps.a.output"}},
    ],
}


async def _answer_once(store, run_id, after, waits):
    """Take the question out of the inbox and give the verdict, as the owner of the partition does."""
    partition = store.keys_of(run_id)
    ((_, ((_, fields),)),) = await store.redis.xread({partition.inbox: after}, block=3000)
    told = {name.decode(): value for name, value in fields.items()}
    verdict = orjson.dumps({"details": {"waits": msgspec.to_builtins(waits)}}).decode()
    command_id = told["c"].decode()
    await store.redis.set(partition.verdict(command_id), verdict, ex=keys.VERDICT_TTL_S)
    await store.redis.publish(partition.verdicts, f"{command_id} {verdict}")
    return orjson.loads(told["d"])


async def test_waiting_steps_are_told_with_reason_sentence_and_instant(client, service):
    await client.post("/api/v1/runs", json={"plan": PLAN, "run_id": "r-1"})
    at = time.time() + 30
    waits = [
        StepWait(
            step="a",
            reason=QuotaReached(key="tenant:default", num_used=4, limit=4, until_at=12.5),
            sentence="The limit of tenant:default is reached: 4/4 run; about 30 s more.",
            until_at=at,
        ),
        StepWait(step="b", reason=DependencyUnfinished(names=("a",)), sentence="It needs a, not ended yet."),
    ]
    ((submitted, _),) = await service.store.redis.xrange(service.store.keys_of("r-1").inbox)
    asked, answer = await asyncio.gather(
        _answer_once(service.store, "r-1", submitted, waits), client.get("/api/v1/runs/r-1/why")
    )
    assert asked["kind"] == "why"
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["run_id"], told["status"]) == ("r-1", "queued")
    first, second = told["waits"]
    until_at = first["reason"].pop("until_at")
    assert until_at.endswith("Z")
    assert first == {
        "step": "a",
        "item": -1,
        "num": 1,
        "reason": {
            "kind": "quota_reached",
            "sentence": "The limit of tenant:default is reached: 4/4 run; about 30 s more.",
            "details": {"key": "tenant:default", "num_used": 4, "limit": 4},
        },
    }
    assert (second["step"], second["reason"]["kind"], second["reason"]["until_at"]) == (
        "b",
        "dependency",
        None,
    )


async def test_limit_is_told_as_the_cluster_has_it_not_as_the_share_of_the_owner(client, service, redis_url):
    tell(redis_url, snapshot())
    await client.post("/api/v1/runs", json={"plan": PLAN, "run_id": "r-1"})
    share = QuotaReached(key="tenant:acme", num_used=2, limit=2)
    rate = RateReached(key="capability:llm", num=5, per_s=1)
    unknown = QuotaReached(key="tenant:new", num_used=1, limit=1)
    waits = [
        StepWait(step="a", reason=reason, sentence=reason.sentence(0)) for reason in (share, rate, unknown)
    ]
    ((submitted, _),) = await service.store.redis.xrange(service.store.keys_of("r-1").inbox)
    _, answer = await asyncio.gather(
        _answer_once(service.store, "r-1", submitted, waits), client.get("/api/v1/runs/r-1/why")
    )
    assert [wait["reason"]["sentence"] for wait in answer.json()["waits"]] == [
        "The limit of tenant:acme is reached: 4/4 run.",
        "The rate of capability:llm is reached: 10 in 1 s.",
        "The limit of tenant:new is reached: 1/1 run.",
    ]


async def test_run_of_another_tenant_is_unknown_and_its_owner_is_not_asked(client, service):
    await client.post("/api/v1/runs", json={"plan": PLAN, "run_id": "r-1"})
    before = await service.store.redis.xlen(service.store.keys_of("r-1").inbox)
    other = await client.get("/api/v1/runs/r-1/why", headers={"X-Tenant-ID": "other"})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert (await client.get("/api/v1/runs/nowhere/why")).status_code == 404
    assert await service.store.redis.xlen(service.store.keys_of("r-1").inbox) == before


async def test_nothing_of_an_ended_run_waits(client, owner):
    await client.post("/api/v1/runs", json={"plan": PLAN, "run_id": "r-1"})
    await owner.succeed("r-1", "first", "second")
    async with asyncio.timeout(5):
        await client.get("/api/v1/runs/r-1/events")
    told = (await client.get("/api/v1/runs/r-1/why")).json()
    assert (told["status"], told["waits"]) == ("succeeded", [])


async def test_owner_that_does_not_answer_in_time_is_503(client):
    await client.post("/api/v1/runs", json={"plan": PLAN, "run_id": "r-1"})
    silent = await client.get("/api/v1/runs/r-1/why")
    assert (silent.status_code, silent.json()["error"]["code"]) == (503, "UNAVAILABLE")
