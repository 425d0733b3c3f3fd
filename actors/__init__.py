"""Ray shells around the core. `from actors import connect` is the way in for Python drivers."""

from __future__ import annotations

from typing import Any

__all__ = ["connect"]


def connect(address: str | None = None, number: int | None = None) -> Any:
    """Return the handle of an orchestrator actor; see `actors.connection.connect`."""
    from actors.connection import connect as find  # Ray is heavy; agents import this package without it

    return find(address, number)
