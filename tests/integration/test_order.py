"""Who goes first on the real service: what counts is the order in which Steps begin, never a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cluster.model.plan import Plan, Step
from tests.integration.plans import ref
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
NUM_ORDINARY = 10_000

Hold = Callable[[], None]


@pytest.fixture
def release(service: RunningService, tmp_path: Path) -> Iterator[Hold]:
    """Hold the pool's only slot until the test releases it, at the latest at its end."""
    gate = tmp_path / "gate"
    plan = Plan(name="gate", steps=(Step(name="gate", capability="gated", inputs={"gate": str(gate)}),))
    run_id = service.submit(plan, run_id=uuid4().hex)
    service.await_running(run_id)
    yield gate.touch
    gate.touch()
    service.await_ended([run_id])


def marks(log: Path, name: str) -> Plan:
    return Plan(
        name=name, steps=(Step(name="mark", capability="solo", inputs={"log": str(log), "name": name}),)
    )


def many_marks(log: Path, count: int) -> Plan:
    inputs: Any = {"log": str(log), "name": ref("item")}
    return Plan(
        name="many",
        steps=(
            Step(
                name="mark",
                capability="solo",
                map=[f"ordinary-{number}" for number in range(count)],
                inputs=inputs,
            ),
        ),
    )


def await_waiting(service: RunningService, count: int) -> None:
    eventually(
        lambda: sum(sum(status["waiting"].values()) for status in service.statuses()) == count,
        f"{count} wait",
    )


def order(log: Path, count: int) -> list[str]:
    """The first names that were marked."""

    def read() -> list[str]:
        found = log.read_text().split() if log.exists() else []
        return found if len(found) >= count else []

    return eventually(read, f"{count} have begun")[:count]


def test_urgent_step_takes_the_next_free_slot_before_ten_thousand_that_wait(
    service: RunningService, release: Hold, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    ordinary = service.submit(many_marks(log, NUM_ORDINARY), run_id=uuid4().hex)
    await_waiting(service, NUM_ORDINARY)
    urgent = service.submit(marks(log, "urgent"), run_id=uuid4().hex, priority=90)
    await_waiting(service, NUM_ORDINARY + 1)

    release()

    assert order(log, 2) == ["urgent", "ordinary-0"]
    service.command(ordinary, "cancel")
    ended = service.await_ended([urgent, ordinary])
    assert {run_id: record.status for run_id, record in ended.items()} == {
        urgent: "succeeded",
        ordinary: "cancelled",
    }


def test_change_of_priority_and_cancel_act_on_what_waits_already(
    service: RunningService, release: Hold, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    names = ["first", "raised", "lowered", "cancelled", "last"]
    run_ids = {}
    for position, name in enumerate(names):
        run_ids[name] = service.submit(marks(log, name), run_id=uuid4().hex)
        await_waiting(service, position + 1)

    service.command(run_ids["raised"], "priority", priority=60)
    service.command(run_ids["lowered"], "priority", priority=40)
    service.command(run_ids["cancelled"], "cancel")
    await_waiting(service, 4)
    release()

    assert order(log, 4) == ["raised", "first", "last", "lowered"]
    ended = service.await_ended(list(run_ids.values()))
    assert ended[run_ids["cancelled"]].status == "cancelled"
    assert not log.read_text().count("cancelled")


def test_paused_run_loses_its_place_to_the_next_until_it_is_resumed(
    service: RunningService, release: Hold, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    run_ids = {}
    for position, name in enumerate(["paused", "next"]):
        run_ids[name] = service.submit(marks(log, name), run_id=uuid4().hex)
        await_waiting(service, position + 1)
    service.command(run_ids["paused"], "pause")
    await_waiting(service, 1)

    release()

    assert order(log, 1) == ["next"]
    service.command(run_ids["paused"], "resume")
    assert order(log, 2) == ["next", "paused"]
    service.await_ended(list(run_ids.values()))
