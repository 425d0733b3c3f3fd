"""Blueprints on real replicas: handlers in an agent, in circles, raising, and killed in the middle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.lifecycle.run_status import RunStatus
from cluster.model.plan import Plan
from serve_app.blueprint_shelf import BlueprintShelf
from tests.integration.running_service import RunningService, eventually

CODE = """
import os
from pathlib import Path
from actors.blueprint import Blueprint, outcome

flow = Blueprint("circle", parameters={"folder": str, "times": int})

@flow.handler("turn", start=True, to={"again": "turn", "success": "done"}, retries=1)
def turn(folder: str, times: int, done: int = 0):
    with (Path(folder) / "log").open("a") as log:
        log.write(f"{done}\\n")
    if (Path(folder) / "raise").exists():
        raise RuntimeError("not today")
    if done == 2 and not (Path(folder) / "died").exists():
        (Path(folder) / "died").touch()
        os._exit(1)
    return outcome("again" if done + 1 < times else "success", {"done": done + 1})

flow.end("done")
"""


@pytest.fixture
def shelf(service: RunningService, tmp_path: Path) -> BlueprintShelf:
    folder = tmp_path / "blueprints"
    folder.mkdir()
    (folder / "circle.py").write_text(CODE)
    shelf = BlueprintShelf(dataclasses.replace(service.settings, blueprints_dir=folder))
    shelf.open(lambda _path: None, lambda _path: None)
    assert shelf.problems == []
    return shelf


def output_of(service: RunningService, run_id: str) -> Any:
    return ray.get(service.orchestrator().result.remote(run_id, timeout_s=60), timeout=70)


def plan_of(shelf: BlueprintShelf, name: str) -> Plan:
    return shelf.get(name).plan.plan


def test_shipped_flows_of_the_cluster_end_by_themselves(
    service: RunningService, shelf: BlueprintShelf
) -> None:
    simple = service.submit(plan_of(shelf, "simple_flow"), inputs={"name": "Ada"})
    parallel = service.submit(plan_of(shelf, "parallel_flow"), inputs={"x": 1})
    assert output_of(service, simple) == {"greeting": "Hello, Ada!", "letters": 8}
    assert output_of(service, parallel)["gathered"] == ["first", "second", "third"]


def test_circle_goes_on_where_it_was_when_its_replica_dies_in_the_middle(
    service: RunningService, shelf: BlueprintShelf, tmp_path: Path
) -> None:
    inputs = {"folder": str(tmp_path), "times": 4}
    run_id = service.submit(plan_of(shelf, "circle"), inputs=inputs)
    assert output_of(service, run_id) == {"done": 4}
    assert (tmp_path / "log").read_text().split() == ["0", "1", "2", "2", "3"]


def test_handler_that_raises_is_tried_again_then_quarantined_and_released(
    service: RunningService, shelf: BlueprintShelf, tmp_path: Path
) -> None:
    (tmp_path / "raise").touch()
    (tmp_path / "died").touch()
    run_id = service.submit(plan_of(shelf, "circle"), inputs={"folder": str(tmp_path), "times": 1})
    eventually(lambda: service.record(run_id).phase == "quarantined", "it is quarantined")
    assert (tmp_path / "log").read_text().split() == ["0", "0"]
    assert service.record(run_id).status is RunStatus.WAITING
    (tmp_path / "raise").unlink()
    service.command(run_id, "answer", answer="retry")
    assert output_of(service, run_id) == {"done": 1}


def test_kill_of_both_orchestrators_loses_no_circle_and_counts_no_visit_twice(
    service: RunningService, shelf: BlueprintShelf, tmp_path: Path
) -> None:
    (tmp_path / "died").touch()
    inputs = {"folder": str(tmp_path), "times": 30}
    plan = plan_of(shelf, "circle")
    run_ids = [service.submit(plan, inputs=inputs) for _ in range(30)]
    eventually(lambda: len((tmp_path / "log").read_text().split()) > 200, "they go in circles")

    for status in service.statuses():
        service.kill(status["pid"])

    service.await_ended(run_ids, 90.0)
    views = service.views(run_ids)
    for run_id in run_ids:
        view = views[run_id]
        assert view.status is RunStatus.SUCCEEDED, view.error
        assert view.output == {"done": 30}
        assert [step.name for step in view.steps] == [f"turn:{visit}" for visit in range(30)]
        seqs = [event.seq for event in service.events([run_id])[run_id]]
        assert seqs == list(range(1, len(seqs) + 1))
