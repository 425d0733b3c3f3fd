"""Why Steps wait, asked of the Runs' owners on the real service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from cluster.model.plan import RetryPolicy
from cluster.scheduling.reasons import (
    BackingOff,
    BehindOthers,
    DependencyUnfinished,
    Paused,
    StepWait,
)
from tests.integration.plans import chain, one_step
from tests.integration.running_service import RunningService, eventually

SETTINGS = {"num_orchestrators": 1}
_MODULE = "tests.integration.agents_for_tests"
POOLS = [
    {
        "name": "narrow",
        "agents": [f"{_MODULE}:gated", f"{_MODULE}:solo"],
        "capabilities": ["gated", "solo"],
        "concurrency": 1,
        "num_cpus": 0.1,
    }
]

Release = Callable[[], None]


@pytest.fixture
def release(service: RunningService, tmp_path: Path) -> Iterator[Release]:
    """Hold the only slot of the pool until the test releases it, at the latest at its end."""
    gate = tmp_path / "gate"
    run_id = service.submit(one_step("gated", {"gate": str(gate)}), run_id=uuid4().hex)
    service.await_running(run_id)
    yield gate.touch
    gate.touch()
    service.await_ended([run_id])


def solo(service: RunningService, name: str = "solo", **fields: object) -> str:
    return service.submit(one_step("solo", {"name": name}), run_id=uuid4().hex, **fields)


def the_wait(service: RunningService, run_id: str, step: str = "work") -> StepWait:
    return eventually(
        lambda: next((wait for wait in service.why(run_id) if wait.step == step), None),
        f"{step} of {run_id} waits",
    )


def test_step_waits_behind_those_that_go_first_and_learns_of_each_change(
    service: RunningService, release: Release
) -> None:
    run_ids = [solo(service) for _ in range(5)]
    urgent = solo(service, priority=90)
    first = the_wait(service, urgent).reason
    assert isinstance(first, BehindOthers)
    assert (first.num_ahead, first.priority) == (0, 90)
    last = the_wait(service, run_ids[-1])
    assert isinstance(last.reason, BehindOthers)
    assert last.reason.num_ahead == 5
    assert last.sentence.startswith("It waits for a free slot behind 5 others, with priority 50")

    service.command(urgent, "cancel")
    service.command(run_ids[-1], "priority", priority=70)
    moved = the_wait(service, run_ids[-1]).reason
    assert isinstance(moved, BehindOthers)
    assert (moved.num_ahead, moved.priority) == (0, 70)

    release()
    service.await_ended([*run_ids, urgent])
    assert service.why(urgent) == []


def test_estimate_comes_from_how_long_attempts_took(service: RunningService, tmp_path: Path) -> None:
    service.await_ended([service.submit(one_step("solo", {"name": "slow", "seconds": 0.4}), run_id="slow")])
    gate = tmp_path / "gate"
    held = service.submit(one_step("gated", {"gate": str(gate)}), run_id=uuid4().hex)
    service.await_running(held)
    run_ids = [solo(service) for _ in range(3)]
    second, third = (the_wait(service, run_id).until_at for run_id in run_ids[1:])
    gate.touch()
    service.await_ended([held, *run_ids])
    assert second is not None
    assert third is not None
    assert third > second


def test_dependency_pause_and_other_runs_are_told_with_their_names(
    service: RunningService, release: Release
) -> None:
    before = service.submit(chain("solo", "noop", name="a"), run_id=uuid4().hex)
    assert the_wait(service, before, "b").reason == DependencyUnfinished(names=("a",))

    after = service.submit(one_step("noop"), run_id=uuid4().hex, after=(before,))
    whole = the_wait(service, after, "")
    assert whole.reason == DependencyUnfinished(names=(before,))
    assert whole.sentence == f"It needs {before}, not ended yet."

    service.command(before, "pause")
    assert the_wait(service, before, "a").reason == Paused()

    release()
    service.command(before, "resume")
    service.await_ended([before, after])


def test_failed_step_tells_when_it_is_tried_again(service: RunningService) -> None:
    plan = one_step(
        "picky", {"ripe_at": time.time() + 3600, "wait_s": 60.0}, retry=RetryPolicy(max_retries=1)
    )
    asked_at = time.time()
    run_id = service.submit(plan, run_id=uuid4().hex)
    wait = eventually(
        lambda: next((each for each in service.why(run_id) if isinstance(each.reason, BackingOff)), None),
        "it is to be tried again",
    )
    assert isinstance(wait.reason, BackingOff)
    assert wait.reason.num_failures == 1
    assert wait.until_at is not None
    assert wait.until_at >= asked_at + 60
    service.command(run_id, "cancel")
    service.await_ended([run_id])


def test_capability_that_no_pool_serves_does_not_wait_but_fails_with_the_reason(
    service: RunningService,
) -> None:
    run_id = service.submit(one_step("nobody"), run_id=uuid4().hex)
    record = service.await_ended([run_id])[run_id]
    assert record.error is not None
    assert record.error.message == "no pool serves the capability 'nobody'"
    assert service.why(run_id) == []
