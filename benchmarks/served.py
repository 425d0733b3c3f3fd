"""A whole service as a user starts it: `tutti up` as a process, on free ports, in a temporary folder."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import httpx
import psutil

from benchmarks.work import MeasurementFailed
from cluster.settings import INSTANCE_VARIABLE
from serve_app.launch.processes import end_processes, mark_of
from serve_app.launch.ray_environment import free_ports

__all__ = ["ServedProcess", "process_tree", "pss_bytes", "served", "tutti_up"]

_ROOT = Path(__file__).resolve().parent.parent
_READY_S = 180.0
_STOP_S = 60.0
_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")


class ServedProcess(NamedTuple):
    """What runs.

    Attributes:
        url: Where it answers HTTP.
        pid: The process that was started.
        ready_s: From its start to the line that says it is ready.
    """

    url: str
    pid: int
    ready_s: float

    def client(self) -> httpx.Client:
        """Open a client for what is not measured."""
        return httpx.Client(base_url=self.url, timeout=30.0, trust_env=False)


@contextmanager
def tutti_up(variables: Mapping[str, str] | None = None) -> Iterator[ServedProcess]:
    """Run `tutti up` and end it with all its processes.

    Args:
        variables: Settings as environment variables.
    """
    with tempfile.TemporaryDirectory(prefix="tb") as folder:
        http_port, grpc_port = free_ports(2)
        command = [sys.executable, "-c", "from serve_app.cli import main; main()", "up"]
        command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
        command += ["--data-dir", str(Path(folder) / "data")]
        with served(command, f"http://127.0.0.1:{http_port}", variables or {}) as process:
            yield process


@contextmanager
def served(command: list[str], url: str, variables: Mapping[str, str]) -> Iterator[ServedProcess]:
    """Start a server, wait until it prints a line that begins with `ready`, and end it in order.

    Args:
        command: What to start, from the root of this repository.
        url: Where it will answer.
        variables: Added to a small environment; nothing else of this process's own is handed on.

    Raises:
        MeasurementFailed: It ended or was not ready in three minutes; the text is what it said last.
    """
    environment = {name: value for name in _INHERITED if (value := _own_environment().get(name))}
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env={**environment, "PYTHONUNBUFFERED": "1", **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _await_ready(process, log)
            yield ServedProcess(url, process.pid, time.perf_counter() - began)
        finally:
            _end(process)


def _own_environment() -> dict[str, str]:
    return psutil.Process().environ()


def _await_ready(process: subprocess.Popen[bytes], log: IO[str]) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        log.seek(0)
        lines = log.read().splitlines()
        if any(line.startswith("ready") for line in lines):
            return
        if process.poll() is not None:
            raise MeasurementFailed(f"the server ended: {lines[-1] if lines else 'it said nothing'}")
        time.sleep(0.01)
    raise MeasurementFailed(f"the server was not ready: {lines[-1] if lines else 'it said nothing'}")


def _end(process: subprocess.Popen[bytes]) -> None:
    marks = []
    if process.poll() is None:
        marks = [mark for pid in process_tree(process.pid) if (mark := mark_of(pid)) is not None]
        process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    end_processes(marks, grace_s=3.0)


def process_tree(pid: int) -> list[int]:
    """List a process, all below it, and what carries the same instance of the service in its environment."""
    root = psutil.Process(pid)
    found = {pid, *(child.pid for child in root.children(recursive=True))}
    instances = {value for each in found if (value := _instance_of(each))}
    if instances:
        found.update(each for each in psutil.pids() if _instance_of(each) in instances)
    return sorted(found)


def _instance_of(pid: int) -> str:
    try:
        return psutil.Process(pid).environ().get(INSTANCE_VARIABLE, "")
    except psutil.Error:
        return ""


def pss_bytes(pids: list[int]) -> int:
    """Add up the proportional set sizes: shared pages count once, divided among those who share them."""
    total = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue  # it ended meanwhile
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    return total
