"""Steps that wait for an answer from outside."""

from __future__ import annotations

import orjson

from cluster.errors import Conflict, InvalidInput
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model import commands as cmd
from cluster.model import events as ev
from cluster.model.view import Failure
from tests.unit.cluster.engine.stage import (
    T0,
    Stage,
    output_of,
    queued,
    started,
    step,
    told,
    view_from_store,
)

GATE = {"answers": ("approved", "rejected"), "inputs": {"about": {"$ref": "inputs.title"}}}


def gated(**fields: object) -> Stage:
    return Stage(
        step("gate", **{**GATE, **fields}),
        step("after", inputs={"decision": output_of("gate")}),
        inputs={"title": "the plan"},
    )


def test_step_with_answers_asks_for_no_slot_and_its_run_waits() -> None:
    stage = gated()
    assert stage.status is RunStatus.WAITING
    assert stage.statuses == [StepStatus.WAITING, StepStatus.BLOCKED]
    assert stage.kinds == ["step.waiting gate", "run.waiting"]
    assert stage.run.record.started_at == T0


def test_answer_is_the_steps_output_and_what_needs_it_goes_on() -> None:
    stage = gated()
    outcome = stage.answer("approved", "gate", b'{"note":1}')
    assert told(outcome) == ["run.resumed", "step.succeeded gate"]
    assert queued(outcome) == [(1, -1)]
    assert orjson.loads(started(stage.assign(1)).inputs) == {
        "decision": {"answer": "approved", "by": "ann", "data": {"note": 1}}
    }


def test_second_answer_is_refused_and_changes_nothing() -> None:
    stage = gated()
    stage.answer("approved")
    outcome = stage.answer("rejected", "gate")
    assert not outcome.accepted
    assert isinstance(outcome.refusal, Conflict)


def test_answer_that_the_step_does_not_know_is_refused() -> None:
    stage = gated()
    outcome = stage.answer("perhaps")
    assert isinstance(outcome.refusal, InvalidInput)
    assert "approved, rejected" in outcome.refusal.message
    assert stage.status is RunStatus.WAITING


def test_readers_see_the_question_and_the_answers_while_it_waits() -> None:
    stage = gated()
    view = view_from_store(stage).steps[0]
    assert (view.question, view.answers) == ({"about": "the plan"}, ("approved", "rejected"))
    stage.answer("approved")
    view = view_from_store(stage).steps[0]
    assert (view.question, view.answers) == (None, ())


def test_wait_ends_with_its_time_and_late_answers_are_refused_although_no_timer_fired() -> None:
    stage = gated(timeout_s=10.0)
    assert stage.run.steps[0].deadline_at == T0 + 10
    stage.now += 10
    outcome = stage.answer("approved")
    assert isinstance(outcome.refusal, Conflict)
    assert stage.status is RunStatus.FAILED
    assert stage.run.record.error == Failure("TIMEOUT", "nobody answered within 10 s")


def test_timer_that_fires_early_is_set_again_and_in_time_ends_the_wait() -> None:
    stage = gated(timeout_s=10.0, optional=True)
    assert stage.send(ev.TimerFired(0, -1, 0.5)).commands == [cmd.SetTimer(0, -1, T0 + 10)]
    stage.now += 10
    assert queued(stage.send(ev.TimerFired(0, -1, 0.5))) == [(1, -1)]


def test_new_owner_sets_the_timer_of_a_wait_again_and_changes_nothing() -> None:
    stage = gated(timeout_s=10.0)
    outcome = stage.take_over()
    assert outcome.commands == [cmd.SetTimer(0, -1, T0 + 10)]
    assert not outcome.accepted
    assert stage.answer("approved").accepted


def test_answer_in_a_paused_run_counts_and_what_follows_starts_after_resuming() -> None:
    stage = gated()
    stage.send(ev.PauseRequested())
    assert queued(stage.answer("approved")) == []
    assert stage.status is RunStatus.PAUSED
    assert queued(stage.send(ev.ResumeRequested())) == [(1, -1)]


def test_resumed_run_that_still_waits_for_an_answer_says_so() -> None:
    stage = gated()
    stage.send(ev.PauseRequested())
    assert told(stage.send(ev.ResumeRequested())) == ["run.resumed", "run.waiting"]


def test_run_waits_only_when_nothing_else_of_it_can_go_on() -> None:
    stage = Stage(step("gate", **GATE), step("work"), inputs={"title": 1})
    assert stage.status is RunStatus.QUEUED
    stage.assign(1)
    assert stage.status is RunStatus.RUNNING
    stage.succeed(1)
    assert stage.status is RunStatus.WAITING
    stage.answer("approved")
    assert stage.status is RunStatus.SUCCEEDED
