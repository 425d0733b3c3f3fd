"""The variables that Ray, Serve and HAProxy read when imported or started, worked out for one instance.

Two services on one machine must not meet: HAProxy's files and all side ports are the instance's own.
Nothing is set here; the caller exports what it gets.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
from pathlib import Path

from cluster.errors import LaunchFailed
from cluster.settings import Settings
from serve_app.launch.port_claims import PortClaims

__all__ = ["free_ports", "raise_open_files", "serve_variables"]

_MAX_CONNECTIONS = 20_000
_MIN_CONNECTIONS = 1_000
_FILES_PER_CONNECTION = 2.6
"""HAProxy refuses to start with more: a client's and a server's socket, and its own reserve."""
_RESERVED_FILES = 1_000
_STREAMS_PER_CONNECTION = 10_000
"""gRPC puts all calls of a client on one connection; HAProxy's default of 100 makes the next one wait."""
_MIN_MESSAGE_BYTES = 128 << 20
_MAX_SOCKET_PATH_BYTES = 107
_NODE_ID_CHARS = 56
_ASSIGNED_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 20_000
"""Ray's workers listen on 10002 to 19999."""
_MAX_TRIES = 200
_PID_SUFFIX_CHARS = len(".4194304.tmp")


def raise_open_files() -> int:
    """Raise this process's limit of open files, which its children inherit, as far as it may go; return it.

    Raises:
        LaunchFailed: The hard limit is too low to serve.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = int(_RESERVED_FILES + _FILES_PER_CONNECTION * _MAX_CONNECTIONS) + 1
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    limit = wanted if soft == resource.RLIM_INFINITY else soft
    if _connections(limit) < _MIN_CONNECTIONS:
        needed = int(_RESERVED_FILES + _FILES_PER_CONNECTION * _MIN_CONNECTIONS) + 1
        raise LaunchFailed(f"the limit of open files is {limit}, needed are {needed}: raise it (ulimit -n)")
    return limit


def free_ports(count: int, host: str = "", claims: PortClaims | None = None) -> list[int]:
    """Find TCP ports that are free now and that the kernel gives to nobody by itself.

    They are used only seconds later, and Ray opens hundreds of connections meanwhile: a port of the range
    that those come from would be taken now and then. Only one who asks for this very port can still take it,
    and no service of ours does where they are claimed.

    Args:
        count: How many.
        host: Where they must be free; "" for all addresses.
        claims: Takes them.
    """
    begin, end = _unassigned_ports()
    candidates = [*random.sample(range(begin, end), min(end - begin, _MAX_TRIES)), *([0] * count)]
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        for candidate in candidates:
            if len(ports) == count:
                break
            # Held until all are found, or the kernel's choice (0) could be one that we have.
            each = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind((host, candidate))
                port = int(each.getsockname()[1])
                if claims is None or claims.claim(port):
                    ports.append(port)
    return ports


def _unassigned_ports() -> tuple[int, int]:
    """Return the ports, end excluded, between those of Ray's workers and those of outgoing connections."""
    try:
        first_assigned = int(_ASSIGNED_PORTS.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first_assigned = 0
    return _FIRST_PORT, max(first_assigned, _FIRST_PORT)


def serve_variables(
    settings: Settings, folder: Path, num_open_files: int, claims: PortClaims | None = None
) -> dict[str, str]:
    """Work out the variables.

    Args:
        settings: The service's.
        folder: The instance's own temporary folder, with a short path.
        num_open_files: What `raise_open_files` returned.
        claims: Takes the ports that are chosen.

    Raises:
        LaunchFailed: The folder's path is too long for HAProxy's socket.
    """
    admin_socket = folder / "admin.sock"
    longest = len(os.fsencode(admin_socket)) + 1 + _NODE_ID_CHARS + _PID_SUFFIX_CHARS
    if longest > _MAX_SOCKET_PATH_BYTES:
        raise LaunchFailed(
            f"the temporary folder {folder} has a path too long for sockets; set a shorter TMPDIR"
        )
    # Two more than needed: the service's own ports may be free still, and so among them.
    free = [
        port for port in free_ports(6, claims=claims) if port not in (settings.http_port, settings.grpc_port)
    ]
    metrics_port, stats_port, fallback_http_port, fallback_grpc_port = free[:4]
    streams = str(_STREAMS_PER_CONNECTION)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_MAXCONN": str(_connections(num_open_files)),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        # Where HAProxy turns while no replica lives: a Python proxy, on this machine's own ports too.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http_port),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc_port),
        # Its per-request lines would be parsed in Python; the service has metrics of its own.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(admin_socket),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_H2_FE_MAX_CONCURRENT_STREAMS": streams,
        "RAY_SERVE_HAPROXY_H2_BE_MAX_CONCURRENT_STREAMS": streams,
        # What a replica reads before the servicer refuses it, and the largest answer.
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(max(2 * settings.max_body_bytes, _MIN_MESSAGE_BYTES)),
        # The default of 30 s would hold back every orderly end for that long.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(min(2.0, settings.drain_grace_s)),
        # On a busy machine HAProxy needs longer than the default of 5 s, and is killed for it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        # A late call during the shutdown would start a second cluster.
        "RAY_ENABLE_AUTO_CONNECT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def _connections(num_open_files: int) -> int:
    return min(_MAX_CONNECTIONS, int((num_open_files - _RESERVED_FILES) / _FILES_PER_CONNECTION))
