"""Draws a Run's Plan in DOT, Steps coloured by status. Source: Graphviz, "DOT Language"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.lifecycle.step_status import StepStatus
from cluster.model.compiled import compile_plan
from cluster.model.view import RunView

__all__ = ["draw_run"]

_COLOURS: Mapping[StepStatus, str] = {
    StepStatus.BLOCKED: "#eeeeee",
    StepStatus.READY: "#dce9f7",
    StepStatus.RUNNING: "#9ec5f0",
    StepStatus.WAITING: "#f6d9f0",
    StepStatus.MAPPING: "#9ec5f0",
    StepStatus.BACKOFF: "#fbe3a6",
    StepStatus.SUCCEEDED: "#b7e3b0",
    StepStatus.FAILED: "#f4a9a0",
    StepStatus.SKIPPED: "#f7f7f7",
    StepStatus.CANCELLED: "#cccccc",
}


def draw_run(view: RunView) -> str:
    """Draw a Run: a node for each Step, an edge from each Step to those that wait for it."""
    plan = compile_plan(view.plan)
    if plan.blueprint is not None:
        return _draw_path(view)
    own = {step.name: step for step in view.steps if step.item < 0}
    lines = [f"digraph {_quoted(view.run_id)} {{", "  rankdir=LR;", "  node [shape=box, style=filled];"]
    for step in plan.steps:
        name = step.step.name
        seen = own.get(name)
        status = seen.status if seen is not None else StepStatus.BLOCKED
        label = "\n".join([name, *_capability(name, step.step.capability), status.value])
        lines.append(f"  {_quoted(name)} [label={_quoted(label)}, fillcolor={_quoted(_COLOURS[status])}];")
    for step in plan.steps:
        lines += (
            f"  {_quoted(plan.steps[need].step.name)} -> {_quoted(step.step.name)};" for need in step.needs
        )
    lines.append("}")
    return "\n".join(lines) + "\n"


def _draw_path(view: RunView) -> str:
    """Draw the Steps that a Blueprint has made so far: those of one visit beside each other."""
    lines = [f"digraph {_quoted(view.run_id)} {{", "  rankdir=LR;", "  node [shape=box, style=filled];"]
    before: list[str] = []
    visits: dict[str, list[str]] = {}
    for step in view.steps:
        visits.setdefault(step.name.split(":")[1], []).append(step.name)
        label = "\n".join([step.name, step.capability, step.status.value])
        colour = _quoted(_COLOURS[step.status])
        lines.append(f"  {_quoted(step.name)} [label={_quoted(label)}, fillcolor={colour}];")
    for names in visits.values():
        lines += (f"  {_quoted(one)} -> {_quoted(other)};" for one in before for other in names)
        before = names
    lines.append("}")
    return "\n".join(lines) + "\n"


def _capability(name: str, capability: str) -> Iterator[str]:
    if capability != name:
        yield capability


def _quoted(text: Any) -> str:
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
