"""Where blueprints come from, and the code that a running job keeps to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.agents.blueprint_handler import BlueprintHandler
from actors.blueprint_files import CodeArchive, FoundBlueprint, find_blueprints, folder_state
from cluster.errors import NotFound, StepError
from cluster.model.compiled_blueprint import compile_blueprint
from cluster.model.expansion import expand
from tests.unit.actors.agents.conftest import FolderContext

CODE = """
from __future__ import annotations
from typing import Any
from actors.blueprint import Blueprint, outcome

flow = Blueprint("mine", parameters={"n": int})

@flow.handler("work", start=True, to={"success": "done", "big": "done"})
def work(n: int, job_id: str, state: str, attempt: int, extra: str = "none"):
    if n < 0:
        raise ValueError("negative")
    return outcome("big", {"n": n}) if n > 5 else {"n": n + 1, "who": [job_id, state, attempt, extra]}

@flow.handler("later", to={"success": "done"})
async def later(result: Any):
    return {"later": result}

flow.end("done")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "blueprints"
    folder.mkdir()
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> CodeArchive:
    return CodeArchive(tmp_path / "code")


def found_in(folder: Path, archive: CodeArchive) -> FoundBlueprint:
    return next(each for each in find_blueprints(folder, archive).found if each.blueprint.name == "mine")


def call(archive_dir: Path, code: str, values: dict[str, Any], state: str = "work", **more: Any) -> Any:
    context = FolderContext(archive_dir)
    context.code_dir = str(archive_dir)
    inputs = {"blueprint": "mine", "state": state, "code": code, "values": values, **more}
    return BlueprintHandler().execute(inputs, context)


def test_shipped_blueprints_are_all_in_order(archive: CodeArchive) -> None:
    report = find_blueprints(None, archive)
    assert report.problems == []
    names = {each.blueprint.name for each in report.found}
    assert names == {
        "simple_flow",
        "approval_flow",
        "video_flow",
        "parallel_flow",
        "ext_task",
        "ext_parallel",
    }
    for each in report.found:
        compile_blueprint(each.blueprint.model(each.code))
        assert each.blueprint.path == f"/api/v1/jobs/{each.blueprint.name}"


def test_bad_file_is_told_of_and_the_others_are_loaded(folder: Path, archive: CodeArchive) -> None:
    (folder / "broken.py").write_text("1/0")
    (folder / "broken.yaml").write_text("name: [")
    (folder / "leaving.py").write_text("raise SystemExit(1)")
    (folder / "_ignored.py").write_text("1/0")
    (folder / "good.py").write_text(CODE)
    report = find_blueprints(folder, archive)
    assert [Path(each.origin).name for each in report.problems] == ["broken.py", "broken.yaml", "leaving.py"]
    assert "ZeroDivisionError" in report.problems[0].reason
    assert found_in(folder, archive).origin.endswith("good.py")


def test_handler_is_called_from_the_text_its_job_began_with(
    folder: Path, archive: CodeArchive, tmp_path: Path
) -> None:
    (folder / "good.py").write_text(CODE)
    before = found_in(folder, archive)
    (folder / "good.py").write_text(CODE.replace("n + 1", "n + 100"))
    after = found_in(folder, archive)
    assert before.code != after.code
    assert call(tmp_path / "code", before.code, {"n": 1, "job_id": "j"})["data"]["n"] == 2
    assert call(tmp_path / "code", after.code, {"n": 1, "job_id": "j"})["data"]["n"] == 101


def test_handler_gives_status_and_data_and_is_told_what_it_names(
    folder: Path, archive: CodeArchive, tmp_path: Path
) -> None:
    (folder / "good.py").write_text(CODE)
    code, where = found_in(folder, archive).code, tmp_path / "code"
    assert call(where, code, {"n": 9, "job_id": "j"}) == {"status": "big", "data": {"n": 9}}
    told = call(where, code, {"n": 1, "job_id": "j"}, optional=["extra"], data={"extra": "yes"})
    assert told["data"]["who"] == ["j", "work", 1, "yes"]
    assert call(where, code, {"result": [1]}, "later") == {"status": "success", "data": {"later": [1]}}


def test_handler_that_raises_is_tried_again_and_a_wrong_type_is_not(
    folder: Path, archive: CodeArchive, tmp_path: Path
) -> None:
    (folder / "good.py").write_text(CODE)
    code, where = found_in(folder, archive).code, tmp_path / "code"
    with pytest.raises(StepError, match="handler work: ValueError: negative") as raised:
        call(where, code, {"n": -1, "job_id": "j"})
    assert raised.value.retryable
    with pytest.raises(StepError, match="Expected `int`, got `str`") as raised:
        call(where, code, {"n": "x", "job_id": "j"})
    assert (raised.value.retryable, raised.value.code) == (False, "CONTRACT_VIOLATION")
    with pytest.raises(StepError, match="no handler"):
        call(where, code, {}, "nowhere")


def test_code_that_was_never_kept_or_was_changed_is_not_executed(
    folder: Path, archive: CodeArchive, tmp_path: Path
) -> None:
    for digest in ("0" * 32, "../../etc/passwd", ""):
        with pytest.raises(NotFound):
            archive.blueprints(digest)
    (folder / "good.py").write_text(CODE)
    code = found_in(folder, archive).code
    path = tmp_path / "code" / f"{code}.json"
    path.write_text(path.read_text().replace("n + 1", "n + 2"))
    with pytest.raises(NotFound, match="was changed"):
        CodeArchive(tmp_path / "code").blueprints(code)


def test_changed_folder_has_another_state(folder: Path) -> None:
    assert folder_state(None) == ()
    before = folder_state(folder)
    (folder / "good.py").write_text(CODE)
    assert folder_state(folder) != before


def test_examples_are_in_order_and_the_circle_leaves_when_it_should(archive: CodeArchive) -> None:
    examples = Path(__file__).parents[3] / "examples" / "blueprints"
    report = find_blueprints(examples, archive)
    assert report.problems == []
    models = {each.blueprint.name: each.blueprint.model(each.code) for each in report.found}
    for name in ("draft_until_good", "translate_and_review"):
        compile_blueprint(expand(models[name], models.get))


def test_package_adds_blueprints_by_an_entry_point_and_its_code_may_import_neighbours(
    archive: CodeArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "own_flows"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "neighbour.py").write_text("SIX = 6")
    code = CODE.replace("n + 1", "n + SIX").replace(
        "import Any\n", "import Any\nfrom .neighbour import SIX\n"
    )
    (package / "flows.py").write_text(code)
    metadata = tmp_path / "site" / "own_flows-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own-flows\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tutti.blueprints]\nmine = own_flows.flows:flow\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    report = find_blueprints(None, archive)
    assert report.problems == []
    found = next(each for each in report.found if each.blueprint.name == "mine")
    assert found.origin == "entry point own_flows.flows:flow"
    assert call(tmp_path / "code", found.code, {"n": 1, "job_id": "j"})["data"]["n"] == 7
