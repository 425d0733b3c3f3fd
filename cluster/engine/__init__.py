"""The engine: `advance(run, event, now) -> Outcome`. No I/O, no clock, no randomness."""

from cluster.engine.advance import advance
from cluster.engine.outcome import Outcome
from cluster.engine.records import RunHeader, RunRecord, StepRecord, initial_record
from cluster.engine.state import Run, StepRun

__all__ = ["Outcome", "Run", "RunHeader", "RunRecord", "StepRecord", "StepRun", "advance", "initial_record"]
