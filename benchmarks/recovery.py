"""Recovery: 10,000 active Runs, kill -9 of the orchestrator that owns them all, the time until all is well.

Active Runs here are one step each, most of them waiting for a slot and as many running as the pool has slots.
A Run is well when its new owner has it in memory and its step runs (adopted from the living replica) or
waits for a slot again. The clock starts with the kill.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.handles import find_actor, orchestrator_name
from benchmarks.local_service import LocalService, local_service
from benchmarks.report import Bar, Figure, Sense
from benchmarks.work import Effort, MeasurementFailed, sleep_plan
from cluster.store.keys import PartitionKeys

__all__ = ["FIGURES", "measure"]

FIGURES = ("recovery.takeover",)

_NUM_RUNS = 10_000
_SETTLED_S = 120.0
_LIMIT_S = 60.0
_POLL_S = 0.02
_ANSWER_S = 0.5


class _Takeover(NamedTuple):
    """Seconds since the kill.

    Attributes:
        claims_s: When each of its partitions had a new owner, in order.
        good_s: When all was well.
    """

    claims_s: tuple[float, ...]
    good_s: float


def measure(effort: Effort, wanted: Callable[[str], bool]) -> Iterator[Figure]:
    """Kill and measure, with a fresh service each time.

    Args:
        effort: How much.
        wanted: Says of a name of FIGURES whether to measure it.
    """
    if not wanted(FIGURES[0]):
        return
    count = effort.count(_NUM_RUNS)
    takeovers = []
    for _ in range(min(effort.rounds, 3)):
        with local_service() as service:
            takeovers.append(_Kill(service, count).measure())
    yield Figure(
        "recovery.takeover",
        f"{count:,} active Runs after kill -9 of their orchestrator: last one adopted or queued again",
        "s",
        tuple(each.good_s for each in takeovers),
        Bar(Sense.BELOW, 10.0),
        (),
        (
            "all of them belonged to the killed one of two orchestrators; the replica lives on; "
            "each round has a fresh service",
        ),
    )
    yield Figure(
        "recovery.ownership",
        "of which lease and restart: until the last partition had a new owner",
        "s",
        tuple(each.claims_s[-1] for each in takeovers),
        Bar(Sense.AT_MOST, 5.0),
        (),
        (
            "an upper limit: a new owner loads one partition before it claims the next",
            *(
                "partitions were claimed after "
                + ", ".join(f"{claim_s:.2f}" for claim_s in each.claims_s)
                + " s"
                for each in takeovers
            ),
        ),
    )


class _Kill:
    """One orchestrator with many Runs, and its end."""

    def __init__(self, service: LocalService, count: int) -> None:
        self._service = service
        self._count = count
        self._owners = [PartitionKeys(p).owner for p in range(service.settings.num_partitions)]
        self._orchestrators = range(service.settings.num_orchestrators)

    def measure(self) -> _Takeover:
        """Submit to one orchestrator, wait until all is in memory, kill it, wait until all is again."""
        self._await_all_owned()
        victim = self._service.orchestrator
        inputs: list[Any] = [None] * self._count
        plan = sleep_plan(3600.0)
        ray.get(victim.submit_many.remote([plan] * self._count, inputs))
        num_held = self._await_good(time.monotonic() + _SETTLED_S, at_least_held=1)
        status = ray.get(victim.status.remote())
        mine = [number for number, owner in enumerate(self._owner_ids()) if owner == status["id"]]
        if status["runs"] != self._count:
            raise MeasurementFailed(f"the orchestrator owns {status['runs']} of {self._count} Runs")
        os.kill(status["pid"], signal.SIGKILL)
        killed_at = time.monotonic()
        claimed_at = self._await_new_owners(mine, status["id"], killed_at + _LIMIT_S)
        self._await_good(killed_at + _LIMIT_S, at_least_held=num_held)
        return _Takeover(tuple(at - killed_at for at in claimed_at), time.monotonic() - killed_at)

    def _await_all_owned(self) -> None:
        """Let the partitions be shared before Runs are made: each orchestrator has as many as the other."""
        deadline = time.monotonic() + _SETTLED_S
        total = len(self._owners)
        while time.monotonic() < deadline:
            counts = [len(status["partitions"]) for status in self._statuses()]
            if sum(counts) == total and max(counts) - min(counts) <= 1:
                return
            time.sleep(_POLL_S)
        raise MeasurementFailed("the partitions were not shared")

    def _owner_ids(self) -> list[str]:
        pipe = self._service.redis.pipeline(transaction=False)
        for key in self._owners:
            pipe.hget(key, "owner")
        return [(owner or b"").decode() for owner in pipe.execute()]

    def _await_new_owners(self, partitions: list[int], dead_id: str, deadline: float) -> list[float]:
        """Return when each was claimed, in order (monotonic seconds)."""
        claimed_at: dict[int, float] = {}
        while time.monotonic() < deadline:
            owners = self._owner_ids()
            for number in partitions:
                if owners[number] != dead_id:
                    claimed_at.setdefault(number, time.monotonic())
            if len(claimed_at) == len(partitions):
                return sorted(claimed_at.values())
            time.sleep(_POLL_S / 4)
        raise MeasurementFailed("the partitions of the killed orchestrator found no owner")

    def _await_good(self, deadline: float, at_least_held: int) -> int:
        """Wait until every Run is in memory and its step runs or waits; return how many run."""
        told: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            told = self._statuses()
            runs = sum(status["runs"] for status in told)
            held = sum(sum(status["held"].values()) for status in told)
            waiting = sum(sum(status["waiting"].values()) for status in told)
            if runs == self._count and held + waiting >= self._count and held >= at_least_held:
                return held
            time.sleep(_POLL_S)
        raise MeasurementFailed(f"not all Runs came back: {told}")

    def _statuses(self) -> list[dict[str, Any]]:
        """Ask all orchestrators; one that does not answer soon is left out."""
        actors = [actor for n in self._orchestrators if (actor := find_actor(orchestrator_name(n)))]
        found = []
        for reference in [actor.status.remote() for actor in actors]:
            try:
                found.append(ray.get(reference, timeout=_ANSWER_S))
            except (RayError, GetTimeoutError):
                continue
        return found
