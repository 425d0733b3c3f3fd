"""What one orchestrator knows of one pool: the Steps that wait for it and the replicas that serve it.

It holds and counts; who goes next is `Dispatcher`'s to ask and the queue's to say.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cluster.scheduling.pool_queue import PoolQueue
from cluster.scheduling.reasons import (
    AgentsUnavailable,
    BehindOthers,
    IsolationWanted,
    ModelCold,
    QuotaReached,
    RateReached,
    ReplicaMissing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from actors.pool_table import PoolEntry
    from actors.replica_link import ReplicaLink
    from cluster.model.compiled import Wish
    from cluster.scheduling.limits import Limits
    from cluster.scheduling.queued_step import QueuedStep
    from cluster.scheduling.reasons import Reason

__all__ = ["Backlog", "PoolLine", "Ready", "Wait", "num_free", "warm_link"]

_MIN_GARBAGE = 64
_LEAST_S = 0.001
_QUIET_MEANS = 2.0
_LEAST_QUIET_S = 1.0


class Ready(NamedTuple):
    """A StepRun that waits for a slot."""

    run_id: str
    step: int
    item: int


class Wait:
    """One waiting StepRun, beside what its queue knows of it.

    Attributes:
        ready: What waits.
        wish: What it asks of a pool.
        ready_at: When it began to wait, on the dispatcher's clock; its place goes by its Run's age.
        is_suspect: Whether it must run alone.
        is_over: Whether it waits no more.
    """

    __slots__ = ("is_over", "is_suspect", "ready", "ready_at", "wish")

    def __init__(self, ready: Ready, wish: Wish, ready_at: float, is_suspect: bool) -> None:
        self.ready, self.wish, self.ready_at, self.is_suspect = ready, wish, ready_at, is_suspect
        self.is_over = False


class Backlog:
    """Counts what waits for one capability, by priority, and knows who has waited longest."""

    __slots__ = ("_oldest", "num", "num_by_priority")

    def __init__(self) -> None:
        self.num = 0
        self.num_by_priority: dict[int, int] = {}
        self._oldest: deque[Wait] = deque()

    def add(self, priority: int, wait: Wait) -> None:
        """Count one that begins to wait."""
        self.num += 1
        self.num_by_priority[priority] = self.num_by_priority.get(priority, 0) + 1
        self._oldest.append(wait)
        if len(self._oldest) > 2 * self.num + _MIN_GARBAGE:
            self._oldest = deque(each for each in self._oldest if not each.is_over)

    def take(self, priority: int, wait: Wait) -> None:
        """Count one that waits no more."""
        wait.is_over = True
        self.num -= 1
        self._change(priority, -1)

    def move(self, before: int, after: int) -> None:
        """Count one whose priority changed."""
        self._change(before, -1)
        self._change(after, 1)

    def _change(self, priority: int, amount: int) -> None:
        count = self.num_by_priority.get(priority, 0) + amount
        if count:
            self.num_by_priority[priority] = count
        else:
            del self.num_by_priority[priority]

    def oldest_at(self, now: float) -> float:
        """Tell since when the one that waits longest does; now where nothing waits."""
        oldest = self._oldest
        while oldest and oldest[0].is_over:
            oldest.popleft()
        return oldest[0].ready_at if oldest else now


class PoolLine:
    """One pool.

    Attributes:
        entry: As the scheduler describes it; None for the line of those who wait for the first table.
        queue: What waits.
        suspects: What waits to run alone on a replica; a heap.
        links: Its replicas.
        backlogs: Counts of what waits, by capability.
        aside: The one that empties for the first suspect; None where none does.
    """

    def __init__(self, name: str, limits: Limits, weight_of: Callable[[str], float]) -> None:
        self.name = name
        self.entry: PoolEntry | None = None
        self.queue = PoolQueue(name, limits, weight_of=weight_of)
        self.suspects: list[tuple[int, float, int, QueuedStep]] = []
        self.links: list[ReplicaLink] = []
        self.aside: ReplicaLink | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._number = 0
        self.backlogs: dict[str, Backlog] = {}

    def backlog_of(self, capability: str) -> Backlog:
        """Find the counts of what waits here for a capability."""
        backlog = self.backlogs.get(capability)
        if backlog is None:
            backlog = self.backlogs[capability] = Backlog()
        return backlog

    def demand(self) -> dict[int, int]:
        """Count what waits for slots by priority, less what waits for keys."""
        counts: dict[int, int] = {}
        for backlog in self.backlogs.values():
            for priority, count in backlog.num_by_priority.items():
                counts[priority] = counts.get(priority, 0) + count
        for priority, _, count in self.queue.waiting_for_keys():
            counts[priority] -= count
        return {priority: count for priority, count in counts.items() if count > 0}

    def oldest_s(self, now: float) -> float:
        """Tell how long the one that waits longest has waited."""
        return max((now - each.oldest_at(now) for each in self.backlogs.values() if each.num), default=0.0)

    @property
    def num_waiting(self) -> int:
        """Count all that waits."""
        return len(self.queue) + len(self.suspects)

    def add_suspect(self, step: QueuedStep) -> None:
        """Let a step wait for a replica of its own: by priority, then the older Run."""
        if not self.suspects:
            self.aside = None
        self._number += 1
        heapq.heappush(self.suspects, (-step.priority, step.enqueued_at, self._number, step))

    def steps_alone(self) -> list[QueuedStep]:
        """List the suspects, in no order."""
        return [entry[3] for entry in self.suspects]

    def set_aside(self, link: ReplicaLink | None) -> None:
        """Let a replica empty for the first suspect."""
        self.aside = link
        if link is not None:
            link.alone_since = time.monotonic()

    def remove(self, ready: Ready, now: float) -> QueuedStep | None:
        """Take a step out that waits here; None where it does not."""
        step = self.queue.remove(ready, now)
        if step is None:
            for entry in self.suspects:
                if entry[3].step_id == ready:
                    step = entry[3]
                    self.suspects.remove(entry)
                    heapq.heapify(self.suspects)
                    break
        return step

    def best_link(self, model: str) -> ReplicaLink | None:
        """Find the replica with most free slots; where a model is asked for, of those that have it if any."""
        best = max(self.links, key=num_free, default=None)
        if best is None or best.num_free <= 0:
            return None
        return warm_link(self.links, model) or best if model else best

    def reasons(self, asked: Sequence[Ready], now: float, mean_s: Mapping[str, float]) -> dict[Ready, Reason]:
        """Tell why Steps wait here.

        Args:
            asked: Steps that wait here.
            now: On the dispatcher's clock.
            mean_s: Mean seconds of an attempt by capability, for an estimate of when.
        """
        entry = self.entry
        if entry is None:
            return dict.fromkeys(asked, ReplicaMissing(pool=""))
        if not self.links:
            missing = AgentsUnavailable(pool=self.name, trouble=entry.trouble) if entry.trouble else None
            reason = entry.reason or missing or ReplicaMissing(pool=self.name)
            kept = self.queue.reasons(asked, now)
            return {
                ready: kept[ready] if isinstance(kept.get(ready), QuotaReached | RateReached) else reason
                for ready in asked
            }
        means = [mean_s[name] for name in entry.capabilities if name in mean_s]
        num_slots = sum(link.slots for link in self.links)
        num_per_s = num_slots / max(sum(means) / len(means), _LEAST_S) if means and num_slots else None
        quiet_s = time.monotonic() - max(link.ended_at for link in self.links)
        if means and quiet_s > max(_QUIET_MEANS * sum(means) / len(means), _LEAST_QUIET_S):
            num_per_s = None  # the mean is of other attempts: nothing ends here now
        found = self.queue.reasons(asked, now, num_per_s)
        return {ready: self._said(ready, found.get(ready), now, quiet_s) for ready in asked}

    def _said(self, ready: Ready, reason: Reason | None, now: float, quiet_s: float) -> Reason:
        if reason is None:
            return IsolationWanted(pool=self.name) if self.suspects else ReplicaMissing(pool=self.name)
        if reason.until_at is not None:
            overdue_s = 0.0
            if isinstance(reason, BehindOthers):
                overdue_s = min(quiet_s, now - self.queue[ready].item.ready_at)
            if reason.until_at - now <= overdue_s:
                reason = msgspec.structs.replace(reason, until_at=None)
        if isinstance(reason, BehindOthers) and not reason.num_ahead:
            model = self.queue[ready].lane
            if model and all(link.model != model for link in self.links):
                return ModelCold(model=model, where=f"pool {self.name}", until_at=reason.until_at)
        if isinstance(reason, BehindOthers) and self.entry is not None and self.best_link("") is None:
            return self.entry.reason or reason
        return reason

    def wake_at(self, delay_s: float, serve: Callable[[], None]) -> None:
        """Serve again after a while, when a rate allows more; a later call replaces an earlier one."""
        if self._wake is not None:
            self._wake.cancel()
        self._wake = asyncio.get_running_loop().call_later(max(delay_s, 0.0), serve)

    def close(self) -> None:
        """Wake no more."""
        if self._wake is not None:
            self._wake.cancel()


def num_free(link: ReplicaLink) -> int:
    """Count the free slots of a replica."""
    return link.num_free


def warm_link(links: Sequence[ReplicaLink], model: str) -> ReplicaLink | None:
    """Find a replica with a free slot that has a model loaded, with most free slots of those."""
    warm = [link for link in links if link.num_free > 0 and link.model == model]
    return max(warm, key=num_free, default=None)
