"""The engine: the only way to change a Run.

`advance` takes what happened and gives what to write and what to do. It costs in proportion to what changes,
not to the size of the Plan; ending a Run costs once in proportion to what was open.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isnan
from typing import Any

from cluster.engine.outcome import Outcome
from cluster.engine.state import Run
from cluster.engine.steps import (
    Settlement,
    cancel_open_units,
    emit,
    expire_unit,
    fail_attempt,
    finish_unit,
    lose_attempt,
    plain_seconds,
    queue,
    release_backoff,
    unblock,
)
from cluster.errors import Conflict, FailureCode, InvalidInput, StepError
from cluster.lifecycle.run_status import RunEventKind, RunStatus, next_run_status
from cluster.lifecycle.step_status import StepEventKind, StepStatus, next_step_status
from cluster.model import events as ev
from cluster.model.commands import EndRun, FindAttempt, SetTimer, StartStep, WatchRuns
from cluster.model.plan import SuccessRule
from cluster.model.run_id import client_id
from cluster.model.view import Failure

__all__ = ["DEFAULT_STEP_TIMEOUT_S", "advance"]

DEFAULT_STEP_TIMEOUT_S = 300.0


def advance(run: Run, event: ev.Event, now: float, step_timeout_s: float = DEFAULT_STEP_TIMEOUT_S) -> Outcome:
    """Let something happen to a Run.

    Args:
        run: Changed in place; nothing else is.
        event: What happened.
        now: Unix seconds.
        step_timeout_s: Limit of an attempt whose Step names none.

    Returns:
        What the store must write and the shell must do. A late or doubled result, a request that the Run's
        status forbids and a timer that fired early are answered with an Outcome that changes nothing.
    """
    out = Outcome()
    if type(event) is ev.StepAssigned:
        _assign(run, event, now, out, step_timeout_s)
    else:
        _HANDLERS[type(event)](run, event, now, out)
    return out


def _assign(run: Run, event: ev.StepAssigned, now: float, out: Outcome, step_timeout_s: float) -> None:
    unit = (event.step, event.item)
    status = run.record.status
    if unit not in run.ready or status.is_terminal or status in {RunStatus.PAUSED, RunStatus.PENDING}:
        return
    out.accepted = True
    if _is_over_time(run, now):
        _expire_run(run, now, out)
        return
    step_run = run.unit(*unit)
    run.ready.discard(unit)
    try:
        inputs = run.render_inputs(*unit)
    except StepError as error:
        _settle(run, now, out, finish_unit(run, unit, StepEventKind.FAILED, now, out, _failure_of(error)))
        return
    step_run.status = next_step_status(step_run.status, StepEventKind.STARTED)
    step_run.attempt += 1
    step_run.agent_id = event.agent_id
    step_run.started_at = now
    step_run.not_before_at = None
    timeout_s = run.plan.steps[event.step].step.timeout_s or step_timeout_s
    step_run.deadline_at = min(now + timeout_s, run.record.deadline_at or inf)
    run.running.add(unit)
    out.changed_units.append(unit)
    if status is not RunStatus.RUNNING:
        if run.record.started_at is None:
            run.record.started_at = now
        _move(run, RunEventKind.STARTED, now, out)
    emit(run, out, StepEventKind.STARTED, now, unit, step_run)
    out.commands.append(SetTimer(event.step, event.item, step_run.deadline_at))
    out.commands.append(StartStep(event.step, event.item, step_run.attempt, event.agent_id, inputs))


def _succeed(run: Run, event: ev.StepSucceeded, now: float, out: Outcome) -> None:
    unit = (event.step, event.item)
    step_run = run.unit(*unit) if unit in run.running else None
    if step_run is None or step_run.attempt != event.attempt:
        return
    out.accepted = True
    if _is_over_time(run, now):
        _expire_run(run, now, out)
        return
    if step_run.deadline_at is not None and now > step_run.deadline_at:
        _settle(run, now, out, expire_unit(run, unit, now, 0.5, out))
        return
    run.running.discard(unit)
    step_run.output = event.output
    out.new_results.append(unit)
    _settle(run, now, out, finish_unit(run, unit, StepEventKind.SUCCEEDED, now, out))


def _fail(run: Run, event: ev.StepFailed, now: float, out: Outcome) -> None:
    unit = (event.step, event.item)
    if unit not in run.running or run.unit(*unit).attempt != event.attempt:
        return
    out.accepted = True
    if _is_over_time(run, now):
        _expire_run(run, now, out)
        return
    run.running.discard(unit)
    _settle(
        run, now, out, fail_attempt(run, unit, event.failure, event.jitter, event.retry_after_s, now, out)
    )


def _progress(run: Run, event: ev.StepProgressed, now: float, out: Outcome) -> None:
    unit = (event.step, event.item)
    if unit not in run.running or run.unit(*unit).attempt != event.attempt:
        return
    out.accepted = True
    step_run = run.unit(*unit)
    # What is no number changes nothing: it would be stored as null, and nobody could read the Run again.
    progress = step_run.progress if isnan(event.progress) else min(max(event.progress, 0.0), 1.0)
    weight = 1.0 if event.item < 0 else 1.0 / len(run.steps[event.step].items or (1,))
    run.add_progress((progress - step_run.progress) * weight)
    step_run.progress = progress
    out.changed_units.append(unit)
    emit(run, out, StepEventKind.PROGRESSED, now, unit, step_run, message=event.message)


def _lose(run: Run, event: ev.AttemptLost, now: float, out: Outcome) -> None:
    unit = (event.step, event.item)
    if unit not in run.running or run.unit(*unit).attempt != event.attempt:
        return
    out.accepted = True
    run.running.discard(unit)
    _settle(run, now, out, lose_attempt(run, unit, event, now, out))


def _unserve(run: Run, event: ev.StepUnserved, now: float, out: Outcome) -> None:
    unit = (event.step, event.item)
    if unit not in run.ready:
        return
    out.accepted = True
    run.ready.discard(unit)
    failure = Failure(FailureCode.AGENT_UNAVAILABLE, event.message, retryable=False)
    _settle(run, now, out, finish_unit(run, unit, StepEventKind.FAILED, now, out, failure))


def _wake(run: Run, event: ev.TimerFired, now: float, out: Outcome) -> None:
    record = run.record
    if record.status.is_terminal:
        return
    if event.step < 0:
        if record.deadline_at is not None and now >= record.deadline_at:
            out.accepted = True
            _expire_run(run, now, out)
        elif record.deadline_at is not None:
            out.commands.append(SetTimer(-1, -1, record.deadline_at))
        return
    if _is_over_time(run, now):
        out.accepted = True
        _expire_run(run, now, out)
        return
    unit = (event.step, event.item)
    step_run = run.unit(*unit)
    if unit in run.backoff and step_run.not_before_at is not None:
        if now >= step_run.not_before_at:
            out.accepted = True
            release_backoff(run, unit, out)
        else:
            out.commands.append(SetTimer(event.step, event.item, step_run.not_before_at))
    elif unit in run.running and step_run.deadline_at is not None:
        if now >= step_run.deadline_at:
            out.accepted = True
            _settle(run, now, out, expire_unit(run, unit, now, event.jitter, out))
        else:
            out.commands.append(SetTimer(event.step, event.item, step_run.deadline_at))


def _is_over_time(run: Run, now: float) -> bool:
    """Whether the Run's deadline has passed: timers only wake, so whatever comes first after it ends the
    Run.
    """
    return run.record.deadline_at is not None and now >= run.record.deadline_at


def _expire_run(run: Run, now: float, out: Outcome) -> None:
    limit_s = (run.record.deadline_at or now) - run.record.created_at
    _end(
        run,
        RunEventKind.FAILED,
        now,
        out,
        Failure(FailureCode.TIMEOUT, f"not done within {plain_seconds(limit_s)}"),
    )


def _cancel(run: Run, event: ev.CancelRequested, now: float, out: Outcome) -> None:
    if run.record.status.is_terminal:
        out.refusal = Conflict(
            f"run {client_id(run.run_id)} has already ended: {run.record.status}", status=run.record.status
        )
        return
    out.accepted = True
    run.record.cancel_reason = event.reason
    message = f"cancelled: {event.reason}" if event.reason else "cancelled"
    _end(run, RunEventKind.CANCELLED, now, out, Failure(FailureCode.CANCELLED, message))


def _pause(run: Run, _event: ev.PauseRequested, now: float, out: Outcome) -> None:
    if run.record.status not in {RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.RETRYING}:
        out.refusal = Conflict(
            f"run {client_id(run.run_id)} cannot be paused: {run.record.status}", status=run.record.status
        )
        return
    out.accepted = True
    _move(run, RunEventKind.PAUSED, now, out)


def _resume(run: Run, _event: ev.ResumeRequested, now: float, out: Outcome) -> None:
    if run.record.status is not RunStatus.PAUSED:
        out.refusal = Conflict(
            f"run {client_id(run.run_id)} is not paused: {run.record.status}", status=run.record.status
        )
        return
    out.accepted = True
    _move(run, RunEventKind.QUEUED if run.record.started_at is None else RunEventKind.RESUMED, now, out)
    for unit in sorted(run.ready):
        queue(run, unit, out)
    _show_retrying(run, now, out)


def _reprioritise(run: Run, event: ev.PriorityRequested, now: float, out: Outcome) -> None:
    if run.record.status.is_terminal:
        out.refusal = Conflict(
            f"run {client_id(run.run_id)} has already ended: {run.record.status}", status=run.record.status
        )
        return
    if not 0 <= event.priority <= 100:
        out.refusal = InvalidInput("priority must be 0 to 100", field="priority")
        return
    out.accepted = True
    run.record.priority = event.priority
    emit(run, out, RunEventKind.REPRIORITISED, now, message=f"priority {event.priority}")
    for unit in sorted(run.ready):
        queue(run, unit, out)


def _adopt(run: Run, _event: ev.RunAdopted, now: float, out: Outcome) -> None:
    record = run.record
    if record.status.is_terminal:
        return
    if record.deadline_at is not None:
        out.commands.append(SetTimer(-1, -1, record.deadline_at))
    if record.waiting_for:
        out.commands.append(WatchRuns(record.waiting_for))
        return
    for step, item in sorted(run.running):
        held = run.unit(step, item)
        out.commands.append(FindAttempt(step, item, held.attempt, held.agent_id))
        if held.deadline_at is not None:
            out.commands.append(SetTimer(step, item, held.deadline_at))
    for step, item in sorted(run.backoff):
        out.commands.append(SetTimer(step, item, run.unit(step, item).not_before_at or now))
    if record.status is not RunStatus.PAUSED:
        for unit in sorted(run.ready):
            queue(run, unit, out)
    _open(run, now, out)
    out.accepted = bool(out.events or out.changed_units)


def _open(run: Run, now: float, out: Outcome) -> None:
    """Make ready whatever may start."""
    settlement = Settlement()
    for index, step_run in enumerate(run.steps):
        if step_run.status is StepStatus.BLOCKED and step_run.remaining == 0:
            unblock(run, index, now, out, settlement)
        elif step_run.status is StepStatus.MAPPING and step_run.items is not None:
            for position, item in enumerate(step_run.items):
                if item.status is StepStatus.BLOCKED:
                    item.status = StepStatus.READY
                    run.ready.add((index, position))
                    queue(run, (index, position), out)
    _settle(run, now, out, settlement)


def _meet(run: Run, event: ev.PredecessorEnded, now: float, out: Outcome) -> None:
    record = run.record
    if record.status is not RunStatus.PENDING or event.run_id not in record.waiting_for:
        return
    out.accepted = True
    if event.status is not RunStatus.SUCCEEDED:
        message = f"run {client_id(event.run_id)}, which this one comes after, ended {event.status}"
        _end(run, RunEventKind.FAILED, now, out, Failure(FailureCode.EXECUTION_FAILED, message))
        return
    record.waiting_for = tuple(other for other in record.waiting_for if other != event.run_id)
    if not record.waiting_for:
        _move(run, RunEventKind.QUEUED, now, out)
        _open(run, now, out)


def _settle(run: Run, now: float, out: Outcome, settlement: Settlement) -> None:
    """Follow the ends of Steps to those that waited for them, and to the end of the Run."""
    while settlement.ended:
        index = settlement.ended.pop()
        compiled = run.plan.steps[index]
        ended = run.steps[index]
        must_succeed = not compiled.step.optional and run.plan.plan.success is SuccessRule.ALL
        if ended.status is StepStatus.FAILED and must_succeed:
            failure = ended.error or Failure(FailureCode.EXECUTION_FAILED, "failed")
            _end(run, RunEventKind.FAILED, now, out, failure)
            return
        for dependent in compiled.dependents:
            run.steps[dependent].remaining -= 1
            if run.steps[dependent].remaining == 0:
                unblock(run, dependent, now, out, settlement)
    if run.record.num_open == 0:
        _complete(run, now, out)
    else:
        _show_retrying(run, now, out)


def _show_retrying(run: Run, now: float, out: Outcome) -> None:
    if run.record.status is RunStatus.RUNNING and run.backoff and not run.running and not run.ready:
        _move(run, RunEventKind.RETRYING, now, out)


def _complete(run: Run, now: float, out: Outcome) -> None:
    if run.plan.plan.success is SuccessRule.ANY and not run.num_succeeded:
        failure = run.first_failure()
        if failure is not None:
            _end(run, RunEventKind.FAILED, now, out, failure)
            return
    try:
        run.render_output()
    except StepError as error:
        _end(run, RunEventKind.FAILED, now, out, _failure_of(error))
        return
    _end(run, RunEventKind.SUCCEEDED, now, out, None)


def _end(run: Run, kind: RunEventKind, now: float, out: Outcome, failure: Failure | None) -> None:
    cancel_open_units(run, now, out)
    run.record.error = failure
    run.record.ended_at = now
    if kind is RunEventKind.SUCCEEDED:
        run.record.progress = 1.0
    _move(run, kind, now, out, failure)
    out.commands.append(EndRun())


def _move(run: Run, kind: RunEventKind, now: float, out: Outcome, failure: Failure | None = None) -> None:
    run.record.status = next_run_status(run.record.status, kind)
    emit(run, out, kind, now, failure=failure, message=failure.message if failure else "")


def _failure_of(error: StepError) -> Failure:
    return Failure(error.code, error.message, error.retryable)


_HANDLERS: dict[type, Callable[[Run, Any, float, Outcome], None]] = {
    ev.RunAdopted: _adopt,
    ev.PredecessorEnded: _meet,
    ev.CancelRequested: _cancel,
    ev.PauseRequested: _pause,
    ev.ResumeRequested: _resume,
    ev.PriorityRequested: _reprioritise,
    ev.StepSucceeded: _succeed,
    ev.StepFailed: _fail,
    ev.StepProgressed: _progress,
    ev.AttemptLost: _lose,
    ev.StepUnserved: _unserve,
    ev.TimerFired: _wake,
}
