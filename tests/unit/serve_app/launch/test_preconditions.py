"""Every fault that can be seen before the start is refused in one line that says what to do."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster.errors import LaunchFailed
from cluster.settings import Settings
from serve_app.launch.port_claims import PortClaims
from serve_app.launch.preconditions import check_disk, check_port, check_ray_address
from serve_app.launch.ray_environment import free_ports


def test_port_that_somebody_listens_on_is_refused_by_its_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            LaunchFailed, match=f"port {port} on 127.0.0.1 is in use; choose another with --http-port"
        ):
            check_port("127.0.0.1", port, "--http-port", PortClaims())
    claims = PortClaims()
    check_port("127.0.0.1", port, "--http-port", claims)
    claims.release()


def test_port_of_another_service_that_starts_is_refused_although_nobody_listens_yet() -> None:
    """Two services that were started at once both found the port free; the later one failed in HAProxy."""
    first, second = PortClaims(), PortClaims()
    (port,) = free_ports(1)
    check_port("127.0.0.1", port, "--http-port", first)
    with pytest.raises(LaunchFailed, match=f"port {port} is another service's, which is starting"):
        check_port("127.0.0.1", port, "--http-port", second)
    first.release()
    check_port("127.0.0.1", port, "--http-port", second)
    second.release()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_host_that_is_not_this_machine_is_refused(host: str) -> None:
    with pytest.raises(LaunchFailed, match="TUTTI_HOST"):
        check_port(host, free_ports(1)[0], "--http-port", PortClaims())


def test_data_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchFailed, match="is not writable"):
        check_disk(tmp_path / "file" / "data")


def test_missing_data_directory_is_made(tmp_path: Path) -> None:
    check_disk(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:10001", "Ray Client cannot be used"),
        ("localhost", "not of the form host:port"),
    ],
)
def test_ray_address_that_cannot_be_joined_is_refused(address: str, reason: str) -> None:
    with pytest.raises(LaunchFailed, match=reason):
        check_ray_address(Settings(ray_address=address))


def test_ray_address_with_a_listener_passes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        check_ray_address(Settings(ray_address=f"127.0.0.1:{listener.getsockname()[1]}"))
    check_ray_address(Settings(ray_address=""))
