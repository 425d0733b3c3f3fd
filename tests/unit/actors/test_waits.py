"""Why the StepRuns of a Run wait, by its record and by what the queues say of the ready ones."""

from __future__ import annotations

from actors.pool_line import Ready
from actors.waits import wait_of_parked, waits_of
from cluster.model import events as ev
from cluster.model.plan import Step
from cluster.scheduling.reasons import (
    ApprovalMissing,
    BackingOff,
    BehindOthers,
    DependencyUnfinished,
    NoWorker,
    OwnerFull,
    Paused,
    QuotaReached,
)
from tests.unit.cluster.engine.stage import FLAKY, T0, Stage, output_of, step


def test_blocked_step_names_only_the_steps_it_needs_that_have_not_ended() -> None:
    stage = Stage(step("a"), step("b"), step("c", "a", "b"))
    stage.do(0)
    stage.assign(1)
    (wait,) = waits_of(stage.run, {}, T0)
    assert (wait.step, wait.item, wait.reason) == ("c", -1, DependencyUnfinished(names=("b",)))
    assert wait.sentence == "It needs b, not ended yet."


def test_ready_step_waits_for_what_its_queue_says() -> None:
    stage = Stage(step("a"), step("b", "a"))
    quota = QuotaReached(key="tenant:t", num_used=4, limit=4)
    first, second = waits_of(stage.run, {Ready("run-1", 0, -1): quota}, T0)
    assert (first.step, first.reason) == ("a", quota)
    assert first.sentence == "The limit of tenant:t is reached: 4/4 run."
    assert (second.step, second.reason) == ("b", DependencyUnfinished(names=("a",)))


def test_failed_attempt_waits_until_the_instant_of_its_repetition() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    stage.fail(0, failure=FLAKY)
    again_at = stage.run.unit(0, -1).not_before_at
    assert again_at is not None
    (wait,) = waits_of(stage.run, {}, T0)
    assert wait.reason == BackingOff(num_failures=1, until_at=again_at)
    assert wait.until_at == again_at


def test_step_for_a_worker_outside_waits_for_one_and_a_gate_for_its_approval() -> None:
    stage = Stage(Step(name="send", capability="worker:echo"), step("gate", answers=("yes",)))
    first, second = waits_of(stage.run, {}, T0)
    assert first.reason == NoWorker(capability="worker:echo", num_busy=0, unmet="worker:echo")
    assert second.reason == ApprovalMissing(gate="gate")


def test_paused_run_waits_for_its_resumption_whatever_its_queue_said() -> None:
    stage = Stage(step("a"))
    stage.send(ev.PauseRequested())
    (wait,) = waits_of(stage.run, {Ready("run-1", 0, -1): BehindOthers(num_ahead=1, priority=50)}, T0)
    assert wait.reason == Paused()


def test_run_after_others_waits_as_a_whole_for_those_that_have_not_ended() -> None:
    stage = Stage(step("a"), after=("run-8", "run-9"))
    (wait,) = waits_of(stage.run, {}, T0)
    assert (wait.step, wait.reason) == ("", DependencyUnfinished(names=("run-8", "run-9")))


def test_parked_run_waits_as_a_whole_for_room() -> None:
    (wait,) = wait_of_parked(7, T0)
    assert (wait.step, wait.reason) == ("", OwnerFull(max_loaded_runs=7))


def test_nothing_of_an_ended_run_or_of_a_running_step_waits() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    assert waits_of(stage.run, {}, T0) == []
    stage.succeed(0)
    assert waits_of(stage.run, {}, T0) == []


def test_many_items_are_told_one_by_one_up_to_a_hundred_and_then_by_kind() -> None:
    stage = Stage(
        step("list"), step("each", map=output_of("list"), inputs={"$ref": "item"}), step("last", "each")
    )
    stage.do(0, output=str(list(range(250))).encode())
    queued = {
        Ready("run-1", 1, item): BehindOthers(num_ahead=item, priority=50)
        if item % 2
        else QuotaReached(key="k", num_used=1, limit=1)
        for item in range(250)
    }
    waits = waits_of(stage.run, queued, T0)
    assert [wait.item for wait in waits[:100]] == list(range(100))
    assert [(wait.step, wait.item, wait.num, type(wait.reason).__name__) for wait in waits[100:]] == [
        ("each", -1, 75, "QuotaReached"),
        ("each", -1, 75, "BehindOthers"),
        ("last", -1, 1, "DependencyUnfinished"),
    ]
