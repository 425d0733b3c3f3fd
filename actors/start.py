"""Start and stop the actors of the service in the Ray cluster that this process is attached to."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors import handles
from actors.orchestrator import Orchestrator
from actors.scheduler import Scheduler
from cluster.errors import LaunchFailed
from cluster.failure_lines import first_line

if TYPE_CHECKING:
    from cluster.settings import Settings

__all__ = ["start_actors", "stop_actors"]

_START_S = 60.0


def start_actors(settings: Settings) -> None:
    """Create the scheduler and the orchestrators as named, detached actors, or find them.

    Ray restarts each of them when its process dies; what they know they read back from Redis.

    Raises:
        LaunchFailed: They did not come up in a minute.
    """
    scheduler = (
        ray.remote(Scheduler)
        .options(
            name=handles.SCHEDULER,
            namespace=handles.NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_concurrency=10_000,
            num_cpus=0,
        )
        .remote(settings)
    )
    orchestrators = [
        ray.remote(Orchestrator)
        .options(
            name=handles.orchestrator_name(number),
            namespace=handles.NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_concurrency=100_000,
            num_cpus=0,
        )
        .remote(number, settings)
        for number in range(settings.num_orchestrators)
    ]
    try:
        ray.get([actor.start.remote() for actor in (scheduler, *orchestrators)], timeout=_START_S)
    except (RayError, GetTimeoutError) as error:
        raise LaunchFailed(f"the actors did not start: {first_line(error)}") from error


def stop_actors(settings: Settings, grace_s: float) -> None:
    """Drain the orchestrators, then the scheduler, then end them all; at most `grace_s` seconds."""
    deadline = time.monotonic() + grace_s
    named = [handles.orchestrator_name(number) for number in range(settings.num_orchestrators)]
    orchestrators = [actor for name in named if (actor := handles.find_actor(name)) is not None]
    scheduler = handles.find_actor(handles.SCHEDULER)
    _drain(orchestrators, deadline)
    _drain([scheduler] if scheduler is not None else [], deadline)
    for actor in (*orchestrators, *([scheduler] if scheduler is not None else [])):
        ray.kill(actor)


def _drain(actors: list[Any], deadline: float) -> None:
    with suppress(RayError, GetTimeoutError):
        ray.get([actor.drain.remote() for actor in actors], timeout=max(deadline - time.monotonic(), 0.1))
