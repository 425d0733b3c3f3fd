"""Writes docs/lifecycle.md from the lifecycle tables, so that page and code cannot tell two stories.

    python -m docs.make_lifecycle           writes the page
    python -m docs.make_lifecycle --check   fails when the page is stale

The sentence of a status is the docstring line below its member. The same tables give the same bytes.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from cluster.lifecycle.run_status import RUN_TRANSITIONS, RunEventKind, RunStatus
from cluster.lifecycle.step_status import STEP_TRANSITIONS, StepEventKind, StepStatus

__all__ = ["PAGE", "main", "render_page"]

PAGE = Path(__file__).with_name("lifecycle.md")

_INTRODUCTION = """\
# Lifecycles

Generated from the tables in `cluster/lifecycle/` by `python -m docs.make_lifecycle`: edit those, not this.

Two machines describe everything that goes on: one for a **Run** (one execution of a Plan), one for a
**StepRun** (a Step of that Plan, or one item of a mapped Step). A pair of status and event that is not drawn
here is no move: it raises `InvalidTransition` and changes nothing. Statuses are stored by value and shown to
clients as they are; a dialect may give them other names. The names on the arrows are those of the events in
a Run's stream.
"""


def render_page() -> str:
    """Render the whole page."""
    parts = [
        _INTRODUCTION,
        _render_machine("Run", RunStatus, RunEventKind, RUN_TRANSITIONS, _RUN_FIRST),
        _render_machine("StepRun", StepStatus, StepEventKind, STEP_TRANSITIONS, _STEP_FIRST),
    ]
    return "\n".join(parts)


_RUN_FIRST = {
    RunStatus.PENDING: "submitted, comes after other Runs",
    RunStatus.QUEUED: "submitted",
}
_STEP_FIRST = {
    StepStatus.BLOCKED: "its Run is accepted",
    StepStatus.READY: "its Step is spread over a list",
}

Table = Mapping[tuple[Any, Any], Any]


def _render_machine(
    name: str, statuses: type[Any], events: type[StrEnum], table: Table, first: Mapping[Any, str]
) -> str:
    lines = [f"## {name}", "", "```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {status.value}: {cause}" for status, cause in first.items()]
    lines += [f"    {a} --> {b}: {', '.join(labels)}" for (a, b), labels in _arrows(statuses, events, table)]
    lines += [f"    {status.value} --> [*]" for status in statuses if status.is_terminal]
    lines += ["```", ""]
    sentences = _sentences_of(statuses)
    for status in statuses:
        end = " *Terminal.*" if status.is_terminal else ""
        lines.append(f"- **{status.value}**: {sentences[status.name]}{end}")
    still = [event.value for event in events if event not in {moved for _, moved in table}]
    if still:
        lines += ["", f"Told in the stream, but moving nothing: {', '.join(f'`{each}`' for each in still)}."]
    return "\n".join([*lines, ""])


def _arrows(
    statuses: type[Any], events: type[StrEnum], table: Table
) -> list[tuple[tuple[str, str], list[str]]]:
    """One arrow for each pair of statuses, in the order of the enumerations, with all its events."""
    labels: dict[tuple[str, str], list[str]] = {}
    for status in statuses:
        for event in events:
            after = table.get((status, event))
            if after is not None:
                labels.setdefault((status.value, after.value), []).append(event.value.partition(".")[2])
    return list(labels.items())


def _sentences_of(statuses: type[Any]) -> dict[str, str]:
    """Read the docstring line below each member; Python keeps it only in the source.

    Raises:
        TypeError: A member has none, or it is no class.
    """
    (definition,) = ast.parse(inspect.getsource(statuses)).body
    if not isinstance(definition, ast.ClassDef):
        raise TypeError(f"{statuses.__name__} is not a class")
    found: dict[str, str] = {}
    for member, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(member, ast.Assign) and isinstance(member.targets[0], ast.Name):
            if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
                raise TypeError(f"{statuses.__name__}.{member.targets[0].id} has no docstring line")
            found[member.targets[0].id] = " ".join(str(below.value.value).split())
    return found


def main(arguments: list[str], page: Path = PAGE) -> int:
    """Write the page, or compare it with `--check`; gives the exit status."""
    text = render_page()
    if "--check" in arguments:
        if page.exists() and page.read_text() == text:
            return 0
        sys.stderr.write("docs/lifecycle.md is stale: run python -m docs.make_lifecycle\n")
        return 1
    page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
