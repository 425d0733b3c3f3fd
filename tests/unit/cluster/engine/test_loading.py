"""A Run loaded from what the store keeps is the Run that was in memory."""

from __future__ import annotations

from cluster.engine import Run
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model import commands as cmd
from cluster.model import events as ev
from cluster.model.plan import SuccessRule
from cluster.model.view import Failure
from tests.unit.cluster.engine.stage import (
    FLAKY,
    Stage,
    output_of,
    queued,
    step,
    view_from_store,
)

ITEMS = {"inputs": {"$ref": "item"}}


def test_run_loads_when_a_mapped_step_stands_before_the_step_that_gives_its_list() -> None:
    """The order of a Plan's list is the client's; restoring in it once read a list not there yet."""
    stage = Stage(step("each", map=output_of("list"), **ITEMS), step("list"))
    stage.do(1, output=b"[7,8]")
    outcome = stage.take_over()
    assert queued(outcome) == [(0, 0), (0, 1)]
    assert stage.run.render_inputs(0, 1) == b"8"


def test_progress_of_finished_items_survives_a_takeover() -> None:
    stage = Stage(step("each", map=[1, 2], **ITEMS), step("last", "each"))
    stage.do(0, 0)
    assert stage.run.record.progress == 0.25
    stage.take_over()
    stage.do(0, 1)
    assert stage.run.record.progress == 0.5


def test_items_that_a_failed_sibling_stopped_read_as_cancelled_while_the_run_goes_on() -> None:
    stage = Stage(step("each", map=[1, 2], optional=True, **ITEMS), step("other"))
    stage.assign(0, 0)
    stage.fail(0, 0)
    views = {(each.name, each.item): each.status for each in view_from_store(stage).steps}
    assert views[("each", 1)] is StepStatus.CANCELLED
    assert views[("each", -1)] is StepStatus.FAILED


def test_first_failure_in_time_is_the_runs_error_also_after_a_takeover() -> None:
    stage = Stage(step("a"), step("b"), step("c"), success=SuccessRule.ANY)
    for index in (1, 0):
        stage.assign(index)
        stage.now += 1
        stage.fail(index, failure=Failure("EXECUTION_FAILED", f"failed as number {2 - index}"))
    stage.take_over()
    stage.assign(2)
    stage.fail(2)
    assert stage.status is RunStatus.FAILED
    assert stage.run.record.error == Failure("EXECUTION_FAILED", "failed as number 1")


def test_taken_over_run_asks_for_its_attempts_sets_its_timers_and_queues_what_is_ready() -> None:
    stage = Stage(step("a"), step("b"), step("c"), step("d"), timeout_s=1000.0)
    stage.assign(0, agent_id="agent-7")
    stage.assign(1)
    stage.fail(1, failure=FLAKY)
    stage.do(2)
    outcome = stage.take_over()
    assert not outcome.accepted
    assert outcome.commands == [
        cmd.SetTimer(-1, -1, stage.now + 1000.0),
        cmd.FindAttempt(0, -1, 1, "agent-7"),
        cmd.SetTimer(0, -1, stage.now + 300.0),
        cmd.SetTimer(1, -1, stage.now + 0.25),
        cmd.QueueStep(3, -1),
    ]


def test_taken_over_pending_run_watches_its_predecessors_again() -> None:
    stage = Stage(step("a"), after=("r1", "r2"))
    stage.send(ev.PredecessorEnded("r1", RunStatus.SUCCEEDED))
    outcome = stage.take_over()
    assert outcome.commands == [cmd.WatchRuns(("r2",))]


def test_taken_over_paused_run_queues_nothing_until_it_is_resumed() -> None:
    stage = Stage(step("a"), step("b"))
    stage.assign(0)
    stage.send(ev.PauseRequested())
    assert queued(stage.take_over()) == []
    assert queued(stage.send(ev.ResumeRequested())) == [(1, -1)]


def test_taken_over_ended_run_asks_for_nothing() -> None:
    stage = Stage(step("a"), step("b", "a"))
    stage.send(ev.CancelRequested(""))
    assert stage.take_over().commands == []


def test_ready_after_a_loss_and_after_a_backoff_is_ready_again_after_a_takeover() -> None:
    stage = Stage(step("a"), step("b"))
    stage.assign(0)
    stage.lose(0)
    stage.assign(1)
    stage.fail(1, failure=FLAKY)
    stage.now += 1
    stage.send(ev.TimerFired(1, -1, 0.5))
    assert queued(stage.take_over()) == [(0, -1), (1, -1)]
    assert stage.run.steps[0].attempt == 1
    assert stage.run.steps[1].failures == 1


def test_story_and_crashes_survive_a_takeover() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    stage.lose(0, crashed=True)
    stage.take_over()
    assert stage.run.steps[0].crashes == 1
    assert stage.run.steps[0].story == ("attempt 1 on agent-1: replica died",)


def test_mapped_output_is_joined_again_from_its_items() -> None:
    stage = Stage(step("each", map=["x", "y"], **ITEMS), step("last", "each"))
    stage.do(0, 1, b'"second"')
    stage.do(0, 0, b'"first"')
    run: Run = stage.reloaded()
    assert run.steps[0].output == b'["first","second"]'


def test_empty_map_and_skipped_steps_load_as_ended() -> None:
    stage = Stage(
        step("none", map=[], **ITEMS), step("no", when={"ref": "inputs.x"}), step("go"), inputs={"x": 0}
    )
    run = stage.reloaded()
    assert [each.status for each in run.steps[:2]] == [StepStatus.SUCCEEDED, StepStatus.SKIPPED]
    assert run.steps[0].output == b"[]"
    assert run.record.num_open == 1
