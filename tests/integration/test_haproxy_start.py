"""What clients get from HAProxy itself: the configuration that Serve writes, amended, in a real HAProxy."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from serve_app.launch import haproxy_start
from serve_app.launch.processes import end_listening, mark_of
from serve_app.launch.ray_environment import free_ports

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, while it is imported
    from ray.serve._private.common import RequestProtocol
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions, gRPCOptions

pytestmark = pytest.mark.integration

HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nsuccess"


class Replica:
    """Answers health checks; what to answer all else is the test's to say, a broken connection where it says
    nothing or no more.
    """

    def __init__(self, answers: list[bytes], *, is_silent: bool = False) -> None:
        self.asked: list[str] = []
        self._is_silent = is_silent
        self._held: list[socket.socket] = []
        self._answers = answers
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with contextlib.ExitStack() as until, contextlib.suppress(OSError):
                    until.enter_context(connection)
                    line = connection.recv(65536).decode("latin-1").partition("\r\n")[0]
                    if "/-/healthz" in line:
                        connection.sendall(HEALTHY)
                    elif line and not line.startswith("PRI "):  # gRPC's health checks come here too
                        self.asked.append(line)
                        if self._is_silent:
                            until.pop_all()
                            self._held.append(connection)
                            continue
                        connection.sendall(self._answers.pop(0) if self._answers else b"")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for each in self._held:
            each.close()


class Proxy:
    """A real HAProxy on a configuration of Serve's."""

    def __init__(self, folder: Path, replicas: list[Replica]) -> None:
        self.http_port, self.grpc_port, metrics, stats = free_ports(4)
        self.side_ports = (metrics, stats)
        path = folder / "haproxy.cfg"
        config = HAProxyConfig(
            socket_path=str(folder / "admin.sock"),
            server_state_base=str(folder),
            server_state_file=str(folder / "server-state"),
            metrics_socket_path=str(folder / "metrics.sock"),
            metrics_enabled=False,
            metrics_port=metrics,
            stats_port=stats,
            maxconn=100,
            http_options=HTTPOptions(host="127.0.0.1", port=self.http_port),
            grpc_options=gRPCOptions(port=self.grpc_port, grpc_servicer_functions=["x.y"]),
        )
        servers = [ServerConfig(f"r{each.port}", "127.0.0.1", each.port) for each in replicas]
        backends = {}
        if servers:
            backends["app"] = BackendConfig(
                name="app",
                path_prefix="/",
                app_name="tutti",
                servers=servers,
                protocol=RequestProtocol.HTTP,
                health_check_inter="100ms",
            )
            # The same ports do not speak gRPC: its health checks fail, as those of a replica that died.
            backends["grpc"] = BackendConfig(
                name="grpc",
                path_prefix="/",
                app_name="tutti",
                servers=servers,
                protocol=RequestProtocol.GRPC,
                health_check_inter="100ms",
            )
        HAProxyApi(config, backends, config_file_path=str(path))._generate_config_file_internal()
        starter = haproxy_start.write_starter(folder)
        assert starter is not None
        self.log = folder / "haproxy.log"
        with self.log.open("wb") as log:
            command = [str(starter), "-db", "-f", str(path), "-dR"]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def await_listening(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.http_port), 1).close()
                return
            time.sleep(0.02)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@contextlib.contextmanager
def proxy_before(folder: Path, *replicas: Replica) -> Iterator[Proxy]:
    proxy = Proxy(folder, list(replicas))
    try:
        proxy.await_listening()
        yield proxy
    finally:
        proxy.close()
        for each in replicas:
            each.close()


def assert_told_to_try_again(answer: httpx.Response) -> None:
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    assert told["error"] == {"code": "UNAVAILABLE", "message": told["detail"]}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("h")


def test_without_a_route_clients_are_told_to_try_again_in_the_shape_of_errors(folder: Path) -> None:
    with proxy_before(folder) as proxy:
        for path in ("/health", "/api/v1/runs", "/api/v1/tasks/x"):
            assert_told_to_try_again(httpx.get(f"http://127.0.0.1:{proxy.http_port}{path}"))
        with grpc.insecure_channel(f"127.0.0.1:{proxy.grpc_port}") as channel:
            call = channel.unary_unary("/orchestrator.OrchestratorService/HealthCheck")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_request_that_only_reads_is_tried_again_when_its_replica_dies_and_others_are_not(
    folder: Path,
) -> None:
    broken, good = b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    replica = Replica([broken, good, broken, good])
    with proxy_before(folder, replica) as proxy:
        url = f"http://127.0.0.1:{proxy.http_port}/api/v1/runs"
        assert httpx.get(url).status_code == 200
        assert [line.split()[0] for line in replica.asked] == ["GET", "GET"]
        assert_told_to_try_again(httpx.post(url, content=b"{}"))
        assert [line.split()[0] for line in replica.asked] == ["GET", "GET", "POST"]


def test_grpc_call_that_reaches_no_living_replica_is_unavailable(folder: Path) -> None:
    with (
        proxy_before(folder, Replica([])) as proxy,
        grpc.insecure_channel(f"127.0.0.1:{proxy.grpc_port}") as channel,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/orchestrator.OrchestratorService/HealthCheck")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("status", ["404 Not Found", "500 Internal Server Error", "503 Service Unavailable"])
def test_answers_of_serve_itself_become_ours_and_the_services_own_stay(folder: Path, status: str) -> None:
    def answer(kind: str) -> bytes:
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: 2\r\nConnection: close"
        return f"{head}\r\n\r\n{{}}".encode()

    replica = Replica([answer("text/plain; charset=utf-8"), answer("application/json")])
    with proxy_before(folder, replica) as proxy:
        url = f"http://127.0.0.1:{proxy.http_port}/api/v1/runs/x"
        assert_told_to_try_again(httpx.get(url))
        own = httpx.get(url)
        assert (own.status_code, own.text) == (int(status[:3]), "{}")


def test_body_that_breaks_off_in_a_bad_chunk_is_refused_in_the_shape_of_errors(folder: Path) -> None:
    """What is wrong before the end of the head never gets this far: HAProxy's text for that is its own."""
    replica = Replica([], is_silent=True)
    with (
        proxy_before(folder, replica) as proxy,
        socket.create_connection(("127.0.0.1", proxy.http_port), 10) as connection,
    ):
        head = b"POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"2\r\n{}\r\n")
        deadline = time.monotonic() + 10
        while not replica.asked:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        connection.sendall(b"no size\r\n")
        answer = HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.getheader("content-type")) == (400, "application/json")
        told = json.loads(answer.read())
        assert told["error"] == {"code": "VALIDATION_ERROR", "message": told["detail"]}


def test_method_that_http_does_not_know_is_refused_before_a_replica_sees_it(folder: Path) -> None:
    replica = Replica([])
    with proxy_before(folder, replica) as proxy:
        answer = httpx.request("BREW", f"http://127.0.0.1:{proxy.http_port}/health")
        assert (answer.status_code, answer.headers["content-type"]) == (405, "application/json")
        assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
        assert answer.json()["error"] == {"code": "METHOD_NOT_ALLOWED", "message": answer.json()["detail"]}
        assert replica.asked == []


def test_request_that_only_the_replicas_server_cannot_read_is_refused_in_the_shape_too(folder: Path) -> None:
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 3"
    plain = head + b"\r\nConnection: close\r\n\r\nno."
    with proxy_before(folder, Replica([plain])) as proxy:
        answer = httpx.get(f"http://127.0.0.1:{proxy.http_port}/api/v1/runs")
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
        assert answer.json()["error"]["code"] == "VALIDATION_ERROR"


def test_proxy_that_ends_refuses_new_connections_and_resets_none(folder: Path) -> None:
    replica = Replica([], is_silent=True)
    with (
        proxy_before(folder, replica) as proxy,
        socket.create_connection(("127.0.0.1", proxy.http_port), 10) as connection,
    ):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        deadline = time.monotonic() + 10
        while not replica.asked:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        mark = mark_of(proxy.process.pid)
        assert mark is not None
        end_listening([mark], 0.2)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.http_port), 1)
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)


def test_figures_of_haproxy_are_for_this_machine_only(folder: Path) -> None:
    with proxy_before(folder) as proxy:
        hosts = {
            each.laddr.ip
            for each in psutil.Process(proxy.process.pid).net_connections("inet")
            if each.status == psutil.CONN_LISTEN
        }
        assert hosts == {"127.0.0.1"}


def test_what_is_not_in_the_configuration_is_left_as_it_is() -> None:
    pages = dict.fromkeys(haproxy_start.error_pages(), "page")
    assert haproxy_start.amended("global\n    maxconn 1\n", pages) == "global\n    maxconn 1\n"
