"""The service without its HTTP edge, in the Ray of this process: what the figures of a Python driver need.

The same embedded Redis, settings and actors as `tutti up` starts, on a temporary data directory.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray
import redis

from actors import connect
from actors.start import start_actors, stop_actors
from benchmarks.work import CHAIN3, INPUT
from cluster.settings import Settings
from serve_app.launch.redis_server import EmbeddedRedis

__all__ = ["LocalService", "local_service"]

_MIN_CPUS = 4
_OBJECT_STORE_BYTES = 100 << 20
_FSYNC = {"strict": "always", "everysec": "everysec"}


class LocalService(NamedTuple):
    """What runs.

    Attributes:
        orchestrator: Handle of the first orchestrator actor.
        redis: A plain client of the service's Redis.
        redis_pid: Process id of its server.
    """

    settings: Settings
    orchestrator: Any
    redis: redis.Redis
    redis_pid: int

    def set_durability(self, durability: str) -> None:
        """Switch the running server between `strict` and `everysec`, so that both stand in one round."""
        self.redis.config_set("appendfsync", _FSYNC[durability])

    def pids(self) -> dict[str, int]:
        """Processes on the hot path: driver, orchestrators, Redis."""
        found = {"driver": os.getpid(), "redis": self.redis_pid}
        for number in range(self.settings.num_orchestrators):
            status = ray.get(connect(number=number).status.remote())
            found[f"orchestrator {number}"] = status["pid"]
        return found


@contextmanager
def local_service(**overrides: Any) -> Iterator[LocalService]:
    """Start everything, warm the pool of the no-ops, and end everything.

    Args:
        overrides: Settings by field name.
    """
    with tempfile.TemporaryDirectory(prefix="tb") as folder:
        data_dir = Path(folder) / "data"
        server = EmbeddedRedis(data_dir, "strict")
        url = server.start()
        settings = Settings.from_environment({}, redis_url=url, data_dir=data_dir, **overrides)
        try:
            ray.init(
                address="local",
                namespace="tutti",
                num_cpus=max(os.cpu_count() or 1, _MIN_CPUS),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            try:
                start_actors(settings)
                client = redis.Redis.from_url(url)
                service = LocalService(settings, connect(number=0), client, server.pid)
                run_ids = ray.get(service.orchestrator.submit_many.remote([CHAIN3] * 50, [INPUT] * 50))
                ray.get(service.orchestrator.results.remote(run_ids, timeout_s=60))
                yield service
                client.close()
            finally:
                stop_actors(settings, 10.0)
                ray.shutdown()
        finally:
            server.stop()
