"""The only `.remote` calls: every conversation with another actor, as a typed function.

Ray's exceptions end here: a replica is either gone for good or unreachable for the moment.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, TaskCancelledError

from actors.messages import AttemptKey
from actors.pool_table import Needs, PoolTable

__all__ = [
    "NAMESPACE",
    "SCHEDULER",
    "ReplicaGone",
    "ReplicaUnreachable",
    "SchedulerAway",
    "adopt_from",
    "attend_scheduler",
    "check_alive",
    "exchange_with",
    "find_actor",
    "list_actors",
    "orchestrator_name",
    "own_node_id",
    "replace_replica",
    "report_demand",
    "set_concurrency",
    "start_replica_check",
]

NAMESPACE = "tutti"
SCHEDULER = "tutti:scheduler"


def orchestrator_name(number: int) -> str:
    """Name of the n-th orchestrator actor, from 0."""
    return f"tutti:orchestrator:{number}"


class ReplicaGone(Exception):
    """The replica's process is dead; all it held is lost.

    Attributes:
        on_purpose: It was ended by us, through Ray; what it held is not to blame.
    """

    def __init__(self, reason: str, on_purpose: bool = False) -> None:
        super().__init__(reason)
        self.on_purpose = on_purpose


class ReplicaUnreachable(Exception):
    """The call did not come through; the replica may live."""


class SchedulerAway(Exception):
    """The scheduler is restarting."""


def find_actor(name: str) -> Any:
    """Return a named actor's handle, or None."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def list_actors(prefix: str) -> list[str]:
    """Return the names of living actors of ours that begin with `prefix`, without it."""
    living = ray.util.list_named_actors(all_namespaces=True)
    named = [each["name"] for each in living if each["namespace"] == NAMESPACE]
    return [name.removeprefix(prefix) for name in named if name.startswith(prefix)]


async def exchange_with(handle: Any, message: bytes) -> bytes:
    """Exchange messages with a replica.

    Raises:
        ReplicaGone, ReplicaUnreachable: See there.
    """
    try:
        answer: bytes = await handle.exchange.remote(message)
    except ActorUnavailableError as error:
        raise ReplicaUnreachable(str(error)) from error
    except ActorDiedError as error:
        raise _gone(error) from error
    except (RayError, TaskCancelledError) as error:
        raise ReplicaUnreachable(str(error)) from error
    return answer


async def check_alive(handle: Any) -> None:
    """Return if a replica answers; raises as `exchange_with`."""
    try:
        await handle.ready.remote()
    except ActorUnavailableError as error:
        raise ReplicaUnreachable(str(error)) from error
    except ActorDiedError as error:
        raise _gone(error) from error
    except RayError as error:
        raise ReplicaUnreachable(str(error)) from error


def own_node_id() -> str:
    """Ray's id of the node this process lives on."""
    return str(ray.get_runtime_context().get_node_id())


async def adopt_from(handle: Any, caller: str, seen: int, keys: list[AttemptKey]) -> list[AttemptKey]:
    """Ask a replica for attempts; raises as `exchange_with`."""
    try:
        held: list[AttemptKey] = await handle.adopt.remote(caller, seen, keys)
    except ActorDiedError as error:
        raise _gone(error) from error
    except RayError as error:
        raise ReplicaUnreachable(str(error)) from error
    return held


async def start_replica_check(handle: Any) -> dict[str, Any]:
    """Wait until a replica has loaded its agents.

    Raises:
        ReplicaGone: It could not; the text says why.
    """
    try:
        answer: dict[str, Any] = await handle.ready.remote()
    except RayError as error:
        raise _gone(error) from error
    return answer


async def attend_scheduler(handle: Any, orchestrator_id: str, version: int, needs: Needs) -> PoolTable:
    """Wait for a newer table, at most a second.

    Raises:
        SchedulerAway: It is restarting.
    """
    try:
        table: PoolTable = await handle.attend.remote(orchestrator_id, version, needs)
    except RayError as error:
        raise SchedulerAway(str(error)) from error
    return table


def report_demand(handle: Any, orchestrator_id: str, needs: Needs) -> None:
    """Tell the scheduler what waits, without waiting for it."""
    handle.note_demand.remote(orchestrator_id, needs)


def replace_replica(handle: Any, replica_id: str, reason: str) -> None:
    """Ask the scheduler to kill a replica, without waiting for it."""
    handle.replace.remote(replica_id, reason)


def set_concurrency(handle: Any, concurrency: int) -> None:
    """Tell a replica how many attempts at a time it may have, without waiting for it."""
    handle.set_concurrency.remote(concurrency)


def _gone(error: RayError) -> ReplicaGone:
    # Ray keeps the cause of an actor's death as text only.
    text = str(error)
    return ReplicaGone(_first_line(error), on_purpose="ray.kill" in text or "placement group" in text)


def _first_line(error: BaseException) -> str:
    """The line of a Ray error that says why; the rest is decoration."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if "death cause" in line.lower() or "cause:" in line.lower() or line.endswith("Error"):
            return line[:300]
    told = [
        line
        for line in lines
        if not line.startswith(("class_name", "actor_id", "pid", "namespace", "ip", "name"))
    ]
    return (told[-1] if told else "the replica died")[:300]
