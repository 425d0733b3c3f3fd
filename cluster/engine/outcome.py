"""What `advance` gives back: changes for the store, commands for the shell."""

from __future__ import annotations

from cluster.errors import TuttiError
from cluster.model.commands import Command
from cluster.model.view import RunEvent

__all__ = ["Outcome"]


class Outcome:
    """The effect of one event on one Run.

    Attributes:
        accepted: Whether the event changed anything; a late or doubled result does not.
        changed_units: (step, item) of StepRuns whose record must be written.
        new_results: (step, item) of StepRuns whose output must be written.
        events: For the Run's event stream, in order.
        commands: What to do after the commit.
        growths: Numbers of visits that must be written, see `records.Growth`.
        refusal: Why a client's request was refused, or None.
    """

    __slots__ = ("accepted", "changed_units", "commands", "events", "growths", "new_results", "refusal")

    def __init__(self) -> None:
        self.accepted = False
        self.changed_units: list[tuple[int, int]] = []
        self.new_results: list[tuple[int, int]] = []
        self.events: list[RunEvent] = []
        self.commands: list[Command] = []
        self.growths: list[int] = []
        self.refusal: TuttiError | None = None
