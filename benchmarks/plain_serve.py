"""The baseline over HTTP, a server of its own: plain Ray Serve in front of one plain actor, nothing durable.

The same proxy, number of ingress replicas and variables as the service has. `POST /noop` is answered after
one actor call, `POST /chain3` after three. Run it as `python -m benchmarks.plain_serve PORT FOLDER`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from cluster.settings import Settings, export_variables
from serve_app.launch.ray_environment import free_ports, raise_open_files, serve_variables

__all__ = ["main"]

_CONCURRENCY = 1000
_OBJECT_STORE_BYTES = 100 << 20


def main() -> None:
    """Serve until SIGTERM."""
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    settings = Settings.from_environment({}, http_port=port, grpc_port=free_ports(1)[0])
    export_variables(defaults=serve_variables(settings, folder, raise_open_files()), forced={})
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, 4),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
    )
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stopped.set())
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    serve.run(_application(settings.num_ingress), name="plain", route_prefix="/", blocking=False)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    stopped.wait()
    serve.shutdown()
    ray.shutdown()


def _application(num_replicas: int) -> Any:
    import ray
    from fastapi import FastAPI, Request
    from ray import serve

    app = FastAPI()

    class Agent:
        async def noop(self, value: Any) -> Any:
            return value

    agent: Any = ray.remote(Agent).options(num_cpus=0, max_concurrency=_CONCURRENCY).remote()

    class Ingress:
        def __init__(self, agent: Any) -> None:
            self._agent = agent

        @app.post("/noop")
        async def noop(self, request: Request) -> Any:
            return await self._agent.noop.remote(await request.json())

        @app.post("/chain3")
        async def chain3(self, request: Request) -> Any:
            value = await request.json()
            for _ in range(3):
                value = await self._agent.noop.remote(value)
            return value

    # The annotation is a name of this function; FastAPI looks for it among the module's.
    for route in (Ingress.noop, Ingress.chain3):
        route.__annotations__["request"] = Request
    deployment: Any = serve.deployment(serve.ingress(app)(Ingress))
    return deployment.options(
        num_replicas=num_replicas, max_ongoing_requests=_CONCURRENCY, ray_actor_options={"num_cpus": 0}
    ).bind(agent)


if __name__ == "__main__":
    main()
