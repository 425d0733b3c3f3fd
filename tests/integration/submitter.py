"""A Python driver that goes on submitting while the service's parts die."""

from __future__ import annotations

import threading
import time

import ray
from ray.exceptions import RayError

from cluster.errors import TuttiError
from cluster.model.plan import Submission
from tests.integration.running_service import RunningService

__all__ = ["Submitter"]


class Submitter:
    """Submits in small batches, as fast as it is answered, and notes what was accepted."""

    def __init__(self, service: RunningService, load: list[Submission]) -> None:
        self.accepted: list[Submission] = []
        self.num_refused = 0
        self._service, self._load = service, load
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Submitter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        for start in range(0, len(self._load), 20):
            batch = self._load[start : start + 20]
            deadline = time.monotonic() + 40
            while time.monotonic() < deadline:
                try:
                    ray.get(self._service.orchestrator().submit_many.remote(batch), timeout=20)
                except (RayError, TuttiError):
                    self.num_refused += 1
                    continue
                self.accepted += batch
                break
