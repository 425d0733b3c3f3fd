"""The commands around capacity against the real HTTP application on a real Redis."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import orjson
import pytest
import redis as sync_redis
import uvicorn
from typer.testing import CliRunner

from cluster.scheduling.reasons import BehindOthers, DependencyUnfinished, StepWait
from cluster.store import keys
from serve_app.api_client import ApiClient
from serve_app.cli import app
from serve_app.http_app import build_app
from serve_app.launch.ray_environment import free_ports
from serve_app.service import RunService
from tests.snapshots import snapshot, tell

pytestmark = pytest.mark.integration

POOL = "name: llm\nagents: ['my.agents:Llm']\nnum_gpus: 0.5\nmax_replicas: 2\n"


@pytest.fixture
def url(settings, monkeypatch):
    (port,) = free_ports(1)
    service = RunService.connect(settings)
    config = uvicorn.Config(
        build_app(service, settings), port=port, log_level="error", lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)

    async def serve():
        await server.serve()
        await service.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    monkeypatch.setenv("TUTTI_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("COLUMNS", "200")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def tutti(*arguments, given=None):
    return CliRunner().invoke(app, list(arguments), input=given)


def _lines(result):
    assert result.exit_code == 0, result.output
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def test_pools_are_a_table_with_what_holds_them_back_below(url, redis_url):
    tell(redis_url, snapshot())
    lines = _lines(tutti("pools"))
    assert lines[0] == "POOL CAPABILITIES REPLICAS RUNNING WAITING OLDEST EACH FROM"
    assert "llm llm 1 ready of 0-4 4 3 2.5s 0.25 CPU 0.25 GPU / 4 slots file" in lines
    assert "basic noop 0 of 0-1 0 0 0.1 CPU / 256 slots built-in" in lines
    assert lines[-1].startswith("llm: A replica is short by 0.25 GPU; about ")
    assert json.loads(tutti("pools", "--json").stdout)["pools"][0]["name"] == "api-caller"


def test_silent_scheduler_is_said(url):
    assert "silent" in _lines(tutti("pools"))[-1]
    assert tutti("capacity").stderr == "error: the scheduler is silent at the moment; Runs go on\n"


@pytest.mark.parametrize("wrapped", [False, True])
def test_pools_are_set_from_a_file_or_stdin_and_removed(url, tmp_path, wrapped):
    text = json.dumps({"pools": [{"name": "llm", "agents": ["my.agents:Llm"]}]}) if wrapped else POOL
    (tmp_path / "pool.yaml").write_text(text)
    assert tutti("pools", "set", str(tmp_path / "pool.yaml")).stdout == "llm\n"
    assert tutti("pools", "set", "-", given=POOL).stdout == "llm\n"
    llm = next(line for line in _lines(tutti("pools")) if line.startswith("llm"))
    assert llm == "llm 0 of 0-2 0 0 0.25 CPU 0.5 GPU / 4 slots run time"
    assert tutti("pools", "rm", "llm").exit_code == 0
    assert not any(line.startswith("llm") for line in _lines(tutti("pools")))


@pytest.mark.parametrize(
    ("arguments", "given", "line"),
    [
        (("pools", "rm", "nowhere"), None, "pool nowhere not found"),
        (("pools", "set", "-"), "{", "- is not YAML: while parsing a flow node"),
        (("pools", "set", "-"), "pools: []", "- declares no pool"),
        (("pools", "set", "-"), "agents: [x]", "-: each pool needs a name"),
        (("pools", "set", "nowhere.yaml"), None, "nowhere.yaml cannot be read: No such file or directory"),
        (("limits", "set", "user-*"), None, "give max_concurrent, rate or both"),
        (("limits", "rm", "user-*"), None, "user-* has no limit"),
        (("why", "nowhere"), None, "run nowhere not found"),
    ],
)
def test_every_failure_is_one_line_and_exit_1(url, arguments, given, line):
    result = tutti(*arguments, given=given)
    assert (result.exit_code, result.stderr) == (1, f"error: {line}\n")


def test_pool_with_an_odd_fraction_is_refused_with_the_nearest(url):
    result = tutti("pools", "set", "-", given=POOL.replace("0.5", "0.3"))
    assert result.exit_code == 1
    assert "nearest are 1/4 = 0.25 and 1/3 = 0.3333" in result.stderr


def test_option_before_a_subcommand_is_refused_because_it_would_have_no_effect(url):
    result = tutti("pools", "--url", "http://127.0.0.1:1", "rm", "basic")
    assert (result.exit_code, result.stderr) == (2, "error: options go after `rm`\n")
    assert any(line.startswith("basic") for line in _lines(tutti("pools")))


def test_limits_are_set_listed_and_removed(url, redis_url):
    of_pattern = {"key": "user-7", "max_concurrent": 1, "num_used": 1, "pattern": "user-*"}
    tell(redis_url, snapshot(limits=[*snapshot()["limits"][:3], of_pattern]))
    assert tutti("limits", "set", "user-*", "--max", "2", "--rate", "10/m", "--burst", "3").exit_code == 0
    lines = _lines(tutti("limits"))
    assert lines == [
        "KEY IN USE AT A TIME RATE BURST FROM",
        "capability:llm 4 8 10/s 5 file",
        "tenant:acme 4 4 file",
        "tenant:shop 1 2 file",
        "user-* 0 2 10/m 3 run time",
        "user-7 1 2 10/m 3 run time",
    ]
    assert tutti("limits", "rm", "user-*").exit_code == 0
    assert len(_lines(tutti("limits"))) == 4


def test_capacity_shows_who_holds_a_device_since_when(url, redis_url):
    tell(redis_url, snapshot())
    lines = _lines(tutti("capacity"))
    assert lines[1] == "n1 zone=a 3.5 of 8 0 75% 60 of 80 GB agent-llm-1 25% for 1m"
    assert "utilisation 25% fragmentation 50% started 3 retired 1 evicted 1 lost 0" in lines
    assert lines[-1] == "llm 0.5s 2s"


def test_why_says_each_reason_in_a_sentence_with_an_estimate(url, redis_url, settings):
    plan = {"name": "one", "steps": [{"name": "a", "capability": "echo"}]}
    with ApiClient(url) as client:
        client.submit_run({"plan": plan, "run_id": "r-1"})
    partition = keys.PartitionKeys(keys.partition_of("r-1", settings.num_partitions))
    behind = BehindOthers(num_ahead=3, priority=50)
    waits = [
        StepWait(step="a", reason=behind, sentence=behind.sentence(0), until_at=time.time() + 90),
        StepWait(
            step="b",
            reason=DependencyUnfinished(names=("a",)),
            sentence="It needs a, not ended yet.",
            num=7,
        ),
    ]

    def answer():
        with sync_redis.Redis.from_url(redis_url) as redis:
            ((submitted, _),) = redis.xrange(partition.inbox)
            asking.set()
            ((_, ((_, fields),)),) = redis.xread({partition.inbox: submitted}, block=5000)
            command_id = fields[b"c"].decode()
            verdict = orjson.dumps({"details": {"waits": msgspec.to_builtins(waits)}}).decode()
            redis.set(partition.verdict(command_id), verdict, ex=keys.VERDICT_TTL_S)
            redis.publish(partition.verdicts, f"{command_id} {verdict}")

    asking = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        answered = threads.submit(answer)
        assert asking.wait(5)
        lines = _lines(tutti("why", "r-1"))
        answered.result(5)
    assert lines == [
        "a: It waits for a free slot behind 3 others, with priority 50. About 1m more.",
        "b (7 items): It needs a, not ended yet.",
    ]
