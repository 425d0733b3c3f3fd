"""The composition root of the edge: one Serve application, whose one deployment answers HTTP and gRPC.

One deployment, because plain gRPC clients send no application's name and Serve can only guess when there is
just one. It must run with the variables of `launch.ray_environment` set before Ray was imported.
"""

from __future__ import annotations

import logging
import random
import socket
import time
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, ControllerOptions, HTTPOptions, gRPCOptions

from cluster.errors import LaunchFailed
from cluster.failure_lines import cause_line, first_line
from serve_app.access import Door, Gate
from serve_app.grpc_servicer import OrchestratorServicer
from serve_app.http_app import build_app
from serve_app.ingress_scaling import CPU_SHARE, CpuMeter, autoscaling_of
from serve_app.launch.haproxy_start import write_starter
from serve_app.request_figures import RequestFigures
from serve_app.service import RunService

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.settings import Settings
    from serve_app.launch.port_claims import PortClaims

__all__ = ["APPLICATION", "DEPLOYMENT", "Ingress", "deploy", "undeploy"]

APPLICATION = "tutti"
DEPLOYMENT = "ingress"

_SERVICERS = ["serve_app.grpc_servicer.add_to_server"]
_MAX_ONGOING = 20_000
"""Followers hold a request each for as long as their Run goes on."""

_GRPC_PORTS = range(20_000, 29_900)
"""Above Ray's worker ports, below Serve's for HTTP and the system's for outgoing connections."""
_PORTS_PER_INSTANCE = 100
"""Replaced replicas leave their ports unused for minutes."""
_MAX_TRIES = 50
_POLL_S = 0.1


class Ingress(OrchestratorServicer):
    """One replica of the edge. It keeps nothing: any other can answer the next request.

    Args:
        settings: The service's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._meter = CpuMeter()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve every few seconds what its autoscaling goes by."""
        return {CPU_SHARE: self._meter.share()}

    def __serve_build_asgi_app__(self) -> Door:
        """Open the store on the replica's own loop and build the HTTP side."""
        self.service = RunService.connect(self._settings)
        door = build_app(self.service, self._settings)
        self.gate: Gate = door.app.state.gate
        self.figures: RequestFigures = door.app.state.figures
        self.figures.publish_from_now_on(self.service.store)
        self.service.blueprints.watch_from_now_on()
        return door


def deploy(settings: Settings, folder: Path, claims: PortClaims) -> None:
    """Start the edge on a Ray that this process is connected to; return when it can serve.

    Args:
        settings: Where to listen, how many replicas there may be, and what they need.
        folder: The instance's own temporary folder.
        claims: Takes the ports that are chosen.

    Raises:
        LaunchFailed: There are no free ports for the replicas, or they do not start.
    """
    # Serve sets its own level when imported; operators read `ready`, not its progress.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        http_options=HTTPOptions(host=settings.host, port=settings.http_port),
        grpc_options=gRPCOptions(port=settings.grpc_port, grpc_servicer_functions=_SERVICERS),
        controller_options=ControllerOptions(
            runtime_env={"env_vars": {**_grpc_port_variables(claims), **_proxy_variables(folder)}}
        ),
    )
    try:
        serve.run(_deployment(settings), name=APPLICATION, route_prefix="/", blocking=False)
    except RuntimeError as error:
        raise LaunchFailed(f"the ingress cannot be started: {_reason_of(error)}") from error


def _reason_of(error: RuntimeError) -> str:
    """Say why the deployment failed: Serve tells it in its status, and little in what it raises."""
    application = serve.status().applications.get(APPLICATION)
    told = [each.message for each in application.deployments.values()] if application is not None else []
    return next((line for text in told if (line := cause_line(text))), "") or first_line(error)


def _proxy_variables(folder: Path) -> dict[str, str]:
    """Name the program that starts HAProxy; not where nodes that lack the file would start one too."""
    starter = write_starter(folder) if len([node for node in ray.nodes() if node["Alive"]]) == 1 else None
    return {} if starter is None else {"RAY_SERVE_HAPROXY_BINARY_PATH": str(starter)}


def _grpc_port_variables(claims: PortClaims) -> dict[str, str]:
    """Give the replicas of this instance gRPC ports of its own.

    Serve opens these ports with SO_REUSEPORT (it passes `grpc.so_reuseport` as text, which gRPC ignores), so
    that two instances on one machine, both counting from the same number, would share them and answer each
    other's calls.
    """
    for _ in range(_MAX_TRIES):
        first = random.randrange(_GRPC_PORTS.start, _GRPC_PORTS.stop, _PORTS_PER_INSTANCE)
        block = range(first, first + _PORTS_PER_INSTANCE)
        if all(_is_free(port) for port in block[:16]) and claims.claim(first):
            return {
                "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(block[0]),
                "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(block[-1]),
            }
    raise LaunchFailed(f"no free ports for gRPC replicas between {_GRPC_PORTS.start} and {_GRPC_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _deployment(settings: Settings) -> Any:
    deployment = serve.deployment(serve.ingress()(Ingress))
    num_cpus: float = ray.cluster_resources().get("CPU", 0.0)
    return deployment.options(
        name=DEPLOYMENT,
        autoscaling_config=AutoscalingConfig(**autoscaling_of(settings, num_cpus)),
        max_ongoing_requests=_MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=settings.drain_grace_s,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
    ).bind(settings)


def undeploy(grace_s: float, *, cluster_stays: bool = False) -> None:
    """Take the edge down: no new requests, those in flight finish.

    Args:
        grace_s: Seconds to wait for that, >= 0; what is left then goes on ending by itself, within
            `drain_grace_s`.
        cluster_stays: Whether Ray goes on without us: then Serve, whose HAProxy would keep our ports, is
            ended too, unless it serves others' applications.
    """
    serve.delete(APPLICATION, _blocking=False)
    deadline = time.monotonic() + grace_s
    while APPLICATION in serve.status().applications and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    if cluster_stays and not serve.status().applications.keys() - {APPLICATION}:
        serve.shutdown()
