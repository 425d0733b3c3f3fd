"""Python drivers outside of the service: a process of their own that attaches to the Ray of a `tutti up`."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.service_process import REPOSITORY, ServiceProcess

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

DRIVER = """
import json, sys
import ray
from actors import connect

orchestrator = connect(sys.argv[1])
plan = {"name": "one", "steps": [{"name": "only", "capability": "echo", "inputs": {"$ref": "inputs.n"}}]}
one = ray.get(orchestrator.result.remote(ray.get(orchestrator.submit.remote(plan, {"n": 7})), timeout_s=60))
run_ids = ray.get(orchestrator.submit_many.remote([plan] * 20, [{"n": n} for n in range(20)]))
print(json.dumps([one, ray.get(orchestrator.results.remote(run_ids, timeout_s=60))]))
"""
REFUSED = """
import sys, time
from actors import connect
from cluster.errors import Unavailable

began = time.monotonic()
try:
    connect(sys.argv[1])
except Unavailable as error:
    print(error.message)
assert time.monotonic() - began < 15
"""


def drive(script: str, address: str, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a driver as a stranger would: none of Ray's variables are handed on."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", script, address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=REPOSITORY,
        env={**inherited, **variables},
    )


def test_driver_of_another_process_attaches_to_the_recorded_address(served: ServiceProcess) -> None:
    done = drive(DRIVER, served.ray_address, {})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [7, list(range(20))]


def test_driver_without_the_token_is_told_so_in_one_line(served: ServiceProcess) -> None:
    for variables in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "f" * 64}):
        done = drive(REFUSED, served.ray_address, variables)
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        assert line.startswith(f"the Ray cluster at {served.ray_address} asks for its token")


def test_record_and_folders_of_the_service_are_closed_to_other_users(served: ServiceProcess) -> None:
    assert stat.S_IMODE((served.data_dir / "runtime.json").stat().st_mode) == 0o600
    (folder,) = map(Path, served.record["folders"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert Path(os.path.realpath(served.data_dir / "logs" / "ray")).is_relative_to(folder)


def test_recorded_ports_are_those_that_serve(served: ServiceProcess) -> None:
    record = served.record
    assert (record["http_port"], record["grpc_port"]) == (served.http_port, served.grpc_port)


def test_dead_address_is_one_line_after_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        for address in ("127.0.0.1:1", f"127.0.0.1:{mute.getsockname()[1]}"):
            done = drive(REFUSED, address, {})
            assert done.returncode == 0, done.stderr
            assert done.stdout == f"no Ray cluster answers at {address}\n"


def test_service_that_is_told_to_join_what_is_no_ray_ends_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        command = [sys.executable, "-m", "serve_app.cli", "up", "--ray-address", address]
        done = subprocess.run(
            [*command, "--data-dir", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=REPOSITORY,
        )
    assert done.returncode == 1
    assert done.stderr == f"error: no Ray cluster answers at {address}\n"
