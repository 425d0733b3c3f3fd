"""What happens to a single StepRun, and the bookkeeping of a Run that follows from it."""

from __future__ import annotations

from math import inf

from cluster.engine.outcome import Outcome
from cluster.engine.state import Run, StepRun, Unit, join_outputs
from cluster.errors import FailureCode, StepError
from cluster.lifecycle.run_status import RunEventKind, RunStatus
from cluster.lifecycle.step_status import StepEventKind, StepStatus, next_step_status
from cluster.model.commands import QueueStep, SetTimer, StopStep
from cluster.model.events import AttemptLost
from cluster.model.references import decode_value, encode_value
from cluster.model.view import Failure, RunEvent
from cluster.scheduling.backoff import full_jitter_delay_s

__all__ = [
    "Settlement",
    "cancel_open_units",
    "emit",
    "expire_unit",
    "fail_attempt",
    "finish_unit",
    "lose_attempt",
    "plain_seconds",
    "queue",
    "release_backoff",
    "unblock",
]

MAX_MAP_ITEMS = 10_000
_MAX_STORY = 8
_MAX_RETRY_AFTER_S = 3600.0
_SHOWN = frozenset({StepStatus.MAPPING, StepStatus.WAITING})
_NO_UNIT: Unit = (-1, -1)


class Settlement:
    """Steps that have just ended and whose dependents have not been looked at yet."""

    __slots__ = ("ended",)

    def __init__(self, *ended: int) -> None:
        self.ended = list(ended)


def emit(
    run: Run,
    out: Outcome,
    kind: RunEventKind | StepEventKind,
    now: float,
    unit: Unit = _NO_UNIT,
    step_run: StepRun | None = None,
    *,
    failure: Failure | None = None,
    message: str = "",
) -> None:
    """Append an event to the Run's stream."""
    record = run.record
    record.event_seq += 1
    out.events.append(
        RunEvent(
            seq=record.event_seq,
            type=kind,
            at=now,
            status=record.status,
            step=run.plan.steps[unit[0]].step.name if unit[0] >= 0 else "",
            item=unit[1],
            attempt=step_run.attempt if step_run is not None else 0,
            agent_id=step_run.agent_id if step_run is not None else "",
            progress=record.progress,
            step_progress=step_run.progress if step_run is not None else 0.0,
            message=message,
            error=failure,
        )
    )


def queue(run: Run, unit: Unit, out: Outcome) -> None:
    """Ask for a slot, unless the Run is paused: resuming asks again."""
    if run.record.status is not RunStatus.PAUSED:
        out.commands.append(QueueStep(*unit))


def unblock(run: Run, index: int, now: float, out: Outcome, settlement: Settlement) -> None:
    """Make a Step ready whose needs have all ended; or skip it, or spread it over its items."""
    compiled = run.plan.steps[index]
    step_run = run.steps[index]
    needs = compiled.needs
    try:
        skipped = bool(needs) and all(run.steps[need].status is StepStatus.SKIPPED for need in needs)
        if skipped or (compiled.when is not None and not compiled.when.holds(run.lookup)):
            settlement.ended += finish_unit(run, (index, -1), StepEventKind.SKIPPED, now, out).ended
            return
        if compiled.items is not None:
            step_run.raw_items = _items_of(compiled.items.render(run.lookup), compiled.step.name)
    except StepError as error:
        failure = Failure(error.code, error.message, error.retryable)
        settlement.ended += finish_unit(run, (index, -1), StepEventKind.FAILED, now, out, failure).ended
        return
    if compiled.step.answers:
        _await_answer(run, index, now, out)
        return
    if compiled.items is None:
        step_run.status = next_step_status(step_run.status, StepEventKind.READY)
        run.ready.add((index, -1))
        queue(run, (index, -1), out)
        return
    _spread(run, index, now, out, settlement)


def _await_answer(run: Run, index: int, now: float, out: Outcome) -> None:
    step_run = run.steps[index]
    step_run.status = next_step_status(step_run.status, StepEventKind.WAITING)
    step_run.started_at = now
    run.num_waiting += 1
    timeout_s = run.plan.steps[index].step.timeout_s
    if timeout_s is not None:
        step_run.deadline_at = min(now + timeout_s, run.record.deadline_at or inf)
        out.commands.append(SetTimer(index, -1, step_run.deadline_at))
    out.changed_units.append((index, -1))
    emit(run, out, StepEventKind.WAITING, now, (index, -1), step_run)


def _items_of(raw: bytes, name: str) -> list[bytes]:
    value = decode_value(raw)
    if isinstance(value, dict) and "$blob" in value:
        raise StepError(
            f"step {name}: the list to map over is kept as a blob; map over a smaller list",
            FailureCode.VALIDATION_ERROR,
        )
    if not isinstance(value, list):
        raise StepError(
            f"step {name}: map needs a list, got {type(value).__name__}", FailureCode.VALIDATION_ERROR
        )
    if len(value) > MAX_MAP_ITEMS:
        raise StepError(
            f"step {name}: {len(value)} items to map over, at most {MAX_MAP_ITEMS}",
            FailureCode.VALIDATION_ERROR,
        )
    return [encode_value(item) for item in value]


def _spread(run: Run, index: int, now: float, out: Outcome, settlement: Settlement) -> None:
    step_run = run.steps[index]
    step_run.items = [StepRun(StepStatus.READY) for _ in step_run.raw_items]
    step_run.open_items = len(step_run.items)
    if not step_run.items:
        step_run.output = b"[]"
        settlement.ended += finish_unit(run, (index, -1), StepEventKind.SUCCEEDED, now, out).ended
        return
    step_run.status = next_step_status(step_run.status, StepEventKind.MAPPED)
    step_run.started_at = now
    out.changed_units.append((index, -1))
    emit(run, out, StepEventKind.MAPPED, now, (index, -1), step_run, message=f"{len(step_run.items)} items")
    for position in range(len(step_run.items)):
        run.ready.add((index, position))
        queue(run, (index, position), out)


def finish_unit(
    run: Run, unit: Unit, kind: StepEventKind, now: float, out: Outcome, failure: Failure | None = None
) -> Settlement:
    """End a StepRun; the end of the last item, or of one that failed, ends its Step."""
    index, item = unit
    step_run = run.unit(*unit)
    step_run.status = next_step_status(step_run.status, kind)
    step_run.ended_at = now
    step_run.error = failure
    parent = run.steps[index]
    weight = 1.0 if item < 0 else 1.0 / max(len(parent.items or ()), 1)
    run.add_progress((1.0 - step_run.share_done) * weight)
    step_run.progress = 1.0
    out.changed_units.append(unit)
    message = failure.message if failure is not None else ""
    if item < 0:
        run.record.num_open -= 1
        run.num_succeeded += kind is StepEventKind.SUCCEEDED
        emit(run, out, kind, now, unit, step_run, failure=failure, message=message)
        return Settlement(index)
    emit(run, out, kind, now, unit, step_run, failure=failure, message=message)
    parent.open_items -= 1
    if kind is StepEventKind.FAILED:
        _stop_items(run, index, now, out)
        return finish_unit(run, (index, -1), kind, now, out, failure)
    if parent.open_items == 0:
        parent.output = join_outputs(parent.items or [])
        return finish_unit(run, (index, -1), kind, now, out)
    return Settlement()


def _stop_items(run: Run, index: int, now: float, out: Outcome) -> None:
    for position, item in enumerate(run.steps[index].items or []):
        if not item.status.is_terminal:
            _cancel_unit(run, (index, position), item, now, out)


def _cancel_unit(run: Run, unit: Unit, step_run: StepRun, now: float, out: Outcome) -> None:
    if unit in run.running:
        out.commands.append(StopStep(*unit, step_run.attempt, step_run.agent_id))
    shown = step_run.attempt > 0 or step_run.status in _SHOWN
    run.num_waiting -= step_run.status is StepStatus.WAITING
    step_run.status = next_step_status(step_run.status, StepEventKind.CANCELLED)
    step_run.ended_at = now
    run.running.discard(unit)
    run.ready.discard(unit)
    run.backoff.discard(unit)
    if shown:
        out.changed_units.append(unit)
        emit(run, out, StepEventKind.CANCELLED, now, unit, step_run)


def cancel_open_units(run: Run, now: float, out: Outcome) -> None:
    """End whatever has not ended, because the Run ends. What never started needs no record: readers derive
    it.
    """
    if run.record.num_open == 0:
        return
    for index, step_run in enumerate(run.steps):
        if step_run.status is StepStatus.MAPPING:
            _stop_items(run, index, now, out)
        if not step_run.status.is_terminal:
            _cancel_unit(run, (index, -1), step_run, now, out)


def fail_attempt(
    run: Run, unit: Unit, failure: Failure, jitter: float, retry_after_s: float, now: float, out: Outcome
) -> Settlement:
    """Try again after a backoff, or fail for good."""
    step_run = run.unit(*unit)
    policy = run.plan.steps[unit[0]].step.retry
    if not failure.retryable or step_run.failures >= policy.max_retries:
        return finish_unit(run, unit, StepEventKind.FAILED, now, out, failure)
    step_run.failures += 1
    run.record.retry_count += 1
    # The wish is foreign: without a bound it could put the retry off for ever. NaN loses every comparison
    # here.
    wish_s = min(retry_after_s, _MAX_RETRY_AFTER_S)
    delay_s = max(full_jitter_delay_s(policy, step_run.failures, jitter), wish_s)
    step_run.status = next_step_status(step_run.status, StepEventKind.RETRYING)
    step_run.error = failure
    _forget_progress(run, unit, step_run)
    step_run.deadline_at = None
    step_run.not_before_at = now + delay_s
    run.backoff.add(unit)
    out.changed_units.append(unit)
    emit(run, out, StepEventKind.RETRYING, now, unit, step_run, failure=failure, message=failure.message)
    out.commands.append(SetTimer(*unit, step_run.not_before_at))
    return Settlement()


def _forget_progress(run: Run, unit: Unit, step_run: StepRun) -> None:
    weight = 1.0 if unit[1] < 0 else 1.0 / max(len(run.steps[unit[0]].items or ()), 1)
    run.add_progress(-step_run.progress * weight)
    step_run.progress = 0.0


def plain_seconds(duration_s: float) -> str:
    """Say a duration to people, to the millisecond: differences of instants are not exact."""
    return f"{max(duration_s, 0.001):.3f}".rstrip("0").rstrip(".") + " s"


def expire_unit(run: Run, unit: Unit, now: float, jitter: float, out: Outcome) -> Settlement:
    """Take an attempt back whose deadline has passed."""
    step_run = run.unit(*unit)
    run.running.discard(unit)
    out.commands.append(StopStep(*unit, step_run.attempt, step_run.agent_id))
    limit_s = (step_run.deadline_at or now) - (step_run.started_at or now)
    failure = Failure(
        FailureCode.TIMEOUT, f"attempt {step_run.attempt} took over {plain_seconds(limit_s)}", retryable=True
    )
    return fail_attempt(run, unit, failure, jitter, 0.0, now, out)


def lose_attempt(run: Run, unit: Unit, event: AttemptLost, now: float, out: Outcome) -> Settlement:
    """Make a StepRun ready again whose attempt is gone; quarantine it where it keeps killing its replicas."""
    step_run = run.unit(*unit)
    step_run.story = (*step_run.story, f"attempt {event.attempt} on {step_run.agent_id}: {event.reason}")[
        -_MAX_STORY:
    ]
    step_run.crashes += event.crashed
    if step_run.crashes >= event.max_crashes:
        story = "; ".join(step_run.story)
        failure = Failure(
            FailureCode.EXECUTION_FAILED, f"quarantined after {step_run.crashes} crashes: {story}"
        )
        return finish_unit(run, unit, StepEventKind.FAILED, now, out, failure)
    step_run.status = next_step_status(step_run.status, StepEventKind.LOST)
    _forget_progress(run, unit, step_run)
    step_run.deadline_at = None
    run.ready.add(unit)
    out.changed_units.append(unit)
    emit(run, out, StepEventKind.LOST, now, unit, step_run, message=event.reason)
    queue(run, unit, out)
    return Settlement()


def release_backoff(run: Run, unit: Unit, out: Outcome) -> None:
    """Make a StepRun ready whose backoff has passed."""
    step_run = run.unit(*unit)
    run.backoff.discard(unit)
    step_run.status = next_step_status(step_run.status, StepEventKind.READY)
    step_run.not_before_at = None
    run.ready.add(unit)
    out.changed_units.append(unit)
    queue(run, unit, out)
