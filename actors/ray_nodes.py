"""The nodes of the Ray cluster as the packer counts them, and what others than we use of them.

It reads; who goes where is decided elsewhere. Ray's own label `ray.io/node-id` is left out, since nobody
asks for a node by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ray
from ray._private.state import available_resources_per_node

from cluster.placement_groups import Group
from cluster.scheduling.devices import NodeSpec

__all__ = ["GPU_MEMORY_LABEL", "RayNode", "foreign_use", "read_free", "read_nodes"]

GPU_MEMORY_LABEL = "tutti.io/gpu-memory-gb"
"""Node label with the memory of each of its GPUs, in GiB."""

_NODE_ID_LABEL = "ray.io/node-id"
_FIELDS = frozenset({"CPU", "GPU", "memory", "object_store_memory"})
_INTERNAL = ("node:", "accelerator_type:", "bundle_")
_SLACK = 1e-3


class RayNode(NamedTuple):
    """A living node.

    Attributes:
        spec: As the packer wants it.
        totals: As Ray tells it, by resource.
    """

    spec: NodeSpec
    totals: dict[str, float]


def read_nodes() -> dict[str, RayNode]:
    """Return living nodes by Ray's node id."""
    found: dict[str, RayNode] = {}
    for row in ray.nodes():
        if row["Alive"]:
            node_id, totals, labels = row["NodeID"], row["Resources"], row.get("Labels", {})
            found[node_id] = RayNode(_spec_of(node_id, totals, labels), totals)
    return found


def read_free() -> dict[str, dict[str, float]]:
    """Return what is free on each living node, as Ray's GCS last heard."""
    free: dict[str, dict[str, float]] = available_resources_per_node()
    return free


def _spec_of(node_id: str, totals: Mapping[str, float], labels: Mapping[str, str]) -> NodeSpec:
    try:
        gpu_gb = float(labels.get(GPU_MEMORY_LABEL, 0.0))
    except ValueError:
        gpu_gb = 0.0
    return NodeSpec(
        name=node_id,
        gpu_memory_gb=(gpu_gb,) * int(totals.get("GPU", 0)),
        num_cpus=totals.get("CPU", 0.0),
        memory_bytes=int(totals.get("memory", 0)),
        resources={
            name: amount
            for name, amount in totals.items()
            if name not in _FIELDS and not name.startswith(_INTERNAL)
        },
        labels={key: value for key, value in labels.items() if key != _NODE_ID_LABEL},
    )


def foreign_use(
    totals: Mapping[str, Mapping[str, float]],
    free: Mapping[str, Mapping[str, float]],
    groups: Iterable[Group],
) -> dict[str, dict[str, float]]:
    """Work out what others use: what is neither free nor in a group of ours.

    Args:
        totals: What each node has.
        free: What is free on it; a node that is not told about is thought to be free.
        groups: All living groups of ours.

    Returns:
        By node and resource; only what is above zero.
    """
    ours: dict[str, dict[str, float]] = {}
    for group in groups:
        for bundle, node in zip(group.bundles, group.nodes, strict=True):
            if node:
                mine = ours.setdefault(node, {})
                for name, amount in bundle.items():
                    mine[name] = mine.get(name, 0.0) + amount
    found: dict[str, dict[str, float]] = {}
    for node, has in totals.items():
        if node not in free:
            continue
        for name, amount in has.items():
            if name.startswith(_INTERNAL):
                continue
            used = amount - free[node].get(name, 0.0) - ours.get(node, {}).get(name, 0.0)
            if used > _SLACK:
                found.setdefault(node, {})[name] = used
    return found
