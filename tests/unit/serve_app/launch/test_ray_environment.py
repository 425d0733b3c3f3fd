"""What Ray, Serve and HAProxy are told: no two instances meet, and no limit is passed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster.errors import LaunchFailed
from cluster.settings import Settings
from serve_app.launch import ray_environment
from serve_app.launch.port_claims import PortClaims
from serve_app.launch.ray_environment import free_ports, raise_open_files, serve_variables

FOLDER = Path("/tmp/tutti-abcd1234")


def test_two_instances_share_no_port_and_no_file() -> None:
    first = serve_variables(Settings(), Path("/tmp/tutti-aaaaaaaa"), 60_000)
    second = serve_variables(Settings(), Path("/tmp/tutti-bbbbbbbb"), 60_000)
    for name in first:
        if name.endswith(("_PORT", "_PATH", "_LOC", "_FILE", "_BASE")):
            assert first[name] != second[name], name


def test_haproxy_gets_no_more_connections_than_its_files_allow() -> None:
    for files in (4_000, 20_000, 60_000, 1_000_000):
        connections = int(serve_variables(Settings(), FOLDER, files)["RAY_SERVE_HAPROXY_MAXCONN"])
        assert 1_000 <= connections <= min(20_000, (files - 1000) / 2.6)


def test_folder_with_a_long_path_is_refused_because_sockets_would_fail_silently() -> None:
    with pytest.raises(LaunchFailed, match="path too long for sockets"):
        serve_variables(Settings(), Path("/tmp/" + "x" * 40), 60_000)


def test_open_files_of_this_machine_are_raised_or_refused_in_one_line() -> None:
    try:
        assert raise_open_files() >= 3_601
    except LaunchFailed as refused:
        assert "ulimit -n" in str(refused)


def test_free_ports_are_different() -> None:
    ports = free_ports(8)
    assert len(set(ports)) == 8
    assert all(1024 <= port <= 65535 for port in ports)


def test_port_that_is_taken_on_any_address_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """HAProxy and Serve listen on all addresses, where a port that is free on loopback may be taken."""
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(ray_environment, "_unassigned_ports", lambda: (port, port + 1))
        assert free_ports(1) != [port]


def test_port_that_another_service_has_claimed_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = PortClaims(), PortClaims()
    (port,) = free_ports(1, claims=first)
    monkeypatch.setattr(ray_environment, "_unassigned_ports", lambda: (port, port + 1))
    assert free_ports(1, claims=second) != [port]
    first.release()
    assert free_ports(1, claims=second) == [port]
    second.release()


def test_free_ports_are_none_that_the_kernel_gives_to_outgoing_connections() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if first <= 20_000:
        pytest.skip("outgoing connections get any port on this machine")
    assert not [port for port in free_ports(50) if first <= port <= last]
