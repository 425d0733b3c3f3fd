"""`python -m benchmarks`: measure all figures, or some, and say what was met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import orjson
import typer
from ray.exceptions import RayError
from rich.console import Console

from benchmarks import engine, footprint, http, order, recovery, simulation
from benchmarks.conditions import conditions, loadavg
from benchmarks.report import Figure, as_json, print_report
from benchmarks.work import Effort, MeasurementFailed
from cluster.errors import TuttiError

__all__ = ["main"]

_FULL = Effort(rounds=5, scale=1.0)
_QUICK = Effort(rounds=2, scale=0.2)
_FILE_WIDTH = 150
_JSON = Path("out/bench.json")
_Group = Callable[[Effort, Callable[[str], bool]], Iterator[Figure]]
_GROUPS: tuple[tuple[tuple[str, ...], _Group], ...] = (
    (engine.FIGURES, engine.measure),
    (order.FIGURES, order.measure),
    (http.FIGURES, http.measure),
    (recovery.FIGURES, recovery.measure),
    (footprint.FIGURES, footprint.measure),
    (simulation.FIGURES, simulation.measure),
)


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="A figure or a group of figures, like engine.lone; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two small rounds: to see that it works.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each figure.")] = None,
    json_path: Annotated[Path, typer.Option("--json", help="Write all values there.")] = _JSON,
) -> None:
    """Measure on this machine; exit 0 whatever was missed, 1 where something could not be measured."""
    effort = _QUICK if quick else _FULL
    effort = effort._replace(rounds=rounds or effort.rounds)
    names = [name for names, _ in _GROUPS for name in names]
    unknown = [each for each in only or () if not any(_covers(each, name) for name in names)]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(names)}")

    def wanted(name: str) -> bool:
        return not only or any(_covers(each, name) for each in only)

    console = Console()
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    environment = conditions(effort.rounds, effort.scale)
    figures: list[Figure] = []
    failures: list[str] = []
    for group, measure in _GROUPS:
        try:
            for figure in measure(effort, wanted):
                figures.append(figure)
                line = f"measured {figure.name}: {figure.spread.median:.4g} {figure.unit}"
                console.print(line, highlight=False)
        except (MeasurementFailed, TuttiError, RayError) as error:
            failures.append(f"{group[0].partition('.')[0]}: {error}")
    environment["loadavg_after"] = loadavg()
    environment["not_measured"] = failures or "nothing"
    print_report(figures, environment, console)
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_bytes(orjson.dumps(as_json(figures, environment), option=orjson.OPT_INDENT_2))
    if failures:
        raise typer.Exit(1)


def _covers(asked: str, name: str) -> bool:
    return asked == name or name.startswith(f"{asked}.")


if __name__ == "__main__":
    typer.run(main)
