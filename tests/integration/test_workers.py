"""Outside workers as processes, against a whole service whose parts are killed under them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.integration.service_process import REPOSITORY, ServiceProcess, running_process
from tests.integration.worker_process import TOKEN

pytestmark = pytest.mark.timeout(300)
_ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    variables = {
        "PYTHONPATH": str(REPOSITORY),
        "GLOBAL_WORKER_TOKEN": TOKEN,
        "CLIENT_TOKEN": "client",
        "TUTTI_WORKER_LEASE_S": "3",
    }
    with running_process(tmp_path_factory.mktemp("workers"), variables) as service:
        yield service


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(retries=3)
    headers = {"X-Client-Token": "client"}
    with httpx.Client(base_url=service.url, transport=transport, headers=headers, timeout=30) as client:
        yield client


@contextmanager
def worker(service: ServiceProcess, worker_id: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    command = command or ("-m", "tests.integration.worker_process", service.url, worker_id)
    process = subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def insist(call: Callable[[], httpx.Response]) -> httpx.Response:
    """Repeat while the service is away for a moment."""
    deadline = time.monotonic() + 60
    while True:
        try:
            answer = call()
        except httpx.HTTPError:
            answer = None
        if answer is not None and answer.status_code < 500:
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def submit(client: httpx.Client, run_id: str, kind: str, **inputs: Any) -> str:
    step = {"name": "s", "capability": f"worker:{kind}", "inputs": inputs}
    body = {"run_id": run_id, "plan": {"name": "outside", "steps": [step]}}
    answer = insist(lambda: client.post("/api/v1/runs", json=body))
    assert answer.status_code == 200, answer.text
    return run_id


def until(client: httpx.Client, run_id: str, found: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while True:
        run: dict[str, Any] = insist(lambda: client.get(f"/api/v1/runs/{run_id}")).json()
        if found(run):
            return run
        assert time.monotonic() < deadline, run
        time.sleep(0.05)


def ended(run: dict[str, Any]) -> bool:
    return run["status"] in _ENDED


def parts(service: ServiceProcess, name: str) -> list[psutil.Process]:
    """Processes of the service whose title begins so."""
    found = psutil.Process(service.pid).children(recursive=True)
    return [each for each in found if name in " ".join(each.cmdline())]


def test_killed_workers_tasks_go_to_another_and_count_once(
    service: ServiceProcess, client: httpx.Client
) -> None:
    with worker(service, "first") as first:
        runs = [submit(client, f"kill-{n}", "nap", seconds=2, n=n) for n in range(2)]
        for run_id in runs:
            until(client, run_id, lambda run: run["steps"][0]["agent_id"] == "first")
        first.send_signal(signal.SIGKILL)
        with worker(service, "second"):
            for n, run_id in enumerate(runs):
                run = until(client, run_id, ended)
                assert run["output"]["data"] == {"by": "second", "n": n}
                assert run["steps"][0]["attempt"] == 2
                assert "no sign of life" in run["steps"][0]["story"][0]


def test_worker_that_is_told_to_end_finishes_first_and_leaves(
    service: ServiceProcess, client: httpx.Client
) -> None:
    with worker(service, "polite") as polite:
        run_id = submit(client, "polite-1", "nap", seconds=1, n=1)
        until(client, run_id, lambda run: run["steps"][0]["agent_id"] == "polite")
        polite.terminate()
        assert polite.wait(20) == 0
    run = until(client, run_id, ended)
    assert (run["status"], run["steps"][0]["attempt"]) == ("succeeded", 1)
    listed = insist(lambda: client.get("/api/v1/workers")).json()
    assert "polite" not in [each["worker_id"] for each in listed]


def test_cancelled_task_is_stopped_in_its_worker(service: ServiceProcess, client: httpx.Client) -> None:
    with worker(service, "obedient"):
        runs = [submit(client, f"long-{n}", "nap", seconds=600, n=n) for n in range(2)]
        for run_id in runs:
            until(client, run_id, lambda run: run["steps"][0]["agent_id"] == "obedient")
            assert (
                insist(lambda run_id=run_id: client.post(f"/api/v1/runs/{run_id}/cancel")).status_code == 200
            )  # type: ignore[misc]
        run_id = submit(client, "after", "nap", seconds=0, n=3)
        assert until(client, run_id, ended)["output"]["data"]["by"] == "obedient"


def test_failure_that_is_final_fails_the_run(service: ServiceProcess, client: httpx.Client) -> None:
    with worker(service, "refusing"):
        run = until(client, submit(client, "refused", "refuse"), ended)
        assert run["error"]["code"] == "PERMANENT_ERROR"


def test_example_worker_serves_and_tells_progress(service: ServiceProcess, client: httpx.Client) -> None:
    example = str(Path("examples") / "worker.py")
    with worker(service, "", example, service.url, TOKEN):
        run = until(client, submit(client, "example", "echo", text="hello"), ended)
        assert run["output"] == {"status": "success", "data": {"echo": {"text": "hello"}}}


@pytest.mark.parametrize("part", ["ServeReplica", "Orchestrator"])
def test_every_task_ends_once_although_a_part_of_the_service_is_killed(
    service: ServiceProcess, client: httpx.Client, part: str
) -> None:
    names = [f"{part}-{n}" for n in range(3)]
    with worker(service, names[0]), worker(service, names[1]), worker(service, names[2]):
        runs = [submit(client, f"{part}-run-{n}", "nap", seconds=0.3, n=n) for n in range(15)]
        victims = parts(service, part)
        assert victims
        victims[0].kill()
        runs += [submit(client, f"{part}-run-{n}", "nap", seconds=0.3, n=n) for n in range(15, 25)]
        for n, run_id in enumerate(runs):
            run = until(client, run_id, ended)
            assert run["status"] == "succeeded", run
            assert run["output"]["data"]["n"] == n


def test_redis_that_is_killed_loses_no_task(service: ServiceProcess, client: httpx.Client) -> None:
    with worker(service, "patient"):
        runs = [submit(client, f"redis-run-{n}", "nap", seconds=0.5, n=n) for n in range(6)]
        (server,) = parts(service, "redis-server")
        server.kill()
        for run_id in runs:
            assert until(client, run_id, ended)["status"] == "succeeded"


async def hold_polls(
    url: str, num: int, num_tasks: int, all_wait: asyncio.Event, go_on: asyncio.Event
) -> int:
    """Be many workers that wait; each comes back when its poll breaks. Counts accepted results."""
    waiting: set[int] = set()
    accepted = 0
    done = asyncio.Event()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=num)

    async def be_worker(client: httpx.AsyncClient, number: int) -> None:
        nonlocal accepted
        name = f"held-{number % (num - 1)}"  # two of them under one id
        about = {"worker_id": name, "supported_tasks": ["held"]}
        while not done.is_set():
            try:
                await client.post("/_worker/workers/register", json=about)
                waiting.add(number)
                if len(waiting) == num:
                    all_wait.set()
                answer = await client.get(f"/_worker/workers/{name}/tasks/next", params={"timeout": 20})
                if answer.status_code != 200:
                    continue
                task = answer.json()
                body = {"job_id": task["job_id"], "task_id": task["task_id"], "worker_id": name, "data": 1}
                told = (await client.post("/_worker/tasks/result", json=body)).json()
                accepted += told.get("status") == "result_accepted_success"
                if accepted >= num_tasks:
                    done.set()
            except (httpx.HTTPError, ValueError):
                await asyncio.sleep(0.2)

    headers = {"X-Worker-Token": TOKEN}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=30) as client:
        working = [asyncio.create_task(be_worker(client, number)) for number in range(num)]
        await go_on.wait()
        async with asyncio.timeout(90):
            await done.wait()
        for each in working:
            each.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    return accepted


async def test_replica_that_is_killed_with_500_held_polls_swallows_no_task(
    service: ServiceProcess, client: httpx.Client
) -> None:
    all_wait, go_on = asyncio.Event(), asyncio.Event()
    holding = asyncio.create_task(hold_polls(service.url, 500, 40, all_wait, go_on))
    await asyncio.wait_for(all_wait.wait(), 60)
    parts(service, "ServeReplica")[0].kill()
    for n in range(40):
        await asyncio.to_thread(submit, client, f"held-run-{n}", "held")
    go_on.set()
    assert await holding >= 40
    for n in range(40):
        run = await asyncio.to_thread(until, client, f"held-run-{n}", ended)
        assert run["status"] == "succeeded"
