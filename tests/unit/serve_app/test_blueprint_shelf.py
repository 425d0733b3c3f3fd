"""Which blueprints are served: at free paths only, and what cannot be used keeps nothing else out."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import InvalidInput, NotFound
from cluster.settings import Settings
from serve_app.blueprint_shelf import BlueprintShelf
from serve_app.http_app import build_app
from serve_app.service import RunService

TEXT = "{name: NAME, ENDPOINT start: a, states: {a: {dispatch: x, to: done}, done: end}}"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    folder = tmp_path / "folder"
    folder.mkdir()
    return Settings(redis_url="unix:///nowhere/redis.sock", data_dir=tmp_path, blueprints_dir=folder)


def put(settings: Settings, name: str, endpoint: str = "", file: str = "", text: str = TEXT) -> None:
    assert settings.blueprints_dir is not None
    given = f"endpoint: {endpoint}," if endpoint else ""
    path = settings.blueprints_dir / f"{file or name}.yaml"
    path.write_text(text.replace("NAME", name).replace("ENDPOINT", given))


@pytest.mark.parametrize("endpoint", ["/runs", "/jobs/x/cancel", "/blueprints/reload", "/quarantine/x/retry"])
def test_path_of_another_route_is_refused_at_the_start(settings: Settings, endpoint: str) -> None:
    put(settings, "mine", endpoint)
    with pytest.raises(ValueError, match="clashes with"):
        build_app(RunService.connect(settings), settings)


def test_two_blueprints_at_one_path_are_refused_at_the_start(settings: Settings) -> None:
    put(settings, "one", "/same")
    put(settings, "two", "/same")
    with pytest.raises(ValueError, match="clashes with one"):
        build_app(RunService.connect(settings), settings)


def opened(settings: Settings) -> BlueprintShelf:
    shelf = BlueprintShelf(settings)
    shelf.open(lambda _path: None, lambda _path: None)
    return shelf


def test_own_blueprint_goes_before_a_shipped_one_of_its_name(settings: Settings) -> None:
    put(settings, "simple_flow")
    assert opened(settings).get("simple_flow").origin.endswith("simple_flow.yaml")


def test_second_of_a_name_and_one_with_a_dangling_move_are_left_out(settings: Settings) -> None:
    put(settings, "one", file="a")
    put(settings, "one", file="b")
    put(settings, "two", text=TEXT.replace("to: done", "to: nowhere"))
    shelf = opened(settings)
    assert [problem.origin.rpartition("/")[2] for problem in shelf.problems] == ["b.yaml", "two.yaml"]
    assert shelf.get("one").origin.endswith("a.yaml")
    with pytest.raises(NotFound):
        shelf.get("two")


def test_demand_that_no_worker_can_be_compared_with_is_refused(settings: Settings) -> None:
    put(settings, "odd", text=TEXT.replace("dispatch: x", "dispatch: x, demands: {strategy: luck}"))
    (problem,) = opened(settings).problems
    assert "luck" in problem.reason


async def test_file_that_was_broken_by_a_change_leaves_what_was_served(settings: Settings) -> None:
    put(settings, "one")
    shelf = opened(settings)
    before = shelf.get("one")
    put(settings, "one", text=TEXT.replace("to: done", "to: nowhere"))
    await shelf.reload()
    assert shelf.get("one") is before
    assert len(shelf.problems) == 1


async def test_change_of_a_sub_blueprint_is_a_new_version_of_the_outer_one(settings: Settings) -> None:
    put(settings, "inner")
    put(settings, "outer", text="{name: NAME, start: a, states: {a: {run: inner, to: done}, done: end}}")
    shelf = opened(settings)
    before = shelf.get("outer").digest
    put(settings, "inner", text=TEXT.replace("x", "y"))
    await shelf.reload()
    assert shelf.get("outer").digest != before


def test_initial_data_must_be_an_object(settings: Settings) -> None:
    with pytest.raises(InvalidInput):
        opened(settings).get("simple_flow").inputs([1])
