"""`tutti up --ray-address`: the service as a guest in a Ray cluster that was there before and stays after."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.api_client import ApiClient
from serve_app.launch.port_claims import PortClaims
from serve_app.launch.preconditions import check_port
from serve_app.launch.ray_environment import free_ports
from tests.integration.service_process import REPOSITORY, running_process

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

HOST = """
import sys
import ray

context = ray.init(
    address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, _temp_dir=sys.argv[1]
)
print("address", context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
PLAN = {"name": "one", "steps": [{"name": "only", "capability": "echo", "inputs": {"say": "hello"}}]}


@pytest.fixture
def cluster() -> Iterator[str]:
    """A Ray cluster of somebody else, with token authentication; its address."""
    folder = Path(tempfile.mkdtemp(prefix="tj", dir="/tmp"))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(folder / "r")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=inherited,
        cwd=REPOSITORY,
    )
    assert host.stdin is not None
    assert host.stdout is not None
    try:
        yield next(line.split()[1] for line in host.stdout if line.startswith("address "))
    finally:
        host.stdin.close()
        host.wait(60)
        host.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


def test_guest_takes_its_ports_and_actors_with_it_and_may_come_again(cluster: str, tmp_path: Path) -> None:
    ports = free_ports(2)
    for visit in range(2):
        with running_process(tmp_path, {"TUTTI_RAY_ADDRESS": cluster}, ports) as service:
            assert service.ray_address == cluster
            with ApiClient(service.url) as client:
                run_id = client.submit_run({"plan": PLAN})
                assert [event["type"] for event in client.follow(run_id)][-1] == "run.succeeded"
                assert len(client.list_runs([], 10)["runs"]) == visit + 1
        claims = PortClaims()
        for port in ports:
            check_port("127.0.0.1", port, "the service's own", claims)
        claims.release()
