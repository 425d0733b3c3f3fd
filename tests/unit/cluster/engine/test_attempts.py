"""What attempts report: progress, failures, losses, lateness, and what becomes of them."""

from __future__ import annotations

import math

import pytest

from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model import commands as cmd
from cluster.model import events as ev
from cluster.model.plan import RetryPolicy
from cluster.model.view import Failure
from tests.unit.cluster.engine.stage import (
    BROKEN,
    FLAKY,
    NO_RETRY,
    T0,
    Stage,
    is_nothing,
    queued,
    started,
    step,
    told,
    view_from_store,
)

ITEMS = {"inputs": {"$ref": "item"}}


def progress(stage: Stage, fraction: float, item: int = -1) -> None:
    attempt = stage.run.unit(0, item).attempt
    stage.send(ev.StepProgressed(0, item, attempt, fraction, "on it"))


# -- progress


@pytest.mark.parametrize(("told_fraction", "kept"), [(-1.0, 0.0), (0.25, 0.25), (2.0, 1.0), (math.inf, 1.0)])
def test_progress_is_held_between_0_and_1(told_fraction: float, kept: float) -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    progress(stage, told_fraction)
    assert stage.run.record.progress == kept


def test_progress_that_is_no_number_leaves_the_last_one() -> None:
    """NaN is written as null, and a record with null in it could never be read again."""
    stage = Stage(step("a"), step("b"))
    stage.assign(0)
    progress(stage, 0.5)
    progress(stage, math.nan)
    assert stage.run.record.progress == 0.25
    assert view_from_store(stage).progress == 0.25


def test_progress_of_many_items_never_passes_1_by_rounding() -> None:
    for num_items in range(1, 60):
        stage = Stage(step("each", map=list(range(num_items)), **ITEMS))
        for item in range(num_items):
            stage.assign(0, item)
            progress(stage, 1.0, item)
        assert stage.run.record.progress <= 1.0


def test_progress_event_tells_the_runs_and_the_steps_share() -> None:
    stage = Stage(step("a"), step("b"))
    stage.assign(0, agent_id="agent-7")
    outcome = stage.send(ev.StepProgressed(0, -1, 1, 0.5, "half way"))
    (event,) = outcome.events
    assert (event.progress, event.step_progress, event.message, event.agent_id) == (
        0.25,
        0.5,
        "half way",
        "agent-7",
    )
    assert outcome.changed_units == [(0, -1)]


def test_failed_attempt_takes_its_progress_back() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    progress(stage, 0.75)
    stage.fail(0, failure=FLAKY)
    assert stage.run.record.progress == 0.0


# -- retries


def test_retryable_failure_waits_for_the_jittered_backoff() -> None:
    stage = Stage(step("a", retry=RetryPolicy(initial_delay_s=4.0, multiplier=2.0)))
    stage.assign(0)
    first = stage.fail(0, failure=FLAKY, jitter=0.5)
    assert told(first) == ["step.retrying a", "run.retrying"]
    assert first.commands == [cmd.SetTimer(0, -1, T0 + 2.0)]
    stage.now = T0 + 2.0
    assert queued(stage.send(ev.TimerFired(0, -1, 0.5))) == [(0, -1)]
    assert started(stage.assign(0)).attempt == 2
    second = stage.fail(0, failure=FLAKY, jitter=0.25)
    assert second.commands == [cmd.SetTimer(0, -1, T0 + 4.0)]
    assert stage.run.record.retry_count == 2


def test_timer_that_fires_before_the_backoff_is_over_is_set_again() -> None:
    stage = Stage(step("a", retry=RetryPolicy(initial_delay_s=4.0)))
    stage.assign(0)
    stage.fail(0, failure=FLAKY, jitter=0.5)
    stage.now = T0 + 1.0
    outcome = stage.send(ev.TimerFired(0, -1, 0.5))
    assert not outcome.accepted
    assert outcome.commands == [cmd.SetTimer(0, -1, T0 + 2.0)]


def test_retries_are_exhausted_after_max_retries_and_the_last_error_fails_the_run() -> None:
    stage = Stage(step("a", retry=RetryPolicy(max_retries=2, initial_delay_s=0.0)))
    for number in range(3):
        stage.assign(0)
        stage.fail(0, failure=Failure("TIMEOUT", f"number {number}", retryable=True))
        stage.send(ev.TimerFired(0, -1, 0.0))
    assert stage.status is RunStatus.FAILED
    assert stage.run.record.error == Failure("TIMEOUT", "number 2", retryable=True)
    assert stage.run.record.retry_count == 2
    assert stage.kinds.count("step.retrying a") == 2


def test_failure_that_is_not_retryable_fails_at_once() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    assert told(stage.fail(0, failure=BROKEN)) == ["step.failed a", "run.failed"]


def test_longer_wish_of_the_other_side_replaces_the_backoff() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    outcome = stage.fail(0, failure=FLAKY, retry_after_s=7.0)
    assert outcome.commands == [cmd.SetTimer(0, -1, T0 + 7.0)]


@pytest.mark.parametrize("wish_s", [math.inf, 1e12])
def test_wish_without_end_is_cut_to_an_hour_so_that_the_run_goes_on(wish_s: float) -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    outcome = stage.fail(0, failure=FLAKY, retry_after_s=wish_s)
    assert outcome.commands == [cmd.SetTimer(0, -1, T0 + 3600.0)]


def test_wish_that_is_no_number_is_ignored() -> None:
    stage = Stage(step("a", retry=RetryPolicy(initial_delay_s=4.0)))
    stage.assign(0)
    assert stage.fail(0, failure=FLAKY, retry_after_s=math.nan).commands == [cmd.SetTimer(0, -1, T0 + 2.0)]


def test_run_reads_retrying_only_while_everything_waits_for_a_backoff() -> None:
    stage = Stage(step("a"), step("b"))
    stage.assign(0)
    stage.assign(1)
    stage.fail(0, failure=FLAKY)
    assert stage.status is RunStatus.RUNNING
    stage.fail(1, failure=FLAKY)
    assert stage.status is RunStatus.RETRYING
    stage.now += 10
    stage.send(ev.TimerFired(0, -1, 0.5))
    assert stage.status is RunStatus.RETRYING
    assert told(stage.assign(0)) == ["run.started", "step.started a"]
    assert stage.status is RunStatus.RUNNING


# -- deadlines


def test_step_timeout_stops_the_attempt_and_tries_again() -> None:
    stage = Stage(step("a", timeout_s=5.0))
    assert cmd.SetTimer(0, -1, T0 + 5.0) in stage.assign(0).commands
    stage.now = T0 + 5.0
    outcome = stage.send(ev.TimerFired(0, -1, 0.5))
    assert outcome.commands == [
        cmd.StopStep(0, -1, 1, "agent-1"),
        cmd.SetTimer(0, -1, T0 + 5.25),
    ]
    assert stage.run.steps[0].error == Failure("TIMEOUT", "attempt 1 took over 5 s", retryable=True)


def test_step_timeout_without_retries_fails_the_run_with_timeout() -> None:
    stage = Stage(step("a", timeout_s=5.0, retry=NO_RETRY))
    stage.assign(0)
    stage.now = T0 + 6.0
    stage.send(ev.TimerFired(0, -1, 0.5))
    assert stage.status is RunStatus.FAILED
    assert stage.run.record.error is not None
    assert stage.run.record.error.code == "TIMEOUT"


def test_step_timer_that_fires_early_is_set_again() -> None:
    stage = Stage(step("a", timeout_s=5.0))
    stage.assign(0)
    stage.now = T0 + 4.0
    outcome = stage.send(ev.TimerFired(0, -1, 0.5))
    assert not outcome.accepted
    assert outcome.commands == [cmd.SetTimer(0, -1, T0 + 5.0)]


def test_result_after_its_deadline_is_late_although_no_timer_fired() -> None:
    stage = Stage(step("a", timeout_s=5.0))
    stage.assign(0)
    stage.now = T0 + 5.1
    outcome = stage.succeed(0)
    assert outcome.new_results == []
    assert stage.statuses == [StepStatus.BACKOFF]


def test_run_timeout_cancels_what_is_open_and_fails_the_run() -> None:
    stage = Stage(step("a"), step("b", "a"), timeout_s=30.0)
    stage.assign(0)
    stage.now = T0 + 30.0
    outcome = stage.send(ev.TimerFired(-1, -1, 0.5))
    assert told(outcome) == ["step.cancelled a", "run.failed"]
    assert outcome.commands == [cmd.StopStep(0, -1, 1, "agent-1"), cmd.EndRun()]
    assert stage.run.record.error == Failure("TIMEOUT", "not done within 30 s")
    assert {each.name: each.status for each in view_from_store(stage).steps} == {
        "a": StepStatus.CANCELLED,
        "b": StepStatus.CANCELLED,
    }


@pytest.mark.parametrize(
    ("timeout_s", "said"), [(0.001, "0.001 s"), (0.25, "0.25 s"), (2_592_000, "2592000 s")]
)
def test_run_timeout_is_told_as_it_was_given_although_instants_are_not_exact(
    timeout_s: float, said: str
) -> None:
    stage = Stage(step("a"), timeout_s=timeout_s)
    stage.now = T0 + timeout_s + 1.0
    stage.send(ev.TimerFired(-1, -1, 0.5))
    assert stage.run.record.error == Failure("TIMEOUT", f"not done within {said}")


def test_run_timer_that_fires_early_is_set_again() -> None:
    stage = Stage(step("a"), timeout_s=30.0)
    stage.now = T0 + 29.0
    assert stage.send(ev.TimerFired(-1, -1, 0.5)).commands == [cmd.SetTimer(-1, -1, T0 + 30.0)]


@pytest.mark.parametrize("after", [(), ("other",)])
def test_run_timeout_ends_a_run_that_never_started(after: tuple[str, ...]) -> None:
    stage = Stage(step("a"), timeout_s=30.0, after=after)
    stage.now = T0 + 31.0
    stage.send(ev.TimerFired(-1, -1, 0.5))
    assert stage.status is RunStatus.FAILED


def test_result_after_the_runs_deadline_is_late_although_no_timer_fired() -> None:
    """An owner that was away finds the result and the timer at once; the order must not matter."""
    stage = Stage(step("a"), timeout_s=30.0)
    stage.assign(0)
    stage.now = T0 + 31.0
    stage.succeed(0)
    assert stage.status is RunStatus.FAILED
    assert stage.run.record.error == Failure("TIMEOUT", "not done within 30 s")


def test_nothing_starts_after_the_runs_deadline() -> None:
    stage = Stage(step("a"), timeout_s=30.0)
    stage.now = T0 + 31.0
    outcome = stage.assign(0)
    assert told(outcome) == ["run.failed"]
    assert not any(isinstance(each, cmd.StartStep) for each in outcome.commands)


# -- doubled, late and foreign reports


def test_second_result_of_an_attempt_changes_nothing() -> None:
    stage = Stage(step("a"), step("b"))
    stage.do(0, output=b"1")
    assert is_nothing(stage.send(ev.StepSucceeded(0, -1, 1, b"2")))
    assert is_nothing(stage.send(ev.StepFailed(0, -1, 1, BROKEN, 0.5)))
    assert stage.run.steps[0].output == b"1"


def test_result_of_an_earlier_attempt_changes_nothing() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    stage.lose(0)
    stage.assign(0)
    for late in (
        ev.StepSucceeded(0, -1, 1, b"1"),
        ev.StepFailed(0, -1, 1, BROKEN, 0.5),
        ev.StepProgressed(0, -1, 1, 0.5, ""),
        ev.AttemptLost(0, -1, 1, "again", crashed=True),
    ):
        assert is_nothing(stage.send(late))
    assert stage.succeed(0, attempt=2).accepted


def test_result_before_any_attempt_changes_nothing() -> None:
    stage = Stage(step("a"))
    assert is_nothing(stage.send(ev.StepSucceeded(0, -1, 0, b"1")))
    assert is_nothing(stage.send(ev.StepSucceeded(0, -1, 1, b"1")))


def test_result_during_the_backoff_of_its_own_attempt_changes_nothing() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    stage.fail(0, failure=FLAKY)
    assert is_nothing(stage.send(ev.StepSucceeded(0, -1, 1, b"1")))


def test_results_after_the_end_of_the_run_change_nothing() -> None:
    stage = Stage(step("a"), step("b"))
    stage.assign(0)
    stage.assign(1)
    stage.send(ev.CancelRequested(""))
    for late in (
        ev.StepSucceeded(0, -1, 1, b"1"),
        ev.AttemptLost(1, -1, 1, "died", crashed=True),
        ev.TimerFired(0, -1, 0.5),
        ev.TimerFired(-1, -1, 0.5),
        ev.StepAssigned(0, -1, "agent-1"),
        ev.StepUnserved(0, -1, "no"),
        ev.RunAdopted(),
    ):
        assert is_nothing(stage.send(late))


def test_second_slot_for_the_same_step_changes_nothing() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    assert is_nothing(stage.assign(0))


# -- losses


def test_lost_attempt_is_ready_again_without_costing_a_retry() -> None:
    stage = Stage(step("a", retry=NO_RETRY))
    stage.assign(0)
    outcome = stage.lose(0, crashed=True)
    assert told(outcome) == ["step.lost a"]
    assert outcome.commands == [cmd.QueueStep(0, -1)]
    assert started(stage.assign(0)).attempt == 2
    assert stage.run.steps[0].failures == 0


def test_step_whose_replica_died_three_times_is_quarantined_with_its_story() -> None:
    stage = Stage(step("a"))
    for agent_id in ("agent-1", "agent-2", "agent-3"):
        stage.assign(0, agent_id=agent_id)
        stage.lose(0, crashed=True)
    assert stage.status is RunStatus.FAILED
    assert stage.run.record.error == Failure(
        "EXECUTION_FAILED",
        "quarantined after 3 crashes: attempt 1 on agent-1: replica died; "
        "attempt 2 on agent-2: replica died; attempt 3 on agent-3: replica died",
    )
    assert len(view_from_store(stage).steps[0].story) == 3


def test_losses_without_a_crash_never_quarantine() -> None:
    stage = Stage(step("a"))
    for _ in range(20):
        stage.assign(0)
        stage.lose(0, crashed=False)
    assert stage.statuses == [StepStatus.READY]
    assert len(stage.run.steps[0].story) == 8


def test_result_of_an_attempt_that_was_given_up_is_not_accepted_beside_the_new_one() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    stage.lose(0)
    assert is_nothing(stage.send(ev.StepSucceeded(0, -1, 1, b'"old"')))
    stage.do(0, output=b'"new"')
    assert stage.output == "new"


# -- nobody serves it


def test_capability_that_nobody_serves_fails_the_step_with_agent_unavailable() -> None:
    stage = Stage(step("a"))
    outcome = stage.send(ev.StepUnserved(0, -1, "no pool serves the capability 'work'"))
    assert told(outcome) == ["step.failed a", "run.failed"]
    assert stage.run.record.error == Failure("AGENT_UNAVAILABLE", "no pool serves the capability 'work'")


def test_step_that_runs_already_is_not_failed_as_unserved() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    assert is_nothing(stage.send(ev.StepUnserved(0, -1, "too late")))


# -- inputs


def test_input_that_leads_nowhere_fails_the_step_when_it_would_start() -> None:
    stage = Stage(step("a"), step("b", inputs={"x": {"$ref": "steps.a.output.missing"}}))
    stage.do(0, output=b"{}")
    outcome = stage.assign(1)
    assert told(outcome) == ["step.failed b", "run.failed"]
    assert stage.run.record.error == Failure(
        "VALIDATION_ERROR", "reference steps.a.output.missing: nothing at 'missing'"
    )
    assert stage.run.steps[1].attempt == 0


def test_inputs_are_rendered_when_the_attempt_starts() -> None:
    stage = Stage(
        step("a"),
        step(
            "b",
            inputs={"whole": {"$ref": "steps.a.output"}, "n": {"$ref": "inputs.n"}, "id": {"$ref": "run.id"}},
        ),
        inputs={"n": 5},
    )
    stage.do(0, output=b'{"deep":[1,2]}')
    command = started(stage.assign(1, agent_id="agent-9"))
    assert command == cmd.StartStep(1, -1, 1, "agent-9", b'{"whole":{"deep":[1,2]},"n":5,"id":"run-1"}')
