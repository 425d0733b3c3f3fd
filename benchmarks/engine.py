"""Figures of a Python driver: durable throughput and latency beside plain Ray, strict beside everysec."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ray

from benchmarks.conditions import CpuMeter
from benchmarks.local_service import LocalService, local_service
from benchmarks.plain_ray import WAYS, PlainRay
from benchmarks.report import Bar, Baseline, Figure, Sense
from benchmarks.work import CHAIN3, FAN16, INPUT, Effort, MeasurementFailed, fan_out, percentile, seconds_of
from cluster.model.plan import Plan

__all__ = ["FIGURES", "measure"]

_NUM_CHAINS = 3000
_NUM_PLAIN_CHAINS = 1000
_NUM_FANS = 200
_NUM_PLAIN_FANS = 100
_NUM_LONE = 200
_WIDE = 2000
_TIMEOUT_S = 300.0

FIGURES = ("engine.chain3", "engine.durability", "engine.fan16", "engine.fan2000", "engine.lone")


class _Bench:
    """Measures in one running service, with the baselines beside it."""

    def __init__(self, service: LocalService, plain: PlainRay, effort: Effort) -> None:
        self._service, self._plain, self._effort = service, plain, effort
        self._orchestrator = service.orchestrator

    def _rounds(self, measures: dict[str, Callable[[], float]]) -> dict[str, tuple[float, ...]]:
        """Measure each once a round, in turn; every other round backwards, so that no one is always first."""
        found: dict[str, list[float]] = {name: [] for name in measures}
        for number in range(self._effort.rounds):
            names = list(measures) if number % 2 == 0 else list(reversed(measures))
            for name in names:
                found[name].append(measures[name]())
        return {name: tuple(values) for name, values in found.items()}

    def _runs_per_s(self, plan: Plan, count: int, durability: str = "strict") -> float:
        """Submit all in one call and fetch all results in another; every output is checked."""
        self._service.set_durability(durability)
        outputs: list[Any] = []

        def work() -> None:
            run_ids = ray.get(self._orchestrator.submit_many.remote([plan] * count, [INPUT] * count))
            outputs.extend(ray.get(self._orchestrator.results.remote(run_ids, timeout_s=_TIMEOUT_S)))

        took_s = seconds_of(work)
        self._service.set_durability("strict")
        wanted = INPUT if plan is CHAIN3 else {f"k{number}": INPUT["name"] for number in range(16)}
        if outputs != [wanted] * count:
            raise MeasurementFailed(f"{plan.name}: a Run gave a wrong output")
        return count / took_s

    def chain3(self) -> Iterator[Figure]:
        """Throughput of chain3, strict and everysec, beside plain Ray."""
        count, plain_count = self._effort.count(_NUM_CHAINS), self._effort.count(_NUM_PLAIN_CHAINS)
        meter = CpuMeter(self._service.pids())
        self._runs_per_s(CHAIN3, count)
        cpu = meter.told()
        found = self._rounds(
            {
                "strict": lambda: self._runs_per_s(CHAIN3, count),
                "everysec": lambda: self._runs_per_s(CHAIN3, count, "everysec"),
                **{way: partial(self._plain.chain3_per_s, way, plain_count) for way in WAYS},
            }
        )
        plain = tuple(Baseline(f"plain Ray, {way}", found[way]) for way in WAYS)
        told = f"{count} Runs through one submit_many and one results; plain Ray: {plain_count} at once"
        yield Figure(
            "engine.chain3",
            "chain3, strict",
            "Runs/s",
            found["strict"],
            Bar(Sense.AT_LEAST, 4.0, is_ratio=True),
            plain,
            (told, f"share of a core while it runs: {cpu}"),
        )
        yield Figure("engine.chain3_everysec", "chain3, everysec", "Runs/s", found["everysec"], None, plain)
        yield Figure(
            "engine.durability",
            "chain3, strict against everysec",
            "Runs/s",
            found["strict"],
            Bar(Sense.AT_LEAST, 0.7, is_ratio=True),
            (Baseline("everysec", found["everysec"]),),
            ("the server's appendfsync is switched between the measurements of a round",),
        )

    def fans(self) -> Iterator[Figure]:
        """Throughput of fan16 beside plain Ray, and one wide fan-out beside fan16."""
        count, plain_count = self._effort.count(_NUM_FANS), self._effort.count(_NUM_PLAIN_FANS)
        wide = fan_out(_WIDE, hand_on=False)
        self._runs_per_s(FAN16, count)
        found = self._rounds(
            {
                "fan16": lambda: self._runs_per_s(FAN16, count),
                "fan2000": lambda: self._wide_step_ms(wide),
                **{way: partial(self._plain.fan16_per_s, way, plain_count) for way in WAYS},
            }
        )
        yield Figure(
            "engine.fan16",
            "fan16, strict",
            "Runs/s",
            found["fan16"],
            Bar(Sense.AT_LEAST, 3.0, is_ratio=True),
            tuple(Baseline(f"plain Ray, {way}", found[way]) for way in WAYS),
            (f"{count} Runs at once; plain Ray: {plain_count} at once",),
        )
        steps = len(FAN16.steps)
        yield Figure(
            "engine.fan2000",
            "one fan-out of 2,000 steps",
            "ms/step",
            found["fan2000"],
            Bar(Sense.AT_MOST, 2.0, is_ratio=True),
            (Baseline("fan16", tuple(1000 / (runs_per_s * steps) for runs_per_s in found["fan16"])),),
        )

    def _wide_step_ms(self, plan: Plan) -> float:
        return self._one_run_s(plan) * 1000 / len(plan.steps)

    def _one_run_s(self, plan: Plan) -> float:
        def work() -> None:
            run_id = ray.get(self._orchestrator.submit.remote(plan, INPUT))
            ray.get(self._orchestrator.result.remote(run_id, timeout_s=_TIMEOUT_S))

        return seconds_of(work)

    def lone(self) -> Iterator[Figure]:
        """Latency of one chain3 at a time beside plain Ray."""
        count = self._effort.count(_NUM_LONE)
        latencies_ms: list[float] = []

        def tutti_p50_ms() -> float:
            took_ms = [self._one_run_s(CHAIN3) * 1000 for _ in range(count)]
            latencies_ms.extend(took_ms)
            return percentile(took_ms, 50)

        tutti_p50_ms()
        latencies_ms.clear()
        found = self._rounds(
            {
                "tutti": tutti_p50_ms,
                **{way: partial(self._plain.chain3_p50_ms, way, count) for way in WAYS},
            }
        )
        p95_ms = percentile(latencies_ms, 95)
        yield Figure(
            "engine.lone",
            "chain3 one at a time, p50",
            "ms",
            found["tutti"],
            Bar(Sense.AT_MOST, 1.5, is_ratio=True),
            tuple(Baseline(f"plain Ray, {way}", found[way]) for way in WAYS),
            (f"{count} in each round, submit and result are two calls; p95 {p95_ms:.1f} ms",),
        )


def measure(effort: Effort, wanted: Callable[[str], bool]) -> Iterator[Figure]:
    """Start a service, measure what is wanted in it, and end it.

    Args:
        effort: How much.
        wanted: Says of a name of FIGURES whether to measure it.
    """
    if not any(wanted(name) for name in FIGURES):
        return
    with local_service() as service:
        plain = PlainRay()
        bench = _Bench(service, plain, effort)
        if wanted("engine.chain3") or wanted("engine.durability"):
            yield from bench.chain3()
        if wanted("engine.fan16") or wanted("engine.fan2000"):
            yield from bench.fans()
        if wanted("engine.lone"):
            yield from bench.lone()
        plain.close()
