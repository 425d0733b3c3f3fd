"""Jobs of blueprints as a client sees them: shipped ones, the examples, and files that change."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.running_service import eventually
from tests.integration.service_process import REPOSITORY, ServiceProcess

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def client(served: ServiceProcess) -> Iterator[httpx.Client]:
    headers = {"X-Client-Token": "client-token"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=30) as client:
        yield client


def create(client: httpx.Client, blueprint: str, **initial_data: Any) -> str:
    response = client.post(f"/api/v1/jobs/{blueprint}", json={"initial_data": initial_data})
    assert response.status_code == 202, response.text
    job_id: str = response.json()["job_id"]
    return job_id


def job_in(client: httpx.Client, job_id: str, status: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"/api/v1/jobs/{job_id}").json()
        return job if job["status"] == status else None

    found = eventually(look, f"job {job_id} is {status}", within_s=60)
    assert found is not None
    return found


def test_flow_of_handlers_ends_by_itself(client: httpx.Client) -> None:
    job = job_in(client, create(client, "simple_flow", name="Ada"), "finished")
    assert job["state_history"] == {"greeting": "Hello, Ada!", "letters": 8}
    job = job_in(client, create(client, "parallel_flow"), "finished")
    assert job["state_history"]["gathered"] == ["first", "second", "third"]


def test_example_drafts_in_a_circle_and_then_asks_a_person(client: httpx.Client) -> None:
    job = job_in(client, create(client, "draft_until_good", topic="rain"), "finished")
    assert (job["current_state"], job["state_history"]["tries"]) == ("good", 2)
    job_id = create(client, "draft_until_good", topic="rain", wanted=10_000)
    job = job_in(client, job_id, "waiting_for_human")
    assert job["approval"]["decisions"] == ["approved", "rejected"]
    assert job["state_history"]["tries"] == 3
    decided = client.post(f"/_public/webhooks/approval/{job_id}", json={"decision": "rejected"})
    assert decided.json() == {"status": "approval_received", "job_id": job_id}
    assert job_in(client, job_id, "failed")["error_message"] == "no draft was good enough"


@pytest.fixture
def worker(served: ServiceProcess) -> Iterator[None]:
    """The example of a worker, as a process of its own: it echoes."""
    command = [sys.executable, str(REPOSITORY / "examples" / "worker.py"), served.url, "worker-token"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    yield
    process.kill()
    process.wait()


@pytest.mark.usefixtures("worker")
def test_worker_outside_does_what_jobs_wait_for(client: httpx.Client) -> None:
    job_id = create(client, "ext_task", task_type="echo", params={"seconds": 0.1})
    job = job_in(client, job_id, "finished")
    assert job["state_history"] == {"result": {"echo": {"seconds": 0.1}}}
    job = job_in(client, create(client, "ext_parallel", seconds=0.1), "finished")
    parts = {
        name: each["data"]["echo"]["part"] for name, each in job["aggregation_results"]["results"].items()
    }
    assert parts == {"first": 1, "second": 2, "third": 3}
    history = client.get(f"/api/v1/jobs/{job_id}/history").json()
    (dispatched,) = [each for each in history if each["event_type"] == "task_dispatched"]
    assert dispatched["worker_id"].startswith("example-")


def test_new_file_is_served_by_all_replicas_and_a_handler_that_raises_is_quarantined(
    served: ServiceProcess, client: httpx.Client
) -> None:
    (served.data_dir / "flows" / "fresh.py").write_text(
        "from actors.blueprint import Blueprint\n"
        "flow = Blueprint('fresh')\n"
        "@flow.handler('work', start=True, to={'success': 'done'}, retries=1)\n"
        "def work(initial_data: dict):\n"
        "    return {'half': 1 / initial_data['n']}\n"
        "flow.end('done')\n"
    )
    served_since: list[float] = []

    def is_everywhere() -> bool:
        if client.post("/api/v1/jobs/fresh", json={"n": 2}).status_code != 202:
            served_since.clear()
            return False
        served_since.append(time.monotonic())
        return served_since[-1] - served_since[0] > 3  # longer than a replica takes to look

    eventually(is_everywhere, "all replicas serve it")
    job_id = create(client, "fresh", n=0)
    job = job_in(client, job_id, "quarantined")
    assert (
        job["error_message"]
        == "Task failed after 2 attempts: handler work: ZeroDivisionError: division by zero"
    )
    assert [each["id"] for each in client.get("/api/v1/quarantine").json()] == [job_id]
    assert client.post(f"/api/v1/quarantine/{job_id}/discard").json()["status"] == "discarded"
    job_in(client, job_id, "failed")
