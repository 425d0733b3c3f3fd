"""What an orchestrator counts: for /metrics, and for estimates of when a Run will end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.engine import Run

__all__ = ["Figures"]

_WEIGHT = 0.1
_MAX_SAMPLES = 500


class Figures:
    """Counters since the start of the process, and a window of durations.

    Attributes:
        mean_s: Moving mean of execution time by capability, in seconds.
    """

    def __init__(self) -> None:
        self.mean_s: dict[str, float] = {}
        self._counters: dict[str, int] = {}
        self._run_ms: deque[float] = deque(maxlen=_MAX_SAMPLES)
        self._commit_ms: deque[float] = deque(maxlen=_MAX_SAMPLES)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        self._counters[name] = self._counters.get(name, 0) + amount

    def observe_step(self, run: Run, step: int, item: int, kind: str) -> None:
        """Note a finished attempt, before its event is applied."""
        self.count(f"step_attempts_{kind}_total")
        started_at = run.unit(step, item).started_at
        if kind == "ok" and started_at is not None:
            took_s = max(time.time() - started_at, 0.0)
            capability = run.plan.steps[step].step.capability
            before = self.mean_s.get(capability)
            self.mean_s[capability] = took_s if before is None else before + _WEIGHT * (took_s - before)

    def observe_run(self, run: Run) -> None:
        """Note an ended Run."""
        record = run.record
        if record.started_at is not None and record.ended_at is not None:
            self._run_ms.append((record.ended_at - record.started_at) * 1000)

    def observe_commit(self, took_s: float) -> None:
        """Note a commit that came back."""
        self.count("commits_total")
        self._commit_ms.append(took_s * 1000)

    def snapshot(
        self, process: str, gauges: dict[str, float], waiting: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """Make what /metrics reads.

        Args:
            process: Name of the process.
            gauges: Numbers by name.
            waiting: Steps that wait for a slot, by capability.
        """
        return {
            "process": process,
            "counters": dict(self._counters),
            "gauges": gauges,
            "labelled": {"steps_waiting_by_capability": {"capability": dict(waiting or {})}},
            "samples": {
                "task_execution_time_ms": [round(value, 3) for value in self._run_ms],
                "tutti_commit_ms": [round(value, 3) for value in self._commit_ms],
            },
        }
