"""Runs of Blueprints: from state to state, in circles, through quarantine and back."""

from __future__ import annotations

import orjson
import pytest
from msgspec import structs

from cluster.errors import Conflict
from cluster.lifecycle.run_status import RunStatus
from cluster.model.blueprint import Move, Parameter, ParameterType, Work
from cluster.model.events import TimerFired
from cluster.model.expansion import expand
from cluster.model.view import Failure
from tests.unit.cluster.engine.blueprints import (
    blueprint,
    data_of,
    end,
    moves,
    names_of,
    passing,
    staged,
    sub,
    wait,
    work,
)
from tests.unit.cluster.engine.stage import FLAKY, Stage, queued, started, view_from_store

PERMANENT = Failure("PERMANENT_ERROR", "broken for good")
BLAMED = Failure("INVALID_INPUT_ERROR", "not a video")
LOOP = (work("check", again="check", success="end"), end())


def timer(index: int) -> TimerFired:
    return TimerFired(index, -1, 0.5)


def told_status(status: str, data: object = None) -> bytes:
    return orjson.dumps({"status": status, "data": data})


def test_run_begins_with_the_start_and_ends_where_its_moves_lead() -> None:
    stage = staged(work("first", success="second"), work("second", success="end"), end())
    assert queued(stage.do(0, output=told_status("success", {"a": 1}))) == [(1, -1)]
    stage.do(1, output=told_status("success", {"b": 2}))
    assert stage.status is RunStatus.SUCCEEDED
    assert stage.output == {"a": 1, "b": 2}
    assert names_of(stage) == ["first:0", "second:1"]
    assert [each for each in stage.kinds if each == "run.entered"] == ["run.entered"] * 3


def test_state_visited_again_grows_new_steps_whose_results_count_for_themselves() -> None:
    stage = staged(*LOOP)
    stage.do(0, output=told_status("again", {"n": 1}))
    stage.assign(1)
    assert not stage.succeed(0, attempt=1).accepted, "a late result of the first visit"
    stage.succeed(1, output=told_status("again", {"n": 2}))
    stage.do(2, output=told_status("success"))
    assert stage.status is RunStatus.SUCCEEDED
    assert stage.output == {"n": 2}
    assert names_of(stage) == ["check:0", "check:1", "check:2"]


def test_new_owner_knows_the_grown_steps_and_what_was_gathered() -> None:
    stage = staged(*LOOP)
    stage.do(0, output=told_status("again", {"n": 1}))
    stage.assign(1)
    stage.take_over()
    assert names_of(stage) == ["check:0", "check:1"]
    assert data_of(stage) == {"n": 1}
    stage.succeed(1, output=told_status("success"))
    assert view_from_store(stage).output == {"n": 1}


def test_run_that_needs_no_step_ends_when_it_is_adopted() -> None:
    stage = staged(
        passing("only", Move(to="end"), set={"seen": {"$ref": "inputs.x"}}), end(), inputs={"x": 3}
    )
    assert stage.status is RunStatus.SUCCEEDED
    assert view_from_store(stage).output == {"seen": 3}
    assert view_from_store(stage).steps == ()


def test_conditions_choose_among_moves_and_what_is_not_there_is_null() -> None:
    ways = (Move(to="big", when={"ref": "data.size", "op": "gt", "value": 5}), Move(to="small"))
    states = (passing("fork", *ways), end("big"), end("small"))
    assert staged(*states).run.record.state == "small"
    grown = staged(
        passing("first", Move(to="fork"), set={"size": {"$ref": "inputs.n"}}), *states, inputs={"n": 9}
    )
    assert grown.run.record.state == "big"


def test_status_without_a_move_fails_the_run() -> None:
    stage = staged(work("first", success="end"), end())
    stage.do(0, output=told_status("odd"))
    assert stage.run.record.error == Failure("EXECUTION_FAILED", "state first has no move for 'odd'")


def test_end_that_is_a_failure_fails_the_run_with_its_message() -> None:
    states = (work("first", refused="bad"), end("bad", is_failure=True, message={"$ref": "result.why"}))
    stage = staged(*states)
    stage.do(0, output=told_status("refused", {"why": "too long"}))
    assert stage.run.record.error == Failure("EXECUTION_FAILED", "too long")
    assert data_of(stage) == {"why": "too long"}


def test_work_that_was_called_off_ends_the_run_cancelled() -> None:
    stage = staged(work("first", success="end"), end())
    stage.do(0, output=told_status("cancelled"))
    assert stage.status is RunStatus.CANCELLED


def test_capability_comes_from_the_inputs_and_of_workers_outside_has_its_prefix() -> None:
    outside = Work(capability={"$ref": "inputs.kind"}, is_outside=True, inputs={"$ref": "inputs.params"})
    stage = staged(work("send", outside, success="end"), end(), inputs={"kind": "echo", "params": {"x": 1}})
    assert stage.run.plan.steps[0].step.capability == "worker:echo"
    assert stage.run.record.phase == "outside"
    assert started(stage.assign(0)).inputs == b'{"x":1}'


# -- several at the same time


FAN = (
    work("fan", *(Work(capability="work", name=name, tells_status=True) for name in "abc"), success="end"),
    end(),
)


def test_parallel_work_is_waited_for_and_gathered_under_the_states_name() -> None:
    stage = staged(*FAN)
    assert stage.run.record.phase == "parallel"
    for index in (2, 0):
        stage.do(index, output=told_status("success", index))
    assert not stage.status.is_terminal
    stage.do(1, output=told_status("odd", 1))
    assert stage.output == {
        "fan": {
            "a": {"status": "success", "data": 0},
            "b": {"status": "odd", "data": 1},
            "c": {"status": "success", "data": 2},
        }
    }


def test_parallel_work_that_was_given_something_bad_fails_its_state_after_all_have_ended() -> None:
    stage = staged(*FAN[:1], end())
    stage.assign(0)
    stage.fail(0, failure=BLAMED)
    stage.do(1, output=told_status("success"))
    assert not stage.status.is_terminal
    stage.do(2, output=told_status("success"))
    assert stage.run.record.error == BLAMED


def test_retry_of_parallel_work_repeats_only_what_failed() -> None:
    stage = staged(*FAN)
    stage.do(0, output=told_status("success", "kept"))
    stage.assign(1)
    stage.fail(1, failure=PERMANENT)
    stage.do(2, output=told_status("success", "kept too"))
    assert stage.run.record.phase == "quarantined"
    assert queued(stage.answer("retry")) == [(4, -1)]
    stage.take_over()
    stage.do(4, output=told_status("success", "new"))
    assert [each["data"] for each in stage.output["fan"].values()] == ["kept", "new", "kept too"]


# -- failures


def test_failure_blamed_on_the_input_takes_the_move_for_it() -> None:
    stage = staged(work("first", success="end", failure="sorry"), work("sorry", success="end"), end())
    stage.assign(0)
    stage.fail(0, failure=BLAMED)
    assert stage.run.record.state == "sorry"
    inputs = {"code": "INVALID_INPUT_ERROR", "message": "not a video"}
    assert stage.run.scopes[""].result == {"error": inputs}  # type: ignore[attr-defined]


def test_failure_that_was_tried_again_too_often_waits_in_quarantine() -> None:
    stage = staged(work("first", success="end", failure="end"), end())
    for _ in range(4):
        stage.assign(0)
        stage.fail(0, failure=FLAKY)
        stage.now += 60
        stage.send(timer(0))
    assert stage.status is RunStatus.WAITING
    assert (stage.run.record.state, stage.run.record.phase) == ("first", "quarantined")


@pytest.mark.parametrize("taken_over", [False, True])
def test_quarantined_run_tries_again_or_fails_with_what_was_wrong(taken_over: bool) -> None:
    stage = staged(work("first", success="end"), end())
    stage.assign(0)
    stage.fail(0, failure=PERMANENT)
    if taken_over:
        stage.take_over()
    assert queued(stage.answer("retry")) == [(2, -1)]
    stage.assign(2)
    stage.fail(2, failure=PERMANENT)
    stage.answer("discard")
    assert stage.status is RunStatus.FAILED
    assert stage.run.record.error == PERMANENT
    assert isinstance(stage.answer("retry").refusal, Conflict)


def test_reference_that_leads_nowhere_is_quarantined_and_entered_again_on_retry() -> None:
    stage = staged(
        passing("first", Move(to="second")),
        passing("second", Move(to="end"), set={"x": {"$ref": "inputs.absent"}}),
        end(),
    )
    assert stage.run.record.phase == "quarantined"
    stage.take_over()
    stage.answer("retry")
    assert names_of(stage) == ["second:0:quarantine", "second:1:quarantine"]
    stage.answer("discard")
    assert stage.run.record.error == Failure(
        "VALIDATION_ERROR", "reference inputs.absent: nothing at 'absent'"
    )


def test_output_that_should_tell_a_status_and_does_not_is_quarantined() -> None:
    stage = staged(work("first", success="end"), end())
    stage.do(0, output=b"[1]")
    assert stage.run.record.phase == "quarantined"
    stage.answer("retry")
    stage.do(2, output=told_status("success"))
    assert stage.status is RunStatus.SUCCEEDED


# -- people, and time


def test_approval_waits_for_one_of_its_moves() -> None:
    stage = staged(wait("review", approved="end", rejected="bad"), end(), end("bad", is_failure=True))
    assert (stage.status, stage.run.record.phase) == (RunStatus.WAITING, "person")
    stage.take_over()
    stage.answer("approved", data=b'{"note":"fine"}')
    assert stage.output == {"review": {"answer": "approved", "by": "ann", "data": {"note": "fine"}}}


def test_approval_that_nobody_gives_takes_the_move_for_its_time() -> None:
    stage = staged(wait("review", approved="end", timeout="late"), end(), end("late"))
    stage.now += 10
    stage.send(timer(0))
    assert stage.status is RunStatus.SUCCEEDED
    assert stage.run.record.state == "late"


# -- blueprints in blueprints


INNER = blueprint(
    work(
        "inner",
        Work(capability="work", inputs={"$ref": "inputs"}),
        moves=moves(success="done", failure="bad"),
    ),
    end("done"),
    end("bad", is_failure=True, message="inner broke"),
    name="inner",
)


def outer(**to_by_status: str) -> Stage:
    states = (
        sub("step", "inner", {"n": {"$ref": "inputs.number"}}, **to_by_status),
        work("last", success="end"),
        end(),
    )
    return Stage(blueprint=expand(blueprint(*states), {"inner": INNER}.get), inputs={"number": 7})


def test_sub_blueprint_has_inputs_and_data_of_its_own_and_gives_its_data_back() -> None:
    stage = outer(success="last")
    assert names_of(stage) == ["step.inner:0"]
    assert started(stage.assign(0)).inputs == b'{"n":7}'
    stage.take_over()
    assert data_of(stage) == {}
    stage.succeed(0, output=b'{"x":1}')
    assert data_of(stage) == {"x": 1}
    stage.take_over()
    stage.do(1, output=told_status("success"))
    assert stage.output == {"x": 1}


def test_sub_blueprint_that_fails_takes_the_outer_move_for_failure() -> None:
    stage = outer(success="end", failure="last")
    stage.assign(0)
    stage.fail(0, failure=BLAMED)
    assert stage.run.record.state == "last"


def test_sub_blueprint_that_fails_without_such_a_move_fails_the_run_with_its_message() -> None:
    stage = outer(success="last")
    stage.assign(0)
    stage.fail(0, failure=BLAMED)
    assert stage.run.record.error == Failure("EXECUTION_FAILED", "inner broke")


def test_run_that_would_grow_without_end_fails_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.engine.growth.MAX_STEPS", 3)
    stage = staged(*LOOP)
    for index in range(3):
        stage.do(index, output=told_status("again"))
    assert stage.run.record.error == Failure("EXECUTION_FAILED", "the run would grow to over 3 steps")


def test_inputs_of_a_sub_blueprint_are_checked_and_get_its_defaults() -> None:
    parameters = (
        Parameter(name="n", type=ParameterType.INTEGER, required=True),
        Parameter(name="m", type=ParameterType.INTEGER, default=5),
    )
    inner = structs.replace(INNER, parameters=parameters)
    outer_one = blueprint(sub("step", "inner", {"n": {"$ref": "inputs.n"}}, success="end"), end())
    expanded = expand(outer_one, {"inner": inner}.get)
    stage = Stage(blueprint=expanded, inputs={"n": 7})
    assert started(stage.assign(0)).inputs == b'{"n":7,"m":5}'
    stage = Stage(blueprint=expanded, inputs={"n": "seven"})
    assert stage.run.record.phase == "quarantined"
    assert view_from_store(stage).steps[0].question == {
        "code": "VALIDATION_ERROR",
        "message": "state step: n: must be of type integer",
    }


def test_step_for_a_worker_outside_says_what_its_state_demands() -> None:
    demands = {"strategy": "cheapest"}
    outside = Work(capability="x", is_outside=True, demands=demands)
    assert staged(work("a", outside, success="end"), end()).run.plan.steps[0].step.demands == demands
