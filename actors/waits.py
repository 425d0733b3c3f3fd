"""Why the StepRuns of a Run wait, as its owner tells it: the record says what holds them outside the queues,
the queues what their last decisions wrote down. It guesses nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from actors.pool_line import Ready
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model.plan import OUTSIDE_PREFIX
from cluster.model.run_id import client_id
from cluster.scheduling.reasons import (
    ApprovalMissing,
    BackingOff,
    DependencyUnfinished,
    NoWorker,
    OwnerFull,
    Paused,
    Reason,
    ReplicaMissing,
    StepWait,
)

if TYPE_CHECKING:
    from cluster.engine import Run

__all__ = ["wait_of_parked", "waits_of"]

_MAX_TOLD = 100
_MAX_NAMES = 10


def wait_of_parked(max_loaded_runs: int, now: float) -> list[StepWait]:
    """Say of a Run that is not in its owner's memory why all of it waits."""
    return [_told("", -1, OwnerFull(max_loaded_runs=max_loaded_runs), now)]


def waits_of(run: Run, queued: Mapping[Ready, Reason], now: float) -> list[StepWait]:
    """Say why StepRuns wait.

    Args:
        run: In its owner's memory.
        queued: Reasons of those that wait for a slot.
        now: Unix seconds.

    Returns:
        In Plan order: the first 100 one by one, all others by Step and kind of reason.
    """
    if run.record.status.is_terminal:
        return []
    if run.record.waiting_for:
        names = tuple(map(client_id, run.record.waiting_for[:_MAX_NAMES]))
        return [_told("", -1, DependencyUnfinished(names=names), now)]
    told: list[StepWait] = []
    rest: dict[tuple[str, str], tuple[Reason, int]] = {}
    for step, item, reason in _reasons(run, queued):
        name = run.plan.steps[step].step.name
        if len(told) < _MAX_TOLD:
            told.append(_told(name, item, reason, now))
        else:
            kind = type(reason).__name__
            first, num = rest.get((name, kind), (reason, 0))
            rest[name, kind] = (first, num + 1)
    told += (_told(name, -1, first, now, num) for (name, _), (first, num) in rest.items())
    return told


def _told(step: str, item: int, reason: Reason, now: float, num: int = 1) -> StepWait:
    return StepWait(
        step=step, item=item, reason=reason, sentence=reason.sentence(now), until_at=reason.until_at, num=num
    )


def _reasons(run: Run, queued: Mapping[Ready, Reason]) -> Iterator[tuple[int, int, Reason]]:
    is_paused = run.record.status is RunStatus.PAUSED
    for index, step_run in enumerate(run.steps):
        units = [(-1, step_run)] if step_run.items is None else list(enumerate(step_run.items))
        for item, each in units:
            if each.status is StepStatus.BLOCKED:
                yield index, item, _blocked(run, index)
            elif each.status is StepStatus.WAITING:
                step = run.plan.steps[index].step
                yield index, item, ApprovalMissing(gate=step.name, until_at=each.deadline_at)
            elif each.status is StepStatus.BACKOFF:
                yield index, item, BackingOff(num_failures=each.failures, until_at=each.not_before_at)
            elif each.status is StepStatus.READY:
                reason = queued.get(Ready(run.run_id, index, item))
                capability = run.plan.steps[index].step.capability
                if is_paused:
                    yield index, item, Paused()
                elif capability.startswith(OUTSIDE_PREFIX) and not isinstance(reason, NoWorker):
                    yield index, item, NoWorker(capability=capability, num_busy=0, unmet=capability)
                else:
                    yield index, item, reason or ReplicaMissing(pool="")


def _blocked(run: Run, index: int) -> Reason:
    steps = run.plan.steps
    open_needs = (need for need in steps[index].needs if not run.steps[need].status.is_terminal)
    names = [steps[need].step.name for need, _ in zip(open_needs, range(_MAX_NAMES), strict=False)]
    return DependencyUnfinished(names=tuple(names))
