"""Where free devices are found without looking at all: devices by free shares, nodes by whole free devices.

A shelf holds the nodes that are labelled alike. Devices that are full, or reserved for somebody, lie on none.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from cluster.scheduling.devices import SHARES_PER_GPU, Bundle, Device, Node

__all__ = ["Shelf", "first_devices"]

_NOWHERE = -1


class Shelf:
    """Nodes with the same labels.

    Attributes:
        nodes: All of them.
        num_whole: Whole free devices on it.
    """

    __slots__ = ("_by_free", "_by_whole", "_values", "nodes", "num_whole")

    def __init__(self) -> None:
        self.nodes: dict[Node, None] = {}
        self.num_whole = 0
        self._by_free: dict[int, dict[Device, None]] = {}
        self._values: list[int] = []
        self._by_whole: list[dict[Node, None]] = [{}]

    @property
    def max_whole(self) -> int:
        """Whole free devices of the node that has most."""
        by_whole = self._by_whole
        while len(by_whole) > 1 and not by_whole[-1]:
            by_whole.pop()
        return len(by_whole) - 1

    @property
    def max_part(self) -> int:
        """Free shares of the partly used device that has most; 0 where there is none."""
        return self._values[-1] if self._values else 0

    def add(self, node: Node) -> None:
        """Put a node with all its devices on the shelf."""
        self.nodes[node] = None
        self._by_whole[0][node] = None
        for device in node.devices:
            self.file(device)

    def remove(self, node: Node) -> None:
        """Take a node and its devices off."""
        for device in node.devices:
            self._unfile(device)
        del self.nodes[node], self._by_whole[0][node]

    def file(self, device: Device) -> None:
        """Put a device where it belongs after its free shares, or its reservation, have changed."""
        free = device.free
        bucket = free if free and device.reserved_for is None else _NOWHERE
        if bucket == device.bucket:
            return
        self._unfile(device)
        device.bucket = bucket
        if bucket == SHARES_PER_GPU:
            self._move(device.node, 1)
            device.node.whole[device] = None
        elif bucket != _NOWHERE:
            devices = self._by_free.get(bucket)
            if devices is None:
                devices = self._by_free[bucket] = {}
                insort(self._values, bucket)
            devices[device] = None

    def _unfile(self, device: Device) -> None:
        bucket, device.bucket = device.bucket, _NOWHERE
        if bucket == SHARES_PER_GPU:
            self._move(device.node, -1)
            del device.node.whole[device]
        elif bucket != _NOWHERE:
            devices = self._by_free[bucket]
            del devices[device]
            if not devices:
                del self._by_free[bucket]
                del self._values[bisect_left(self._values, bucket)]

    def _move(self, node: Node, step: int) -> None:
        count = len(node.whole)
        del self._by_whole[count][node]
        if count + step == len(self._by_whole):
            self._by_whole.append({})
        self._by_whole[count + step][node] = None
        self.num_whole += step

    # -- searching; every answer still has to pass memory, CPUs and the like

    def parts(self, shares: int, smallest: int) -> Iterator[Device]:
        """Yield partly used devices with room for a share, best fit first.

        Best is what is filled exactly; then what leaves something another can use; then the rest.

        Args:
            shares: Below one device.
            smallest: The smallest share that anybody asks for: what is left below it is waste.
        """
        values = self._values
        begin = bisect_left(values, shares)
        useful = bisect_left(values, shares + smallest, begin)
        exact = begin + (begin < len(values) and values[begin] == shares)
        for first, last in ((begin, exact), (useful, len(values)), (exact, useful)):
            for value in values[first:last]:
                yield from self._by_free[value]

    def nodes_with(self, num_whole: int) -> Iterator[Node]:
        """Yield nodes with at least so many whole free devices, those with fewest first."""
        for count in range(num_whole, len(self._by_whole)):
            yield from tuple(self._by_whole[count])

    def nodes_falling(self) -> Iterator[Node]:
        """Yield nodes with whole free devices, those with most first."""
        for count in range(len(self._by_whole) - 1, 0, -1):
            yield from tuple(self._by_whole[count])


def first_devices(node: Node, bundle: Bundle) -> tuple[Device, ...]:
    """Choose whole free devices of a node for a bundle; too few where it has not enough that would do."""
    found: list[Device] = []
    for device in node.whole:
        if device.has_room(bundle):
            found.append(device)
            if len(found) == bundle.num_whole:
                break
    return tuple(found)
