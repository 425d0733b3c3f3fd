"""What clients and other Runs ask of a Run: cancel, pause, resume, another priority, to come after."""

from __future__ import annotations

import pytest

from cluster.errors import Conflict, InvalidInput
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model import commands as cmd
from cluster.model import events as ev
from cluster.model.view import Failure
from tests.unit.cluster.engine.stage import BROKEN, FLAKY, Stage, is_nothing, queued, step, told

R = RunStatus


def stage_in(status: RunStatus) -> Stage:
    """A Run of two Steps in the status asked for."""
    first = step("a", answers=("yes",)) if status is R.WAITING else step("a")
    stage = Stage(first, step("b", "a"), after=("other",) if status is R.PENDING else ())
    if status is R.PAUSED:
        stage.send(ev.PauseRequested())
    if status in {R.RUNNING, R.RETRYING, R.FAILED, R.SUCCEEDED}:
        stage.assign(0)
    if status is R.RETRYING:
        stage.fail(0, failure=FLAKY)
    if status is R.FAILED:
        stage.fail(0, failure=BROKEN)
    if status is R.SUCCEEDED:
        stage.succeed(0)
        stage.do(1)
    if status is R.CANCELLED:
        stage.send(ev.CancelRequested(""))
    assert stage.status is status
    return stage


OPEN = [status for status in RunStatus if not status.is_terminal]
ENDED = [status for status in RunStatus if status.is_terminal]


@pytest.mark.parametrize("status", OPEN)
def test_cancel_ends_an_open_run_in_every_status(status: RunStatus) -> None:
    stage = stage_in(status)
    outcome = stage.send(ev.CancelRequested("not needed"))
    assert outcome.accepted
    assert stage.status is R.CANCELLED
    assert told(outcome)[-1] == "run.cancelled"
    assert outcome.commands[-1] == cmd.EndRun()
    assert stage.run.record.error == Failure("CANCELLED", "cancelled: not needed")
    assert stage.run.record.cancel_reason == "not needed"
    assert all(each is StepStatus.CANCELLED for each in stage.statuses)


@pytest.mark.parametrize("status", ENDED)
@pytest.mark.parametrize(
    "request_", [ev.CancelRequested(""), ev.PauseRequested(), ev.ResumeRequested(), ev.PriorityRequested(1)]
)
def test_ended_run_refuses_every_request(status: RunStatus, request_: ev.Event) -> None:
    stage = stage_in(status)
    outcome = stage.send(request_)
    assert isinstance(outcome.refusal, Conflict)
    assert not outcome.accepted
    assert not outcome.events
    assert stage.status is status


def test_cancel_stops_attempts_in_flight() -> None:
    stage = stage_in(R.RUNNING)
    outcome = stage.send(ev.CancelRequested(""))
    assert outcome.commands == [cmd.StopStep(0, -1, 1, "agent-1"), cmd.EndRun()]
    assert told(outcome) == ["step.cancelled a", "run.cancelled"]


@pytest.mark.parametrize("status", [R.QUEUED, R.RUNNING, R.RETRYING])
def test_pause_holds_a_run_that_could_go_on(status: RunStatus) -> None:
    stage = stage_in(status)
    outcome = stage.send(ev.PauseRequested())
    assert told(outcome) == ["run.paused"]
    assert outcome.commands == []


@pytest.mark.parametrize("status", [R.PENDING, R.PAUSED])
def test_pause_is_refused_where_there_is_nothing_to_hold(status: RunStatus) -> None:
    assert isinstance(stage_in(status).send(ev.PauseRequested()).refusal, Conflict)


@pytest.mark.parametrize("status", [R.PENDING, R.QUEUED, R.RUNNING, R.RETRYING])
def test_resume_of_a_run_that_is_not_paused_is_refused(status: RunStatus) -> None:
    assert isinstance(stage_in(status).send(ev.ResumeRequested()).refusal, Conflict)


@pytest.mark.parametrize(
    ("before", "after"), [(R.QUEUED, R.QUEUED), (R.RUNNING, R.RUNNING), (R.RETRYING, R.RETRYING)]
)
def test_resumed_run_is_where_it_was(before: RunStatus, after: RunStatus) -> None:
    stage = stage_in(before)
    stage.send(ev.PauseRequested())
    stage.send(ev.ResumeRequested())
    assert stage.status is after


def test_paused_run_finishes_what_is_in_flight_and_starts_nothing() -> None:
    stage = stage_in(R.RUNNING)
    stage.send(ev.PauseRequested())
    assert queued(stage.succeed(0)) == []
    assert is_nothing(stage.assign(1))
    assert queued(stage.send(ev.ResumeRequested())) == [(1, -1)]


def test_paused_run_whose_last_step_ends_succeeds() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    stage.send(ev.PauseRequested())
    stage.succeed(0)
    assert stage.status is R.SUCCEEDED


def test_backoff_and_loss_during_a_pause_wait_for_the_resume() -> None:
    stage = Stage(step("a"), step("b"))
    stage.assign(0)
    stage.assign(1)
    stage.send(ev.PauseRequested())
    stage.fail(0, failure=FLAKY)
    assert queued(stage.lose(1)) == []
    stage.now += 100
    assert queued(stage.send(ev.TimerFired(0, -1, 0.5))) == []
    assert queued(stage.send(ev.ResumeRequested())) == [(0, -1), (1, -1)]


@pytest.mark.parametrize("status", OPEN)
def test_priority_changes_in_every_open_status_and_ready_steps_queue_again(status: RunStatus) -> None:
    stage = stage_in(status)
    outcome = stage.send(ev.PriorityRequested(90))
    assert told(outcome) == ["run.reprioritised"]
    assert stage.run.record.priority == 90
    assert queued(outcome) == ([(0, -1)] if status is R.QUEUED else [])


@pytest.mark.parametrize("priority", [-1, 101])
def test_priority_out_of_range_is_refused(priority: int) -> None:
    stage = stage_in(R.QUEUED)
    assert isinstance(stage.send(ev.PriorityRequested(priority)).refusal, InvalidInput)
    assert stage.run.record.priority == 50


# -- after


def ended(run_id: str, status: RunStatus = R.SUCCEEDED) -> ev.PredecessorEnded:
    return ev.PredecessorEnded(run_id, status)


def test_run_waits_for_all_it_comes_after() -> None:
    stage = Stage(step("a"), after=("r1", "r2"), adopt=False)
    assert stage.send(ev.RunAdopted()).commands == [cmd.WatchRuns(("r1", "r2"))]
    first = stage.send(ended("r2"))
    assert (first.accepted, first.events, first.commands) == (True, [], [])
    second = stage.send(ended("r1"))
    assert told(second) == ["run.queued"]
    assert queued(second) == [(0, -1)]


@pytest.mark.parametrize("status", [R.FAILED, R.CANCELLED])
def test_predecessor_that_did_not_succeed_fails_the_run_with_the_reason(status: RunStatus) -> None:
    stage = Stage(step("a"), after=("r1", "r2"))
    outcome = stage.send(ended("r1", status))
    assert told(outcome) == ["run.failed"]
    assert stage.run.record.error == Failure(
        "EXECUTION_FAILED", f"run r1, which this one comes after, ended {status}"
    )


def test_message_about_a_predecessor_that_comes_again_changes_nothing() -> None:
    stage = Stage(step("a"), after=("r1", "r2"))
    stage.send(ended("r1"))
    assert is_nothing(stage.send(ended("r1")))
    stage.send(ended("r2"))
    assert is_nothing(stage.send(ended("r2")))
    assert is_nothing(stage.send(ended("r1", R.FAILED)))
    assert stage.status is R.QUEUED


def test_message_about_a_stranger_changes_nothing() -> None:
    stage = Stage(step("a"), after=("r1",))
    assert is_nothing(stage.send(ended("stranger", R.FAILED)))


def test_predecessor_named_twice_is_waited_for_once() -> None:
    stage = Stage(step("a"), after=("r1", "r1"))
    stage.send(ended("r1"))
    assert stage.status is R.QUEUED


def test_pending_run_starts_nothing_even_if_a_slot_is_offered() -> None:
    stage = Stage(step("a"), after=("r1",))
    assert is_nothing(stage.assign(0))
