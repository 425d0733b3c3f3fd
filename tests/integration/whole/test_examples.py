"""The examples of the documentation, run as a stranger runs them: against a service, and against none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.launch.ray_environment import free_ports
from tests.integration.service_process import REPOSITORY, ServiceProcess

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

_EXAMPLES = REPOSITORY / "examples"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def test_report_example_prints_and_writes_a_report_of_the_samples(
    served: ServiceProcess, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    done = run("report_generation.py", "--grpc", served.grpc, "--title", "Orders", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "Orders\n======" in done.stdout
    report = json.loads(out.read_text())
    assert report["executive_summary"] in done.stdout
    assert {"report_id", "title", "executive_summary", "detailed_findings", "recommendations"} <= set(report)


def test_streaming_example_hears_the_same_over_grpc_and_over_a_broken_sse_connection(
    served: ServiceProcess,
) -> None:
    done = run("streaming_updates.py", "--grpc", served.grpc, "--url", served.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "both ways told the same" in done.stdout
    assert "Last-Event-ID: 3" in done.stdout


def test_first_plan_runs_from_a_python_driver(served: ServiceProcess) -> None:
    done = run("first_plan.py", "--ray-address", served.ray_address, "--many", "50")
    assert done.returncode == 0, done.stderr
    assert '"greeting": {"hello": "Ada"}' in done.stdout
    assert "outputs in order: True" in done.stdout
    assert "EXECUTION_FAILED: on purpose" in done.stdout


def test_own_agent_is_found_by_the_setting_and_does_its_work(served: ServiceProcess) -> None:
    done = run("own_agent/run.py", "--url", served.url)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert output["words"] == 19
    assert output["common"][0] == {"word": "fox", "count": 3}


@pytest.mark.parametrize(
    ("script", "option", "prefix"),
    [
        ("report_generation.py", "--grpc", ""),
        ("streaming_updates.py", "--grpc", ""),
        ("first_plan.py", "--ray-address", ""),
        ("own_agent/run.py", "--url", "http://"),
    ],
)
def test_example_says_in_one_line_that_the_service_is_away(script: str, option: str, prefix: str) -> None:
    (port,) = free_ports(1)
    done = run(script, option, f"{prefix}127.0.0.1:{port}")
    assert done.returncode == 1
    assert "`tutti up`" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
