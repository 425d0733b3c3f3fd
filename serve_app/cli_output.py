"""How the command line shows Runs, their progress and the settings. It asks nobody and decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from rich.console import Console
from rich.json import JSON
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.settings import SettingLine

__all__ = ["print_json", "show_run", "show_runs", "show_settings", "watch_run"]

_COLOUR_BY_STATUS = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "retrying": "magenta",
    "waiting": "yellow",
    "paused": "yellow",
}
_MAX_BARS = 16
_END_FRACTION_TYPES = frozenset({"step.succeeded", "step.failed", "step.skipped", "step.cancelled"})


def print_json(value: Any) -> None:
    """Print a value as JSON for programs: no colours, two blanks of indentation."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def show_runs(console: Console, runs: Sequence[dict[str, Any]]) -> None:
    """Show Runs as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    # An id that is cut or folded cannot be copied.
    table.add_column("RUN", no_wrap=True, min_width=max((len(run["run_id"]) for run in runs), default=3))
    for heading in ("STATUS", "DONE", "AGE"):
        table.add_column(heading, no_wrap=True, min_width=4)
    for heading in ("PLAN", "ERROR"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    now = datetime.now(UTC)
    for run in runs:
        table.add_row(
            escape(run["run_id"]),
            _coloured(run["status"]),
            f"{round(100 * run['progress'])}%",
            _age((now - datetime.fromisoformat(run["created_at"])).total_seconds()),
            escape(run["plan_name"]),
            escape(_error_text(run)),
        )
    console.print(table)


def show_run(console: Console, run: dict[str, Any]) -> None:
    """Show a Run with its Steps and its output."""
    console.print(f"[bold]{escape(run['run_id'])}[/]  {escape(run['plan_name'])}  {_coloured(run['status'])}")
    if run.get("cancel_reason"):
        console.print(f"reason: {escape(run['cancel_reason'])}")
    if run.get("error"):
        console.print(f"[red]{escape(_error_text(run))}[/]")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("STEP", "CAPABILITY", "STATUS", "DONE", "ATTEMPT", "AGENT", "ERROR"):
        table.add_column(heading)
    for step in run["steps"]:
        name = step["name"] if step["item"] < 0 else f"{step['name']}[{step['item']}]"
        table.add_row(
            escape(name),
            escape(step["capability"]),
            _coloured(step["status"]),
            f"{round(100 * step['progress'])}%",
            str(step["attempt"]),
            escape(step["agent_id"]),
            escape(_error_text(step)),
        )
    console.print(table)
    if run.get("output") is not None:
        console.print(JSON(orjson.dumps(run["output"]).decode()))


def show_settings(console: Console, lines: Iterable[SettingLine]) -> None:
    """Show all settings as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("SETTING", "VARIABLE", "MEANING", "UNIT", "DEFAULT", "VALUE"):
        table.add_column(heading, overflow="fold")
    for line in lines:
        meaning = (
            f"{escape(line.meaning)} [dim]({escape(line.special)})[/]"
            if line.special
            else escape(line.meaning)
        )
        changed = "bold" if line.value != line.default else ""
        table.add_row(
            line.name,
            line.variable,
            meaning,
            line.unit,
            escape(line.default),
            f"[{changed}]{escape(line.value)}[/]" if changed and line.value else escape(line.value),
        )
    console.print(table)


def watch_run(console: Console, run: dict[str, Any], events: Iterable[dict[str, Any]]) -> str:
    """Show events as they come: bars in a terminal, lines elsewhere.

    Args:
        console: Where.
        run: The Run as it was read before, for its Steps.
        events: What happens to it.

    Returns:
        The Run's last status.
    """
    if console.is_terminal:
        return _watch_with_bars(console, run, events)
    status = str(run["status"])
    for event in events:
        status = event["status"]
        percent = round(100 * event["progress"])
        console.print(f"{percent:>3}%  {event['type']:<16} {_subject(event)}", markup=False, highlight=False)
    return status


def _watch_with_bars(console: Console, run: dict[str, Any], events: Iterable[dict[str, Any]]) -> str:
    status = str(run["status"])
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        whole = progress.add_task(f"[bold]{escape(run['plan_name'])}", total=1.0, note=_coloured(status))
        bars: dict[str, TaskID] = {}
        for step in run["steps"]:
            if step["item"] < 0 and len(bars) < _MAX_BARS:
                bars[step["name"]] = progress.add_task(
                    f"  {escape(step['name'])}", total=1.0, note="", start=False
                )
        for event in events:
            status = event["status"]
            note = _coloured(status)
            if event["type"].startswith("run.") and event.get("error"):
                note += f" {escape(event['error']['message'])}"
            progress.update(whole, completed=event["progress"], note=note)
            bar = bars.get(event["step"])
            if bar is not None:
                _move_bar(progress, bar, event)
    return status


def _move_bar(progress: Progress, bar: TaskID, event: dict[str, Any]) -> None:
    kind = event["type"]
    if kind == "step.started":
        progress.start_task(bar)
    note = escape(event["message"] or (event["error"] or {}).get("message", "") or kind.removeprefix("step."))
    if event["item"] >= 0:
        progress.update(bar, note=f"item {event['item']}: {note}")
        return
    fraction = 1.0 if kind == "step.succeeded" else event["step_progress"]
    progress.update(bar, completed=fraction, note=note)
    if kind in _END_FRACTION_TYPES:
        progress.stop_task(bar)


def _subject(event: dict[str, Any]) -> str:
    step = event["step"] if event["item"] < 0 else f"{event['step']}[{event['item']}]"
    error = event["error"]["message"] if event.get("error") else ""
    return "  ".join(part for part in (step, event["message"], error) if part)


def _coloured(status: str) -> str:
    colour = _COLOUR_BY_STATUS.get(status)
    return f"[{colour}]{escape(status)}[/]" if colour else escape(status)


def _age(seconds: float) -> str:
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length_s:
            return f"{int(seconds // length_s)}{unit}"
    return f"{max(int(seconds), 0)}s"


def _error_text(entry: dict[str, Any]) -> str:
    error = entry.get("error")
    return f"{error['code']}: {error['message']}" if error else ""
