"""What was measured, as values: the arithmetic of ratios and bars, JSON for programs, a table for people.

A figure is repeated in rounds, each round beside its baselines, so that whatever else the machine does hits
both. A round's ratio is value / baseline; a figure is judged by the median of its rounds, and its spread is
always shown. This module measures nothing and rounds nothing away: every single value stays in the JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Bar", "Baseline", "Figure", "Sense", "Spread", "as_json", "print_report", "spread_of"]


class Sense(StrEnum):
    """Which way is good."""

    AT_LEAST = ">="
    AT_MOST = "<="
    BELOW = "<"


class Spread(NamedTuple):
    """Rounds in three numbers."""

    median: float
    low: float
    high: float


def spread_of(values: Sequence[float]) -> Spread:
    """Sum rounds up.

    Args:
        values: At least one.
    """
    return Spread(median(values), min(values), max(values))


class Bar(NamedTuple):
    """What a figure must reach.

    Attributes:
        limit: In the figure's unit, or a factor where `is_ratio`.
        is_ratio: Whether the ratio to the first baseline is judged instead of the value itself.
    """

    sense: Sense
    limit: float
    is_ratio: bool = False

    def is_met_by(self, number: float) -> bool:
        """Compare."""
        if self.sense is Sense.AT_LEAST:
            return number >= self.limit
        return number <= self.limit if self.sense is Sense.AT_MOST else number < self.limit

    def words(self, unit: str, baseline: str = "") -> str:
        """Say it as the table does."""
        told = f"{self.sense} {self.limit:g}"
        return f"{told} x {baseline or 'baseline'}" if self.is_ratio else f"{told} {unit}".rstrip()


class Baseline(NamedTuple):
    """The same work done another way, in the same rounds.

    Attributes:
        values: One a round, in the figure's unit.
    """

    name: str
    values: tuple[float, ...]


class Figure(NamedTuple):
    """One figure.

    Attributes:
        name: For `--only`, `group.what`.
        title: For people.
        unit: Of all its values; "" for a mere number.
        values: One a round.
        bar: None for a figure that is shown for information.
        baselines: The first is the one the bar is judged against; others are shown with their ratio.
        notes: What else a reader must know: how many Runs, whose CPU, what was missing.
    """

    name: str
    title: str
    unit: str
    values: tuple[float, ...]
    bar: Bar | None = None
    baselines: tuple[Baseline, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def spread(self) -> Spread:
        """The rounds in three numbers."""
        return spread_of(self.values)

    def ratios(self, baseline: Baseline) -> tuple[float, ...]:
        """Divide round by round.

        Raises:
            ValueError: The baseline has another number of rounds.
        """
        return tuple(value / other for value, other in zip(self.values, baseline.values, strict=True))

    def meets(self, baseline: Baseline | None = None) -> bool | None:
        """Say whether the median is within the bar; None where there is no bar, or nothing to compare with.

        Args:
            baseline: Another one than the first to judge a ratio against.
        """
        if self.bar is None:
            return None
        if not self.bar.is_ratio:
            return self.bar.is_met_by(self.spread.median)
        against = baseline or (self.baselines[0] if self.baselines else None)
        return None if against is None else self.bar.is_met_by(median(self.ratios(against)))


def as_json(figures: Sequence[Figure], environment: dict[str, Any]) -> dict[str, Any]:
    """Make the document for programs.

    Args:
        figures: In the order they were measured.
        environment: Hardware, versions, load: what makes the numbers comparable, or not.
    """
    return {"environment": environment, "figures": [_figure_json(figure) for figure in figures]}


def _figure_json(figure: Figure) -> dict[str, Any]:
    bar = figure.bar
    return {
        "name": figure.name,
        "title": figure.title,
        "unit": figure.unit,
        **_spread_json(figure.values),
        "bar": None
        if bar is None
        else {"sense": bar.sense.value, "limit": bar.limit, "is_ratio": bar.is_ratio},
        "met": figure.meets(),
        "baselines": [
            {
                "name": baseline.name,
                **_spread_json(baseline.values),
                "ratio": _spread_json(figure.ratios(baseline)),
                "met": figure.meets(baseline) if bar is not None and bar.is_ratio else None,
            }
            for baseline in figure.baselines
        ],
        "notes": list(figure.notes),
    }


def _spread_json(values: Sequence[float]) -> dict[str, Any]:
    spread = spread_of(values)
    return {"median": spread.median, "min": spread.low, "max": spread.high, "values": list(values)}


def print_report(figures: Sequence[Figure], environment: dict[str, Any], console: Console) -> None:
    """Print the table, its conditions before it and its notes after it."""
    for name, value in environment.items():
        console.print(f"[dim]{name}:[/dim] {value}", highlight=False)
    table = Table(title="median (min .. max) of the rounds", title_justify="left", expand=False)
    for column in ("figure", "bar", "measured", "beside it in the same rounds", "ratio", ""):
        table.add_column(column, overflow="fold")
    for figure in figures:
        _add_rows(table, figure)
    console.print(table)
    for figure in figures:
        for note in figure.notes:
            console.print(f"[dim]{figure.name}:[/dim] {note}", highlight=False)
    judged = [figure for figure in figures if figure.meets() is not None]
    missed = [figure.name for figure in judged if not figure.meets()]
    console.print(f"{len(judged) - len(missed)} of {len(judged)} bars met", highlight=False)
    if missed:
        console.print(f"missed: {', '.join(missed)}", highlight=False)


def _add_rows(table: Table, figure: Figure) -> None:
    first = figure.baselines[0] if figure.baselines else None
    bar = "" if figure.bar is None else figure.bar.words(figure.unit, first.name if first else "")
    measured = _shown(figure.spread, figure.unit)
    met = figure.meets()
    verdict = Text("") if met is None else Text("met", "green") if met else Text("missed", "bold red")
    if first is None:
        table.add_row(figure.title, bar, measured, "", "", verdict, end_section=True)
        return
    for position, baseline in enumerate(figure.baselines):
        is_first, is_last = position == 0, position == len(figure.baselines) - 1
        beside = f"{baseline.name}: {_shown(spread_of(baseline.values), figure.unit)}"
        ratio = _shown(spread_of(figure.ratios(baseline)), "x")
        table.add_row(
            figure.title if is_first else "",
            bar if is_first else "",
            measured if is_first else "",
            beside,
            ratio,
            verdict if is_first else "",
            end_section=is_last,
        )


def _shown(spread: Spread, unit: str) -> str:
    low, middle, high = (_number(value) for value in (spread.low, spread.median, spread.high))
    told = f"{middle} {unit}".rstrip()
    return told if low == high else f"{told} ({low} .. {high})"


def _number(value: float) -> str:
    """Three or four digits that matter."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
