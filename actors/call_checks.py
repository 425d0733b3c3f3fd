"""What Python drivers say beside a submission: ids, waits, reasons, checked before anything is looked up.

A driver's values come as they are, of any type; what cannot be used is `InvalidInput`, never what asyncio or
a key's name would make of it. Whether a Run exists is not asked here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cluster.errors import InvalidInput
from cluster.model.submission_rules import check_priority

__all__ = ["check_priority_number", "check_reason", "check_run_id", "check_run_ids", "wait_limit"]


def check_run_id(run_id: Any) -> str:
    """Return an id that is text.

    Raises:
        InvalidInput: It is not.
    """
    if not isinstance(run_id, str) or not run_id:
        raise InvalidInput(f"run_id: must be text, not {_shown(run_id)}", field="run_id")
    return run_id


def check_run_ids(run_ids: Any) -> Sequence[str]:
    """Return the ids of a list of them; one text alone would be taken for a list of letters.

    Raises:
        InvalidInput: They are none.
    """
    if isinstance(run_ids, str | bytes) or not isinstance(run_ids, Sequence):
        raise InvalidInput(f"run_ids: must be a list of ids, not {_shown(run_ids)}", field="run_ids")
    return [check_run_id(each) for each in run_ids]


def check_priority_number(priority: Any) -> int:
    """Return a priority that is a whole number from 0 to 100.

    Raises:
        InvalidInput: It is not.
    """
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidInput(f"priority: must be a whole number, not {_shown(priority)}", field="priority")
    check_priority(priority)
    return priority


def check_reason(reason: Any) -> str:
    """Return a reason that is text.

    Raises:
        InvalidInput: It is not.
    """
    if not isinstance(reason, str):
        raise InvalidInput(f"reason: must be text, not {_shown(reason)}", field="reason")
    return reason


def wait_limit(timeout_s: Any) -> float | None:
    """Return a limit in seconds, >= 0; None, as infinity, is none.

    Raises:
        InvalidInput: It is no such number.
    """
    if timeout_s is None:
        return None
    # NaN loses the comparison too.
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s >= 0:
        raise InvalidInput(
            f"timeout_s: must be a number of seconds from 0 on, or None, not {_shown(timeout_s)}",
            field="timeout_s",
        )
    try:
        seconds = float(timeout_s)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) else None


def _shown(value: Any) -> str:
    return (
        f"{value!r}"
        if isinstance(value, int | float | str) and len(str(value)) < 80
        else type(value).__name__
    )
