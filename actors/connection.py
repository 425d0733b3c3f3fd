"""The way in for Python drivers: a handle to an orchestrator, any of which takes any Run.

import ray
from actors import connect

orchestrator = connect("10.0.0.7:6379")  # what `tutti up` printed; on its machine connect() finds it
run_id = ray.get(orchestrator.submit.remote(plan))
output = ray.get(orchestrator.result.remote(run_id, timeout_s=30))
"""

from __future__ import annotations

import random
from typing import Any

import ray

from actors.handles import NAMESPACE, find_actor, orchestrator_name
from actors.ray_cluster import attach, check_attached
from cluster.errors import Unavailable

__all__ = ["connect"]

_MAX_ORCHESTRATORS = 64


def connect(address: str | None = None, number: int | None = None) -> Any:
    """Return the handle of an orchestrator actor.

    Args:
        address: The Ray cluster to attach to, `host:port` as `tutti up` prints it; None takes the one this
            process is attached to, or finds one as `ray.init` does.
        number: Which orchestrator; None takes one at random.

    Raises:
        Unavailable: Nobody answers there, Ray's token is not taken, no Tutti runs there, or this process is
            attached to another cluster.
    """
    if not ray.is_initialized():
        attach(address, namespace=NAMESPACE)
    elif address not in (None, "auto"):
        check_attached(str(address))
    numbers = [number] if number is not None else list(range(_MAX_ORCHESTRATORS))
    found = []
    for each in numbers:
        actor = find_actor(orchestrator_name(each))
        if actor is None:
            break
        found.append(actor)
    if not found:
        raise Unavailable("no orchestrator found in this Ray cluster: is Tutti running there?")
    return random.choice(found)
