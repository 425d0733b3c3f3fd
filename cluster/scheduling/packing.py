"""Which node and which devices: best fit of fractions, whole devices, gangs; all bundles or none.

Fractions fill devices that are in use before they open a new one, and a new one is opened on the node with
the fewest whole free devices, so that large requests still find theirs. Nothing is ever over-committed: every
commit is checked once more. The packer decides and counts; it reserves nothing in any cluster.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import chain
from typing import NamedTuple

from cluster.errors import InvalidSetting
from cluster.scheduling.devices import (
    SHARES_PER_GPU,
    Bundle,
    Device,
    Held,
    Node,
    NodeSpec,
    gpus_of,
    too_busy,
    too_small,
)
from cluster.scheduling.reasons import CapacityShort, LabelMissing, NodeTooSmall
from cluster.scheduling.shelves import Shelf, first_devices

__all__ = ["Footprint", "Packer", "Placement", "Request", "Short", "Strategy"]

Short = CapacityShort | LabelMissing | NodeTooSmall
"""Why a request cannot be placed now."""


class Strategy(StrEnum):
    """How the bundles of a gang lie; the words are Ray's."""

    PACK = "PACK"
    """On as few nodes as may be."""
    STRICT_PACK = "STRICT_PACK"
    """On one node."""
    SPREAD = "SPREAD"
    """On as many nodes as may be."""
    STRICT_SPREAD = "STRICT_SPREAD"
    """Each on a node of its own."""


class Request(NamedTuple):
    """Bundles that are wanted together.

    Attributes:
        request_id: Unique among what is placed and reserved.
        bundles: At least one; more are a gang.
        expected_s: How long they will be held; None where unknown.
        owner: For the capacity map.
    """

    request_id: str
    bundles: tuple[Bundle, ...]
    strategy: Strategy = Strategy.PACK
    expected_s: float | None = None
    owner: str = ""


class Placement(NamedTuple):
    """What a request has, one `Held` a bundle in the request's order; `ends_at` is infinite where unknown."""

    request: Request
    held: tuple[Held, ...]
    since: float
    ends_at: float


class Footprint(NamedTuple):
    """What all requests with the same bundles and strategy have in common, worked out once.

    Attributes:
        version: Of the packer's nodes when it was worked out.
        shelves: Where its first bundle may lie.
        nodes: Those of them that could carry a bundle if they were empty.
        part: Shares of its first bundle if it is less than a device, else 0.
        on_one_node: Whole free devices that one node must have.
        in_all: Whole free devices that there must be.
        never: Why it fits nowhere even if all were empty, None where it does.
    """

    version: int
    shelves: tuple[Shelf, ...]
    nodes: tuple[Node, ...]
    part: int
    on_one_node: int
    in_all: int
    never: Short | None


class Packer:
    """All nodes, and who has what on them; `version` changes with the nodes."""

    def __init__(self) -> None:
        self.placements: dict[str, Placement] = {}
        self.nodes: dict[str, Node] = {}
        self._shelves: dict[frozenset[tuple[str, str]], Shelf] = {}
        self._matching: dict[tuple[tuple[str, str], ...], tuple[Shelf, ...]] = {}
        self._footprints: dict[tuple[tuple[Bundle, ...], Strategy], Footprint] = {}
        self.version = 0
        self._smallest = SHARES_PER_GPU
        self.total_shares = 0
        self.free_shares = 0

    # -- nodes

    def add_node(self, spec: NodeSpec) -> None:
        """Count a node in.

        Raises:
            InvalidSetting: There is one of that name.
        """
        if spec.name in self.nodes:
            raise InvalidSetting(f"node {spec.name} is there already")
        node = self.nodes[spec.name] = Node(spec)
        shelf = self._shelves.get(node.labels)
        if shelf is None:
            shelf = self._shelves[node.labels] = Shelf()
        shelf.add(node)
        self.total_shares += len(node.devices) * SHARES_PER_GPU
        self.free_shares += len(node.devices) * SHARES_PER_GPU
        self._matching.clear()
        self._footprints.clear()
        self.version += 1

    def remove_node(self, name: str) -> list[Placement]:
        """Count a lost node out.

        Returns:
            Placements that had a bundle there; they are released as a whole, other nodes' bundles too.
        """
        node = self.nodes.pop(name)
        lost = [each for each in self.placements.values() if any(held.node is node for held in each.held)]
        for placement in lost:
            self.release(placement.request.request_id)
        self.shelf_of(node).remove(node)
        self.total_shares -= len(node.devices) * SHARES_PER_GPU
        self.free_shares -= len(node.devices) * SHARES_PER_GPU
        self._matching.clear()
        self._footprints.clear()
        self.version += 1
        return lost

    def shelf_of(self, node: Node) -> Shelf:
        """Find the shelf of a node."""
        return self._shelves[node.labels]

    def shelves_for(self, bundle: Bundle) -> tuple[Shelf, ...]:
        """Find the shelves whose nodes have a bundle's labels."""
        found = self._matching.get(bundle.labels)
        if found is None:
            wanted = frozenset(bundle.labels)
            found = tuple(s for labels, s in self._shelves.items() if wanted <= labels and s.nodes)
            self._matching[bundle.labels] = found
        return found

    # -- placing

    def place(self, request: Request, now: float) -> Placement | Short:
        """Place all bundles of a request, or none.

        Args:
            request: Its id must be new.
            now: Seconds.

        Returns:
            The placement, or why there is none.

        Raises:
            ValueError: The id is placed already, or there is no bundle.
        """
        if request.request_id in self.placements or not request.bundles:
            raise ValueError(f"{request.request_id} is placed already, or empty")
        footprint = self.footprint(request)
        held = self._place_bundles(request, now) if self.may_fit(footprint) else None
        if held is None:
            return self._why_short(request, footprint)
        return self._note(request, held, now)

    def restore(
        self, request: Request, where: Sequence[tuple[str, Sequence[int]]], now: float
    ) -> Placement | None:
        """Note a placement that exists already, as a ledger tells it.

        Args:
            request: Whose.
            where: Node name and device indices, a pair for each bundle.
            now: Seconds; a device is thought to be busy from then on.

        Returns:
            None where it does not fit what is known; then nothing has changed.
        """
        held: list[Held] = []
        for bundle, (name, indices) in zip(request.bundles, where, strict=True):
            node = self.nodes.get(name)
            devices = tuple(node.devices[i] for i in indices if i < len(node.devices)) if node else ()
            if node is None or len(devices) != bundle.num_devices or not self._fits_on(bundle, node, devices):
                self._undo(request.request_id, held)
                return None
            held.append(self.commit(request, bundle, node, devices, now))
        return self._note(request, held, now)

    def release(self, request_id: str) -> Placement:
        """Give back what a request has.

        Raises:
            KeyError: It has nothing.
        """
        placement = self.placements.pop(request_id)
        self._undo(request_id, placement.held)
        return placement

    def would_fit(self, request: Request, without: Iterable[str], now: float) -> bool:
        """Whether a request could be placed if some placements were gone. Nothing changes."""
        gone = [self.placements.pop(each) for each in without]
        for placement in gone:
            self._undo(placement.request.request_id, placement.held)
        found = self.place(request, now)
        if isinstance(found, Placement):
            self.release(request.request_id)
        for placement in gone:
            held = [
                self.commit(placement.request, each.bundle, each.node, each.devices, placement.since)
                for each in placement.held
            ]
            self.placements[placement.request.request_id] = placement._replace(held=tuple(held))
        return isinstance(found, Placement)

    def footprint(self, request: Request) -> Footprint:
        """Find what a request has in common with its like."""
        key = (request.bundles, request.strategy)
        found = self._footprints.get(key)
        if found is None:
            found = self._footprints[key] = self._footprint(request)
        return found

    def may_fit(self, footprint: Footprint) -> bool:
        """Rule out at once what cannot be placed now on what nobody reserved; True is no promise."""
        if footprint.never is not None:
            return False
        part, on_one_node, in_all = footprint.part, footprint.on_one_node, footprint.in_all
        if part:
            if len(footprint.shelves) == 1:
                (shelf,) = footprint.shelves
                return shelf.num_whole > 0 or shelf.max_part >= part
            return any(shelf.num_whole or shelf.max_part >= part for shelf in footprint.shelves)
        if on_one_node:
            for shelf in footprint.shelves:
                if shelf.max_whole >= on_one_node:
                    return in_all <= on_one_node or self.num_whole >= in_all
            return False
        return True

    @property
    def num_whole(self) -> int:
        """Whole free devices that nobody reserved."""
        return sum([shelf.num_whole for shelf in self._shelves.values()])

    # -- the search

    def _place_bundles(self, request: Request, now: float) -> list[Held] | None:
        bundles, strategy = request.bundles, request.strategy
        if len(bundles) == 1:
            spot = self._spot(bundles[0])
            return None if spot is None else [self.commit(request, bundles[0], *spot, now)]
        if strategy in (Strategy.PACK, Strategy.STRICT_PACK):
            held = self._on_one_node(request, now)
            if held is not None or strategy is Strategy.STRICT_PACK:
                return held
        used: dict[Node, None] = {}
        found: list[Held] = []
        num_left = sum(bundle.num_whole for bundle in bundles)
        for bundle in bundles:
            if strategy is Strategy.PACK:
                spot = self._spot(bundle, among=used) or self._spot(bundle, num_left=num_left)
                num_left -= bundle.num_whole
            else:
                spot = self._spot(bundle, avoiding=used)
                if spot is None and strategy is Strategy.SPREAD:
                    spot = self._spot(bundle)
            if spot is None:
                self._undo(request.request_id, found)
                return None
            found.append(self.commit(request, bundle, *spot, now))
            used[spot[0]] = None
        return found

    def _on_one_node(self, request: Request, now: float) -> list[Held] | None:
        bundles = request.bundles
        num_whole = sum(each.num_whole for each in bundles)
        labels = tuple(sorted({pair for each in bundles for pair in each.labels}))
        for shelf in self.shelves_for(bundles[0]._replace(labels=labels)):
            for node in shelf.nodes_with(num_whole):
                held: list[Held] = []
                for bundle in bundles:
                    devices = self._devices_on(node, bundle)
                    if devices is None:
                        break
                    held.append(self.commit(request, bundle, node, devices, now))
                if len(held) == len(bundles):
                    return held
                self._undo(request.request_id, held)
        return None

    def _spot(
        self,
        bundle: Bundle,
        *,
        among: Collection[Node] | None = None,
        avoiding: Collection[Node] = (),
        num_left: int = 0,
    ) -> tuple[Node, tuple[Device, ...]] | None:
        """Find the best place of one bundle.

        Args:
            bundle: What to place.
            among: Nodes to look at; None for all.
            avoiding: Nodes to leave out.
            num_left: Whole devices that this and later bundles of its gang want close together: the smallest
                node that has them all, else the largest.
        """
        shelves = self.shelves_for(bundle)
        if among is not None:
            nodes: Iterator[Node] = (node for node in among if frozenset(bundle.labels) <= node.labels)
        elif not bundle.shares:
            # A node without devices is no loss to those who need one.
            nodes = iter(
                sorted(
                    (node for shelf in shelves for node in shelf.nodes),
                    key=lambda node: (len(node.devices), node.free_cpu_parts),
                )
            )
        else:
            if bundle.shares < SHARES_PER_GPU:
                for shelf in shelves:
                    for device in shelf.parts(bundle.shares, self._smallest):
                        node = device.node
                        if device.has_room(bundle) and node.has_room(bundle) and node not in avoiding:
                            return node, (device,)
            if num_left > 1:
                all_left = (node for shelf in shelves for node in shelf.nodes_with(num_left))
                nodes = chain(all_left, (node for shelf in shelves for node in shelf.nodes_falling()))
            else:
                least = max(bundle.num_whole, 1)
                nodes = (node for shelf in shelves for node in shelf.nodes_with(least))
        for node in nodes:
            if node not in avoiding:
                devices = self._devices_on(node, bundle)
                if devices is not None:
                    return node, devices
        return None

    def _devices_on(self, node: Node, bundle: Bundle) -> tuple[Device, ...] | None:
        """Find a bundle's devices on one node; None where it does not fit."""
        if not node.has_room(bundle):
            return None
        if not bundle.shares:
            return ()
        if bundle.num_whole:
            devices = first_devices(node, bundle)
            return devices if len(devices) == bundle.num_whole else None
        best: Device | None = None
        for device in node.devices:
            if (
                device.reserved_for is None
                and device.has_room(bundle)
                and (best is None or device.free < best.free)
            ):
                best = device
        return None if best is None else (best,)

    # -- bookkeeping

    def _fits_on(self, bundle: Bundle, node: Node, devices: Sequence[Device]) -> bool:
        return node.has_room(bundle) and all(device.has_room(bundle) for device in devices)

    def commit(
        self, request: Request, bundle: Bundle, node: Node, devices: tuple[Device, ...], now: float
    ) -> Held:
        """Give devices of a node to a bundle.

        Raises:
            ValueError: It does not fit: the caller's search is wrong, and nothing has changed.
        """
        if not self._fits_on(bundle, node, devices) or len(devices) != bundle.num_devices:
            raise ValueError(f"{request.request_id} does not fit node {node.name}")
        ends_at = math.inf if request.expected_s is None else now + request.expected_s
        shares = min(bundle.shares, SHARES_PER_GPU)
        shelf = self._shelves[node.labels]
        mib = []
        for device in devices:
            mib.append(device.mib_for(bundle))
            device.free -= shares
            device.free_mib -= mib[-1]
            device.hold(request.request_id, ends_at, now)
            shelf.file(device)
        node.take(bundle)
        self.free_shares -= bundle.shares
        return Held(node, devices, shares, tuple(mib), bundle)

    def _undo(self, request_id: str, held: Sequence[Held]) -> None:
        for each in held:
            shelf = self._shelves[each.node.labels]
            for device, mib in zip(each.devices, each.mib, strict=True):
                device.free += each.shares
                device.free_mib += mib
                device.let_go(request_id)
                shelf.file(device)
            each.node.take(each.bundle, -1)
            self.free_shares += each.bundle.shares

    def _note(self, request: Request, held: Sequence[Held], now: float) -> Placement:
        ends_at = math.inf if request.expected_s is None else now + request.expected_s
        placement = self.placements[request.request_id] = Placement(request, tuple(held), now, ends_at)
        return placement

    # -- what is known

    def _why_short(self, request: Request, footprint: Footprint) -> Short:
        """Tell why a request that was not placed was not: never, or not now."""
        if footprint.never is not None:
            return footprint.never
        if footprint.part:
            num_missing = gpus_of(footprint.part - max(shelf.max_part for shelf in footprint.shelves))
        elif footprint.in_all > footprint.on_one_node:
            num_missing = float(footprint.in_all - self.num_whole)
        else:
            num_missing = float(footprint.on_one_node - max(shelf.max_whole for shelf in footprint.shelves))
        missing = "GPU"
        if num_missing <= 0 or not request.bundles[0].shares:
            # Devices are there; what else is not, or how they lie, is the trouble.
            missing, num_missing = self._short_beside(request, footprint)
        return CapacityShort(
            num_bundles=len(request.bundles),
            missing=missing,
            num_missing=num_missing,
            strategy=request.strategy.value,
        )

    def _short_beside(self, request: Request, footprint: Footprint) -> tuple[str, float]:
        first, num = request.bundles[0], len(request.bundles)
        if request.strategy is Strategy.STRICT_SPREAD and num > 1:
            num_fit = sum(self._devices_on(node, first) is not None for node in footprint.nodes)
            if num_fit:
                return "node with room for one of them", float(max(num - num_fit, 1))
            num = 1
        return too_busy(first, num, footprint.nodes, is_together=request.strategy is Strategy.STRICT_PACK)

    def _footprint(self, request: Request) -> Footprint:
        first = request.bundles[0]
        shelves = self.shelves_for(first)
        self._smallest = min(self._smallest, *(each.shares or SHARES_PER_GPU for each in request.bundles))
        whole = [bundle.num_whole for bundle in request.bundles]
        is_together = request.strategy is Strategy.STRICT_PACK
        return Footprint(
            self.version,
            shelves,
            tuple(node for shelf in shelves for node in shelf.nodes if node.is_large_enough(first)),
            first.shares if first.shares < SHARES_PER_GPU else 0,
            sum(whole) if is_together else whole[0],
            sum(whole),
            self._never_fits(request),
        )

    def _never_fits(self, request: Request) -> Short | None:
        for bundle in request.bundles:
            shelves = self.shelves_for(bundle)
            if not shelves:
                return LabelMissing(labels=bundle.labels)
            nodes = [node for shelf in shelves for node in shelf.nodes]
            if not any(node.is_large_enough(bundle) for node in nodes):
                return too_small(bundle, nodes)
        return None

    @property
    def utilisation(self) -> float:
        """Shares in use, of all; 0 without devices."""
        return 1.0 - self.free_shares / self.total_shares if self.total_shares else 0.0

    @property
    def fragmentation(self) -> float:
        """Free shares on partly used devices, of all free shares: no whole GPU can be made of them."""
        if not self.free_shares:
            return 0.0
        parts = sum(
            device.free
            for node in self.nodes.values()
            for device in node.devices
            if device.free < SHARES_PER_GPU
        )
        return parts / self.free_shares
