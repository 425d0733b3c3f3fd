"""The line of Runs beyond the window of an owner's memory: they wait in Redis, only their place is here.

It refuses to load anything. A Run that left the line by another way (a command asked for it) leaves its place
behind, which is passed over: `Partition.parked_ids` says who still waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from actors.partition import Partition
    from cluster.engine import Run

__all__ = ["Parked", "ParkingLine"]


class Parked(NamedTuple):
    """A place in the line; sorts by who goes first."""

    order: int
    created_at: float
    run_id: str
    partition: int


class ParkingLine:
    """One line for all partitions of an owner: priority, then first come."""

    def __init__(self) -> None:
        self._line: list[Parked] = []

    def add(self, partition: Partition, run: Run) -> None:
        """Let a Run wait."""
        if run.run_id not in partition.parked_ids:
            partition.parked_ids.add(run.run_id)
            place = Parked(-run.record.priority, run.header.created_at, run.run_id, partition.number)
            heapq.heappush(self._line, place)

    def take(self, partitions: Mapping[int, Partition], count: int) -> list[Parked]:
        """Take out up to `count` places of those who go first and still wait."""
        taken: list[Parked] = []
        while self._line and len(taken) < count:
            place = heapq.heappop(self._line)
            partition = partitions.get(place.partition)
            if partition is not None and place.run_id in partition.parked_ids:
                taken.append(place)
        return taken

    def put_back(self, places: Iterable[Parked]) -> None:
        """Give places back that could not be served."""
        for place in places:
            heapq.heappush(self._line, place)
