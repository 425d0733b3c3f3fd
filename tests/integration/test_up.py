"""`tutti up` as a process of its own: ready, refusing, killed, found again, ended without a trace."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from serve_app.api_client import ApiClient
from serve_app.launch.processes import ProcessMark, descendants_of, find_process
from serve_app.launch.ray_environment import free_ports
from serve_app.launch.redis_server import EmbeddedRedis

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

READY_S = 120.0
PLAN = {"name": "one", "steps": [{"name": "only", "capability": "echo", "inputs": {"say": "hello"}}]}


class Up:
    """One `tutti up` process."""

    def __init__(self, data_dir: Path, http_port: int, grpc_port: int) -> None:
        self.url = f"http://127.0.0.1:{http_port}"
        self.data_dir = data_dir
        self.grpc = f"127.0.0.1:{grpc_port}"
        self.out, self.err = data_dir / "up.out", data_dir / "up.err"
        data_dir.mkdir(parents=True, exist_ok=True)
        ports = ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
        command = [sys.executable, "-m", "serve_app.cli", "up", "--data-dir", str(data_dir), *ports]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, start_new_session=True, cwd=Path.cwd()
            )

    def await_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.err.read_text()
            return self.out.read_text().startswith("ready:")

        wait_until(is_ready, READY_S)

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = msgspec.json.decode((self.data_dir / "runtime.json").read_bytes())
        return record

    def everything(self) -> list[ProcessMark]:
        return list(descendants_of(self.process.pid))


class Onlooker:
    """A client that asks all the time, from before the service starts until after it has ended.

    Attributes:
        answers: (status, Retry-After, content type) of all that was answered.
    """

    def __init__(self, url: str) -> None:
        self.answers: set[tuple[int, str, str]] = set()
        self._url = url
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stopped.wait(0.02):
                for path in ("/health", "/api/v1/runs"):
                    with contextlib.suppress(httpx.TransportError):
                        answer = client.get(path)
                        told = [answer.headers.get(name, "") for name in ("retry-after", "content-type")]
                        self.answers.add((answer.status_code, told[0], told[1]))

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def wait_until(holds: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "the condition never came"
        time.sleep(0.05)


@contextmanager
def onlooking(url: str) -> Iterator[Onlooker]:
    onlooker = Onlooker(url)
    try:
        yield onlooker
    finally:
        onlooker.stop()


@contextmanager
def up(data_dir: Path, ports: list[int]) -> Iterator[Up]:
    service = Up(data_dir, *ports)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.terminate()
            try:
                service.process.wait(60)
            except subprocess.TimeoutExpired:
                service.process.kill()
                service.process.wait()
        # Whatever a failing test left: its own Redis, which survives by design.
        living = EmbeddedRedis.living_server(data_dir)
        if living is not None:
            os.kill(living.pid, signal.SIGKILL)


def test_killed_service_finds_its_runs_again_and_ends_without_a_trace(tmp_path: Path) -> None:
    ports = free_ports(2)
    with up(tmp_path, ports) as first:
        first.await_ready()
        with ApiClient(first.url) as client:
            run_id = client.submit_run({"plan": PLAN})
            assert [event["type"] for event in client.follow(run_id)][-1] == "run.succeeded"

        refused = subprocess.run(
            [sys.executable, "-m", "serve_app.cli", "up", "--data-dir", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path.cwd(),
        )
        assert refused.returncode == 1
        assert refused.stderr == (
            f"error: the data directory {tmp_path} is served by process {first.process.pid} already\n"
        )

        left = first.everything()
        assert {"raylet", "gcs_server", "haproxy", "redis-server"} <= {mark.name for mark in left}
        first.process.kill()
        first.process.wait()

        with onlooking(first.url) as onlooker, up(tmp_path, ports) as second:
            second.await_ready()
            redis = EmbeddedRedis.living_server(tmp_path)
            assert redis is not None
            still_there = {mark.name for mark in left if find_process(mark) is not None}
            assert still_there <= {"redis-server"}
            with ApiClient(second.url) as client:
                run = client.get_run(run_id)
                assert (run["status"], run["output"]) == ("succeeded", {"say": "hello"})
                again = client.submit_run({"plan": PLAN})
                assert [event["type"] for event in client.follow(again)][-1] == "run.succeeded"
            processes = second.everything()
            ready_line = f"ready: {second.url}  grpc://{second.grpc}  ray {second.record['ray_address']}\n"
            second.process.send_signal(signal.SIGINT)
            assert second.process.wait(60) == 0
            assert second.out.read_text() == ready_line
            wait_until(lambda: not any(find_process(mark) for mark in processes), 5.0)
            assert not (tmp_path / "runtime.json").exists()
            assert EmbeddedRedis.living_server(tmp_path) is None
            logs = [path.read_text() for path in (tmp_path / "logs" / "last").glob("worker-*.err")]
            assert any(":actor_name:Scheduler" in text for text in logs)
        # Where the service has begun to listen and is not there yet, or no more, clients shall try again.
        assert onlooker.answers <= {(200, "", "application/json"), (503, "1", "application/json")}
        assert (503, "1", "application/json") in onlooker.answers


def test_signal_while_starting_ends_in_order(tmp_path: Path) -> None:
    with up(tmp_path, free_ports(2)) as service:
        wait_until(lambda: "raylet" in {mark.name for mark in service.everything()}, READY_S)
        processes = service.everything()
        record = service.record
        ports = [
            "--http-port",
            service.url.rpartition(":")[2],
            "--grpc-port",
            service.grpc.rpartition(":")[2],
        ]
        another = subprocess.run(
            [sys.executable, "-m", "serve_app.cli", "up", "--data-dir", str(tmp_path / "another"), *ports],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path.cwd(),
        )
        assert another.returncode == 1
        assert "is another service's, which is starting; choose another with --http-port" in another.stderr
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(90) == 0, service.err.read_text()
        assert service.out.read_text() == ""
        assert "interrupted while starting" in service.err.read_text()
        assert not any(find_process(mark) for mark in processes)
        assert not any(Path(folder).exists() for folder in record["folders"])
        assert not psutil.pid_exists(service.process.pid)


def test_full_disk_is_answered_503_and_the_service_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    """With `appendfsync always` Redis ends itself when it cannot write; nothing else may go with it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=280m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        with up(disk / "data", free_ports(2)) as service, httpx.Client(base_url=service.url) as client:
            service.await_ready()
            body = {"plan": PLAN}
            accepted = client.post("/api/v1/runs", json=body).json()["run_id"]
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(b"x" * 65536)

            def is_refused() -> bool:
                answer = client.post("/api/v1/runs", json=body)
                return answer.status_code == 503 and answer.json()["error"]["code"] == "UNAVAILABLE"

            wait_until(is_refused, 30)
            wait_until(lambda: "cannot be started again, trying on" in service.err.read_text(), 30)
            assert service.process.poll() is None
            (disk / "filler").unlink()
            wait_until(lambda: client.get("/health").status_code == 200, 30)
            again = client.post("/api/v1/runs", json=body).json()["run_id"]
            with ApiClient(service.url) as api:
                for run_id in (accepted, again):
                    assert [event["type"] for event in api.follow(run_id)][-1] == "run.succeeded"
            service.process.terminate()
            assert service.process.wait(60) == 0, service.err.read_text()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
