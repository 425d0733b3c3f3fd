"""What the shell must do after the commit that says so. Commands are frozen values, in the imperative."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Command", "EndRun", "FindAttempt", "QueueStep", "SetTimer", "StartStep", "StopStep", "WatchRuns"]


class QueueStep(NamedTuple):
    """Find a slot for a ready StepRun. The one command that may be acted on before the commit: it starts
    nothing.
    """

    step: int
    item: int


class StartStep(NamedTuple):
    """Hand the attempt to its agent."""

    step: int
    item: int
    attempt: int
    agent_id: str
    inputs: bytes


class StopStep(NamedTuple):
    """Stop an attempt whose result is no longer wanted."""

    step: int
    item: int
    attempt: int
    agent_id: str


class FindAttempt(NamedTuple):
    """Ask the agent whether it still holds the attempt; adopt it or report it lost."""

    step: int
    item: int
    attempt: int
    agent_id: str


class SetTimer(NamedTuple):
    """Fire TimerFired for the StepRun (or the Run, step -1) at `at`, Unix seconds; replaces an earlier
    timer.
    """

    step: int
    item: int
    at: float


class WatchRuns(NamedTuple):
    """Report the end of these Runs as PredecessorEnded."""

    run_ids: tuple[str, ...]


class EndRun(NamedTuple):
    """The Run ended: tell who waits, forget it."""


Command = QueueStep | StartStep | StopStep | FindAttempt | SetTimer | WatchRuns | EndRun
