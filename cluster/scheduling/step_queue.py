"""The Steps that wait for one capability, pool or cluster, and which of them goes next.

Order, from the strongest rule on:

1. Priority, with ageing: a level's front gains one priority for every `ageing_s` its oldest Step has waited.
   Levels that overtake by age get one of `aged_every` decisions, in turn, so that a flood of old Steps never
   shuts urgent ones out, nor they it.
2. Within a priority, weighted fair share between tenants by cost (see `fair_share`).
3. Within a tenant, the earliest deadline. A Step without one has the deadline `patience_s` after it came, so
   that Steps without are first come, first served and not starved by those with one.

Steps whose key is used up are parked under it, a whole line at a time, and looked at again only when it
frees. A decision costs O(log n) in the Steps that wait and is linear in the few lanes and priorities. Nothing
is re-sorted as time passes. The queue has no clock, starts nothing and knows no replicas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import replace
from heapq import heappop, heappush, heapreplace

from cluster.scheduling.affinity import Affinity
from cluster.scheduling.limits import Limits, Watcher, capability_key, tenant_key
from cluster.scheduling.queued_step import Group, Lane, Level, Line, QueuedStep, num_ahead
from cluster.scheduling.reasons import BehindOthers, QuotaReached, RateReached, Reason

__all__ = ["TOP_PRIORITY", "StepQueue"]

TOP_PRIORITY = 100
_NEVER = -1
_AGE_PRECISION = 1 / 16


class StepQueue:
    """Ordered waiting work.

    Args:
        name: The capability; every Step of the queue has its key.
        limits: Keys, shared with other queues.
        ageing_s: Waiting time that is worth one priority, > 0.
        aged_every: One of so many decisions goes to those who overtake by age, >= 2.
        patience_s: Deadline of Steps that have none, counted from their enqueuing, > 0.
        weight_of: Weight of a tenant, > 0; asked when it begins to wait.
    """

    def __init__(
        self,
        name: str,
        limits: Limits,
        *,
        ageing_s: float = 60.0,
        aged_every: int = 8,
        patience_s: float = 3600.0,
        weight_of: Callable[[str], float] | None = None,
    ) -> None:
        self.name = name
        self._limits = limits
        self._ageing_s, self._aged_every, self._patience_s = ageing_s, aged_every, patience_s
        self._weight_of = weight_of
        self._capability_key = capability_key(name)
        self._steps: dict[Hashable, QueuedStep] = {}
        self._lanes: dict[str, Lane] = {}
        self._levels: dict[int, Level] = {}
        self._groups: dict[tuple[str, int, str], Group] = {}
        self._parked_lines: dict[str, dict[Group, list[tuple[float, int, Line]]]] = {}
        self._parked_groups: dict[str, dict[Group, None]] = {}
        self._timers: list[tuple[float, str]] = []
        self._timer_by_key: dict[str, float] = {}
        self._shut: Mapping[str, Reason] | Collection[str] = ()
        self._number = 0
        self._num_since_aged = aged_every
        self._aged_at = -math.inf
        self._open_mask = 0

    def __len__(self) -> int:
        return len(self._steps)

    def __contains__(self, step_id: Hashable) -> bool:
        return step_id in self._steps

    def __iter__(self) -> Iterator[QueuedStep]:
        return iter(self._steps.values())

    # -- what comes and goes

    def push(self, step: QueuedStep) -> None:
        """Let a step wait.

        Raises:
            ValueError: It waits already, or its priority is not 0 to 100.
        """
        if step.step_id in self._steps:
            raise ValueError(f"{step.step_id} waits already")
        priority = step.priority
        if not 0 <= priority <= TOP_PRIORITY:
            raise ValueError(f"priority must be 0 to 100, not {priority}")
        self._steps[step.step_id] = step
        group = self._groups.get((step.tenant, priority, step.lane)) or self._open_group(step)
        line = group.lines.get(step.keys)
        if line is None:
            line = group.lines[step.keys] = Line(group, step.keys)
        step.line = line
        order = min(step.deadline_at, step.enqueued_at + self._patience_s)
        self._number += 1
        heappush(line.heap, (order, self._number, step))
        line.num += 1
        group.num += 1
        group.lane.num += 1
        group.level.num += 1
        group.level.note(step)
        if not line.parked_under and line.heap[0][2] is step:
            self._ready_line(line, order)

    def pop(
        self,
        now: float,
        shut: Mapping[str, Reason] | Collection[str] = (),
        affinity: Affinity | None = None,
    ) -> QueuedStep | None:
        """Take the step that goes next, and one of each of its keys; see `front`."""
        step = self.front(now, shut, affinity)
        if step is not None:
            self.take(step, now, affinity)
        return step

    def front(
        self,
        now: float,
        shut: Mapping[str, Reason] | Collection[str] = (),
        affinity: Affinity | None = None,
    ) -> QueuedStep | None:
        """Tell which step goes next, without taking it.

        Args:
            now: Seconds, never less than before.
            shut: Lanes that cannot go now; with reasons, `why` repeats them.
            affinity: Of the replica that has a slot.

        Returns:
            A step none of whose keys is used up; None where there is none. See `next_wake_at`.
        """
        self._shut = shut
        if self._timers and self._timers[0][0] <= now:
            self._wake_timers(now)
        while (group := self._choose(now, shut, affinity)) is not None:
            blocked = self._limits.blocking(group.keys, now)
            if blocked is not None:
                self._park_group(group, blocked)
                continue
            line = group.ready[0][2]
            if line.keys:
                blocked = self._limits.blocking(line.keys, now)
                if blocked is not None:
                    self._park_line(line, blocked, now)
                    continue
            return line.heap[0][2]
        return None

    def take(self, step: QueuedStep, now: float, affinity: Affinity | None = None) -> None:
        """Take a step that `front` returned, with one of each of its keys, and charge its tenant.

        Raises:
            ValueError: The step does not wait here, or its line is blocked.
        """
        line = step.line
        if line is None or line.parked_under or line.group.account is None:
            raise ValueError(f"{step.step_id} cannot be taken")
        group, account = line.group, line.group.account
        if affinity is not None:
            first = self._choose(now, self._shut, None)
            affinity.note(first is not group and step.lane == affinity.lane, now)
        self._num_since_aged += 1
        if self._open_mask >> (group.level.priority + 1):
            self._num_since_aged = 0
            self._number += 1
            group.level.aged_turn = self._number
        self._limits.acquire(group.keys, now)
        if step.keys:
            self._limits.acquire(step.keys, now)
        group.level.share.charge(account, step.cost)
        self._drop(step, now)

    def remove(self, step_id: Hashable, now: float) -> QueuedStep | None:
        """Take a step out that will not run; None where it does not wait."""
        step = self._steps.get(step_id)
        if step is not None:
            self._drop(step, now)
        return step

    def reprioritise(self, step_id: Hashable, priority: int, now: float) -> bool:
        """Change the priority of a step that waits; it keeps its waiting time. False where it does not wait.

        Raises:
            ValueError: The priority is not 0 to 100; nothing has changed.
        """
        if not 0 <= priority <= TOP_PRIORITY:
            raise ValueError(f"priority must be 0 to 100, not {priority}")
        step = self.remove(step_id, now)
        if step is None:
            return False
        self.push(replace(step, priority=priority, line=None))
        return True

    def settle(self, step: QueuedStep, used: float) -> None:
        """Correct what a step's tenant was charged, once it is known.

        Args:
            step: A step that was taken.
            used: What it really used, >= 0; 0 for one that is queued again.
        """
        level = self._levels.get(step.priority)
        if level is not None:
            level.share.settle(step.tenant, used - step.cost)

    def end(self, step: QueuedStep, now: float, used: float | None = None) -> tuple[Watcher, ...]:
        """Give the keys of a step that was taken back, and settle its cost where it is known.

        Returns:
            Queues that were woken (this one may be among them): serve them.
        """
        if used is not None:
            self.settle(step, used)
        return self._limits.release((self._capability_key, tenant_key(step.tenant), *step.keys), now)

    # -- what is known

    def next_wake_at(self) -> float | None:
        """Tell when a rate key lets something go, None where none does; ask `front` then."""
        return self._timers[0][0] if self._timers else None

    def num_by_lane(self) -> dict[str, int]:
        """Count what waits, by lane."""
        return {name: lane.num for name, lane in self._lanes.items() if lane.num}

    def num_by_tenant(self) -> dict[str, int]:
        """Count what waits, by tenant."""
        counts: dict[str, int] = {}
        for group in self._groups.values():
            counts[group.tenant] = counts.get(group.tenant, 0) + group.num
        return counts

    def oldest_at(self, now: float) -> float:
        """Tell when the step that waits longest began to; now where nothing waits."""
        return min((level.oldest_at(now) for level in self._levels.values()), default=now)

    def why(self, step_id: Hashable, now: float, num_per_s: float | None = None) -> Reason | None:
        """Tell why a step waits, from what the last decisions wrote down; None where it does not wait.

        Args:
            step_id: The step.
            now: Seconds.
            num_per_s: Steps that begin in a second, for an estimate; None where unknown.
        """
        step = self._steps.get(step_id)
        if step is None or step.line is None:
            return None
        line, group = step.line, step.line.group
        if group.reason is not None:
            return group.reason
        if line.reason is not None:
            return line.reason
        if isinstance(self._shut, Mapping) and step.lane in self._shut:
            return self._shut[step.lane]
        ahead = num_ahead(step, self._groups.values())
        until_at = now + (ahead + 1) / num_per_s if num_per_s else None
        return BehindOthers(num_ahead=ahead, priority=step.priority, until_at=until_at)

    # -- choosing

    def _choose(
        self, now: float, shut: Mapping[str, Reason] | Collection[str], affinity: Affinity | None
    ) -> Group | None:
        """Find the group whose turn it is."""
        while True:
            merged = 0
            lanes = []
            for name, lane in self._lanes.items():
                if lane.mask and name not in shut:
                    merged |= lane.mask
                    lanes.append(lane)
            if not merged:
                return None
            self._open_mask = merged
            priority = merged.bit_length() - 1
            if (
                merged & (merged - 1)
                and self._num_since_aged >= self._aged_every - 1
                and now >= self._aged_at
            ):
                priority = self._aged(merged, priority, now)
            best: tuple[float, float, int, Group] | None = None
            bit = 1 << priority
            for lane in lanes:
                if lane.mask & bit:
                    entry = self._peek(lane, priority)
                    if entry is not None and (best is None or entry[:3] < best[:3]):
                        best = entry
            if best is None:
                continue
            if affinity is not None and best[3].lane.name != affinity.lane:
                loaded = self._lanes.get(affinity.lane)
                if loaded is not None and affinity.lane not in shut and affinity.may_pass(now):
                    entry = self._peek(loaded, priority) if loaded.mask & bit else None
                    if entry is not None:
                        return entry[3]
            return best[3]

    def _aged(self, merged: int, top: int, now: float) -> int:
        """Find the level whose turn it is when age counts: of those that overtake, by turns."""
        must_reach, best, best_turn = 0, top, _NEVER
        while merged:
            priority = merged.bit_length() - 1
            merged ^= 1 << priority
            level = self._levels[priority]
            gained = int((now - level.oldest_at(now)) / self._ageing_s)
            reached = min(priority + gained, TOP_PRIORITY)
            if priority == top:
                must_reach = reached
            elif reached >= must_reach and (best == top or level.aged_turn < best_turn):
                best, best_turn = priority, level.aged_turn
        if best == top:
            # Nobody overtakes: that changes slowly, and asking every time would cost more than the answer.
            self._aged_at = now + self._ageing_s * _AGE_PRECISION
        return best

    def _peek(self, lane: Lane, priority: int) -> tuple[float, float, int, Group] | None:
        """Clean a heap and return its first entry: (tag, order, number, group)."""
        heap = lane.heaps[priority]
        while heap:
            entry = heap[0]
            tag, order, number, group = entry
            account = group.account
            if number != group.entry or account is None:
                heappop(heap)
                continue
            if account.tag <= tag and group.ready and group.ready[0][0] == order:
                # What is true nearly always, without a call: decisions are made by the ten thousand.
                _, line_number, line = group.ready[0]
                if line_number == line.entry and line.heap[0][2].line is line and line.heap[0][0] == order:
                    return entry
            real = group.order()
            if real is None:
                self._leave(group)
                heappop(heap)
            elif account.tag > tag or real > order:
                heapreplace(heap, (account.tag, real, number, group))
            else:
                return entry
        lane.mask &= ~(1 << priority)
        return None

    # -- bookkeeping

    def _open_group(self, step: QueuedStep) -> Group:
        level = self._levels.get(step.priority)
        if level is None:
            level = self._levels[step.priority] = Level(step.priority)
        lane = self._lanes.get(step.lane)
        if lane is None:
            lane = self._lanes[step.lane] = Lane(step.lane)
        keys = (self._capability_key, tenant_key(step.tenant))
        group = self._groups[step.tenant, step.priority, step.lane] = Group(step.tenant, level, lane, keys)
        return group

    def _ready_line(self, line: Line, order: float) -> None:
        """Enter a line's first step into its group, and the group into its lane where that is new there."""
        group = line.group
        self._number += 1
        line.entry = self._number
        heappush(group.ready, (order, line.entry, line))
        if group.parked_under:
            return
        first = group.order()
        if first is not None and (group.account is None or group.ready[0][2] is line):
            self._enter(group, first)

    def _enter(self, group: Group, order: float) -> None:
        if group.account is None:
            weight = self._weight_of(group.tenant) if self._weight_of else 1.0
            group.account = group.level.share.enter(group.tenant, weight)
        self._number += 1
        group.entry = self._number
        lane, priority = group.lane, group.level.priority
        heap = lane.heaps.get(priority)
        if heap is None:
            heap = lane.heaps[priority] = []
        heappush(heap, (group.account.tag, order, group.entry, group))
        lane.mask |= 1 << priority

    def _leave(self, group: Group) -> None:
        if group.account is not None:
            group.level.share.leave(group.account)
            group.account = None
        group.entry = _NEVER

    def _drop(self, step: QueuedStep, now: float) -> None:
        """Forget a step; its heaps notice when they are looked at."""
        line = step.line
        if line is None:
            return
        group = line.group
        del self._steps[step.step_id]
        step.line = None
        line.num -= 1
        group.num -= 1
        group.lane.num -= 1
        group.level.num -= 1
        woken_by, line.woken_by = line.woken_by, ""
        if not line.num:
            line.entry = _NEVER
            del group.lines[line.keys]
        else:
            line.drop_garbage()
        if woken_by:
            self._wake_next(woken_by, group, now)
        if not group.num:
            self._leave(group)
            if group.parked_under:
                del self._parked_groups[group.parked_under][group]
            del self._groups[group.tenant, group.level.priority, group.lane.name]
        if not group.level.num:
            group.level.share.clear()
        if not group.lane.num and not group.lane.mask:
            self._lanes.pop(group.lane.name, None)

    def _park_group(self, group: Group, reason: QuotaReached | RateReached) -> None:
        group.parked_under, group.reason = reason.key, reason
        self._parked_groups.setdefault(reason.key, {})[group] = None
        self._leave(group)
        self._watch(reason)

    def _park_line(self, line: Line, reason: QuotaReached | RateReached, now: float) -> None:
        group = line.group
        order = line.order()
        heappop(group.ready)
        line.entry = _NEVER
        woken_by, line.woken_by = line.woken_by, ""
        line.parked_under, line.reason = reason.key, reason
        self._number += 1
        parked = self._parked_lines.setdefault(reason.key, {}).setdefault(group, [])
        heappush(parked, (order or 0.0, self._number, line))
        self._watch(reason)
        if woken_by and woken_by != reason.key:
            self._wake_next(woken_by, group, now)

    def _watch(self, reason: QuotaReached | RateReached) -> None:
        if isinstance(reason, QuotaReached):
            self._limits.watch(reason.key, self)
        elif reason.until_at is not None:
            self._limits.watch(reason.key, self)
            if reason.until_at < self._timer_by_key.get(reason.key, math.inf):
                self._timer_by_key[reason.key] = reason.until_at
                heappush(self._timers, (reason.until_at, reason.key))

    def _wake_timers(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            at, key = heappop(self._timers)
            if self._timer_by_key.get(key) == at:
                del self._timer_by_key[key]
                self.wake(key, now)

    def wake(self, key: str, now: float) -> bool:
        """Look again at what waits for a key; return whether something still does. See `limits.Watcher`."""
        for group in self._parked_groups.pop(key, ()):
            group.parked_under, group.reason = "", None
            order = group.order()
            if order is not None:
                self._enter(group, order)
        for group in list(self._parked_lines.get(key, ())):
            self._wake_next(key, group, now)
        return key in self._parked_lines

    def _wake_next(self, key: str, group: Group, now: float) -> None:
        """Let the first of a group's lines that wait for a key try again, where the key has room.

        One at a time: it takes the key, or says that it does not, and then the next is woken.
        """
        groups = self._parked_lines.get(key)
        parked = groups.get(group) if groups is not None else None
        if groups is None or parked is None:
            return
        blocked = self._limits.blocking((key,), now)
        if blocked is not None:
            self._watch(blocked)
            return
        while parked:
            _, _, line = heappop(parked)
            if line.num and line.parked_under == key:
                line.parked_under, line.reason, line.woken_by = "", None, key
                self._ready_line(line, line.order() or 0.0)
                break
        if not parked:
            del groups[group]
            if not groups:
                del self._parked_lines[key]
