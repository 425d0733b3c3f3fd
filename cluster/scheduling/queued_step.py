"""What waits: one ready Step in a queue, and the lines and groups that a queue keeps it in.

A line holds Steps of one tenant, priority, lane and set of keys; a group holds the lines of one tenant,
priority and lane. Heaps are cleaned when they are looked at: an entry is true only where its number is the
holder's last, and its order may be too small, never too large.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from typing import Any

from cluster.scheduling.fair_share import Account, FairShare
from cluster.scheduling.reasons import QuotaReached, RateReached

__all__ = ["Group", "Lane", "Level", "Line", "QueuedStep", "num_ahead"]

_MIN_GARBAGE = 64
_GONE = -1


@dataclass(slots=True, eq=False)
class QueuedStep:
    """A ready Step that waits for a slot.

    Attributes:
        step_id: Unique in its queue.
        tenant: Whose it is.
        priority: 0 to 100, higher first.
        enqueued_at: Seconds; kept when it is queued again or its priority changes.
        cost: What it will use, for fairness between tenants: > 0, the same unit in one queue.
        lane: What can be open or shut as a whole: the model it needs, or the shape of its resources.
        keys: Its own concurrency and rate keys (those of tenant and capability are added by the queue).
        deadline_at: Earlier ones go first within a tenant's line; infinite where there is none.
        item: What the caller wants back.
    """

    step_id: Hashable
    tenant: str
    priority: int
    enqueued_at: float
    cost: float = 1.0
    lane: str = ""
    keys: tuple[str, ...] = ()
    deadline_at: float = math.inf
    item: Any = None
    line: Line | None = None
    """Set by its queue; None while it is in none."""


class Lane:
    """Groups of one lane, by priority; bit p of `mask` is set where priority p has entries."""

    __slots__ = ("heaps", "mask", "name", "num")

    def __init__(self, name: str) -> None:
        self.name = name
        self.mask = 0
        self.num = 0
        self.heaps: dict[int, list[tuple[float, float, int, Group]]] = {}


class Level:
    """One priority: the tenants' accounts, and who has waited longest.

    Attributes:
        num: Steps that wait in it.
        aged_turn: When it was last served before a higher one, as a running number.
    """

    __slots__ = ("_oldest", "aged_turn", "num", "priority", "share")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.share = FairShare()
        self.num = self.aged_turn = 0
        self._oldest: deque[QueuedStep] = deque()

    def note(self, step: QueuedStep) -> None:
        """Remember a step that begins to wait."""
        oldest = self._oldest
        if oldest and step.enqueued_at < oldest[0].enqueued_at:
            oldest.appendleft(step)
        else:
            oldest.append(step)
        if len(oldest) > 2 * self.num + _MIN_GARBAGE:
            self._oldest = deque(kept for kept in oldest if kept.line is not None)

    def oldest_at(self, now: float) -> float:
        """Tell when the one that waits longest began to; now where nothing waits."""
        oldest = self._oldest
        while oldest and oldest[0].line is None:
            oldest.popleft()
        return oldest[0].enqueued_at if oldest else now


class Line:
    """Steps with the same keys, in order; `parked_under` is the key that blocks it, "" where none does."""

    __slots__ = ("entry", "group", "heap", "keys", "num", "parked_under", "reason", "woken_by")

    def __init__(self, group: Group, keys: tuple[str, ...]) -> None:
        self.group = group
        self.keys = keys
        self.heap: list[tuple[float, int, QueuedStep]] = []
        self.num = 0
        self.entry = _GONE
        self.parked_under = self.woken_by = ""
        self.reason: QuotaReached | RateReached | None = None

    def order(self) -> float | None:
        """Tell the order of its first step, None where it has none."""
        heap = self.heap
        while heap and heap[0][2].line is not self:
            heappop(heap)
        return heap[0][0] if heap else None

    def drop_garbage(self) -> None:
        """Forget removed steps in the middle once they are the most."""
        if len(self.heap) > 2 * self.num + _MIN_GARBAGE:
            self.heap = [entry for entry in self.heap if entry[2].line is self]
            heapify(self.heap)


class Group:
    """Lines of one tenant, priority and lane; `keys` are those that all its steps have."""

    __slots__ = (
        "account",
        "entry",
        "keys",
        "lane",
        "level",
        "lines",
        "num",
        "parked_under",
        "ready",
        "reason",
        "tenant",
    )

    def __init__(self, tenant: str, level: Level, lane: Lane, keys: tuple[str, ...]) -> None:
        self.tenant, self.level, self.lane, self.keys = tenant, level, lane, keys
        self.lines: dict[tuple[str, ...], Line] = {}
        self.ready: list[tuple[float, int, Line]] = []
        self.num = 0
        self.entry = _GONE
        self.account: Account | None = None
        self.parked_under = ""
        self.reason: QuotaReached | RateReached | None = None

    def order(self) -> float | None:
        """Tell the order of its first step that no key blocks as far as is known, None where it has none."""
        ready = self.ready
        while ready:
            order, number, line = ready[0]
            real = line.order() if number == line.entry else None
            if real is None:
                heappop(ready)
            elif real > order:
                heapreplace(ready, (real, number, line))
            else:
                return order
        return None


def num_ahead(step: QueuedStep, groups: Iterable[Group]) -> int:
    """Count who goes before a waiting step if nothing else comes: higher levels, its own line, fair turns.
    Those whose tenant is at its limit do not.
    """
    if step.line is None:
        return 0
    mine = step.line.group
    entries = [
        (order, number, each)
        for line in mine.lines.values()
        for order, number, each in line.heap
        if each.line is line
    ]
    place = next((order, number) for order, number, each in entries if each is step)
    own = sum(1 for order, number, _ in entries if (order, number) < place)
    above, others = 0, dict[str, int]()
    for group in groups:
        if group.parked_under:
            continue
        if group.level.priority > step.priority:
            above += group.num
        elif group.level is mine.level and group.tenant != step.tenant:
            others[group.tenant] = others.get(group.tenant, 0) + group.num
    return above + own + sum(min(num, own + 1) for num in others.values())
