"""The figures of the whole service in Prometheus' text format.

All-time counts come from the store, the rest from what each process told of itself in the last seconds, so
any replica answers for all. Nothing is counted in this process, so nothing is lost or counted twice with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from cluster.store.run_reader import Totals

__all__ = ["CONTENT_TYPE", "render_metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_QUANTILES = (0.5, 0.95, 0.99)
_PREFIX = "tutti_"


def render_metrics(totals: Totals | None, snapshots: Sequence[dict[str, Any]], uptime_s: float) -> bytes:
    """Render everything.

    Args:
        totals: All-time counts; None where the store is away.
        snapshots: What processes told: `{"process", "counters", "gauges", "samples"}`.
        uptime_s: Of the answering replica.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(totals, snapshots, uptime_s))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, totals: Totals | None, snapshots: Sequence[dict[str, Any]], uptime_s: float) -> None:
        self._totals, self._snapshots, self._uptime_s = totals, snapshots, uptime_s

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            _PREFIX + "store_up", "Whether the store answers", 0 if self._totals is None else 1
        )
        yield up
        yield GaugeMetricFamily(
            _PREFIX + "ingress_uptime_seconds", "Age of the answering replica", self._uptime_s
        )
        if self._totals is not None:
            yield from _totals(self._totals)
        yield from _by_process(self._snapshots, "counters", CounterMetricFamily)
        yield from _by_process(self._snapshots, "gauges", GaugeMetricFamily)
        yield from _summaries(self._snapshots)


def _totals(totals: Totals) -> Iterator[Metric]:
    for name, meaning, value in (
        ("tasks_submitted", "Runs accepted since the beginning", totals.submitted),
        ("tasks_completed", "Runs that ended well", totals.succeeded),
        ("tasks_failed", "Runs that failed", totals.failed),
        ("tasks_cancelled", "Runs that were cancelled", totals.cancelled),
    ):
        yield CounterMetricFamily(name, meaning, value)
    yield GaugeMetricFamily("tasks_active", "Runs that have not ended", totals.unfinished)


def _by_process(
    snapshots: Sequence[dict[str, Any]],
    kind: str,
    family: type[CounterMetricFamily] | type[GaugeMetricFamily],
) -> Iterator[Metric]:
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for snapshot in snapshots:
        for name, value in snapshot.get(kind, {}).items():
            full = name if name.startswith(_PREFIX) else _PREFIX + name
            if full not in families:
                families[full] = family(full, "Told by each process", labels=["process"])
            families[full].add_metric([str(snapshot.get("process", ""))], value)
    yield from families.values()


def _summaries(snapshots: Sequence[dict[str, Any]]) -> Iterator[Metric]:
    names: dict[str, list[float]] = {"task_execution_time_ms": []}
    for snapshot in snapshots:
        for name, values in snapshot.get("samples", {}).items():
            names.setdefault(name, []).extend(values)
    for name, values in names.items():
        summary = Metric(name, "The latest values of all processes", "summary")
        ordered = sorted(values)
        for quantile in _QUANTILES if ordered else ():
            summary.add_sample(name, {"quantile": str(quantile)}, _quantile(ordered, quantile))
        summary.add_sample(name + "_sum", {}, sum(_finite(ordered)))
        summary.add_sample(name + "_count", {}, len(ordered))
        yield summary


def _finite(values: Iterable[float]) -> Iterable[float]:
    return (float(value) for value in values)


def _quantile(ordered: Sequence[float], quantile: float) -> float:
    """Nearest rank: the smallest value that at least this share of all does not exceed."""
    rank = -(-len(ordered) * int(quantile * 100) // 100)
    return ordered[max(0, rank - 1)]
