"""How long a Run waited and worked, from what a reader of it sees. Figures only, no formats."""

from __future__ import annotations

from typing import NamedTuple

from cluster.model.view import RunView, StepView

__all__ = ["RunTimes", "executions", "run_times"]


class RunTimes(NamedTuple):
    """Durations in milliseconds; of a Run that goes on, up to now.

    Attributes:
        total_ms: From submission to end.
        queue_ms: From submission to the first start.
        execution_ms: Wall time from the first start to the last end.
        num_agents: Different capabilities that were set to work.
    """

    total_ms: int
    queue_ms: int
    execution_ms: int
    num_agents: int


def executions(view: RunView) -> list[StepView]:
    """The StepRuns that agents work on: of a mapped Step its items, where there are any."""
    mapped = {step.name for step in view.steps if step.item >= 0}
    return [step for step in view.steps if step.item >= 0 or step.name not in mapped]


def run_times(view: RunView, now: float) -> RunTimes:
    """Measure a Run.

    Args:
        view: The Run.
        now: Unix seconds.
    """
    units = executions(view)
    starts = [step.started_at for step in units if step.started_at is not None]
    ends = [step.ended_at for step in units if step.started_at is not None and step.ended_at is not None]
    ended_at = view.ended_at if view.ended_at is not None else now
    first = min(starts, default=ended_at)
    goes_on = view.ended_at is None or len(ends) < len(starts)
    last = ended_at if goes_on else max(ends, default=first)
    return RunTimes(
        _ms(ended_at - view.created_at),
        _ms(first - view.created_at),
        _ms(last - first) if starts else 0,
        len({step.capability for step in units if step.started_at is not None}),
    )


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
