"""What a running service listens on, held to the table in docs/security.md: that page is the list."""

from __future__ import annotations

import ipaddress
import re
import time
from collections import Counter
from typing import Any, NamedTuple

import grpc
import httpx
import psutil
import pytest

from tests.integration.service_process import REPOSITORY, ServiceProcess

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

_WIDTH = {"loopback": 0, "node": 1, "all": 2}
_RAY_METHODS = (
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.NodeInfoGcsService/CheckAlive",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Push",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.serve.ASGIService/HandleRequest",
)
"""One method of each service that Ray's ports offer: a port knows one of them, and must ask for the token."""


class Row(NamedTuple):
    """A line of the table; `ports` is None where the system chooses."""

    process: str
    address: str
    ports: range | None
    number: int
    guard: str


class Listener(NamedTuple):
    """A listening socket of the service."""

    pid: int
    process: str
    host: str
    port: int

    @property
    def width(self) -> int:
        address = ipaddress.ip_address(self.host.partition("%")[0])
        return _WIDTH["loopback" if address.is_loopback else "all" if address.is_unspecified else "node"]


def the_table(service: ServiceProcess) -> list[Row]:
    """Read the list; narrow lines come first, so that `any` and `all` take what is left."""
    page = (REPOSITORY / "docs" / "security.md").read_text()
    _, _, rest = page.partition("<!-- listening:begin -->\n")
    lines = rest.partition("<!-- listening:end -->")[0].splitlines()[2:]
    named = {"TUTTI_HTTP_PORT": service.http_port, "TUTTI_GRPC_PORT": service.grpc_port}
    rows = []
    for line in lines:
        process, address, port, number, _, guard = [cell.strip() for cell in line.strip("|").split("|")]
        first, _, last = str(named.get(port, port)).partition("-")
        ports = None if port == "any" else range(int(first), int(last or first) + 1)
        rows.append(Row(process.strip("`"), address, ports, int(number), guard))
    return sorted(rows, key=lambda row: (row.ports is None, _WIDTH[row.address]))


def listeners(service: ServiceProcess) -> list[Listener]:
    found = []
    root = psutil.Process(service.pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            name = _name_of(process, service.pid)
            found += [
                Listener(process.pid, name, each.laddr.ip, each.laddr.port)
                for each in process.net_connections("inet")
                if each.status == psutil.CONN_LISTEN
            ]
        except psutil.NoSuchProcess:
            continue
    return found


def _name_of(process: psutil.Process, root_pid: int) -> str:
    if process.pid == root_pid:
        return "tutti up"
    words = process.cmdline()
    titled = re.match(r"ray::\w+", words[0]) if words else None
    if titled:
        return titled[0]
    script = next((word for word in words[:4] if word.endswith(("/monitor.py", "/dashboard.py"))), "")
    return script.rpartition("/")[2] or process.name()


def matched(found: list[Listener], table: list[Row]) -> tuple[dict[Listener, Row], list[Listener]]:
    """Give each socket its line; what has none is returned apart."""
    lines: dict[Listener, Row] = {}
    taken: Counter[tuple[int, Row]] = Counter()
    strangers = []
    for each in sorted(found):
        for row in table:
            fits = row.process == each.process and each.width <= _WIDTH[row.address]
            fits = fits and (row.ports is None or each.port in row.ports)
            if fits and taken[each.pid, row] < row.number:
                taken[each.pid, row] += 1
                lines[each] = row
                break
        else:
            strangers.append(each)
    return lines, strangers


def test_every_listening_socket_is_in_the_table_of_the_security_page(served: ServiceProcess) -> None:
    table = the_table(served)
    # Ray goes on starting processes for a while after it is ready, and some change their title: look for 5 s.
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        lines, strangers = matched(listeners(served), table)
        # A process that was just forked still has its parent's name.
        young = {each for each in strangers if _age_s(each.pid) < 2}
        assert not set(strangers) - young, f"not in docs/security.md: {strangers}"
        time.sleep(0.25)
    seen = set(lines.values())
    # Fixed ports of Ray's, which another cluster on this machine may have, and workers that come and go.
    unsteady = {("monitor.py", range(44217, 44218)), ("dashboard.py", range(44227, 44228))}
    unsteady |= {("ray::DashboardAgent", range(52365, 52366)), ("ray::IDLE", None)}
    missing = [row for row in table if row not in seen and (row.process, row.ports) not in unsteady]
    assert not missing, f"in docs/security.md, but nothing listens: {missing}"


def _age_s(pid: int) -> float:
    try:
        return time.time() - psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def test_the_services_own_ports_are_on_loopback_only(served: ServiceProcess) -> None:
    own = [each for each in listeners(served) if each.port in (served.http_port, served.grpc_port)]
    assert {each.port for each in own} == {served.http_port, served.grpc_port}
    assert all(each.width == 0 for each in own), own


def test_ports_marked_token_refuse_a_call_without_rays_token(served: ServiceProcess) -> None:
    lines, _ = matched(listeners(served), the_table(served))
    marked: Counter[tuple[str, int]] = Counter()
    refusing: Counter[tuple[str, int]] = Counter()
    for each, row in lines.items():
        # A process may have ports of one width under two guards: which is which shows in what they answer.
        marked[each.process, each.pid] += row.guard == "token"
        answers = _answers_of(each)
        assert grpc.StatusCode.OK not in answers, f"{each} takes Ray's calls without a token"
        refusing[each.process, each.pid] += grpc.StatusCode.UNAUTHENTICATED in answers
    assert sum(marked.values()) > 12
    assert refusing == marked


def _answers_of(listener: Listener) -> set[Any]:
    """What a port says to Ray's calls without a token; of Ray's ports for HTTP, put into the same words."""
    host = "127.0.0.1" if listener.width == _WIDTH["all"] else listener.host
    if listener.process == "ray::RuntimeEnvAgent" or listener.port == 52365:
        answer = httpx.get(f"http://{host}:{listener.port}/api/job_agent/jobs/", trust_env=False)
        return {{401: grpc.StatusCode.UNAUTHENTICATED, 200: grpc.StatusCode.OK}.get(answer.status_code)}
    return {_call(f"{host}:{listener.port}", method) for method in _RAY_METHODS}


def _call(target: str, method: str) -> Any:
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=5)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK
