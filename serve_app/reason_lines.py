"""How a reason to wait looks in answers: a stable word, a sentence, an instant, and the reason's own fields.

The decision that lets something wait returns its reason; this module only says it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from cluster.scheduling.reasons import Reason, StepWait

__all__ = ["ReasonLine", "instant_text", "reason_line", "step_reason_line"]


class ReasonLine(msgspec.Struct):
    """Why something waits: a stable word, one sentence, when it will probably end, and the reason's own
    fields.
    """

    kind: str
    sentence: str
    until_at: str | None
    details: dict[str, Any]


def reason_line(reason: Reason, now: float) -> ReasonLine:
    """Render a reason; `now` is on the clock of its `until_at`, Unix seconds."""
    return _line(reason, reason.sentence(now), reason.until_at)


def step_reason_line(wait: StepWait) -> ReasonLine:
    """Render the reason of a StepRun, which its owner has put into words already."""
    return _line(wait.reason, wait.sentence, wait.until_at)


def instant_text(at: float) -> str:
    """Render Unix seconds as UTC, ISO 8601."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _line(reason: Reason, sentence: str, until_at: float | None) -> ReasonLine:
    details: dict[str, Any] = msgspec.to_builtins(reason)
    kind = str(details.pop("kind"))
    details.pop("until_at", None)
    return ReasonLine(kind, sentence, None if until_at is None else instant_text(until_at), details)
