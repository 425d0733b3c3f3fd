"""What a Run of a Blueprint does or waits for at present, beside its status."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Phase"]


class Phase(StrEnum):
    """Kept with a Run's record while it goes on. Stored by value; "" in Runs of plain Plans."""

    WORKING = "working"
    """An agent works, or has yet to begin."""
    OUTSIDE = "outside"
    """A worker outside the cluster has the work, or has yet to come for it."""
    PARALLEL = "parallel"
    """Several pieces of work are waited for together."""
    SUB = "sub"
    """An agent works for a sub-blueprint."""
    PERSON = "person"
    """Somebody must answer."""
    QUARANTINED = "quarantined"
    """Something failed in a way that needs somebody to look; it waits for "retry" or "discard"."""
