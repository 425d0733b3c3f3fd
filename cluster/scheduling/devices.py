"""What nodes have and what a bundle needs, in whole numbers: no share drifts, no device is over-committed.

A GPU has SHARES_PER_GPU shares. 1/n of it is exactly SHARES_PER_GPU / n for n up to 32; beyond that it is
rounded down, so that n of them still fit one device. CPUs and custom resources are counted in 1/10,000, as
Ray does; memory of devices in MiB. This module does the sums of one node; `packing` decides who goes where.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cluster.scheduling.reasons import NodeTooSmall

if TYPE_CHECKING:
    from cluster.scheduling.reservations import Reservation

__all__ = [
    "SHARES_PER_GPU",
    "Bundle",
    "Device",
    "Held",
    "Node",
    "NodeSpec",
    "bundle_of",
    "gpus_of",
    "shares_of",
    "too_busy",
    "too_small",
]

SHARES_PER_GPU = math.lcm(*range(1, 33))
_PARTS = 10_000
_MIB_PER_GIB = 1024
_BYTES_PER_GIB = 1 << 30


def shares_of(num_gpus: float) -> int:
    """Turn 0, 1/n or a whole number of GPUs into shares.

    Raises:
        ValueError: It is none of these.
    """
    if num_gpus < 0:
        raise ValueError(f"{num_gpus} GPUs: must not be negative")
    if num_gpus == int(num_gpus):
        return int(num_gpus) * SHARES_PER_GPU
    parts = round(1 / num_gpus) if num_gpus < 1 else 0
    if not parts or not math.isclose(num_gpus * parts, 1.0, rel_tol=1e-3):
        raise ValueError(f"{num_gpus} GPUs: neither a whole number nor 1/n")
    return SHARES_PER_GPU // parts


def gpus_of(shares: int) -> float:
    """Turn shares back into GPUs, for people."""
    return shares / SHARES_PER_GPU


class Bundle(NamedTuple):
    """What one replica, or one member of a gang, needs on one node.

    Attributes:
        shares: Of GPUs: part of one device, or whole devices.
        gpu_mib: Memory on each device; 0 means in proportion to the share.
        cpu_parts: CPUs in 1/10,000.
        memory_bytes: Of the node.
        custom: Custom resources in 1/10,000, by name.
        labels: What the node must be labelled.
    """

    shares: int = 0
    gpu_mib: int = 0
    cpu_parts: int = 0
    memory_bytes: int = 0
    custom: tuple[tuple[str, int], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def num_whole(self) -> int:
        """Whole devices it needs; 0 where it needs a part or none."""
        return self.shares // SHARES_PER_GPU

    @property
    def num_devices(self) -> int:
        """Devices it touches."""
        return -(-self.shares // SHARES_PER_GPU)


def bundle_of(
    num_gpus: float = 0.0,
    gpu_memory_gb: float = 0.0,
    num_cpus: float = 0.0,
    memory_bytes: int = 0,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Bundle:
    """Make a bundle from what people write; what has no exact number is rounded up, except 1/n GPUs.

    Raises:
        ValueError: `num_gpus` is neither whole nor 1/n.
    """
    return Bundle(
        shares_of(num_gpus),
        math.ceil(gpu_memory_gb * _MIB_PER_GIB),
        math.ceil(num_cpus * _PARTS - 1e-6),
        memory_bytes,
        tuple(sorted((name, math.ceil(each * _PARTS - 1e-6)) for name, each in (resources or {}).items())),
        tuple(sorted((labels or {}).items())),
    )


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A living node as it was found.

    Attributes:
        name: Unique: Ray's node id, or a worker's.
        gpu_memory_gb: Memory of each of its GPUs in order, one entry a device; 0 where unknown: then it
            is not counted.
        num_cpus: CPUs that may be handed out.
        memory_bytes: Memory that may be handed out.
        resources: Custom resources.
        labels: For example {"accelerator": "H200"}.
    """

    name: str
    gpu_memory_gb: tuple[float, ...] = ()
    num_cpus: float = 0.0
    memory_bytes: int = 0
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}


class Held(NamedTuple):
    """What one bundle has: shares and MiB on each of its devices, the rest on the node.

    Attributes:
        devices: Empty for a bundle without GPUs.
        shares: On each device.
        mib: On each device, in order.
    """

    node: Node
    devices: tuple[Device, ...]
    shares: int
    mib: tuple[int, ...]
    bundle: Bundle


class Device:
    """One GPU.

    Attributes:
        free: Free shares.
        free_mib: Free memory; never asked where `total_mib` is 0.
        holders: Expected end by placement id; infinite where unknown.
        last_end: The latest of them.
        reserved_for: Who alone may use it, apart from those who are gone in time.
        bucket: Where the index has it.
    """

    __slots__ = (
        "bucket",
        "free",
        "free_mib",
        "holders",
        "index",
        "last_end",
        "node",
        "reserved_for",
        "since",
        "total_mib",
    )

    def __init__(self, node: Node, index: int, total_mib: int) -> None:
        self.node, self.index = node, index
        self.free = SHARES_PER_GPU
        self.free_mib = self.total_mib = total_mib
        self.holders: dict[str, float] = {}
        self.reserved_for: Reservation | None = None
        self.since = self.last_end = 0.0
        self.bucket = -1

    def mib_for(self, bundle: Bundle) -> int:
        """Tell how much memory a bundle takes on this device."""
        if not self.total_mib:
            return 0
        if bundle.gpu_mib:
            return bundle.gpu_mib
        return self.total_mib * min(bundle.shares, SHARES_PER_GPU) // SHARES_PER_GPU

    def is_large_enough(self, bundle: Bundle) -> bool:
        """Whether its memory would do if it were empty."""
        return not self.total_mib or bundle.gpu_mib <= self.total_mib

    def has_share(self, bundle: Bundle) -> bool:
        """Whether a bundle's share is free, and its memory is counted."""
        return self.total_mib > 0 and self.free >= min(bundle.shares, SHARES_PER_GPU)

    def has_room(self, bundle: Bundle) -> bool:
        """Whether a bundle's share and memory fit."""
        return self.free >= min(bundle.shares, SHARES_PER_GPU) and (
            not self.total_mib or self.free_mib >= self.mib_for(bundle)
        )

    def busy_until(self, now: float) -> float:
        """Expect when it is empty; what is overdue is thought to go on as long again as it went on so far."""
        if not self.holders:
            return now
        last = self.last_end
        return last if last > now else now + max(now - self.since, 1.0)

    def hold(self, request_id: str, ends_at: float, now: float) -> None:
        """Note who has a part of it until when."""
        self.holders[request_id] = max(self.holders.get(request_id, 0.0), ends_at)
        self.last_end = max(self.last_end, ends_at) if len(self.holders) > 1 else ends_at
        self.since = now

    def let_go(self, request_id: str) -> None:
        """Forget who had a part of it."""
        # Two bundles of one gang may share a device: the first that goes takes the name along.
        self.holders.pop(request_id, None)
        self.last_end = max(self.holders.values()) if self.holders else 0.0


class Node:
    """One node: its devices and what else it has left; `whole` are those on its shelf as wholly free."""

    __slots__ = (
        "cpu_parts",
        "custom",
        "devices",
        "free_cpu_parts",
        "free_custom",
        "free_memory_bytes",
        "labels",
        "memory_bytes",
        "name",
        "whole",
    )

    def __init__(self, spec: NodeSpec) -> None:
        self.name = spec.name
        self.labels = frozenset(spec.labels.items())
        self.devices = tuple(
            Device(self, index, int(gib * _MIB_PER_GIB)) for index, gib in enumerate(spec.gpu_memory_gb)
        )
        self.whole: dict[Device, None] = {}
        self.cpu_parts = self.free_cpu_parts = int(spec.num_cpus * _PARTS + 1e-6)
        self.memory_bytes = self.free_memory_bytes = spec.memory_bytes
        self.custom = {name: int(each * _PARTS + 1e-6) for name, each in spec.resources.items()}
        self.free_custom = dict(self.custom)

    def has_room(self, bundle: Bundle) -> bool:
        """Whether all but the GPUs of a bundle fits."""
        return (
            self.free_cpu_parts >= bundle.cpu_parts
            and self.free_memory_bytes >= bundle.memory_bytes
            and (
                not bundle.custom
                or all(self.free_custom.get(name, 0) >= each for name, each in bundle.custom)
            )
        )

    def is_large_enough(self, bundle: Bundle) -> bool:
        """Whether a bundle would fit if the node were empty."""
        return (
            self.cpu_parts >= bundle.cpu_parts
            and self.memory_bytes >= bundle.memory_bytes
            and all(self.custom.get(name, 0) >= each for name, each in bundle.custom)
            and sum(device.is_large_enough(bundle) for device in self.devices) >= bundle.num_devices
        )

    def take(self, bundle: Bundle, sign: int = 1) -> None:
        """Take all but the GPUs of a bundle; `sign` -1 gives it back."""
        self.free_cpu_parts -= sign * bundle.cpu_parts
        self.free_memory_bytes -= sign * bundle.memory_bytes
        for name, each in bundle.custom:
            self.free_custom[name] -= sign * each


def too_small(bundle: Bundle, nodes: Sequence[Node]) -> NodeTooSmall:
    """Say what no node could give a bundle if it were empty: the first thing that none has enough of.

    Args:
        nodes: None is large enough; at least one.
    """
    mib = max((device.total_mib for node in nodes for device in node.devices), default=0)
    largest_bytes = max(node.memory_bytes for node in nodes)
    wanted = [
        ("GPU", bundle.num_devices, max(len(node.devices) for node in nodes), 1),
        ("GiB of GPU memory", bundle.gpu_mib if mib else 0, mib, _MIB_PER_GIB),
        ("CPU", bundle.cpu_parts, max(node.cpu_parts for node in nodes), _PARTS),
        ("GiB of memory", bundle.memory_bytes, largest_bytes, _BYTES_PER_GIB),
        *(
            (name, each, max(node.custom.get(name, 0) for node in nodes), _PARTS)
            for name, each in bundle.custom
        ),
    ]
    for missing, asked, largest, unit in wanted:
        if asked > largest:
            return NodeTooSmall(missing=missing, asked=asked / unit, largest=largest / unit)
    return NodeTooSmall(missing="node with all of it at once", asked=1, largest=0)


def too_busy(bundle: Bundle, num: int, nodes: Sequence[Node], *, is_together: bool) -> tuple[str, float]:
    """Say what is short although enough devices are free: the first thing that there is too little of.

    Args:
        bundle: What each of a request's bundles needs.
        num: How many bundles, >= 1.
        nodes: Those that could carry one if they were empty; at least one.
        is_together: Whether all must lie on one node.

    Returns:
        Its name and how much of it, in the unit that the name says.
    """
    wanted: list[tuple[str, int, list[int], int]] = [
        ("CPU", bundle.cpu_parts, [node.free_cpu_parts for node in nodes], _PARTS),
        ("GiB of memory", bundle.memory_bytes, [node.free_memory_bytes for node in nodes], _BYTES_PER_GIB),
        *(
            (name, each, [node.free_custom.get(name, 0) for node in nodes], _PARTS)
            for name, each in bundle.custom
        ),
    ]
    for missing, each, free, unit in wanted:
        if not each:
            continue
        available = max(free) if is_together or num == 1 else sum(here // each for here in free) * each
        if num * each > available:
            return missing, (num * each - available) / unit
    mib = [device.free_mib for node in nodes for device in node.devices if device.has_share(bundle)]
    if bundle.gpu_mib and mib and max(mib) < bundle.gpu_mib:
        return "GiB of GPU memory", (bundle.gpu_mib - max(mib)) / _MIB_PER_GIB
    return "node with room for all of it at once", 1.0
