"""How far a replica may go past others for the model it has loaded. The queue prefers; this bounds it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Affinity"]


@dataclass(slots=True)
class Affinity:
    """What one replica has loaded, and how far it has gone past others for it.

    Attributes:
        lane: The lane (model) it prefers.
        max_in_row: Steps of the lane it may take past the one whose turn it is, in a row.
        max_s: Seconds for which it may go on doing so.
    """

    lane: str
    max_in_row: int = 8
    max_s: float = 30.0
    num_in_row: int = 0
    since: float = 0.0

    def may_pass(self, now: float) -> bool:
        """Whether it may take one past another."""
        return self.num_in_row < self.max_in_row and (not self.num_in_row or now - self.since < self.max_s)

    def note(self, passed: bool, now: float) -> None:
        """Count what it took."""
        if not passed:
            self.num_in_row = 0
            return
        if not self.num_in_row:
            self.since = now
        self.num_in_row += 1
