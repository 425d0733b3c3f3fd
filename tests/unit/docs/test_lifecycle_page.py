"""The page about lifecycles tells what the tables say."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.lifecycle.run_status import RUN_TRANSITIONS, RunStatus
from cluster.lifecycle.step_status import STEP_TRANSITIONS, StepStatus
from docs.make_lifecycle import PAGE, main, render_page


def test_page_is_what_the_tables_give_now() -> None:
    assert PAGE.read_text() == render_page(), "stale: run python -m docs.make_lifecycle"


def test_check_fails_on_a_stale_page_and_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "lifecycle.md"
    for _ in range(2):
        assert main(["--check"], page) == 1
        assert "python -m docs.make_lifecycle" in capsys.readouterr().err
        page.write_text("another story")
    assert main([], page) == 0
    assert main(["--check"], page) == 0


def test_every_status_and_every_move_is_on_the_page() -> None:
    _, of_runs, of_steps = render_page().split("\n## ")
    for section, statuses, table in (
        (of_runs, RunStatus, RUN_TRANSITIONS),
        (of_steps, StepStatus, STEP_TRANSITIONS),
    ):
        assert all(f"- **{status.value}**: " in section for status in statuses)
        for (before, event), after in table.items():
            arrow = f"    {before} --> {after}: "
            (line,) = [each for each in section.splitlines() if each.startswith(arrow)]
            assert event.partition(".")[2] in line.removeprefix(arrow).split(", ")
