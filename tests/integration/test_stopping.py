"""Work that must end before its time: cancelled, over its deadline, or stuck for good."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
import ray

from cluster.errors import Conflict, RunFailed
from cluster.model.plan import Plan, RetryPolicy, Step
from tests.integration.plans import check_story, one_step
from tests.integration.running_service import RunningService, eventually

ONCE = RetryPolicy(max_retries=0)


def cancel(service: RunningService, run_id: str, reason: str = "") -> None:
    ray.get(service.orchestrator().cancel.remote(run_id, reason), timeout=10)


def lines_of(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_cancel_reaches_the_executing_coroutine_at_once(service: RunningService, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run_id = service.submit(one_step("watchful", {"log": str(log)}))
    eventually(lambda: lines_of(log), "it began")
    cancelled_at = time.time()

    cancel(service, run_id, "changed my mind")

    assert service.record(run_id).status == "cancelled"
    eventually(lambda: len(lines_of(log)) == 2, "its coroutine was cancelled")
    assert float(lines_of(log)[1].removeprefix("cancelled ")) - cancelled_at < 2.0
    view = service.view(run_id)
    assert view.cancel_reason == "changed my mind"
    assert view.error is not None
    assert view.error.code == "CANCELLED"
    check_story(view, service.events([run_id])[run_id])


def test_cancel_of_an_ended_run_is_a_conflict(service: RunningService) -> None:
    run_id = service.submit(one_step("noop"))
    service.await_ended([run_id])

    with pytest.raises(Conflict, match="already ended: succeeded"):
        cancel(service, run_id)


def test_cancelled_run_ends_at_once_though_its_agent_is_stuck_and_the_replica_pays_for_it(
    service: RunningService, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    neighbours = [service.submit(one_step("patient", {"seconds": 4.0, "log": str(log)})) for _ in range(2)]
    stuck = service.submit(one_step("stuck", {"log": str(log)}))
    eventually(lambda: len(lines_of(log)) == 3, "all began on one replica")
    pid = service.replica_pid("stuck")
    began = time.monotonic()

    cancel(service, stuck)

    assert service.record(stuck).status == "cancelled"
    assert time.monotonic() - began < 2.0
    eventually(lambda: not psutil.pid_exists(pid), "the replica is gone", within_s=10)
    service.await_ended(neighbours)
    for view in service.views(neighbours).values():
        assert view.status == "succeeded", view.error
        assert view.output["attempt"] == 2
        assert view.output["pid"] != pid
        check_story(view, service.events([view.run_id])[view.run_id])


def test_stuck_agents_never_get_their_innocent_neighbour_quarantined(
    service: RunningService, tmp_path: Path
) -> None:
    """The replica is ended on purpose again and again: the one that merely was there is not to blame."""
    log = tmp_path / "log"
    neighbour = service.submit(one_step("patient", {"seconds": 6.0, "log": str(log)}))
    for turn in range(1, 5):
        eventually(lambda turn=turn: f"attempt {turn}" in " ".join(lines_of(log)), f"attempt {turn} began")
        num_before = len(lines_of(log))
        stuck = service.submit(one_step("stuck", {"log": str(log)}))
        eventually(lambda num=num_before: len(lines_of(log)) > num, "the stuck one began")
        cancel(service, stuck)

    ended = service.await_ended([neighbour])
    assert ended[neighbour].status == "succeeded", ended[neighbour].error
    assert service.view(neighbour).steps[0].attempt == 5


def test_step_over_its_limit_is_stopped_and_fails_with_timeout(
    service: RunningService, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    run_id = service.submit(one_step("watchful", {"log": str(log)}, timeout_s=0.5, retry=ONCE))

    ended = service.await_ended([run_id])

    error = ended[run_id].error
    assert error is not None
    assert (error.code, error.message) == ("TIMEOUT", "attempt 1 took over 0.5 s")
    eventually(lambda: len(lines_of(log)) == 2, "its coroutine was cancelled")


def test_step_over_its_limit_is_tried_again(service: RunningService) -> None:
    retry = RetryPolicy(max_retries=2, initial_delay_s=0.1)
    run_id = service.submit(one_step("sleep", {"seconds": 30}, timeout_s=0.3, retry=retry))

    ended = service.await_ended([run_id])

    assert ended[run_id].error is not None
    assert ended[run_id].error.message == "attempt 3 took over 0.3 s"  # type: ignore[union-attr]
    assert ended[run_id].retry_count == 2


def test_run_over_its_limit_fails_with_timeout_and_stops_what_runs(
    service: RunningService, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    plan = Plan(
        name="slow",
        steps=(
            Step(name="a", capability="watchful", inputs={"log": str(log)}),
            Step(name="b", capability="noop", needs=("a",)),
        ),
    )
    run_id = service.submit(plan, timeout_s=1.0)

    with pytest.raises(RunFailed, match="not done within 1 s") as caught:
        ray.get(service.orchestrator().result.remote(run_id, timeout_s=20))

    assert caught.value.details["code"] == "TIMEOUT"
    eventually(lambda: len(lines_of(log)) == 2, "its coroutine was cancelled")
    assert [step.status for step in service.view(run_id).steps] == ["cancelled", "cancelled"]


def test_step_whose_wait_for_a_slot_outlives_its_run_never_starts(
    service: RunningService, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    first = service.submit(one_step("solo", {"name": "first", "seconds": 2.0, "log": str(log)}))
    service.await_running(first)

    second = service.submit(one_step("solo", {"name": "second", "log": str(log)}), timeout_s=0.5)

    ended = service.await_ended([first, second])
    assert ended[second].error is not None
    assert ended[second].error.code == "TIMEOUT"  # type: ignore[union-attr]
    assert ended[first].status == "succeeded"
    assert lines_of(log) == ["first"]


def test_cancel_of_a_run_with_many_items_in_flight_frees_every_slot(service: RunningService) -> None:
    plan = Plan(
        name="wide",
        steps=(Step(name="each", capability="sleep", map=list(range(300)), inputs={"seconds": 60}),),
    )
    run_id = service.submit(plan)
    eventually(
        lambda: sum(s["held"].get(n, 0) for s in service.statuses() for n in s["held"]) > 50, "many run"
    )

    cancel(service, run_id)

    assert service.record(run_id).status == "cancelled"
    check_story(service.view(run_id), service.events([run_id])[run_id])
