"""Lets every worker process of the service's Ray job log as the settings say, restarted ones too.

Ray hands a job's logging configuration to each process it starts for the job, before any actor is made there.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

import ray

from cluster.logs import configure_logs

__all__ = ["WorkerLogs"]


@dataclass
class WorkerLogs(ray.LoggingConfig):  # type: ignore[misc]
    """Given to `ray.init`. The driver itself stays as it is: its stderr is the operator's terminal.

    Attributes:
        level: debug, info, warning or error.
        driver: Host and pid of the process that made it.
    """

    level: str = "info"
    driver: tuple[str, int] = ("", 0)

    @classmethod
    def of(cls, level: str) -> WorkerLogs:
        """Make the configuration for the job of this process."""
        return cls(log_level=level.upper(), level=level, driver=(socket.gethostname(), os.getpid()))

    def _apply(self) -> None:
        """Called by Ray in each process of the job."""
        if self.driver != (socket.gethostname(), os.getpid()):
            configure_logs(self.level)
