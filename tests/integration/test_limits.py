"""What is beyond an owner's memory waits in Redis; what is beyond a tenant's bound is refused."""

from __future__ import annotations

from uuid import uuid4

import pytest
import ray

from cluster.errors import LimitExceeded
from cluster.model.plan import Plan, Step, Submission
from tests.integration.plans import check_sound, mixed_load, one_step
from tests.integration.running_service import RunningService, eventually

SETTINGS = {"max_loaded_runs": 50, "max_unfinished_runs": 2000}


def sleeps(count: int, seconds: float, **fields: object) -> list[Submission]:
    plan = one_step("sleep", {"seconds": seconds})
    return [Submission(run_id=uuid4().hex, plan=plan, inputs={}, **fields) for _ in range(count)]  # type: ignore[arg-type]


def parked(service: RunningService) -> int:
    return sum(status["parked"] for status in service.statuses())


def test_runs_beyond_the_window_are_parked_and_all_end(service: RunningService) -> None:
    load = mixed_load(600, longest_s=1.0)
    service.submit_all(load)
    assert eventually(lambda: parked(service), "some are parked") > 100
    assert all(status["runs"] <= 60 for status in service.statuses())

    ended = service.await_ended([each.run_id for each in load])

    views, events = service.views(ended), service.events(ended)
    for each in load:
        check_sound(each, views[each.run_id], events[each.run_id])


def test_parked_run_can_be_cancelled_and_paused_and_times_out(service: RunningService) -> None:
    load = sleeps(150, 4.0)
    service.submit_all(load)
    eventually(lambda: parked(service) >= 40, "some are parked")
    late = [each.run_id for each in sleeps_in(service, 40, priority=1)]
    hurried = [each.run_id for each in sleeps_in(service, 4, priority=1, timeout_s=0.5)]

    (wait,) = service.why(late[0])
    assert wait.sentence == "The Run waits behind the 50 Runs that its owner looks after."
    service.command(late[:4], "cancel", reason="too late")
    service.command(late[4:8], "pause")

    assert {record.status for record in service.records(late[:4]).values()} == {"cancelled"}
    assert {record.status for record in service.records(late[4:8]).values()} == {"paused"}
    ended = service.await_ended(hurried)
    assert {(record.error.code if record.error else "") for record in ended.values()} == {"TIMEOUT"}
    service.command(late[4:8], "resume")
    ended = service.await_ended([*(each.run_id for each in load), *late[4:]])
    assert {record.status for record in ended.values()} == {"succeeded"}


def sleeps_in(service: RunningService, count: int, **fields: object) -> list[Submission]:
    submissions = sleeps(count, 0.0, **fields)
    service.submit_all(submissions)
    return submissions


def test_parked_runs_go_by_priority_whatever_their_partition(service: RunningService) -> None:
    first = [run for n in range(160) for run in sleeps(1, 1.0 + n / 80)]
    service.submit_all(first)
    eventually(lambda: all(status["runs"] >= 50 for status in service.statuses()), "the windows are full")
    low = [each.run_id for each in sleeps_in(service, 60, priority=10)]
    high = [each.run_id for each in sleeps_in(service, 20, priority=90)]
    assert parked(service) >= 60

    service.await_ended([*(each.run_id for each in first), *low, *high])

    started = {run_id: record.started_at or 0.0 for run_id, record in service.records([*low, *high]).items()}
    for status in service.statuses():
        mine = [run_id for run_id in started if service.names_of(run_id).partition in status["partitions"]]
        last_high = max(started[run_id] for run_id in mine if run_id in high)
        assert all(started[run_id] >= last_high for run_id in mine if run_id in low)


def test_window_full_of_waiting_runs_does_not_keep_out_the_run_they_wait_for(service: RunningService) -> None:
    service.submit_all(sleeps(150, 1.0))
    eventually(lambda: parked(service), "the windows are full")
    first = service.submit(one_step("noop"), run_id=uuid4().hex, priority=1)
    waiting = sleeps(200, 0.0, after=(first,))
    service.submit_all(waiting)
    eventually(
        lambda: sum(status["runs"] for status in service.statuses()) >= 200, "the waiting are in memory"
    )

    ended = service.await_ended([first, *(each.run_id for each in waiting)])
    assert {record.status for record in ended.values()} == {"succeeded"}


def test_window_full_of_paused_runs_lets_others_pass(service: RunningService) -> None:
    chain = Plan(
        name="two",
        steps=(
            Step(name="a", capability="sleep", inputs={"seconds": 3.0}),
            Step(name="b", capability="noop", needs=("a",)),
        ),
    )
    load = [Submission(run_id=uuid4().hex, plan=chain, inputs={}) for _ in range(120)]
    service.submit_all(load)
    eventually(lambda: parked(service) >= 20, "the windows are full")
    paused = [each.run_id for each in load]
    service.command(paused, "pause")

    others = sleeps_in(service, 20)
    ended = service.await_ended([each.run_id for each in others])
    assert {record.status for record in ended.values()} == {"succeeded"}

    assert {record.status for record in service.records(paused).values()} == {"paused"}
    service.command(paused, "resume")
    service.await_ended(paused)


def test_owner_that_dies_with_parked_runs_leaves_them_to_the_next(service: RunningService) -> None:
    load = mixed_load(400, longest_s=1.0)
    hurried = sleeps(3, 60.0, priority=1, timeout_s=8.0)
    service.submit_all(load)
    service.submit_all(hurried)
    eventually(lambda: parked(service) > 50, "some are parked")

    service.kill(service.orchestrator_status(0)["pid"])

    ended = service.await_ended([each.run_id for each in load])
    views, events = service.views(ended), service.events(ended)
    for each in load:
        check_sound(each, views[each.run_id], events[each.run_id])
    for record in service.await_ended([each.run_id for each in hurried]).values():
        assert record.error is not None
        assert record.error.code == "TIMEOUT"


def test_kill_of_redis_while_runs_are_parked_loses_none(service: RunningService) -> None:
    load = mixed_load(400, longest_s=1.0)
    service.submit_all(load)
    eventually(lambda: parked(service) > 50, "some are parked")

    for _ in range(3):
        service.redis_server.kill()
        assert service.redis_server.restart_if_dead()
        eventually(lambda: service.redis.ping(), "Redis answers")

    ended = service.await_ended([each.run_id for each in load])
    views, events = service.views(ended), service.events(ended)
    for each in load:
        check_sound(each, views[each.run_id], events[each.run_id])


def test_tenant_over_its_limit_is_refused_while_others_are_not(service: RunningService) -> None:
    last = service.submit(one_step("sleep", {"seconds": 300}), run_id="comes-last", tenant="greedy")
    mine = sleeps(1999, 0.0, tenant="greedy", after=("comes-last",))
    accepted = service.submit_all(mine)
    beyond: list[str] = []

    refused: list[LimitExceeded] = []

    def is_refused() -> bool:
        try:
            beyond.append(service.submit(one_step("noop"), tenant="greedy"))
        except LimitExceeded as error:
            refused.append(error)
        return bool(refused)

    # An orchestrator's count of a tenant is up to a second old where it is far from the limit.
    eventually(is_refused, "it is refused", within_s=5)
    assert "unfinished runs; the limit is 2000" in str(refused[0])
    other = service.submit(one_step("noop"), tenant="modest")
    assert service.await_ended([other])[other].status == "succeeded"

    ray.get(service.orchestrator().cancel.remote(last), timeout=20)
    service.await_ended([*beyond, *accepted])
    again = eventually(lambda: service.submit(one_step("noop"), tenant="greedy"), "there is room again")
    service.await_ended([again])


def test_batch_over_the_limit_is_refused_as_a_whole(service: RunningService) -> None:
    batch = sleeps(2001, 0.0, tenant="batch")

    with pytest.raises(LimitExceeded):
        ray.get(service.orchestrator().submit_many.remote(batch), timeout=20)

    assert not service.redis.keys("tutti:*:index:batch")
