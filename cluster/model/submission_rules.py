"""What must hold of a Submission beside its Plan, whichever way it comes: one place for edge and drivers."""

from __future__ import annotations

import re
from typing import Protocol

from cluster.errors import InvalidInput

__all__ = ["SubmissionFields", "check_priority", "check_submission"]

_MAX_AFTER = 1000
_RUN_ID = re.compile(r"[A-Za-z0-9_.:-]{1,200}\Z")
_MAX_TIMEOUT_S = 10 * 365 * 86_400.0


class SubmissionFields(Protocol):
    """See Submission; `run_id` is None where the id will be one of ours."""

    @property
    def run_id(self) -> str | None:
        """The id."""

    @property
    def priority(self) -> int:
        """0 to 100."""

    @property
    def timeout_s(self) -> float | None:
        """Seconds."""

    @property
    def after(self) -> tuple[str, ...]:
        """Ids of other Runs."""


def check_submission(fields: SubmissionFields) -> None:
    """Check the numbers and ids.

    Raises:
        InvalidInput: `details["field"]` names the first that cannot be used.
    """
    if fields.run_id is not None and not _RUN_ID.match(fields.run_id):
        raise InvalidInput("an id must match [A-Za-z0-9_.:-]{1,200}", field="run_id")
    check_priority(fields.priority)
    if fields.timeout_s is not None and not 0 < fields.timeout_s <= _MAX_TIMEOUT_S:
        raise InvalidInput(f"the timeout must be above 0 and at most {_MAX_TIMEOUT_S:.0f} s", field="timeout")
    if len(fields.after) > _MAX_AFTER:
        raise InvalidInput(f"after: at most {_MAX_AFTER} ids", field="after")
    for other in fields.after:
        if not _RUN_ID.match(other) or other == fields.run_id:
            raise InvalidInput(f"after: {other[:200]!r} is not the id of another Run", field="after")


def check_priority(priority: int) -> None:
    """Check a priority.

    Raises:
        InvalidInput: It is not 0 to 100.
    """
    if not 0 <= priority <= 100:
        raise InvalidInput("priority: must be 0 to 100", field="priority")
