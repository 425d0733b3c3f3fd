"""Every kind of task in every mode, over HTTP on a running service, with the samples of the repository."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.api_client import read_task_input
from serve_app.report_pages import render_html, render_markdown
from tests.integration.service_process import REPOSITORY, ServiceProcess

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

_SAMPLES = [REPOSITORY / "examples" / "data" / name for name in ("sales.json", "notes.txt", "photo.jpg")]
_MODES = ("sequential", "parallel", "hybrid")
_ENDED = {"completed", "failed", "cancelled"}


@pytest.fixture(scope="module")
def client(served: ServiceProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30.0, trust_env=False) as client:
        yield client


def done(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    """Submit a task and read it when it has ended."""
    answer = client.post("/api/v1/tasks", json=body)
    assert answer.status_code == 200, answer.text
    path = f"/api/v1/tasks/{answer.json()['task_id']}"
    deadline = time.monotonic() + 90.0
    while (task := client.get(path).json())["status"] not in _ENDED:
        assert time.monotonic() < deadline, task
        time.sleep(0.05)
    return dict(task)


def samples(paths: list[Path] = _SAMPLES) -> list[dict[str, Any]]:
    return [read_task_input(path, path.stem) for path in paths]


def agents_of(task: dict[str, Any]) -> dict[str, int]:
    agents = [each["agent_type"] for each in task["agent_executions"]]
    return {agent: agents.count(agent) for agent in agents}


@pytest.fixture(scope="module")
def reports(client: httpx.Client) -> dict[str, dict[str, Any]]:
    """The task of each mode over the same inputs."""
    body = {
        "task_type": "report_generation",
        "inputs": samples(),
        "metadata": {"report_title": "Orders"},
    }
    return {mode: done(client, {**body, "execution_mode": mode}) for mode in _MODES}


@pytest.mark.parametrize("mode", _MODES)
def test_report_of_the_samples_says_in_every_mode_what_they_hold(
    reports: dict[str, dict[str, Any]], mode: str
) -> None:
    task = reports[mode]
    assert (task["status"], task["error"], task["progress_percent"]) == ("completed", None, 100)
    assert {each["status"] for each in task["agent_executions"]} == {"completed"}
    ingests = len(_SAMPLES) if mode == "hybrid" else 1
    assert agents_of(task) == {"data_ingest": ingests, "data_analysis": 1, "synthesis": 1}
    assert task["output"]["type"] == "json_report"
    report = task["output"]["data"]
    assert report["title"] == "Orders"
    assert report["executive_summary"].startswith(
        "This report covers one table (1,500 rows), one text (550 words) and one image."
    )
    said = " ".join(
        entry["statement"]
        for kind in ("insights", "anomalies", "trends")
        for entry in report["detailed_findings"][kind]
    )
    # What the generator of the samples put in: a trend, a link, outliers, and gaps with and without a reason.
    assert "units per month rises from" in said
    assert "delivery_days and customer_rating clearly move against each other" in said
    assert "the farthest is 280 in row 638" in said
    assert "customer_rating is missing in 240 rows (16%)" in said
    assert "100% of these rows have channel store" in said
    assert "photo is a JPEG of 960 x 640 pixels" in said
    assert report["recommendations"]
    assert "# Orders" in render_markdown(report)
    assert render_html(report).count("<svg") >= 10


def test_report_is_the_same_in_every_mode_but_for_its_id(reports: dict[str, dict[str, Any]]) -> None:
    told = []
    for task in reports.values():
        report = copy.deepcopy(task["output"]["data"])
        report.pop("report_id")
        told.append(report)
    assert told[0] == told[1] == told[2]


@pytest.mark.parametrize("mode", _MODES)
def test_report_without_inputs_says_so_in_every_mode(client: httpx.Client, mode: str) -> None:
    task = done(client, {"task_type": "report_generation", "execution_mode": mode})
    assert task["status"] == "completed", task["error"]
    assert "nothing to analyse" in task["output"]["data"]["executive_summary"]


@pytest.mark.parametrize("mode", _MODES)
def test_bad_input_fails_in_every_mode_with_its_name(client: httpx.Client, mode: str) -> None:
    inputs = [*samples(_SAMPLES[1:2]), {"input_id": "broken", "type": "image", "data": "bm8gaW1hZ2U="}]
    task = done(client, {"task_type": "report_generation", "execution_mode": mode, "inputs": inputs})
    assert task["status"] == "failed"
    assert task["error"]["code"] == "VALIDATION_ERROR"
    assert "broken" in task["error"]["message"]
    assert task["output"] is None


@pytest.mark.parametrize("mode", _MODES)
def test_analysis_of_the_samples_gives_their_numbers_in_every_mode(client: httpx.Client, mode: str) -> None:
    task = done(client, {"task_type": "data_analysis", "execution_mode": mode, "inputs": samples()})
    assert task["status"] == "completed", task["error"]
    assert task["output"]["type"] == "analysis_result"
    summary = task["output"]["data"]["summary"]
    assert (summary["num_rows"], summary["num_words"], summary["num_images"]) == (1500, 550, 1)


@pytest.mark.parametrize("mode", _MODES)
def test_api_call_brings_the_answer_in_every_mode(
    client: httpx.Client, served: ServiceProcess, mode: str
) -> None:
    call = {"input_id": "call", "type": "json", "data": {"endpoint": f"{served.url}/health"}}
    task = done(client, {"task_type": "api_call", "execution_mode": mode, "inputs": [call]})
    assert task["status"] == "completed", task["error"]
    assert task["output"]["type"] == "api_response"
    assert '"healthy": true' in str(task["output"]["data"]).replace("'", '"').replace("True", "true")


@pytest.mark.parametrize("mode", _MODES)
def test_monitoring_fails_for_want_of_an_agent_in_every_mode(client: httpx.Client, mode: str) -> None:
    inputs = [{"input_id": "video", "type": "video", "data": "AAAA"}]
    task = done(client, {"task_type": "real_time_monitoring", "execution_mode": mode, "inputs": inputs})
    assert task["status"] == "failed"
    assert task["error"]["code"] == "AGENT_UNAVAILABLE"
    assert "video_detection" in {
        each["agent_type"] for each in task["agent_executions"] if each["status"] == "failed"
    }
