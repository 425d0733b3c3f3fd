"""Draws a blueprint in DOT: its states by kind, its moves by status. Source: Graphviz, "DOT Language"."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from cluster.model.blueprint import Blueprint, Move, State, StateKind

__all__ = ["draw_blueprint"]

_SHAPES: Mapping[StateKind, str] = {
    StateKind.PASS: "ellipse",
    StateKind.WORK: "box",
    StateKind.WAIT: "diamond",
    StateKind.SUB: "box3d",
    StateKind.END: "doublecircle",
}


def draw_blueprint(blueprint: Blueprint, current: str = "") -> str:
    """Draw a blueprint; the state that a job is in is filled."""
    lines = [f"digraph {_quoted(blueprint.name)} {{", "  rankdir=LR;", "  start [shape=point];"]
    lines.append(f"  start -> {_quoted(blueprint.start)};")
    for state in blueprint.states:
        fill = ', style=filled, fillcolor="#9ec5f0"' if state.name == current else ""
        lines.append(
            f"  {_quoted(state.name)} [shape={_SHAPES[state.kind]}, label={_quoted(_label(state))}{fill}];"
        )
    for state in blueprint.states:
        lines += (
            f"  {_quoted(state.name)} -> {_quoted(move.to)} [label={_quoted(_reason(move))}];"
            for move in state.moves
        )
    lines.append("}")
    return "\n".join(lines) + "\n"


def _label(state: State) -> str:
    if state.kind is StateKind.SUB:
        return f"{state.name}\n{state.blueprint}"
    asked = [
        each.capability if isinstance(each.capability, str) else each.capability["$ref"]
        for each in state.work
    ]
    return "\n".join([state.name, *dict.fromkeys(asked)])


def _reason(move: Move) -> str:
    return move.on if move.when is None else f"{move.on}\n{orjson.dumps(move.when).decode()}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
