"""Figures of order: what a decision adds to a lone step, and how soon an urgent step gets a free slot."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import ray

from actors.dispatcher import Dispatcher
from actors.messages import AttemptKey
from actors.pool_line import Ready
from actors.pool_table import KeyLimit, PoolEntry, PoolTable, ReplicaEntry
from actors.replica_link import ReplicaLink
from benchmarks.local_service import LocalService, local_service
from benchmarks.report import Bar, Baseline, Figure, Sense
from benchmarks.work import NOOP, Effort, MeasurementFailed, percentile
from cluster.engine import Run, advance
from cluster.model import events as ev
from cluster.model.compiled import compile_plan
from cluster.model.plan import Plan, Step, Submission
from cluster.scheduling.pools import PoolSpec
from cluster.store.run_codec import created_run

__all__ = ["FIGURES", "measure"]

FIGURES = ("order.decision", "order.urgent")

_NUM_LONE = 5000
_NUM_WAITING = 10_000
_NUM_URGENT = 20
_NUM_POOLS = 20
_NUM_REPLICAS = 8
_SETTLED_S = 120.0
_TIMEOUT_S = 60.0
_POLL_S = 0.01
_URGENT, _NEXT_HOLDER = 90, 80
_AGENT = "benchmarks.stamped:Stamped"
_CROWDED, _SPARE = "crowded", "spare"


def measure(effort: Effort, wanted: Callable[[str], bool]) -> Iterator[Figure]:
    """Measure what is wanted.

    Args:
        effort: How much.
        wanted: Says of a name of FIGURES whether to measure it.
    """
    if wanted("order.decision"):
        yield _decision(effort)
    if wanted("order.urgent"):
        yield from _urgent(effort)


# -- what a decision adds


def _decision(effort: Effort) -> Figure:
    count = effort.count(_NUM_LONE)
    p50s: dict[bool, list[float]] = {True: [], False: []}
    p95_ms = 0.0
    _decide_ms(count // 10, is_limited=True)
    for number in range(effort.rounds):
        for is_limited in (True, False) if number % 2 == 0 else (False, True):
            took_ms = _decide_ms(count, is_limited)
            p50s[is_limited].append(percentile(took_ms, 50))
            if is_limited:
                p95_ms = max(p95_ms, percentile(took_ms, 95))
    return Figure(
        "order.decision",
        "a lone step on a warm pool: what the decision adds, p50",
        "ms",
        tuple(p50s[True]),
        Bar(Sense.BELOW, 0.3),
        (Baseline("one pool, one replica, no limits", tuple(p50s[False])),),
        (
            f"{count:,} steps of a Run through the orchestrator's dispatcher: route, keys, queue, replica; "
            f"{_NUM_POOLS} pools, {_NUM_REPLICAS} replicas, limits of tenant, capability and pattern; "
            f"worst p95 {p95_ms:.3f} ms",
        ),
    )


def _decide_ms(count: int, is_limited: bool) -> list[float]:
    """Let a lone step ask for a slot so many times, each after the one before has ended."""
    return asyncio.run(_Decisions(is_limited).measure(count))


class _Decisions:
    """A dispatcher whose replicas are never called: what is measured ends where the commit begins."""

    def __init__(self, is_limited: bool) -> None:
        self._is_limited = is_limited
        self._attempt = 0
        self._began: tuple[AttemptKey, ReplicaLink] | None = None

    async def measure(self, count: int) -> list[float]:
        mean_s = {"noop": 0.01}
        dispatcher = Dispatcher("bench", self, self._assign, _refuse, lambda: None, mean_s)
        dispatcher.update(_table(self._is_limited))
        run = _lone_run()
        took_ms = []
        for _ in range(count):
            began = time.perf_counter()
            dispatcher.queue(run, (0, -1), 0)
            took_ms.append((time.perf_counter() - began) * 1000)
            if self._began is None:
                raise MeasurementFailed("a lone step was not given a slot")
            key, link = self._began
            self._began = None
            link.give_up([key])
            dispatcher.release([key])
        dispatcher.close()
        return took_ms

    def _assign(self, ready: Ready, link: ReplicaLink) -> AttemptKey:
        self._attempt += 1
        key = (ready.run_id, ready.step, ready.item, self._attempt)
        link.reserve(key)
        self._began = (key, link)
        return key

    def on_reports(self, link: ReplicaLink, reports: list[Any]) -> None:
        """Nothing is called, so that nothing is reported."""

    def on_replica_lost(self, link: ReplicaLink, reason: str) -> None:
        """Nothing is called, so that nothing is lost."""

    def on_replica_stuck(self, link: ReplicaLink, reason: str) -> None:
        """Nothing is called, so that nothing is stuck."""


def _refuse(ready: Ready, reason: str) -> None:
    raise MeasurementFailed(f"a lone step was refused: {reason}")


def _lone_run() -> Run:
    submission = Submission(run_id="lone", plan=NOOP, inputs={})
    run, _ = created_run(submission, compile_plan(NOOP), time.time())
    advance(run, ev.RunAdopted(), time.time(), 300.0)
    return run


def _table(is_limited: bool) -> PoolTable:
    num_pools, num_replicas = (_NUM_POOLS, _NUM_REPLICAS) if is_limited else (1, 1)
    pools = [
        PoolEntry(
            f"pool-{number}",
            (f"other-{number}",) if number else ("noop",),
            3,
            5.0,
            256,
            256,
            "",
            PoolSpec(name=f"pool-{number}", agents=("actors.agents.basic:Noop",), concurrency=256),
        )
        for number in range(num_pools)
    ]
    replicas = [ReplicaEntry(f"agent-{number}", "pool-0", None, 256) for number in range(num_replicas)]
    limits = (
        KeyLimit("tenant:default", 1000, 1e6, 1.0, 1e6),
        KeyLimit("capability:noop", 1000),
        KeyLimit("user-*", 4),
    )
    return PoolTable(1, tuple(pools), tuple(replicas), limits if is_limited else ())


# -- an urgent step behind many


def _urgent(effort: Effort) -> Iterator[Figure]:
    pools = [
        {"name": name, "agents": [_AGENT], "capabilities": [name], "concurrency": 1, "num_cpus": 0.1}
        for name in (_CROWDED, _SPARE)
    ]
    with tempfile.TemporaryDirectory(prefix="tb") as folder:
        file = Path(folder) / "pools.yaml"
        file.write_bytes(orjson.dumps({"pools": pools}))  # JSON is YAML
        with local_service(pools_file=file) as service:
            crowded = _Narrow(service, _CROWDED, Path(folder))
            spare = _Narrow(service, _SPARE, Path(folder))
            num_waiting = effort.count(_NUM_WAITING)
            crowded.fill(num_waiting)
            count = effort.count(_NUM_URGENT)
            p50s: dict[str, list[float]] = {_CROWDED: [], _SPARE: []}
            worst_ms = 0.0
            for number in range(effort.rounds):
                for pool in (crowded, spare) if number % 2 == 0 else (spare, crowded):
                    took_ms = [pool.sample_ms() for _ in range(count)]
                    p50s[pool.name].append(percentile(took_ms, 50))
                    if pool is crowded:
                        worst_ms = max(worst_ms, *took_ms)
            crowded.end()
            spare.end()
    yield Figure(
        "order.urgent",
        f"urgent step behind {num_waiting:,} that wait: from a slot's end to its begin, p50",
        "ms",
        tuple(p50s[_CROWDED]),
        Bar(Sense.BELOW, 50.0),
        (Baseline("nothing else waits", tuple(p50s[_SPARE])),),
        (
            f"{count} in each round, in a pool of one slot; both instants are the agent's own, so that the "
            f"report, the durable commit of both and the call lie between; worst {worst_ms:.1f} ms",
        ),
    )


class _Narrow:
    """A pool of one slot, held by an attempt that ends when it is told to."""

    def __init__(self, service: LocalService, name: str, folder: Path) -> None:
        self.name = name
        self._orchestrator = service.orchestrator
        self._plan = Plan(name=name, steps=(Step(name="a", capability=name, inputs={"$ref": "inputs"}),))
        self._folder = folder
        self._number = self._num_ordinary = 0
        self._holder = self._hold()
        self._await("held", 1)

    def _hold(self) -> str:
        self._number += 1
        inputs = {"gate": str(self._gate(self._number))}
        run_id: str = ray.get(self._orchestrator.submit.remote(self._plan, inputs, priority=_NEXT_HOLDER))
        return run_id

    def _gate(self, number: int) -> Path:
        return self._folder / f"{self.name}-{number}"

    def fill(self, count: int) -> None:
        """Let so many ordinary Runs wait."""
        ray.get(self._orchestrator.submit_many.remote([self._plan] * count, [{}] * count))
        self._num_ordinary = count
        self._await("waiting", count)

    def _await(self, what: str, count: int) -> None:
        deadline = time.monotonic() + _SETTLED_S
        while time.monotonic() < deadline:
            status = ray.get(self._orchestrator.status.remote())
            held = sum(num for replica, num in status["held"].items() if self.name in replica)
            if (held if what == "held" else status["waiting"].get(self.name, 0)) == count:
                return
            time.sleep(_POLL_S)
        raise MeasurementFailed(f"{self.name}: not {count} {what}: {status}")

    def sample_ms(self) -> float:
        """Let an urgent Run wait behind all others, and the slot become free."""
        urgent = ray.get(self._orchestrator.submit.remote(self._plan, {}, priority=_URGENT))
        holder, gate = self._holder, self._gate(self._number)
        self._holder = self._hold()
        self._await("waiting", self._num_ordinary + 2)
        gate.touch()
        ended = ray.get(self._orchestrator.result.remote(holder, timeout_s=_TIMEOUT_S))
        began = ray.get(self._orchestrator.result.remote(urgent, timeout_s=_TIMEOUT_S))
        self._await("waiting", self._num_ordinary)
        took_ms: float = (began["began_at"] - ended["ended_at"]) * 1000
        if took_ms < 0:
            raise MeasurementFailed("an urgent step began before the slot was free")
        return took_ms

    def end(self) -> None:
        """Let the last holder end."""
        self._gate(self._number).touch()
