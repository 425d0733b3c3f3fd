"""The queue of one pool that serves several capabilities, and the questions that its owner asks of it.

A Step brings its capability's key itself, as the first of its keys. What a pool needs beyond a StepQueue is
all here: may a Step start past all that waits without breaking a rule, what waits for keys, and why.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TypeVar

from cluster.scheduling.limits import tenant_key
from cluster.scheduling.queued_step import Group, QueuedStep
from cluster.scheduling.reasons import BehindOthers, Reason
from cluster.scheduling.step_queue import StepQueue

__all__ = ["PoolQueue"]

_Id = TypeVar("_Id", bound=Hashable)


class PoolQueue(StepQueue):
    """A StepQueue whose Steps have several capabilities; see there for the order."""

    def __getitem__(self, step_id: Hashable) -> QueuedStep:
        return self._steps[step_id]

    def may_pass(self, step: QueuedStep, slack_s: float) -> bool:
        """Whether a step that does not wait may start now, past all that does.

        Args:
            step: Not in the queue.
            slack_s: By how much the first may have come before it.

        Returns:
            True where only steps of its own tenant, priority and lane wait, so that neither priority, age nor
            fairness between tenants speak against it, and it would be first or nearly so.
        """
        if not self._steps:
            return True
        if len(self._groups) > 1:
            return False
        group = self._groups.get((step.tenant, step.priority, step.lane))
        if group is None:
            return False
        first = group.order()
        return first is None or min(step.deadline_at, step.enqueued_at + self._patience_s) <= first + slack_s

    def waiting_for_keys(self) -> Iterator[tuple[int, tuple[str, ...], int]]:
        """Tell what waits for keys that are used up: (priority, keys, steps)."""
        for groups in self._parked_groups.values():
            for group in groups:
                for line in group.lines.values():
                    yield group.level.priority, line.keys, line.num
        for parked in self._parked_lines.values():
            for group, lines in parked.items():
                if not group.parked_under:
                    for _, _, line in lines:
                        if line.parked_under and line.num:
                            yield group.level.priority, line.keys, line.num

    def reasons(
        self, step_ids: Iterable[_Id], now: float, num_per_s: float | None = None
    ) -> dict[_Id, Reason]:
        """Answer `why` for many steps, in one pass over what waits.

        Args:
            step_ids: Those that do not wait are left out of the answer.
            now: Seconds.
            num_per_s: See `why`.
        """
        found: dict[_Id, Reason] = {}
        blocked: Reason | None
        by_group: dict[Group, dict[int, _Id]] = {}
        for step_id in step_ids:
            step = self._steps.get(step_id)
            if step is None or step.line is None:
                continue
            blocked = step.line.group.reason or step.line.reason
            if blocked is None and isinstance(self._shut, Mapping):
                blocked = self._shut.get(step.lane)
            if blocked is not None:
                found[step_id] = blocked
            else:
                by_group.setdefault(step.line.group, {})[id(step)] = step_id
        for group, asked in by_group.items():
            for step, num_ahead in self._ahead(group, asked):
                until_at = now + (num_ahead + 1) / num_per_s if num_per_s else None
                found[asked[id(step)]] = BehindOthers(
                    num_ahead=num_ahead, priority=step.priority, until_at=until_at
                )
        return found

    def _ahead(self, group: Group, asked: Collection[int]) -> Iterator[tuple[QueuedStep, int]]:
        """Count who goes before each of some steps (by `id`) of a group, as `num_ahead` does for one."""
        places: list[tuple[float, int]] = []
        ordered: list[tuple[float, int, QueuedStep]] = []
        for line in group.lines.values():
            for order, number, step in line.heap:
                if step.line is line:
                    places.append((order, number))
                    if id(step) in asked:
                        ordered.append((order, number, step))
        ordered.sort(key=lambda entry: entry[:2])
        targets = [entry[:2] for entry in ordered]
        counts = [0] * (len(targets) + 1)
        for place in places:
            counts[bisect_right(targets, place)] += 1
        above, others = 0, dict[str, int]()
        for other in self._groups.values():
            if other.parked_under:
                continue
            if other.level.priority > group.level.priority:
                above += other.num
            elif other.level is group.level and other.tenant != group.tenant:
                others[other.tenant] = others.get(other.tenant, 0) + other.num
        for (_, _, step), own in zip(ordered, accumulate(counts), strict=False):
            yield step, above + own + sum(min(num, own + 1) for num in others.values())

    def _open_group(self, step: QueuedStep) -> Group:
        group = super()._open_group(step)
        group.keys = (tenant_key(step.tenant),)
        return group
