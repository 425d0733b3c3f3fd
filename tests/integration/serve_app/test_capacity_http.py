"""Pools, limits and the capacity map on a real Redis, into which the test writes as the scheduler would."""

import dataclasses

import msgspec
import pytest
import redis as sync_redis

from cluster.store import keys
from serve_app.service import RunService
from tests.snapshots import LLM, snapshot, tell

pytestmark = pytest.mark.integration

KEYS = {"OPS": "ops:admin", "ACME": "acme:user:acme", "HEAD": "head:admin:acme", "SHOP": "shop:user:shop"}
OPS, ACME, HEAD = ({"X-API-Key": key} for key in ("ops", "acme", "head"))
POOL = {"agents": ["my.agents:Llm"], "num_gpus": 0.5, "max_replicas": 2}


@pytest.fixture
async def required(settings, make_client):
    required = dataclasses.replace(settings, auth="required", api_keys=KEYS, rate_limit=0)
    service = RunService.connect(required)
    async with make_client(service, required) as client:
        yield client
    await service.close()


def _by_name(page):
    return {pool["name"]: pool for pool in page.json()["pools"]}


async def test_built_in_pools_are_listed_while_the_scheduler_is_silent(client):
    page = await client.get("/api/v1/pools")
    assert page.json()["at"] is None
    basic = _by_name(page)["basic"]
    assert (basic["source"], basic["spec"]["concurrency"], basic["replicas"]) == ("built-in", 256, [])
    silent = await client.get("/api/v1/capacity")
    assert (silent.status_code, silent.json()["error"]["code"]) == (503, "UNAVAILABLE")
    assert int(silent.headers["retry-after"]) >= 1


async def test_pools_say_where_they_were_declared(settings, make_client, redis_url, tmp_path):
    (tmp_path / "pools.yaml").write_text(
        "pools:\n  - {name: mine, agents: ['my.agents:Mine']}\n"
        "  - {name: basic, agents: ['my.agents:Basic']}\n"
    )
    given = dataclasses.replace(settings, pools_file=tmp_path / "pools.yaml", agents=("my.agents:WordCount",))
    tell(redis_url, snapshot())
    service = RunService.connect(given)
    async with make_client(service, given) as client:
        await client.put("/api/v1/pools/synthesis", json=POOL)
        sources = {name: pool["source"] for name, pool in _by_name(await client.get("/api/v1/pools")).items()}
    await service.close()
    assert sources == {
        "api-caller": "built-in",
        "basic": "file",
        "blueprint-handlers": "built-in",
        "data-analysis": "built-in",
        "data-ingest": "built-in",
        "llm": "file",  # not in this node's file, but the scheduler has it
        "mine": "file",
        "synthesis": "run time",
        "wordcount": "agents",
    }


async def test_pool_shows_how_it_stands_and_why_it_cannot_grow(client, redis_url):
    tell(redis_url, snapshot())
    pool = (await client.get("/api/v1/pools/llm")).json()
    assert (pool["waiting"], pool["running"], pool["oldest_s"]) == (3, 4, 2.5)
    assert [(each["id"], each["node"], each["state"]) for each in pool["replicas"]] == [
        ("agent-llm-1", "n1", "ready")
    ]
    assert pool["spec"]["max_crashes"] == 3
    reason = pool["reason"]
    assert (reason["kind"], reason["details"]["missing"]) == ("capacity_short", "GPU")
    assert reason["sentence"].startswith("A replica is short by 0.25 GPU; about ")
    assert reason["until_at"].endswith("Z")
    missing = await client.get("/api/v1/pools/nowhere")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "NOT_FOUND")


async def test_pool_is_declared_changed_and_removed_at_run_time(client, redis_url):
    put = await client.put("/api/v1/pools/llm", json=POOL)
    assert (put.status_code, put.json()["source"], put.json()["spec"]["num_gpus"]) == (200, "run time", 0.5)
    await client.put("/api/v1/pools/llm", json={**POOL, "name": "llm", "max_replicas": 9})
    assert (await client.get("/api/v1/pools/llm")).json()["spec"]["max_replicas"] == 9
    with sync_redis.Redis.from_url(redis_url) as redis:
        stored = msgspec.json.decode(redis.hget(keys.POOLS, "llm"))
    assert stored == {"name": "llm", **POOL, "max_replicas": 9}
    tell(redis_url, snapshot())
    assert (await client.delete("/api/v1/pools/llm")).json() == {"removed": "llm"}
    assert (await client.delete("/api/v1/pools/basic")).status_code == 200
    assert not {"llm", "basic"} & _by_name(await client.get("/api/v1/pools")).keys()
    assert (await client.delete("/api/v1/pools/llm")).status_code == 404
    assert (await client.put("/api/v1/pools/basic", json=POOL)).json()["source"] == "run time"


@pytest.mark.parametrize(
    ("name", "change", "status", "field", "words"),
    [
        ("llm", {"num_gpus": 0.3}, 422, "num_gpus", "nearest are 1/4 = 0.25 and 1/3 = 0.3333"),
        ("llm", {"num_gpus": 1.5}, 422, "num_gpus", "nearest are 1 and 2"),
        ("llm", {"min_replicas": 3}, 422, "min_replicas", "not be above max_replicas"),
        ("llm", {"agents": []}, 422, "agents", "at least one"),
        ("llm", {"agents": "x"}, 422, "agents", "array"),
        ("llm", {"num_gpu": 1}, 422, None, "num_gpu"),
        ("llm", {"name": "other"}, 422, "name", "the path says"),
        ("LLM", {}, 422, "name", "a-z"),
        ("llm", {"num_gpus": -1}, 422, "num_gpus", "0 to 100,000"),
        ("llm", {"gang_size": 2_000_000}, 422, "gang_size", "1 to 1,000"),
        ("llm", {"max_crashes": 0}, 422, "max_crashes", "1 to 1,000"),
        ("llm", {"strategy": "ANY"}, 422, "strategy", "STRICT_PACK"),
    ],
)
async def test_pool_that_cannot_be_is_refused_with_the_reason(client, name, change, status, field, words):
    answer = await client.put(f"/api/v1/pools/{name}", json={**POOL, **change})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error.get("field")) == ("VALIDATION_ERROR", field)
    assert words in error["message"]
    assert "llm" not in _by_name(await client.get("/api/v1/pools"))


async def test_body_that_is_no_json_is_400(client):
    assert (await client.put("/api/v1/pools/llm", content=b"{")).status_code == 400
    assert (await client.put("/api/v1/limits/k", content=b"{")).status_code == 400


async def test_limit_is_declared_changed_and_removed_at_run_time(client, redis_url):
    of_pattern = {"key": "user-7", "max_concurrent": 1, "num_used": 1, "pattern": "user-*"}
    tell(redis_url, snapshot(limits=[*snapshot()["limits"][:3], of_pattern]))
    put = await client.put("/api/v1/limits/user-*", json={"max_concurrent": 2, "rate": "10/m", "burst": 3})
    assert put.json() == {
        "key": "user-*",
        "max_concurrent": 2,
        "rate": "10/m",
        "burst": 3.0,
        "source": "run time",
        "num_used": 0,
    }
    seven = (await client.get("/api/v1/limits/user-7")).json()
    assert (seven["max_concurrent"], seven["num_used"], seven["source"]) == (2, 1, "run time")
    assert (await client.get("/api/v1/limits/capability:llm")).json()["source"] == "file"
    assert (await client.delete("/api/v1/limits/capability:llm")).json() == {"removed": "capability:llm"}
    assert (await client.get("/api/v1/limits/capability:llm")).status_code == 404
    assert (await client.delete("/api/v1/limits/user-*")).status_code == 200
    left = [limit["key"] for limit in (await client.get("/api/v1/limits")).json()["limits"]]
    assert left == ["tenant:acme", "tenant:shop"]


async def test_key_of_its_own_goes_before_patterns_that_are_declared_or_were_removed(client, redis_url):
    of_pattern = {"key": "user-7", "max_concurrent": 1, "num_used": 1, "pattern": "*"}
    tell(redis_url, snapshot(limits=[*snapshot()["limits"][:3], of_pattern]))
    await client.put("/api/v1/limits/*", json={"max_concurrent": 1})
    acme = (await client.get("/api/v1/limits/tenant:acme")).json()
    assert (acme["max_concurrent"], acme["source"]) == (4, "file")
    await client.put("/api/v1/limits/tenant:acme", json={"max_concurrent": 3})
    acme = (await client.get("/api/v1/limits/tenant:acme")).json()
    assert (acme["max_concurrent"], acme["source"], acme["num_used"]) == (3, "run time", 4)
    assert (await client.delete("/api/v1/limits/*")).status_code == 200
    left = [limit["key"] for limit in (await client.get("/api/v1/limits")).json()["limits"]]
    assert left == ["capability:llm", "tenant:acme", "tenant:shop"]
    assert (await client.get("/api/v1/limits/tenant:shop")).json()["source"] == "file"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "max_concurrent"),
        ({"max_concurrent": -1}, "max_concurrent"),
        ({"rate": "fast"}, "rate"),
        ({"rate": "1/s", "burst": 0}, "burst"),
        ({"max_concurrent": "4"}, "max_concurrent"),
    ],
)
async def test_limit_that_cannot_be_is_refused_by_its_field(client, body, field):
    answer = await client.put("/api/v1/limits/tenant:acme", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


async def test_capacity_shows_devices_with_their_holders_and_how_long_is_waited(client, redis_url):
    tell(redis_url, snapshot())
    found = (await client.get("/api/v1/capacity")).json()
    (node,) = found["nodes"]
    (device,) = node["devices"]
    assert (node["name"], node["labels"], node["free_cpus"], device["free"]) == (
        "n1",
        {"zone": "a"},
        3.5,
        0.75,
    )
    assert [(each["replica"], each["share"]) for each in device["holders"]] == [("agent-llm-1", 0.25)]
    assert found["waits"] == [{"capability": "llm", "p50_s": 0.5, "p95_s": 2.0}]
    assert (found["utilisation"], found["fragmentation"]) == (0.25, 0.5)
    assert found["scale_events"]["started"] == 3


async def test_keys_of_other_tenants_are_shown_to_operators_only(required, redis_url):
    tell(redis_url, snapshot())
    for path in ("/api/v1/limits", "/api/v1/capacity"):
        everything = (await required.get(path, headers=OPS)).json()["limits"]
        assert [limit["key"] for limit in everything] == [
            "capability:llm",
            "tenant:acme",
            "tenant:shop",
            "user-7",
        ]
        for headers in (ACME, HEAD):
            own = (await required.get(path, headers=headers)).json()["limits"]
            assert [limit["key"] for limit in own] == ["capability:llm", "tenant:acme"]
    assert (await required.get("/api/v1/limits/tenant:shop", headers=ACME)).status_code == 404
    assert "shop" not in (await required.get("/api/v1/capacity", headers=ACME)).text


async def test_only_an_admin_of_no_tenant_changes_what_all_share(required):
    limit = {"max_concurrent": 1}
    for headers in (ACME, HEAD):
        answers = [
            await required.put("/api/v1/pools/llm", json=POOL, headers=headers),
            await required.delete("/api/v1/pools/basic", headers=headers),
            await required.put("/api/v1/limits/tenant:acme", json=limit, headers=headers),
            await required.delete("/api/v1/limits/tenant:acme", headers=headers),
        ]
        assert [answer.status_code for answer in answers] == [403] * 4
    assert (await required.put("/api/v1/pools/llm", json=POOL)).status_code == 401
    assert (await required.put("/api/v1/pools/llm", json=POOL, headers=OPS)).status_code == 200
    assert (await required.get("/api/v1/pools/llm", headers=ACME)).json()["spec"]["num_gpus"] == 0.5
    assert LLM.name in _by_name(await required.get("/api/v1/pools", headers=ACME))
