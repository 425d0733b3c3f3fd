"""What must hold before anything is started, each with its own line of refusal.

A check here costs milliseconds; found by Ray or Serve, the same fault costs half a minute and a traceback.
"""

from __future__ import annotations

import errno
import shutil
import socket
from pathlib import Path

from cluster.errors import LaunchFailed
from cluster.settings import Settings
from serve_app.launch.port_claims import PortClaims

__all__ = ["check_disk", "check_port", "check_ray_address"]

_NEEDED_BYTES = 256 * 1024 * 1024


def check_port(host: str, port: int, variable: str, claims: PortClaims) -> None:
    """Check that a port can be listened on, and claim it.

    Raises:
        LaunchFailed: Another process has it, it needs privileges, or the host is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise LaunchFailed(f"TUTTI_HOST: {host} cannot be resolved: {error.strerror}") from None
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Connections of an earlier run that linger do not count, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                reason = f"port {port} on {host} is in use; choose another with {variable}"
            elif error.errno == errno.EADDRNOTAVAIL:
                reason = f"TUTTI_HOST: {host} is not an address of this machine"
            else:
                reason = f"port {port} on {host} cannot be used: {error.strerror}"
            raise LaunchFailed(reason) from None
    if not claims.claim(port):
        raise LaunchFailed(
            f"port {port} is another service's, which is starting; choose another with {variable}"
        )


def check_disk(data_dir: Path) -> None:
    """Check that the data directory exists or can be made, and has room for a journal.

    Raises:
        LaunchFailed: It has not.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(data_dir).free
    except OSError as error:
        raise LaunchFailed(f"the data directory {data_dir} is not writable: {error.strerror}") from None
    if free < _NEEDED_BYTES:
        raise LaunchFailed(
            f"the data directory {data_dir} has {free >> 20} MiB left, needed are {_NEEDED_BYTES >> 20}"
        )


def check_ray_address(settings: Settings, timeout_s: float = 3.0) -> None:
    """Check that somebody listens where the Ray cluster should be.

    Raises:
        LaunchFailed: Nobody does, or the address is of a kind that cannot be joined.
    """
    address = settings.ray_address
    if address in ("", "auto"):
        return
    if "://" in address:
        raise LaunchFailed(
            f"TUTTI_RAY_ADDRESS: {address}: Ray Client cannot be used; name a node's host:port"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise LaunchFailed(f"TUTTI_RAY_ADDRESS: {address!r} is not of the form host:port")
    try:
        socket.create_connection((host, int(port)), timeout=timeout_s).close()
    except OSError as error:
        raise LaunchFailed(f"no Ray cluster answers at {address}: {error.strerror or error}") from None
