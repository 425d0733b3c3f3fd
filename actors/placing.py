"""Where replicas go: the packer's decisions, and what they are in the cluster.

The packer decides on nodes and devices as they were last read; this module feeds it (nodes, their loss, what
others use) and knows the placement groups that belong to its decisions. A device that replicas share is a
group of its own around one whole GPU, opened by the first replica on it and freed with the last. It calls
nobody: who starts what is in `replicas`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import uuid4

from actors.ray_nodes import RayNode
from cluster.scheduling.devices import SHARES_PER_GPU, Bundle, Device, Node
from cluster.scheduling.packing import Packer, Placement, Request, Short
from cluster.scheduling.reservations import Reservations

__all__ = ["FOREIGN", "DevicePlace", "Placing", "bundle_resources", "own_bundle", "where_of"]

FOREIGN = "foreign:"
"""Ids of placements that stand for what others use begin so."""
_PARTS = 10_000
_RESERVED_FOR_S = 120.0
_NEXT_TO_NOTHING = {"CPU": 0.001}


class DevicePlace(NamedTuple):
    """A device that is shared: its node and its number there, and the group around it."""

    node: str
    number: int
    group: str


def bundle_resources(bundle: Bundle) -> dict[str, float]:
    """Say a bundle in Ray's words; a bundle of nothing asks for next to nothing."""
    return _nonzero({"GPU": bundle.shares / SHARES_PER_GPU, **_beside_gpus(bundle)})


def own_bundle(bundle: Bundle) -> dict[str, float]:
    """Say what a replica with a part of a device reserves beside it, in Ray's words."""
    return _nonzero(_beside_gpus(bundle))


def _beside_gpus(bundle: Bundle) -> dict[str, float]:
    custom = {name: parts / _PARTS for name, parts in bundle.custom}
    return {"CPU": bundle.cpu_parts / _PARTS, "memory": float(bundle.memory_bytes), **custom}


def _nonzero(resources: dict[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if amount > 0} or dict(_NEXT_TO_NOTHING)


def where_of(placement: Placement) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Say where a placement lies, as `Packer.restore` reads it."""
    return tuple((held.node.name, tuple(device.index for device in held.devices)) for held in placement.held)


class Placing:
    """Nodes, placements and shared devices."""

    def __init__(self) -> None:
        self.packer = Packer()
        self.reservations = Reservations(self.packer, timeout_s=_RESERVED_FOR_S)
        self._totals: dict[str, dict[str, float]] = {}
        self._foreign: dict[str, dict[str, float]] = {}
        self._shared: dict[tuple[str, int], DevicePlace] = {}
        self._sharers: dict[str, set[str]] = {}

    # -- nodes

    @property
    def totals(self) -> Mapping[str, Mapping[str, float]]:
        """What each node has in all, as Ray tells it."""
        return self._totals

    def set_nodes(self, nodes: Mapping[str, RayNode]) -> list[str]:
        """Take the living nodes over.

        Returns:
            Ids of requests that had a bundle on a node that is gone; all they had elsewhere is free.
        """
        lost: list[str] = []
        for name in [each for each in self.packer.nodes if each not in nodes]:
            lost += [placement.request.request_id for placement in self.reservations.drop_node(name)]
            self._foreign.pop(name, None)
        for name, node in nodes.items():
            if name not in self.packer.nodes:
                self.packer.add_node(node.spec)
        self._totals = {name: node.totals for name, node in nodes.items()}
        return [each for each in lost if not each.startswith(FOREIGN)]

    def set_foreign(self, use: Mapping[str, Mapping[str, float]], now: float) -> None:
        """Keep off what others use.

        Args:
            use: By node and resource. What was not told the last time is believed only the second time: Ray's
                figures come late, and what just ended or began is in some of them only.
            now: Seconds.
        """
        for name, node in self.packer.nodes.items():
            told = dict(use.get(name, {}))
            before, self._foreign[name] = self._foreign.get(name, {}), told
            steady = {key: min(amount, before.get(key, 0.0)) for key, amount in told.items()}
            self._hold_foreign(node, steady, now)

    def _hold_foreign(self, node: Node, use: Mapping[str, float], now: float) -> None:
        request_id = FOREIGN + node.name
        if request_id in self.packer.placements:
            self.reservations.release(request_id)
        num_gpus = int(use.get("GPU", 0.0) + 1 - 1e-6)
        free = [each for each in node.devices if each.free == SHARES_PER_GPU and each.reserved_for is None]
        devices = free[len(free) - min(num_gpus, len(free)) :]
        custom = tuple(
            (name, min(round(use[name] * _PARTS), left))
            for name, left in sorted(node.free_custom.items())
            if name in use
        )
        bundle = Bundle(
            shares=len(devices) * SHARES_PER_GPU,
            cpu_parts=min(round(use.get("CPU", 0.0) * _PARTS), node.free_cpu_parts),
            memory_bytes=min(int(use.get("memory", 0.0)), node.free_memory_bytes),
            custom=custom,
        )
        if bundle != Bundle() and any((devices, bundle.cpu_parts, bundle.memory_bytes, custom)):
            request = Request(request_id, (bundle,), owner="others")
            self.packer.restore(request, [(node.name, [each.index for each in devices])], now)

    # -- placements

    def place(self, request: Request, now: float) -> Placement | Short:
        """Place a request where nobody waits who came before, or say why not."""
        return self.reservations.place(request, now)

    def restore(
        self, request: Request, where: Sequence[tuple[str, Sequence[int]]], device_group: str, now: float
    ) -> Placement | None:
        """Take a placement back that exists, as the ledger tells it; None where it cannot be."""
        placement = self.packer.restore(request, where, now)
        if placement is not None and device_group:
            (device,) = placement.held[0].devices
            self._share(device, device_group, request.request_id)
        return placement

    def share_device(self, placement: Placement) -> DevicePlace | None:
        """Find or open the shared device of a placement; None where it has no part of one."""
        held = placement.held[0]
        if not 0 < held.shares < SHARES_PER_GPU:
            return None
        (device,) = held.devices
        found = self._shared.get((held.node.name, device.index))
        group = found.group if found is not None else f"gpu-{uuid4().hex[:12]}"
        return self._share(device, group, placement.request.request_id)

    def _share(self, device: Device, group: str, request_id: str) -> DevicePlace:
        place = DevicePlace(device.node.name, device.index, group)
        self._shared[place.node, place.number] = place
        self._sharers.setdefault(group, set()).add(request_id)
        return place

    def sharers(self, group: str) -> frozenset[str]:
        """Name who shares a device; empty where the group is not known."""
        return frozenset(self._sharers.get(group, ()))

    @property
    def shared_groups(self) -> set[str]:
        """Name the groups around all devices that are shared."""
        return set(self._sharers)

    def release(self, request_id: str) -> str:
        """Give back what a request has; one that has nothing is no error.

        Returns:
            The group of the shared device that it was the last one on, else "".
        """
        if request_id in self.packer.placements:
            self.reservations.release(request_id)
        self.reservations.cancel(request_id)
        for group, sharers in self._sharers.items():
            if request_id in sharers:
                sharers.discard(request_id)
                if sharers:
                    return ""
                del self._sharers[group]
                for key in [key for key, place in self._shared.items() if place.group == group]:
                    del self._shared[key]
                return group
        return ""

    def since_unix(self, placement: Placement) -> float:
        """Tell since when a placement is there, in Unix seconds."""
        return time.time() - (time.monotonic() - placement.since)
