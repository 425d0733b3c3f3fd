"""Numbers as results carry them: finite, and rounded so that every processor gives the same.

It refuses to round for people; the report does that when it writes a sentence.
"""

from __future__ import annotations

import math

__all__ = ["rounded"]


def rounded(value: float | None) -> float | None:
    """Keep ten significant digits; what is not finite becomes None, as JSON has no word for it."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.10g}")
