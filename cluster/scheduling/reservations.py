"""Devices kept for a request that is large, and what may use them until it starts: EASY backfill.

A request that cannot be placed in its turn gets devices of its own: those that are expected to be free first.
Nothing new is put there unless it is expected to be gone before all of them are free, and where nobody knows
when that is, nothing at all. Such expectations may be wrong, so they are renewed only as long as somebody
runs there who was there before: after that nothing slips in any more, and the request starts. That is why
backfill cannot starve it. Reservations never share a device, so they cannot wait for each other.

Source: Lifka, "The ANL/IBM SP Scheduling System", JSSPP 1995 (EASY).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.scheduling.devices import SHARES_PER_GPU, Bundle, Device, Node
from cluster.scheduling.packing import Footprint, Packer, Placement, Request, Short, Strategy
from cluster.scheduling.shelves import Shelf

__all__ = ["Reservation", "Reservations"]

_PATIENCE_GROWTH = 2.0


class Reservation:
    """Devices kept for one request.

    Attributes:
        targets: The devices; nobody else's reservation has them.
        starts_at: When all of them are expected to be free; minus infinity where nobody knows: no backfill.
        expires_at: When it is given up for others.
        num_busy: Targets that are in use.
        before: Placements that were on the targets when they were reserved.
    """

    __slots__ = ("before", "expires_at", "footprint", "num_busy", "request", "starts_at", "targets")

    def __init__(self, request: Request, footprint: Footprint, expires_at: float) -> None:
        self.request = request
        self.footprint = footprint
        self.expires_at = expires_at
        self.targets: dict[Device, None] = {}
        self.before: set[str] = set()
        self.starts_at = -math.inf
        self.num_busy = 0


class Reservations:
    """All reservations on one packer; use this object's `place` and `release` instead of the packer's.

    Args:
        packer: The nodes.
        timeout_s: Patience of a first reservation; each further one of the same request has twice as much, so
            that whatever can run runs in the end.
        max_reserved: Part of all devices that may be reserved at a time, 0 to 1; one request always may.
    """

    def __init__(self, packer: Packer, timeout_s: float = 3600.0, max_reserved: float = 0.25) -> None:
        self.packer = packer
        self._timeout_s, self._max_reserved = timeout_s, max_reserved
        self._reservations: dict[str, Reservation] = {}
        self._patience_s: dict[str, float] = {}
        self._num_reserved = 0

    def __len__(self) -> int:
        return len(self._reservations)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._reservations

    def get(self, request_id: str) -> Reservation | None:
        """Find the reservation of a request."""
        return self._reservations.get(request_id)

    # -- making and giving up

    def reserve(self, request: Request, now: float) -> Reservation | None:
        """Keep devices for a request that does not fit now.

        Returns:
            None where too much is reserved already, or it needs no device, or too few are left.
        """
        needed = sum(bundle.num_devices for bundle in request.bundles)
        num_devices = self.packer.total_shares // SHARES_PER_GPU
        if not needed or request.request_id in self._reservations:
            return None
        if self._num_reserved and self._num_reserved + needed > self._max_reserved * num_devices:
            return None
        targets = self._targets(request, now)
        if targets is None:
            return None
        patience_s = self._patience_s.get(request.request_id, self._timeout_s)
        self._patience_s[request.request_id] = patience_s * _PATIENCE_GROWTH
        reservation = Reservation(request, self.packer.footprint(request), now + patience_s)
        self._reservations[request.request_id] = reservation
        for device in targets:
            self._keep(reservation, device)
        self._renew(reservation, now)
        return reservation

    def cancel(self, request_id: str) -> None:
        """Give a reservation up; one that is unknown is no error."""
        self._patience_s.pop(request_id, None)
        reservation = self._reservations.pop(request_id, None)
        if reservation is not None:
            for device in tuple(reservation.targets):
                self._give_up(reservation, device)

    def expire(self, now: float) -> list[Request]:
        """Give up those whose patience is over; returns their requests, to be queued again."""
        late = [r for r in self._reservations.values() if r.expires_at <= now]
        for reservation in late:
            patience_s = self._patience_s[reservation.request.request_id]
            self.cancel(reservation.request.request_id)
            self._patience_s[reservation.request.request_id] = patience_s
        return [reservation.request for reservation in late]

    @contextmanager
    def lifted(self, request_id: str) -> Iterator[None]:
        """Let a request see its own targets as if nobody had reserved them, while the block lasts.

        Nothing may be placed there meanwhile; one that has no reservation sees no difference.
        """
        reservation = self._reservations.get(request_id)
        if reservation is None:
            yield
            return
        targets, before = tuple(reservation.targets), reservation.before
        for device in targets:
            self._give_up(reservation, device)
        try:
            yield
        finally:
            for device in targets:
                self._keep(reservation, device)
            reservation.before = before

    def drop_node(self, name: str) -> list[Placement]:
        """Count a lost node out; reservations on it are made anew by whoever asks for them again.

        Returns:
            Placements that had a bundle there, all released.
        """
        node = self.packer.nodes[name]
        for reservation in [r for r in self._reservations.values() if any(d.node is node for d in r.targets)]:
            self.cancel(reservation.request.request_id)
        lost = [p for p in self.packer.placements.values() if any(held.node is node for held in p.held)]
        for placement in lost:
            self.release(placement.request.request_id)
        self.packer.remove_node(name)
        return lost

    # -- placing and releasing

    def release(self, request_id: str) -> Placement:
        """Give back what a request has; ask `start` and for others then.

        Raises:
            KeyError: It has nothing.
        """
        placement = self.packer.release(request_id)
        for device in {device for held in placement.held for device in held.devices}:
            if device.reserved_for is not None and device.free == SHARES_PER_GPU:
                device.reserved_for.num_busy -= 1
        return placement

    def place(self, request: Request, now: float) -> Placement | Short:
        """Place a request on what nobody reserved, else where it is gone in time.

        Returns:
            The placement, or why there is none.

        Raises:
            ValueError: See Packer.place.
        """
        found = self.packer.place(request, now)
        if isinstance(found, Placement) or not self._reservations:
            return found
        return self.backfill(request, now) or found

    def backfill(self, request: Request, now: float) -> Placement | None:
        """Place a request of one bundle and one device where it is gone in time; None where it is nowhere."""
        bundle = request.bundles[0]
        if request.expected_s is None or len(request.bundles) > 1 or bundle.num_devices != 1:
            return None
        ends_at = now + request.expected_s
        shares = bundle.shares
        for reservation in self._reservations.values():
            if -math.inf < reservation.starts_at < now:
                self._renew(reservation, now)
            if reservation.starts_at < ends_at:
                continue
            for device in reservation.targets:
                if (
                    device.free >= shares
                    and device.has_room(bundle)
                    and device.node.has_room(bundle)
                    and frozenset(bundle.labels) <= device.node.labels
                ):
                    if device.free == SHARES_PER_GPU:
                        reservation.num_busy += 1
                    held = self.packer.commit(request, bundle, device.node, (device,), now)
                    placement = Placement(request, (held,), now, ends_at)
                    self.packer.placements[request.request_id] = placement
                    return placement
        return None

    def start(self, now: float) -> list[Placement]:
        """Start reserved requests that can, those reserved first before others."""
        started = []
        num_whole = self.packer.num_whole
        for reservation in tuple(self._reservations.values()):
            if reservation.num_busy:
                if not num_whole:
                    continue
                self._gather(reservation)
                num_whole = self.packer.num_whole
                if reservation.num_busy and not self._fits_elsewhere(reservation):
                    continue
            placement = self._try(reservation, now)
            num_whole = self.packer.num_whole
            if placement is not None:
                started.append(placement)
        return started

    def _try(self, reservation: Reservation, now: float) -> Placement | None:
        """Place a request on its targets and whatever else is free; take them back where that fails."""
        targets = tuple(reservation.targets)
        for device in targets:
            self._give_up(reservation, device)
        placement = self.packer.place(reservation.request, now)
        if isinstance(placement, Placement):
            del self._reservations[reservation.request.request_id]
            self._patience_s.pop(reservation.request.request_id, None)
            return placement
        before = reservation.before
        for device in targets:
            self._keep(reservation, device)
        reservation.before = before
        return None

    def _fits_elsewhere(self, reservation: Reservation) -> bool:
        """Whether devices that nobody reserved would do for one node's worth; cheap, and only a hint."""
        request = reservation.request
        if len(request.bundles) > 1 and request.strategy is not Strategy.STRICT_PACK:
            return False
        if reservation.footprint.version != self.packer.version:
            reservation.footprint = self.packer.footprint(request)
        return self.packer.may_fit(reservation.footprint)

    def _gather(self, reservation: Reservation) -> None:
        """Exchange busy targets for free devices: of the same node, else where that does not matter."""
        request = reservation.request
        bundle = request.bundles[0]
        for busy in [each for each in reservation.targets if each.free < SHARES_PER_GPU]:
            free = next((each for each in busy.node.whole if each.has_room(bundle)), None)
            if free is not None:
                self._give_up(reservation, busy)
                self._keep(reservation, free)
        if len(request.bundles) > 1 and request.strategy in (Strategy.STRICT_PACK, Strategy.STRICT_SPREAD):
            return
        if any(each.num_devices > 1 for each in request.bundles):
            return
        shelves = self.packer.shelves_for(bundle)
        while reservation.num_busy:
            device = _free_device(shelves, request)
            if device is None:
                return
            busy = next(each for each in reservation.targets if each.free < SHARES_PER_GPU)
            self._give_up(reservation, busy)
            self._keep(reservation, device)

    # -- targets

    def _targets(self, request: Request, now: float) -> list[Device] | None:
        """Choose the devices that are expected to be free first."""
        bundle = max(request.bundles, key=lambda each: each.num_devices)
        needed = sum(each.num_devices for each in request.bundles)
        nodes = [
            node
            for node in self.packer.footprint(request).nodes
            if bundle is request.bundles[0] or node.is_large_enough(bundle)
        ]

        if len(request.bundles) > 1 and request.strategy is not Strategy.STRICT_PACK:
            if bundle.num_devices == 1 and request.strategy is not Strategy.STRICT_SPREAD:
                everywhere = [device for node in nodes for device in _usable(node, bundle)]
                ends = [d.last_end if d.last_end > now else d.busy_until(now) for d in everywhere]
                first = sorted(zip(ends, range(len(ends)), strict=True))[:needed]
                chosen = [everywhere[index] for _, index in first]
                return chosen if len(chosen) == needed else None
            offers = sorted(_offers(nodes, bundle, bundle.num_devices, now), key=lambda offer: offer[0])
            if len(offers) < len(request.bundles):
                return None
            return [device for _, devices in offers[: len(request.bundles)] for device in devices]
        offers = _offers(nodes, bundle, needed, now)
        return min(offers, key=lambda offer: offer[0])[1] if offers else None

    def _keep(self, reservation: Reservation, device: Device) -> None:
        device.reserved_for = reservation
        reservation.targets[device] = None
        self._num_reserved += 1
        if device.free < SHARES_PER_GPU:
            reservation.num_busy += 1
            reservation.before.update(device.holders)
        self.packer.shelf_of(device.node).file(device)

    def _give_up(self, reservation: Reservation, device: Device) -> None:
        device.reserved_for = None
        del reservation.targets[device]
        self._num_reserved -= 1
        if device.free < SHARES_PER_GPU:
            reservation.num_busy -= 1
        self.packer.shelf_of(device.node).file(device)

    def _renew(self, reservation: Reservation, now: float) -> None:
        """Expect anew when all targets are free, as long as somebody runs there who was there before."""
        reservation.before &= self.packer.placements.keys()
        if any(not reservation.before.isdisjoint(device.holders) for device in reservation.targets):
            reservation.starts_at = max(device.busy_until(now) for device in reservation.targets)
            if reservation.starts_at == math.inf:
                reservation.starts_at = -math.inf
        else:
            reservation.starts_at = -math.inf


def _usable(node: Node, bundle: Bundle) -> list[Device]:
    return [
        each
        for each in node.devices
        if each.reserved_for is None and (not bundle.gpu_mib or each.is_large_enough(bundle))
    ]


def _offers(nodes: list[Node], bundle: Bundle, num: int, now: float) -> list[tuple[float, list[Device]]]:
    """Ask each node for the devices that it could free first, and when the last of them would be."""
    offers = []
    for node in nodes:
        ends = [
            # Said here and not only in busy_until, because all devices of all nodes are asked.
            (each.last_end if each.last_end > now else each.busy_until(now), each.index)
            for each in node.devices
            if each.reserved_for is None and (not bundle.gpu_mib or each.is_large_enough(bundle))
        ]
        if len(ends) >= num:
            ends.sort()
            offers.append((ends[num - 1][0], [node.devices[index] for _, index in ends[:num]]))
    return offers


def _free_device(shelves: tuple[Shelf, ...], request: Request) -> Device | None:
    """Find a whole free device on the node that has fewest."""
    bundle = request.bundles[0]
    for shelf in shelves:
        for node in shelf.nodes_with(1):
            for device in node.whole:
                if device.has_room(bundle):
                    return device
    return None
