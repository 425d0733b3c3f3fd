"""`tutti up` as a process of its own, for tests that look at the service from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from serve_app.launch.ray_environment import free_ports

__all__ = ["REPOSITORY", "ServiceProcess", "running_process"]

REPOSITORY = Path(__file__).resolve().parents[2]
_READY_S = 120.0
_STOP_S = 60.0


class ServiceProcess(NamedTuple):
    """Where a running service is to be found."""

    pid: int
    http_port: int
    grpc_port: int
    data_dir: Path

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.data_dir / "runtime.json").read_bytes())
        return record

    @property
    def ray_address(self) -> str:
        """Its Ray cluster, host:port."""
        return str(self.record["ray_address"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


@contextmanager
def running_process(
    data_dir: Path, variables: Mapping[str, str], given_ports: Sequence[int] = ()
) -> Iterator[ServiceProcess]:
    """Start the service, on free ports unless two are given, and end it.

    Args:
        variables: Added to its environment.
    """
    http_port, grpc_port = given_ports or free_ports(2)
    ports = ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    command = [sys.executable, "-m", "serve_app.cli", "up", "--data-dir", str(data_dir), *ports]
    data_dir.mkdir(parents=True, exist_ok=True)
    out, err = data_dir / "up.out", data_dir / "up.err"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = subprocess.Popen(
            command,
            stdout=out_file,
            stderr=err_file,
            start_new_session=True,
            cwd=REPOSITORY,
            env={**os.environ, **variables},
        )
    try:
        deadline = time.monotonic() + _READY_S
        while not out.read_text().startswith("ready:"):
            assert process.poll() is None, err.read_text()
            assert time.monotonic() < deadline, f"not ready: {err.read_text()}"
            time.sleep(0.05)
        yield ServiceProcess(process.pid, http_port, grpc_port, data_dir)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
