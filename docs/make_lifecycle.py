"""Writes docs/lifecycle.md from the tables in `cluster/lifecycle`; with `--check` it only fails when stale.

The meaning of a status is the docstring under its member, so that the page cannot say other than the code.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from cluster.lifecycle import run_status, step_status

__all__ = ["lifecycle_page", "main"]

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)
_PAGE = Path(__file__).resolve().parent / "lifecycle.md"
_INTRODUCTION = """\
# Lifecycles

Written by `make docs` from the tables in `cluster/lifecycle`; change those, not this page.

Every move is a pair of a status and an event. A pair that a table does not have raises `InvalidTransition`
and changes nothing. The event's name is also what clients see in event streams.
"""


def lifecycle_page() -> str:
    """Make the whole page."""
    return "\n".join(
        [
            _INTRODUCTION,
            _section("Run", "One execution of a Plan.", run_status.RunStatus, run_status.RUN_TRANSITIONS),
            _section(
                "StepRun",
                "A Step inside a Run, or one item of a mapped Step.",
                step_status.StepStatus,
                step_status.STEP_TRANSITIONS,
            ),
        ]
    )


def _section(title: str, summary: str, statuses: type[S], table: Mapping[tuple[S, E], S]) -> str:
    meanings = _member_docstrings(statuses)
    lines = [f"## {title}", "", summary, "", "```mermaid", "stateDiagram-v2"]
    lines += [f"    {before} --> {after}: {event.split('.')[-1]}" for (before, event), after in table.items()]
    ends = [status for status in statuses if not any(before == status for before, _ in table)]
    lines += [f"    {status} --> [*]" for status in ends]
    lines += ["```", "", "| status | meaning | moved on by |", "| --- | --- | --- |"]
    for status in statuses:
        moves = [f"`{event}` → {after}" for (before, event), after in table.items() if before == status]
        lines.append(f"| `{status}` | {meanings[status.name]} | {', '.join(moves) or '(terminal)'} |")
    return "\n".join([*lines, ""])


def _member_docstrings(statuses: type[StrEnum]) -> dict[str, str]:
    """Read the text under each member; Python itself does not keep it."""
    (definition,) = ast.parse(inspect.getsource(statuses)).body
    meanings: dict[str, str] = {}
    if not isinstance(definition, ast.ClassDef):
        raise TypeError(f"{statuses} is no class")
    for member, text in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(member, ast.Assign)
            and isinstance(member.targets[0], ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            meanings[member.targets[0].id] = " ".join(str(text.value.value).split())
    return meanings


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when the page is stale")
    page = lifecycle_page()
    if parser.parse_args().check:
        if not _PAGE.exists() or _PAGE.read_text(encoding="utf-8") != page:
            sys.exit("docs/lifecycle.md is stale: run `make docs`")
        return
    _PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
