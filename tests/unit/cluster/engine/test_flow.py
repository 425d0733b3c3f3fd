"""How a Run goes through its Plan: order, joins, conditions, maps, tolerance, success, and the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from cluster.engine import Outcome
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model import commands as cmd
from cluster.model import events as ev
from cluster.model.plan import SuccessRule
from cluster.model.view import Failure, RunEvent
from tests.unit.cluster.engine.stage import (
    BROKEN,
    T0,
    Stage,
    is_nothing,
    output_of,
    queued,
    started,
    step,
    told,
    view_from_store,
)

S = StepStatus
ITEMS = {"inputs": {"item": {"$ref": "item"}, "index": {"$ref": "index"}}}


# -- whole outcomes


def test_assignment_starts_the_attempt_and_tells_run_and_step() -> None:
    stage = Stage(step("a", inputs={"x": 1}, timeout_s=9.0))
    stage.now = T0 + 1
    outcome = stage.assign(0, agent_id="agent-7")
    assert outcome.accepted
    assert outcome.changed_units == [(0, -1)]
    assert outcome.new_results == []
    assert outcome.events == [
        RunEvent(seq=2, type="run.started", at=T0 + 1, status=RunStatus.RUNNING),
        RunEvent(
            seq=3,
            type="step.started",
            at=T0 + 1,
            status=RunStatus.RUNNING,
            step="a",
            attempt=1,
            agent_id="agent-7",
        ),
    ]
    assert outcome.commands == [
        cmd.SetTimer(0, -1, T0 + 10),
        cmd.StartStep(0, -1, 1, "agent-7", b'{"x":1}'),
    ]


def test_last_success_ends_the_run_in_one_outcome() -> None:
    stage = Stage(step("a"))
    stage.assign(0)
    stage.now = T0 + 2
    outcome = stage.succeed(0, output=b'{"y":2}')
    assert outcome.changed_units == [(0, -1)]
    assert outcome.new_results == [(0, -1)]
    assert told(outcome) == ["step.succeeded a", "run.succeeded"]
    assert outcome.commands == [cmd.EndRun()]
    assert [event.progress for event in outcome.events] == [1.0, 1.0]
    record = stage.run.record
    assert (record.status, record.started_at, record.ended_at, record.num_open) == (
        "succeeded",
        T0,
        T0 + 2,
        0,
    )
    assert stage.output == {"y": 2}


def test_completion_of_one_step_and_readiness_of_the_next_are_one_outcome() -> None:
    stage = Stage(step("a"), step("b", "a"))
    stage.assign(0)
    outcome = stage.succeed(0)
    assert told(outcome) == ["step.succeeded a"]
    assert outcome.commands == [cmd.QueueStep(1, -1)]


# -- shapes


def test_sequential_steps_go_one_by_one_each_on_the_output_before() -> None:
    stage = Stage(step("a"), step("b", inputs=output_of("a")), step("c", inputs=output_of("b")))
    assert stage.run.ready == {(0, -1)}
    stage.do(0, output=b"[1]")
    assert started(stage.assign(1)).inputs == b"[1]"
    stage.succeed(1, output=b"[2]")
    assert started(stage.assign(2)).inputs == b"[2]"
    stage.succeed(2, output=b"[3]")
    assert stage.output == [3]


def test_parallel_steps_are_all_ready_at_once() -> None:
    stage = Stage(*(step(f"s{n}") for n in range(4)), adopt=False)
    assert queued(stage.send(ev.RunAdopted())) == [(n, -1) for n in range(4)]


def test_join_waits_for_the_last_of_its_needs_in_whatever_order_they_end() -> None:
    stage = Stage(step("join", "a", "b", "c"), step("a"), step("b"), step("c"))
    assert queued(stage.do(3)) == []
    assert queued(stage.do(1)) == []
    assert queued(stage.do(2)) == [(0, -1)]


def test_hybrid_fans_out_and_joins_the_outputs_by_name() -> None:
    stage = Stage(
        step("list"),
        step("each", map=output_of("list"), **ITEMS),
        step("sum", inputs={"all": output_of("each"), "of": output_of("list")}),
    )
    stage.do(0, output=b'["x","y"]')
    assert started(stage.assign(1, 1)).inputs == b'{"item":"y","index":1}'
    stage.succeed(1, 1, output=b"20")
    stage.do(1, 0, output=b"10")
    assert started(stage.assign(2)).inputs == b'{"all":[10,20],"of":["x","y"]}'


# -- conditions


def test_false_condition_skips_the_step_and_its_dependents_see_null() -> None:
    stage = Stage(
        step("a"),
        step("maybe", when={"ref": "steps.a.output.go"}),
        step("after", "a", inputs={"x": output_of("maybe")}),
    )
    outcome = stage.do(0, output=b'{"go":false}')
    assert told(outcome) == ["step.succeeded a", "step.skipped maybe"]
    assert started(stage.assign(2)).inputs == b'{"x":null}'
    assert stage.succeed(2).accepted
    assert stage.status is RunStatus.SUCCEEDED


def test_true_condition_runs_the_step() -> None:
    stage = Stage(step("a"), step("maybe", when={"ref": "steps.a.output.go"}))
    assert queued(stage.do(0, output=b'{"go":1}')) == [(1, -1)]


def test_skip_cascades_through_steps_all_of_whose_needs_were_skipped() -> None:
    stage = Stage(
        step("no", when={"ref": "inputs.go"}),
        step("b", "no"),
        step("c", "b"),
        step("d", "c", "go"),
        step("go"),
        inputs={"go": False},
    )
    assert stage.statuses == [S.SKIPPED, S.SKIPPED, S.SKIPPED, S.BLOCKED, S.READY]
    assert queued(stage.do(4)) == [(3, -1)]


def test_run_of_which_everything_is_skipped_succeeds_at_once() -> None:
    stage = Stage(step("no", when={"ref": "inputs.go"}), step("b", "no"), inputs={"go": 0})
    assert stage.status is RunStatus.SUCCEEDED
    assert stage.kinds == ["step.skipped no", "step.skipped b", "run.succeeded"]
    assert stage.run.record.progress == 1.0


def test_condition_that_leads_nowhere_fails_its_step() -> None:
    stage = Stage(step("a", when={"ref": "inputs.missing"}))
    assert stage.status is RunStatus.FAILED
    assert stage.run.record.error == Failure(
        "VALIDATION_ERROR", "reference inputs.missing: nothing at 'missing'"
    )


# -- maps


def test_map_spreads_over_its_list_and_tells_how_many() -> None:
    stage = Stage(step("each", map=[5, 6], **ITEMS), adopt=False)
    outcome = stage.send(ev.RunAdopted())
    assert [(event.type, event.message) for event in outcome.events] == [("step.mapped", "2 items")]
    assert outcome.changed_units == [(0, -1)]
    assert queued(outcome) == [(0, 0), (0, 1)]


def test_last_item_ends_its_step_whose_result_is_not_stored_twice() -> None:
    stage = Stage(step("each", map=[5, 6], **ITEMS))
    stage.do(0, 1, output=b'"b"')
    outcome = stage.do(0, 0, output=b'"a"')
    assert told(outcome) == ["step.succeeded each", "step.succeeded each", "run.succeeded"]
    assert outcome.new_results == [(0, 0)]
    assert stage.output == ["a", "b"]


def test_map_over_an_empty_list_succeeds_with_an_empty_list() -> None:
    stage = Stage(step("each", map={"$ref": "inputs.rows"}, **ITEMS), inputs={"rows": []})
    assert stage.status is RunStatus.SUCCEEDED
    assert stage.output == []


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({"a": 1}, "step each: map needs a list, got dict"),
        (None, "step each: map needs a list, got NoneType"),
        ({"$blob": "sha256:" + "0" * 64}, "step each: the list to map over is kept as a blob"),
        (list(range(10_001)), "step each: 10001 items to map over, at most 10000"),
        ({"rows": [[]]}, "step each: map needs a list, got dict"),
    ],
)
def test_map_over_what_is_no_usable_list_fails_the_step(rows: Any, reason: str) -> None:
    stage = Stage(step("each", map={"$ref": "inputs.rows"}, **ITEMS), inputs={"rows": rows})
    assert stage.status is RunStatus.FAILED
    assert stage.run.record.error is not None
    assert stage.run.record.error.code == "VALIDATION_ERROR"
    assert stage.run.record.error.message.startswith(reason)


def test_failed_item_stops_its_siblings_and_fails_the_run() -> None:
    stage = Stage(step("each", map=[1, 2, 3], **ITEMS))
    stage.assign(0, 0)
    stage.assign(0, 1, agent_id="agent-2")
    outcome = stage.fail(0, 0)
    assert told(outcome) == ["step.failed each", "step.cancelled each", "step.failed each", "run.failed"]
    assert outcome.commands == [cmd.StopStep(0, 1, 1, "agent-2"), cmd.EndRun()]
    assert is_nothing(stage.succeed(0, 1, attempt=1))


def test_failed_item_of_an_optional_step_lets_the_run_go_on_with_null() -> None:
    stage = Stage(step("each", map=[1, 2], optional=True, **ITEMS), step("b", inputs=output_of("each")))
    stage.assign(0, 0)
    assert queued(stage.fail(0, 0)) == [(1, -1)]
    assert stage.run.ready == {(1, -1)}
    assert started(stage.assign(1)).inputs == b"null"


# -- tolerance and success


def test_first_failure_ends_the_run_and_cancels_the_rest() -> None:
    stage = Stage(step("a"), step("b"), step("c", "a"))
    stage.assign(0)
    stage.assign(1)
    outcome = stage.fail(0)
    assert told(outcome) == ["step.failed a", "step.cancelled b", "run.failed"]
    assert outcome.commands == [cmd.StopStep(1, -1, 1, "agent-1"), cmd.EndRun()]
    assert stage.run.record.error == BROKEN
    assert [each.status for each in view_from_store(stage).steps] == [S.FAILED, S.CANCELLED, S.CANCELLED]


def test_failure_of_an_optional_step_reads_null_and_the_run_succeeds() -> None:
    stage = Stage(step("a", optional=True), step("b", inputs=output_of("a")))
    stage.assign(0)
    assert queued(stage.fail(0)) == [(1, -1)]
    assert started(stage.assign(1)).inputs == b"null"
    stage.succeed(1)
    assert stage.status is RunStatus.SUCCEEDED
    assert stage.run.record.error is None


def test_rule_any_tolerates_failures_as_long_as_one_succeeds() -> None:
    stage = Stage(step("a"), step("b"), success=SuccessRule.ANY)
    stage.assign(0)
    stage.fail(0)
    assert stage.status is RunStatus.RUNNING
    stage.do(1, output=b"2")
    assert stage.status is RunStatus.SUCCEEDED
    assert stage.output == {"a": None, "b": 2}


def test_rule_any_fails_when_all_have_failed() -> None:
    stage = Stage(step("a"), step("b"), success=SuccessRule.ANY)
    for index in range(2):
        stage.assign(index)
        stage.fail(index)
    assert stage.status is RunStatus.FAILED
    assert stage.run.record.error == BROKEN


def test_output_that_leads_nowhere_fails_the_run_at_its_end() -> None:
    stage = Stage(step("a"), output={"x": {"$ref": "steps.a.output.missing"}})
    stage.do(0, output=b"{}")
    assert stage.status is RunStatus.FAILED
    assert stage.run.record.error is not None
    assert stage.run.record.error.code == "VALIDATION_ERROR"


def test_result_in_the_wrong_order_of_the_plan_makes_no_difference() -> None:
    stage = Stage(step("b", "a"), step("a"))
    assert stage.run.ready == {(1, -1)}
    stage.do(1)
    stage.do(0)
    assert stage.status is RunStatus.SUCCEEDED


def test_progress_is_the_mean_of_the_steps_and_the_items_share_theirs() -> None:
    stage = Stage(step("a"), step("each", map=[1, 2, 3, 4], **ITEMS))
    stage.do(0)
    assert stage.run.record.progress == 0.5
    stage.do(1, 2)
    assert stage.run.record.progress == 0.625


# -- cost


def lines_run(work: Callable[[], object]) -> int:
    """Count the lines that Python executes in cluster/ while `work` runs: its cost, without a clock."""
    count = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal count
        if "/cluster/" not in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def stage_of_width(width: int) -> Stage:
    return Stage(*(step(f"s{n}") for n in range(width)), step("join", *(f"s{n}" for n in range(width))))


def stage_of_items(width: int) -> Stage:
    return Stage(step("each", map=list(range(width)), **ITEMS), step("last", "each"))


@pytest.mark.parametrize("kind", ["steps", "items"])
def test_cost_of_an_event_does_not_grow_with_the_plan(kind: str) -> None:
    costs = []
    for width in (20, 2000):
        stage = stage_of_width(width) if kind == "steps" else stage_of_items(width)
        units = [(5, -1), (6, -1), (7, -1)] if kind == "steps" else [(0, 5), (0, 6), (0, 7)]
        stage.assign(*units[0])

        def history(stage: Stage = stage, units: list[tuple[int, int]] = units) -> None:
            apply = stage.send
            apply(ev.StepProgressed(*units[0], 1, 0.5, ""))
            apply(ev.StepSucceeded(*units[0], 1, b"1"))
            apply(ev.StepAssigned(*units[1], "agent-1"))
            apply(ev.StepFailed(*units[1], 1, Failure("X", "x", retryable=True), 0.0))
            apply(ev.TimerFired(*units[1], 0.5))
            apply(ev.StepAssigned(*units[2], "agent-1"))
            apply(ev.AttemptLost(*units[2], 1, "died", crashed=True))

        costs.append(lines_run(history))
    assert costs[0] == costs[1]


def test_what_an_event_writes_does_not_grow_with_the_plan() -> None:
    def touched(outcome: Outcome) -> int:
        parts = (outcome.changed_units, outcome.new_results, outcome.events, outcome.commands)
        return sum(len(part) for part in parts)

    assert touched(stage_of_width(10).do(3)) == touched(stage_of_width(1000).do(3)) == 3
