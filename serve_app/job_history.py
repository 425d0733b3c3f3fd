"""Tells the events of a Run of a Blueprint as the history of a job: states, work, answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from cluster.lifecycle.run_status import RunEventKind
from cluster.lifecycle.step_status import StepEventKind
from cluster.model.view import RunEvent
from serve_app.reason_lines import instant_text

__all__ = ["HistoryEntry", "history_of"]

_RUN_WORDS: Mapping[str, str] = {
    RunEventKind.SUBMITTED: "job_created",
    RunEventKind.SUCCEEDED: "job_finished",
    RunEventKind.FAILED: "job_failed",
    RunEventKind.CANCELLED: "job_cancelled",
    RunEventKind.PAUSED: "job_paused",
    RunEventKind.REPRIORITISED: "job_reprioritised",
}
_STEP_WORDS: Mapping[str, str] = {
    StepEventKind.STARTED: "task_dispatched",
    StepEventKind.PROGRESSED: "task_progress",
    StepEventKind.RETRYING: "task_retrying",
    StepEventKind.LOST: "task_lost",
    StepEventKind.SUCCEEDED: "task_finished",
    StepEventKind.FAILED: "task_failed",
    StepEventKind.CANCELLED: "task_cancelled",
}
_WAIT_WORDS: Mapping[str, str] = {
    StepEventKind.WAITING: "waiting_for_human",
    StepEventKind.SUCCEEDED: "human_answered",
    StepEventKind.FAILED: "human_wait_expired",
}
_QUARANTINE_WORDS: Mapping[str, str] = {
    StepEventKind.WAITING: "job_quarantined",
    StepEventKind.SUCCEEDED: "quarantine_released",
}


class HistoryEntry(msgspec.Struct, kw_only=True):
    """One thing that happened to a job; `duration_ms` is how long a state or piece of work took."""

    event_id: str
    job_id: str
    timestamp: str
    state: str | None
    event_type: str
    duration_ms: int | None = None
    previous_state: str | None = None
    next_state: str | None = None
    worker_id: str | None = None
    attempt_number: int | None = None
    context_snapshot: dict[str, Any] | None = None


def history_of(job_id: str, events: Iterable[RunEvent]) -> list[HistoryEntry]:
    """Tell a job's events, oldest first."""
    entries: list[HistoryEntry] = []
    state: str | None = None
    entered_at = 0.0
    started_at: dict[str, float] = {}
    waits: set[str] = set()

    def tell(event: RunEvent, kind: str, place: int = 0, **fields: Any) -> None:
        fields.setdefault("state", state)
        event_id = f"{event.seq}" if not place else f"{event.seq}.{place}"
        entries.append(
            HistoryEntry(
                event_id=event_id, job_id=job_id, timestamp=instant_text(event.at), event_type=kind, **fields
            )
        )

    for event in events:
        if event.type == RunEventKind.ENTERED:
            if state is not None:
                took = _ms(event.at - entered_at)
                tell(event, "state_finished", duration_ms=took, next_state=event.message)
            tell(event, "state_started", 1, previous_state=state, state=event.message)
            state, entered_at = event.message, event.at
        elif not event.step:
            word = _RUN_WORDS.get(event.type)
            if word is not None:
                why = None if event.error is None else {"error": event.error.message}
                tell(event, word, context_snapshot=why)
        else:
            started_at.setdefault(event.step, event.at)
            if event.type == StepEventKind.WAITING:
                waits.add(event.step)
            words = _STEP_WORDS
            if event.step in waits:
                words = _QUARANTINE_WORDS if event.step.endswith(":quarantine") else _WAIT_WORDS
            word = words.get(event.type)
            if word is not None:
                ended = event.type in (StepEventKind.SUCCEEDED, StepEventKind.FAILED)
                tell(
                    event,
                    word,
                    duration_ms=_ms(event.at - started_at[event.step]) if ended else None,
                    worker_id=event.agent_id or None,
                    attempt_number=event.attempt or None,
                    context_snapshot=_snapshot(event),
                )
    return entries


def _snapshot(event: RunEvent) -> dict[str, Any]:
    told: dict[str, Any] = {"step": event.step}
    if event.error is not None:
        told["error"] = event.error.message
    elif event.message:
        told["message"] = event.message
    return told


def _ms(duration_s: float) -> int:
    return max(0, round(duration_s * 1000))
