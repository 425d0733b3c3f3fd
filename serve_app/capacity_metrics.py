"""The scheduler's snapshot as Prometheus families. Anybody may read them: no key of a tenant or of a user is
named, only how many of each kind are in use and at their limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cluster.scheduling.limits import capability_key, tenant_key

if TYPE_CHECKING:
    from cluster.store.capacity import CapacitySnapshot, LimitState, NodeState, PoolState

__all__ = ["capacity_families"]

_Labels = TypeVar("_Labels", bound="tuple[str, ...]")
_PREFIX = "tutti_"
_STATES = ("ready", "starting", "retiring")


def capacity_families(snapshot: CapacitySnapshot) -> Iterator[Metric]:
    """Render a snapshot."""
    yield _gauge("capacity_snapshot_timestamp_seconds", "When the scheduler told this", {(): snapshot.at}, ())
    yield _gauge("capacity_utilisation", "Held share of all devices, or CPUs", {(): snapshot.utilisation}, ())
    yield _gauge(
        "capacity_fragmentation",
        "Share of what is free that is no whole device",
        {(): snapshot.fragmentation},
        (),
    )
    yield from _pools(snapshot.pools)
    yield from _nodes(snapshot.nodes)
    yield from _limits(snapshot.limits)
    waits = {
        (capability, quantile): value
        for capability, (p50, p95) in snapshot.wait_s.items()
        for quantile, value in (("0.5", p50), ("0.95", p95))
    }
    yield _gauge(
        "step_wait_seconds",
        "Wait of Steps that got a slot in the last minute",
        waits,
        ("capability", "quantile"),
    )
    events = CounterMetricFamily(_PREFIX + "scale_events", "Since the scheduler began", labels=["event"])
    for event, count in snapshot.scale_events.items():
        events.add_metric([event], count)
    yield events


def _gauge(
    name: str, meaning: str, values: Mapping[_Labels, float], labels: tuple[str, ...]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(_PREFIX + name, meaning, labels=labels)
    for texts, value in values.items():
        family.add_metric(texts, value)
    return family


def _pools(pools: Iterable[PoolState]) -> Iterator[Metric]:
    pools = tuple(pools)
    label = ("pool",)
    replicas = dict.fromkeys(((pool.name, state) for pool in pools for state in _STATES), 0.0)
    for pool in pools:
        for replica in pool.replicas:
            replicas[pool.name, replica.state] = replicas.get((pool.name, replica.state), 0.0) + 1
    yield _gauge("pool_replicas", "Replicas by state", replicas, ("pool", "state"))
    yield _gauge("pool_replicas_max", "Never more", {(p.name,): p.spec.max_replicas for p in pools}, label)
    yield _gauge("pool_steps_waiting", "Waiting for a slot", {(p.name,): p.waiting for p in pools}, label)
    yield _gauge("pool_steps_running", "Having a slot", {(p.name,): p.running for p in pools}, label)
    yield _gauge(
        "pool_oldest_wait_seconds", "Wait of the oldest", {(p.name,): p.oldest_s for p in pools}, label
    )
    short = {(p.name,): float(p.reason is not None or bool(p.trouble)) for p in pools}
    yield _gauge("pool_held_back", "1 while it should grow and cannot", short, label)


def _nodes(nodes: Iterable[NodeState]) -> Iterator[Metric]:
    nodes = tuple(nodes)
    yield _gauge("node_cpus", "CPUs of a node", {(n.name,): n.num_cpus for n in nodes}, ("node",))
    yield _gauge("node_cpus_free", "Not reserved", {(n.name,): n.free_cpus for n in nodes}, ("node",))
    devices = {(node.name, str(device.index)): device for node in nodes for device in node.devices}
    labels = ("node", "device")
    yield _gauge("device_free", "Share nobody has", {key: d.free for key, d in devices.items()}, labels)
    yield _gauge("device_memory_gb", "Memory", {key: d.total_gb for key, d in devices.items()}, labels)
    yield _gauge(
        "device_memory_free_gb", "Not reserved", {key: d.free_gb for key, d in devices.items()}, labels
    )


def _limits(limits: Iterable[LimitState]) -> Iterator[Metric]:
    used: dict[tuple[str, ...], float] = {}
    reached: dict[tuple[str, ...], float] = {}
    by_capability = {}
    for limit in limits:
        kind = (_kind_of(limit.key),)
        used[kind] = used.get(kind, 0.0) + limit.num_used
        is_reached = limit.max_concurrent is not None and limit.num_used >= limit.max_concurrent
        reached[kind] = reached.get(kind, 0.0) + is_reached
        if kind == ("capability",):
            by_capability[limit.key.removeprefix(capability_key("")),] = limit
    yield _gauge("limits_used", "StepRuns that hold keys, by kind of key", used, ("kind",))
    yield _gauge("limits_reached", "Keys at their limit, by kind of key", reached, ("kind",))
    label = ("capability",)
    yield _gauge(
        "capability_limit_used",
        "Of its key",
        {key: each.num_used for key, each in by_capability.items()},
        label,
    )
    bounds = {
        key: each.max_concurrent for key, each in by_capability.items() if each.max_concurrent is not None
    }
    yield _gauge("capability_limit", "Of its key", bounds, label)


def _kind_of(key: str) -> str:
    if key.startswith(tenant_key("")):
        return "tenant"
    return "capability" if key.startswith(capability_key("")) else "user"
