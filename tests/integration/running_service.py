"""The service without its edge, as the tests drive it: a real Redis, a real Ray, the real actors.

Reads go to Redis directly, so that a test sees what is durable and not what an actor believes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import ray
import redis
from ray.exceptions import RayError

from actors import connect, handles
from actors.start import start_actors, stop_actors
from cluster import placement_groups
from cluster.errors import TuttiError
from cluster.model.plan import Json, Plan, Submission
from cluster.scheduling.reasons import StepWait
from cluster.settings import Settings
from cluster.store import keys
from cluster.store.run_store import RunStore
from serve_app.launch.redis_server import EmbeddedRedis
from tests.integration.leaks import unfinished_business
from tests.integration.stored_runs import StoredRuns
from tests.key_leaks import leaked_keys

__all__ = ["RunningService", "eventually"]

T = TypeVar("T")
_POLL_S = 0.05
_AWAY = (RayError, TuttiError, redis.RedisError)


def eventually(found: Callable[[], T], what: str, within_s: float = 30.0) -> T:
    """Ask until the answer is true, and return it; what is away for the moment counts as no answer."""
    deadline = time.monotonic() + within_s
    answer: Any = None
    while True:
        try:
            answer = found()
        except _AWAY as error:
            answer = None
            away: BaseException | None = error
        else:
            away = None
        if answer:
            return answer  # type: ignore[no-any-return]
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what} (last answer: {away or answer!r})")
        time.sleep(_POLL_S)


def _name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


class RunningService(StoredRuns):
    """Redis and actors of one test module."""

    def __init__(self, folder: Path, **overrides: Any) -> None:
        overrides = {"durability": "strict", **overrides}
        self.redis_server = EmbeddedRedis(folder / "data", overrides["durability"])
        url = self.redis_server.start()
        self.settings = Settings.from_environment({}, redis_url=url, data_dir=folder / "data", **overrides)
        super().__init__(redis.Redis.from_url(url), self.settings.num_partitions)
        try:
            start_actors(self.settings)
            share = self.settings.num_partitions // self.settings.num_orchestrators
            eventually(
                lambda: all(len(status["partitions"]) == share for status in self.statuses()),
                "the partitions are shared evenly",
            )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything; no actor and no placement group of ours may be left."""
        if not self.redis_server.is_running:
            self.redis_server.restart_if_dead()
        stop_actors(self.settings, 20.0)
        self.redis.close()
        self.redis_server.stop()

    # -- actors

    def orchestrator(self, number: int | None = None) -> Any:
        return connect(number=number)

    def orchestrator_status(self, number: int, within_s: float = 10.0) -> dict[str, Any]:
        status: dict[str, Any] = ray.get(
            handles.find_actor(handles.orchestrator_name(number)).status.remote(), timeout=within_s
        )
        return status

    def statuses(self) -> list[dict[str, Any]]:
        return [self.orchestrator_status(number) for number in range(self.settings.num_orchestrators)]

    def scheduler_status(self, within_s: float = 10.0) -> dict[str, Any]:
        status: dict[str, Any] = ray.get(
            handles.find_actor(handles.SCHEDULER).status.remote(), timeout=within_s
        )
        return status

    def replicas(self, pool: str) -> list[str]:
        return [name for name, each in self.scheduler_status()["replicas"].items() if each["pool"] == pool]

    def replica_pid(self, pool: str) -> int:
        """Process id of a replica of the pool, once there is one."""

        def look() -> int:
            for name in self.replicas(pool):
                return int(
                    ray.get(handles.find_actor(handles.SCHEDULER).replica_pid.remote(name), timeout=10)
                )
            return 0

        return eventually(look, f"a replica of pool {pool}")

    def actor_pid(self, kind: str) -> int:
        """Process id of the one actor process of this kind below us (`ray::Scheduler`), once there is one."""

        def look() -> int:
            children = psutil.Process().children(recursive=True)
            found = [child.pid for child in children if _name_of(child).startswith(f"ray::{kind}")]
            return found[0] if len(found) == 1 else 0

        return eventually(look, f"one process of the actor {kind}")

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    # -- Runs

    def command(self, run_ids: str | Sequence[str], kind: str, **options: Any) -> None:
        """Send a command to one Run or to many as the edge does, and wait for the verdicts."""
        ids = [run_ids] if isinstance(run_ids, str) else run_ids

        async def send() -> None:
            store = RunStore.connect(self.settings)
            try:
                await asyncio.gather(*(store.command(run_id, None, kind, **options) for run_id in ids))
            finally:
                await store.close()

        asyncio.run(send())

    def why(self, run_id: str) -> list[StepWait]:
        """Ask as the edge does why Steps of a Run wait."""

        async def ask() -> list[StepWait]:
            store = RunStore.connect(self.settings)
            try:
                return await store.why(run_id, None)
            finally:
                await store.close()

        return asyncio.run(ask())

    def submit(self, plan: Plan, inputs: Json = None, **options: Any) -> str:
        run_id: str = ray.get(self.orchestrator().submit.remote(plan, inputs, **options), timeout=20)
        return run_id

    def submit_all(self, submissions: Sequence[Submission]) -> list[str]:
        """Submit in batches to whichever orchestrator answers; a batch may be given twice, an id never."""
        accepted: list[str] = []
        for start in range(0, len(submissions), 100):
            batch = submissions[start : start + 100]
            accepted += eventually(
                lambda batch=batch: ray.get(  # type: ignore[misc]
                    self.orchestrator().submit_many.remote(list(batch)), timeout=20
                ),
                "a batch accepted",
            )
        return accepted

    def circumstances(self) -> str:
        return f"{self.statuses()}\n{self.scheduler_status()}"

    def await_status(self, run_id: str, status: str, within_s: float = 20.0) -> None:
        eventually(lambda: self.record(run_id).status == status, f"{run_id} is {status}", within_s)

    def await_running(self, run_id: str, step: str = "", within_s: float = 30.0) -> None:
        """Wait until a step (any, where none is named) has been handed to a replica."""
        eventually(
            lambda: any(
                event.type == "step.started" and event.step == (step or event.step)
                for event in self.events([run_id])[run_id]
            ),
            f"{run_id} has a running step",
            within_s,
        )

    # -- what must hold

    def await_nothing_left(self, within_s: float = 20.0) -> None:
        """Wait until no Run, attempt, timer, message or needless placement group is left, or say what is."""
        problems: list[str] = ["never looked"]
        deadline = time.monotonic() + within_s
        while problems and time.monotonic() < deadline:
            try:
                problems = self._left_over()
            except _AWAY as error:
                problems = [repr(error)]
            if problems:
                time.sleep(_POLL_S)
        assert not problems, problems

    def _left_over(self) -> list[str]:
        problems = [f"key without TTL: {name}" for name in leaked_keys(self.settings.redis_url)]
        problems += [
            f"{name} holds {count}"
            for name, count in unfinished_business(self.redis, self.settings.num_partitions).items()
        ]
        owned: list[int] = []
        for status in self.statuses():
            owned += status["partitions"]
            held = {name: count for name, count in status["held"].items() if count}
            busy = {name: status[name] for name in ("runs", "parked", "waiting", "timers") if status[name]}
            if held or busy:
                problems.append(f"orchestrator {status['id']}: {busy} held {held}")
        if sorted(owned) != list(range(self.settings.num_partitions)):
            problems.append(f"partitions owned: {sorted(owned)}")
        scheduler = self.scheduler_status()
        if any(pool["starting"] for pool in scheduler["pools"].values()):
            problems.append("a replica is starting")
        groups, owned_groups = set(placement_groups.list_groups()), set(scheduler["groups"])
        if groups != owned_groups:
            problems.append(f"placement groups {groups}, owned {owned_groups}")
        if not owned_groups >= set(scheduler["replicas"]):
            problems.append(f"groups {owned_groups}, replicas {list(scheduler['replicas'])}")
        ledger = {name.decode() for name in self.redis.hkeys(keys.LEDGER)}
        if ledger != groups:
            problems.append(f"ledger {ledger}, placement groups {groups}")
        return problems
