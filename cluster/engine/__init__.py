"""The engine: `advance(run, event, now) -> Outcome`. No I/O, no clock, no randomness."""

from cluster.engine.advance import advance
from cluster.engine.growing_run import GrowingRun, load_run, new_run
from cluster.engine.outcome import Outcome
from cluster.engine.records import Growth, RunHeader, RunRecord, StepRecord, initial_record
from cluster.engine.state import Run, StepRun

__all__ = [
    "GrowingRun",
    "Growth",
    "Outcome",
    "Run",
    "RunHeader",
    "RunRecord",
    "StepRecord",
    "StepRun",
    "advance",
    "initial_record",
    "load_run",
    "new_run",
]
