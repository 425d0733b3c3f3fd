"""The figures of the whole service in Prometheus' text format.

All-time counts come from the store, the rest from what each process told of itself in the last seconds, so
any replica answers for all. It counts nothing and sums up nothing: each process is told apart by a label, so
that the end of one is no step backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serve_app.capacity_metrics import capacity_families

if TYPE_CHECKING:
    from cluster.store.capacity import CapacitySnapshot
    from cluster.store.run_reader import PartitionFigures, Totals

__all__ = ["CONTENT_TYPE", "ServiceFigures", "render_metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_QUANTILES = (0.5, 0.95, 0.99)
_PREFIX = "tutti_"


@dataclass(frozen=True, kw_only=True)
class ServiceFigures:
    """Everything there is to render.

    Attributes:
        totals: All-time counts; None where the store is away.
        orchestrators: What they told: `{"process", "counters", "gauges", "labelled", "samples"}`.
        partitions: How each stands.
        ingress: What replicas of the edge counted: `{"process", "families"}`.
        capacity: What the scheduler told last; None while it is silent.
        uptime_s: Of the answering replica.
    """

    totals: Totals | None
    orchestrators: Sequence[dict[str, Any]] = ()
    partitions: Sequence[PartitionFigures] = ()
    ingress: Sequence[dict[str, Any]] = ()
    capacity: CapacitySnapshot | None = None
    uptime_s: float = 0.0


def render_metrics(figures: ServiceFigures) -> bytes:
    """Render everything."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(figures))
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, figures: ServiceFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        yield GaugeMetricFamily(
            _PREFIX + "store_up", "Whether the store answers", 0 if figures.totals is None else 1
        )
        yield GaugeMetricFamily(
            _PREFIX + "ingress_uptime_seconds", "Age of the answering replica", figures.uptime_s
        )
        if figures.totals is not None:
            yield from _totals(figures.totals)
        yield from _by_process(figures.orchestrators, "counters", CounterMetricFamily)
        yield from _by_process(figures.orchestrators, "gauges", GaugeMetricFamily)
        yield from _labelled(figures.orchestrators)
        yield from _summaries(figures.orchestrators)
        yield from _partitions(figures.partitions)
        yield from _ingress(figures.ingress)
        is_told = figures.capacity is not None
        yield GaugeMetricFamily(_PREFIX + "scheduler_up", "Whether it told of late how things stand", is_told)
        if figures.capacity is not None:
            yield from capacity_families(figures.capacity)


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


def _labelled(snapshots: Sequence[dict[str, Any]]) -> Iterator[Metric]:
    """Render gauges that have one more label: `{name: {label: {value of the label: number}}}`."""
    families: dict[str, GaugeMetricFamily] = {}
    for snapshot in snapshots:
        for name, values_by_label in snapshot.get("labelled", {}).items():
            for label, values in values_by_label.items():
                if name not in families:
                    families[name] = GaugeMetricFamily(
                        _PREFIX + name, "Told by each process", labels=["process", label]
                    )
                for text, value in values.items():
                    families[name].add_metric([str(snapshot.get("process", "")), text], value)
    yield from families.values()


def _partitions(partitions: Sequence[PartitionFigures]) -> Iterator[Metric]:
    if not partitions:
        return
    columns: tuple[tuple[str, str, Callable[[PartitionFigures], float]], ...] = (
        ("partition_lease_seconds", "What is left of its owner's lease, 0: nobody's", lambda it: it.lease_s),
        ("partition_epoch", "Number of its owner, raised by each takeover", lambda it: it.epoch),
        ("partition_inbox_entries", "Submissions and commands not yet taken up", lambda it: it.inbox),
        ("webhooks_pending", "Deliveries that are still to be made", lambda it: it.webhooks),
        ("webhooks_dead", "Deliveries that were given up", lambda it: it.webhooks_dead),
    )
    for name, meaning, value_of in columns:
        family = GaugeMetricFamily(_PREFIX + name, meaning, labels=["partition"])
        for each in partitions:
            family.add_metric([str(each.number)], value_of(each))
        yield family


def _ingress(snapshots: Sequence[dict[str, Any]]) -> Iterator[Metric]:
    """Put the same family of all replicas into one, with the replica as one more label."""
    families: dict[str, Metric] = {}
    for snapshot in snapshots:
        process = str(snapshot.get("process", ""))
        for told in snapshot.get("families", ()):
            name = told["name"]
            if name not in families:
                families[name] = Metric(name, told["help"], told["type"])
            for sample, labels, value in told["samples"]:
                if not sample.endswith("_created"):
                    families[name].add_sample(sample, {"process": process, **labels}, value)
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
