"""What a Plan can say, on real replicas: order, conditions, fan-out, retries, waits, commands."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import uuid4

import orjson
import pytest
import ray

from cluster.errors import AlreadyExists, Conflict, InvalidPlan, NotFound, RunFailed
from cluster.model.blob_reference import references_in
from cluster.model.plan import Plan, RetryPolicy, Step, Submission
from cluster.store.keys import partition_of
from tests.integration.plans import check_story, one_step, ref
from tests.integration.running_service import RunningService, eventually


def output_of(service: RunningService, run_id: str) -> object:
    return ray.get(service.orchestrator().result.remote(run_id, timeout_s=30), timeout=40)


def lines_of(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


# -- retries


def test_retryable_failure_is_tried_again_after_a_backoff(service: RunningService) -> None:
    retry = RetryPolicy(max_retries=3, initial_delay_s=0.2, max_delay_s=1.0)
    run_id = service.submit(one_step("fail", {"times": 3, "retryable": True}, retry=retry))

    assert output_of(service, run_id) == {"succeeded_on_attempt": 4}
    events = service.events([run_id])[run_id]
    assert [event.type for event in events].count("step.retrying") == 3
    assert "run.retrying" in [event.type for event in events]
    assert service.record(run_id).retry_count == 3


def test_wish_of_the_other_side_for_a_pause_is_respected(service: RunningService) -> None:
    output_of(service, service.submit(one_step("picky", {"ripe_at": 0.0})))  # its replica is warm
    inputs = {"ripe_at": time.time() + 5.0, "wait_s": 5.2}
    retry = RetryPolicy(max_retries=1, initial_delay_s=0.0)
    run_id = service.submit(one_step("picky", inputs, retry=retry))

    assert output_of(service, run_id) == "ripe"
    assert service.view(run_id).steps[0].attempt == 2


def test_retries_that_are_used_up_fail_the_run_with_its_code(service: RunningService) -> None:
    retry = RetryPolicy(max_retries=1, initial_delay_s=0.1)
    run_id = service.submit(one_step("fail", {"retryable": True, "message": "no luck"}, retry=retry))

    with pytest.raises(RunFailed, match="no luck"):
        output_of(service, run_id)
    assert service.view(run_id).steps[0].attempt == 2


# -- commands


def test_paused_run_starts_nothing_and_goes_on_when_resumed(service: RunningService) -> None:
    plan = Plan(
        name="two",
        steps=(
            Step(name="a", capability="sleep", inputs={"seconds": 0.5}),
            Step(name="b", capability="noop", inputs={"b": 1}, needs=("a",)),
        ),
    )
    run_id = service.submit(plan)
    service.await_running(run_id)

    service.command(run_id, "pause")
    eventually(lambda: service.view(run_id).steps[0].status == "succeeded", "what was in flight finishes")
    assert service.record(run_id).status == "paused"
    assert service.view(run_id).steps[1].attempt == 0
    with pytest.raises(Conflict, match="cannot be paused: paused"):
        service.command(run_id, "pause")

    service.command(run_id, "resume")
    assert output_of(service, run_id) == {"b": 1}
    check_story(service.view(run_id), service.events([run_id])[run_id])


def test_higher_priority_goes_first_on_a_pool_of_one_slot_and_can_be_changed_while_waiting(
    service: RunningService, tmp_path: Path
) -> None:
    log = tmp_path / "order"

    def submit(name: str, priority: int, seconds: float = 0.0) -> str:
        inputs = {"name": name, "seconds": seconds, "log": str(log)}
        return service.submit(one_step("solo", inputs), priority=priority, run_id=own_id(service))

    runs = [submit("first", 50, 3.0)]
    service.await_running(runs[0])
    runs += [submit(f"low-{n}", 10) for n in range(3)]
    runs += [submit(f"high-{n}", 90) for n in range(3)]
    raised = submit("raised", 5)

    service.command(raised, "priority", priority=100)

    service.await_ended([*runs, raised])
    assert lines_of(log) == [
        "first",
        "raised",
        *(f"high-{n}" for n in range(3)),
        *(f"low-{n}" for n in range(3)),
    ]


def own_id(service: RunningService) -> str:
    """Make an id that orchestrator 0 owns: two orchestrators share slots fairly, not by priority."""
    owned = service.orchestrator_status(0)["partitions"]
    while True:
        run_id = uuid4().hex
        if partition_of(run_id, service.settings.num_partitions) in owned:
            return run_id


def test_commands_for_an_unknown_run_are_not_found(service: RunningService) -> None:
    with pytest.raises(NotFound):
        ray.get(service.orchestrator().cancel.remote("no-such-run"), timeout=10)


# -- Runs after Runs


def test_run_waits_for_all_of_several_runs_of_other_partitions(service: RunningService) -> None:
    firsts = [f"first-{n}-{uuid4().hex}" for n in range(12)]
    assert len({service.names_of(run_id).partition for run_id in firsts}) > 2
    for run_id in firsts[:-1]:
        service.submit(one_step("sleep", {"seconds": 0.2}), run_id=run_id)
    service.submit(one_step("nap", {"seconds": 2.0}), run_id=firsts[-1])
    waiting = [service.submit(one_step("noop", {"n": n}), after=firsts) for n in range(8)]
    service.await_ended(firsts[:-1])
    assert {record.status for record in service.records(waiting).values()} == {"pending"}

    ended = service.await_ended(waiting)
    assert {record.status for record in ended.values()} == {"succeeded"}
    last = service.record(firsts[-1]).ended_at or 0.0
    assert all((record.started_at or 0.0) >= last for record in ended.values())


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_run_after_one_that_did_not_succeed_fails_with_the_reason(service: RunningService, end: str) -> None:
    before = service.submit(one_step("fail" if end == "failed" else "sleep", {"seconds": 60}))
    after = service.submit(one_step("noop"), after=(before,))
    after_that = service.submit(one_step("noop"), after=(after,))
    if end == "cancelled":
        service.command(before, "cancel")

    ended = service.await_ended([before, after, after_that])

    assert ended[after].error is not None
    assert ended[after].error.message == f"run {before}, which this one comes after, ended {end}"  # type: ignore[union-attr]
    assert ended[after_that].status == "failed"


def test_run_after_one_that_has_long_ended_starts_at_once(service: RunningService) -> None:
    before = service.submit(one_step("noop"))
    service.await_ended([before])

    assert output_of(service, service.submit(one_step("noop", {"x": 1}), after=(before,))) == {"x": 1}


def test_waiting_run_can_be_cancelled_and_its_predecessor_does_not_mind(service: RunningService) -> None:
    before = service.submit(one_step("sleep", {"seconds": 1.0}))
    waiting = service.submit(one_step("noop"), after=(before,))

    service.command(waiting, "cancel")

    ended = service.await_ended([before, waiting])
    assert ended[waiting].status == "cancelled"
    assert ended[before].status == "succeeded"


# -- Plans


def test_map_runs_once_for_each_item_and_joins_in_order(service: RunningService) -> None:
    plan = Plan(
        name="map",
        steps=(
            Step(name="list", capability="noop", inputs=ref("inputs.rows")),
            Step(
                name="each",
                capability="noop",
                map=ref("steps.list.output"),
                inputs={"row": ref("item.value"), "at": ref("index"), "run": ref("run.id")},
            ),
            Step(name="join", capability="noop", inputs={"all": ref("steps.each.output")}),
        ),
    )
    run_id = service.submit(plan, {"rows": [{"value": n * n} for n in range(500)]})

    assert output_of(service, run_id) == {"all": [{"row": n * n, "at": n, "run": run_id} for n in range(500)]}
    check_story(service.view(run_id), service.events([run_id])[run_id])


def test_failed_item_fails_its_step_and_stops_the_other_items(service: RunningService) -> None:
    plan = Plan(
        name="map",
        steps=(
            Step(
                name="each",
                capability="fail",
                map=[0, 0, 9, 0],
                inputs={"times": ref("item"), "message": "bad item"},
                retry=RetryPolicy(max_retries=0),
            ),
        ),
    )
    run_id = service.submit(plan)

    with pytest.raises(RunFailed, match="bad item"):
        output_of(service, run_id)


def test_conditions_choose_the_branch_and_what_needs_only_skipped_steps_is_skipped(
    service: RunningService,
) -> None:
    plan = Plan(
        name="branches",
        steps=(
            Step(name="score", capability="noop", inputs=ref("inputs")),
            Step(name="good", capability="noop", inputs={"g": 1}, when=_score("ge")),
            Step(name="bad", capability="noop", inputs={"b": 1}, when=_score("lt")),
            Step(name="after_bad", capability="noop", needs=("bad",)),
            Step(name="join", capability="noop", inputs=[ref("steps.good.output"), ref("steps.bad.output")]),
        ),
        output={"join": ref("steps.join.output")},
    )
    run_id = service.submit(plan, {"value": 7})

    assert output_of(service, run_id) == {"join": [{"g": 1}, None]}
    statuses = {step.name: step.status for step in service.view(run_id).steps}
    assert (statuses["bad"], statuses["after_bad"]) == ("skipped", "skipped")


def _score(operator: str) -> dict[str, object]:
    return {"ref": "steps.score.output.value", "op": operator, "value": 5}


def test_optional_step_may_fail_and_reads_as_null(service: RunningService) -> None:
    plan = Plan(
        name="optional",
        steps=(
            Step(name="maybe", capability="fail", optional=True),
            Step(name="then", capability="noop", inputs={"got": ref("steps.maybe.output")}),
        ),
    )
    assert output_of(service, service.submit(plan)) == {"got": None}


# -- agents that are not there


def test_unknown_capability_fails_with_agent_unavailable(service: RunningService) -> None:
    run_id = service.submit(one_step("telepathy"))

    error = service.await_ended([run_id])[run_id].error
    assert error is not None
    assert (error.code, error.message) == ("AGENT_UNAVAILABLE", "no pool serves the capability 'telepathy'")


def test_agent_whose_import_fails_is_unavailable_with_the_reason(service: RunningService) -> None:
    run_id = service.submit(one_step("unloadable"))

    error = service.await_ended([run_id])[run_id].error
    assert error is not None
    assert error.code == "AGENT_UNAVAILABLE"
    assert "a_library_that_nobody_has_installed" in error.message


# -- large values, and the same request twice


def test_output_over_the_inline_limit_goes_to_the_blob_store_and_comes_back_whole(
    service: RunningService,
) -> None:
    rows = [{"row": n, "text": "x" * 100} for n in range(4000)]
    plan = Plan(
        name="large",
        steps=(
            Step(name="a", capability="noop", inputs={"rows": ref("inputs.rows")}),
            Step(name="b", capability="noop", inputs={"again": ref("steps.a.output")}),
            Step(name="c", capability="noop", inputs={"row": ref("steps.b.output.again.rows.3999.row")}),
        ),
        output={"all": ref("steps.b.output"), "row": ref("steps.c.output.row")},
    )
    run_id = service.submit(plan, {"rows": rows})

    assert output_of(service, run_id) == {"all": {"again": {"rows": rows}}, "row": 3999}
    stored = service.redis.hget(service.names_of(run_id).run(run_id), "r:0")
    assert isinstance(stored, bytes)
    assert orjson.loads(stored)["$blob"].startswith("sha256:")
    assert len(stored) < 300


def test_text_that_an_agent_decodes_to_a_reference_does_not_read_what_another_tenant_stored(
    service: RunningService,
) -> None:
    secret = service.submit(one_step("noop"), {"secret": "x" * 300_000}, tenant="victim")
    service.await_ended([secret])
    stored = orjson.loads(service.redis.hget(service.names_of(secret).run(secret), "inputs") or b"")
    (digest,) = references_in(stored)
    forged = {"$blob": digest, "size_bytes": 300_000, "media_type": "application/json", "seal": "0" * 32}
    text = orjson.dumps({"found": forged}).decode()
    element = {"input_id": "a", "type": "json", "encoding": "json", "data": ref("inputs.text")}
    plan = Plan(
        name="smuggle",
        steps=(
            Step(name="decode", capability="data_ingest", inputs={"inputs": [element]}),
            Step(name="read", capability="echo", inputs=ref("steps.decode.output")),
        ),
    )
    for padding in ("", " " * 300_000):  # inline, and as a blob of JSON
        run_id = service.submit(plan, {"text": text + padding}, tenant="thief")
        error = service.await_ended([run_id])[run_id].error
        assert error is not None
        assert (error.code, error.retryable) == ("VALIDATION_ERROR", False)
        assert "not a reference that this service has made" in error.message


def test_same_request_with_the_same_id_is_one_run_and_another_one_is_refused(service: RunningService) -> None:
    run_id = f"mine-{uuid4().hex}"
    submission = Submission(run_id=run_id, plan=one_step("noop", {"x": 1}), inputs={})

    ids = [ray.get(service.orchestrator(n).submit.remote(submission), timeout=10) for n in (0, 1, 0)]
    service.await_ended([run_id])
    ids.append(service.submit(submission.plan, run_id=run_id))

    assert set(ids) == {run_id}
    assert [event.type for event in service.events([run_id])[run_id]].count("run.submitted") == 1
    with pytest.raises(AlreadyExists, match="different request"):
        service.submit(one_step("noop", {"x": 2}), run_id=run_id)


def test_plan_that_breaks_a_rule_is_refused_and_nothing_is_stored(service: RunningService) -> None:
    with pytest.raises(InvalidPlan, match="no step named"):
        service.submit(one_step("noop", ref("steps.nowhere.output")), run_id="broken-plan")

    assert not service.redis.exists(service.names_of("broken-plan").run("broken-plan"))
