"""The engine: the only way to change a Run.

`advance` takes what happened and gives what to write and what to do. It costs in proportion to what changes,
not to the size of the Plan; ending a Run costs once in proportion to what was open.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isnan
from typing import Any

import orjson

from cluster.engine.growing_run import GrowingRun
from cluster.engine.growth import Ending, begin, follow
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
_PAUSABLE = frozenset({RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.RETRYING, RunStatus.WAITING})


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
    elif step_run.deadline_at is not None:
        if unit in run.running and now >= step_run.deadline_at:
            out.accepted = True
            _settle(run, now, out, expire_unit(run, unit, now, event.jitter, out))
        elif step_run.status is StepStatus.WAITING and now >= step_run.deadline_at:
            out.accepted = True
            _give_up_waiting(run, event.step, now, out)
        elif unit in run.running or step_run.status is StepStatus.WAITING:
            out.commands.append(SetTimer(event.step, event.item, step_run.deadline_at))


def _give_up_waiting(run: Run, index: int, now: float, out: Outcome) -> None:
    step_run = run.steps[index]
    waited_s = (step_run.deadline_at or now) - (step_run.started_at or now)
    failure = Failure(FailureCode.TIMEOUT, f"nobody answered within {plain_seconds(waited_s)}")
    _stop_waiting(run, now, out)
    _settle(run, now, out, finish_unit(run, (index, -1), StepEventKind.FAILED, now, out, failure))


def _stop_waiting(run: Run, now: float, out: Outcome) -> None:
    run.num_waiting -= 1
    if run.record.status is RunStatus.WAITING:
        _move(run, RunEventKind.RESUMED, now, out)


def _answer(run: Run, event: ev.AnswerGiven, now: float, out: Outcome) -> None:
    record = run.record
    waiting = _waiting_step(run, event.step)
    if record.status.is_terminal or waiting is None:
        waited = f"step {event.step!r} of it" if event.step else "it"
        out.refusal = Conflict(
            f"run {client_id(run.run_id)}: {waited} waits for no answer", status=record.status
        )
        return
    if _is_over_time(run, now):
        out.accepted = True
        _expire_run(run, now, out)
    elif (deadline_at := run.steps[waiting].deadline_at) is not None and now >= deadline_at:
        out.accepted = True
        _give_up_waiting(run, waiting, now, out)
    else:
        answers = run.plan.steps[waiting].step.answers
        if event.answer not in answers:
            out.refusal = InvalidInput(f"the answer must be one of {', '.join(answers)}", field="answer")
            return
        out.accepted = True
        head = orjson.dumps({"answer": event.answer, "by": event.by})
        run.steps[waiting].output = b'%b,"data":%b}' % (head[:-1], event.data)
        out.new_results.append((waiting, -1))
        _stop_waiting(run, now, out)
        _settle(run, now, out, finish_unit(run, (waiting, -1), StepEventKind.SUCCEEDED, now, out))
        return
    out.refusal = Conflict(f"run {client_id(run.run_id)}: the answer came too late", status=record.status)


def _waiting_step(run: Run, name: str) -> int | None:
    """Find the Step that waits for an answer; without a name, the first that does."""
    if not run.num_waiting:
        return None
    if name:
        index = run.plan.index_by_name.get(name)
        return index if index is not None and run.steps[index].status is StepStatus.WAITING else None
    return next(index for index, step_run in enumerate(run.steps) if step_run.status is StepStatus.WAITING)


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
    if run.record.status not in _PAUSABLE:
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
    _show_waiting(run, now, out)


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
    if run.num_waiting:
        for index, each in enumerate(run.steps):
            if each.status is StepStatus.WAITING and each.deadline_at is not None:
                out.commands.append(SetTimer(index, -1, each.deadline_at))
    if record.status is not RunStatus.PAUSED:
        for unit in sorted(run.ready):
            queue(run, unit, out)
    _open(run, now, out)
    out.accepted = bool(out.events or out.changed_units)


def _open(run: Run, now: float, out: Outcome) -> None:
    """Make ready whatever may start."""
    if isinstance(run, GrowingRun) and not run.growths:
        _follow(run, begin(run, now, out), now, out)
        return
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
    if isinstance(run, GrowingRun):
        _follow(run, follow(run, now, out, settlement), now, out)
        return
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
        _show_waiting(run, now, out)


def _follow(run: GrowingRun, ending: Ending | None, now: float, out: Outcome) -> None:
    if ending is None:
        _show_waiting(run, now, out)
    else:
        _end(run, ending.kind, now, out, ending.failure)


def _show_waiting(run: Run, now: float, out: Outcome) -> None:
    """Say what a Run waits for where none of its Steps can go on by itself."""
    if run.running or run.ready:
        return
    status = run.record.status
    if run.backoff:
        if status is RunStatus.RUNNING:
            _move(run, RunEventKind.RETRYING, now, out)
    elif run.num_waiting and status in {RunStatus.RUNNING, RunStatus.QUEUED}:
        if run.record.started_at is None:
            run.record.started_at = now
        _move(run, RunEventKind.WAITING, now, out)


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
    run.record.phase = ""
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
    ev.AnswerGiven: _answer,
    ev.StepSucceeded: _succeed,
    ev.StepFailed: _fail,
    ev.StepProgressed: _progress,
    ev.AttemptLost: _lose,
    ev.StepUnserved: _unserve,
    ev.TimerFired: _wake,
}
