"""Small files: a source file has at most 500 lines, a test file 700."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 500
TEST_LIMIT = 700
GENERATED = ("protos/orchestrator/",)
EXCEPTIONS: dict[str, int] = {}
"""Files that may be longer, each with its number of lines. The list and its numbers may only shrink."""


def source_files() -> list[str]:
    """Python and Lua files of the working tree, ignored ones left out."""
    answer = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.lua"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in answer.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_file_is_longer_than_its_limit() -> None:
    too_long = []
    for name in source_files():
        if name.startswith(GENERATED):
            continue
        limit = EXCEPTIONS.get(name, TEST_LIMIT if name.startswith("tests/") else LIMIT)
        lines = (ROOT / name).read_text(encoding="utf-8").count("\n")
        if lines > limit:
            too_long.append(f"{name}: {lines} lines, allowed are {limit}")
    assert too_long == []


def test_exceptions_are_needed_and_exact() -> None:
    for name, limit in EXCEPTIONS.items():
        lines = (ROOT / name).read_text(encoding="utf-8").count("\n")
        usual = TEST_LIMIT if name.startswith("tests/") else LIMIT
        assert usual < limit == lines, f"{name} has {lines} lines: make the list say so, or take it out"
