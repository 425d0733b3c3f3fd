"""Tables out of JSON and CSV: one shape, columns and rows, with typed cells.

Nothing is guessed silently: a row that does not fit is named by its line, and a cell that is not a plain
    number stays
the text it was (so `00123` keeps its zeros). This module refuses to compute anything about a table.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.model.plan import Json

__all__ = ["MAX_CELLS", "Table", "TableError", "looks_like_csv", "table_from_csv", "table_from_json"]

MAX_CELLS = 5_000_000
"""Largest table that is taken, in cells (rows times columns)."""

_MAX_DEPTH = 4
_DELIMITERS = (",", ";", "\t", "|")
_WRAPPER_KEYS = ("rows", "records", "data", "items", "results", "values")
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-"})
_BOOLEANS = {"true": True, "false": False}
_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d*|(?=\.\d))(?:\.\d+)?(?:[eE][+-]?\d+)?")
_COMMA_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:\.\d{3})+|0|[1-9]\d*)(?:,\d+)?")


class TableError(ValueError):
    """Raised when text or JSON is no table; says where."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        columns: Unique names.
        rows: Lists as long as `columns`; cells are None, bool, int, float (finite) or str.
        notes: What was mended on the way, for people.
    """

    columns: list[str]
    rows: list[list[Json]]
    notes: list[str]


def table_from_json(value: Json) -> tuple[Table, dict[str, Json]] | None:
    """See a table in a JSON value, if it is one.

    Taken are a list of objects, an object of equally long lists, `{"columns": […], "rows": [[…]]}`, an object
    with one such list under a usual name (`{"results": [{…}]}`), a list of rows under a header row, and a
    list of numbers.

    Returns:
        The table and what stood beside it, or None where the value is something else.

    Raises:
        TableError: It is a table, but over MAX_CELLS or with rows of unequal length.
    """
    if isinstance(value, list):
        return _from_list(value)
    if not isinstance(value, dict) or not value:
        return None
    for body in ("rows", "data"):
        if isinstance(value.get("columns"), list) and isinstance(value.get(body), list):
            rows = value[body]
            if rows and not all(isinstance(row, list) for row in rows):
                break
            beside = {key: kept for key, kept in value.items() if key not in ("columns", body, "index")}
            return _from_rows([str(name) for name in value["columns"]], rows, first_row=1), beside
    for key in _WRAPPER_KEYS:
        inner = value.get(key)
        if isinstance(inner, list) and inner and all(isinstance(row, dict) for row in inner):
            return _from_objects(inner), {name: kept for name, kept in value.items() if name != key}
    lists = [column for column in value.values() if isinstance(column, list)]
    if (
        len(lists) == len(value)
        and lists[0]
        and len({len(column) for column in lists}) == 1
        and not any(isinstance(cell, dict | list) for column in lists for cell in column)
    ):
        rows = [list(row) for row in zip(*lists, strict=True)]
        return _from_rows([str(name) for name in value], rows, first_row=1), {}
    return None


def table_from_csv(text: str, delimiter: str = "") -> Table:
    """Read delimiter-separated text.

    Args:
        text: With or without a header line; a header is missed only where every cell of the first line is a
            number.
        delimiter: One character; "" finds it: the one that gives most lines the same number of cells.

    Raises:
        TableError: A line is longer than the header, a quote never ends, nothing is there, or over MAX_CELLS.
    """
    text = text.removeprefix("\ufeff")
    delimiter = delimiter or _sniff(text)
    notes: list[str] = []
    header: list[str] | None = None
    rows: list[list[Json]] = []
    num_short = 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                if all(_NUMBER.fullmatch(cell.strip()) for cell in cells):
                    header = [f"c{n}" for n in range(1, len(cells) + 1)]
                    notes.append("no header line: columns are called c1, c2, …")
                else:
                    header = [cell.strip() for cell in cells]
                    continue
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            if len(cells) > len(header):
                raise TableError(
                    f"line {reader.line_num} has {len(cells)} cells, the header has {len(header)}"
                )
            if len(cells) < len(header):
                num_short += 1
            rows.append([*cells, *[""] * (len(header) - len(cells))])
            if len(rows) * len(header) > MAX_CELLS:
                raise TableError(f"the table is over the limit of {MAX_CELLS:,} cells")
    except csv.Error as error:
        raise TableError(f"line {reader.line_num}: {error}") from error
    if header is None:
        raise TableError("there is no line in it")
    if num_short:
        notes.append(f"{num_short} rows had fewer cells than the header and were filled with missing values")
    _type_columns(rows, len(header), comma_decimals=delimiter == ";")
    return Table(_unique(header, notes), rows, notes)


def looks_like_csv(text: str) -> bool:
    """Whether plain text is beyond doubt a table.

    That is: five lines or more, all with the same three or more cells, under different headers, and no spaces
    after the delimiters, which is where prose puts them.
    """
    lines = [line for line in text[:100_000].splitlines()[:200] if line.strip()]
    if len(lines) < 5:
        return False
    try:
        rows = list(csv.reader(lines, delimiter=_sniff(text)))
    except (csv.Error, TableError):
        return False
    header = rows[0]
    if len(header) < 3 or any(len(row) != len(header) for row in rows):
        return False
    if any(cell.startswith(" ") for row in rows for cell in row[1:]):
        return False
    return all(cell.strip() and len(cell) <= 80 for cell in header) and len(set(header)) == len(header)


def _from_list(value: list[Json]) -> tuple[Table, dict[str, Json]] | None:
    if not value:
        return None
    if all(isinstance(row, dict) for row in value):
        return _from_objects(value), {}
    if all(isinstance(row, list) for row in value):
        header = value[0]
        if len(value) > 1 and header and all(isinstance(name, str) for name in header):
            return _from_rows(list(header), value[1:], first_row=2), {}
        return None
    if all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in value):
        return _from_rows(["value"], [[cell] for cell in value], first_row=1), {}
    return None


def _from_objects(objects: Sequence[dict[str, Json]]) -> Table:
    flat = [_flatten(row) for row in objects]
    # A dict keeps the order in which columns were first seen; a set would not be the same on every run.
    columns = list(dict.fromkeys(name for row in flat for name in row))
    if not columns:
        raise TableError("all of its objects are empty")
    if len(columns) * len(flat) > MAX_CELLS:
        raise TableError(f"the table is over the limit of {MAX_CELLS:,} cells")
    return Table(columns, [[row.get(name) for name in columns] for row in flat], [])


def _from_rows(columns: list[str], rows: Sequence[Sequence[Json]], first_row: int) -> Table:
    if not columns:
        raise TableError("it has no columns")
    if len(columns) * len(rows) > MAX_CELLS:
        raise TableError(f"the table is over the limit of {MAX_CELLS:,} cells")
    for number, row in enumerate(rows, first_row):
        if len(row) != len(columns):
            raise TableError(f"row {number} has {len(row)} cells, there are {len(columns)} columns")
    notes: list[str] = []
    return Table(_unique(columns, notes), [[_cell(cell) for cell in row] for row in rows], notes)


def _flatten(row: dict[str, Json], prefix: str = "", depth: int = 1) -> dict[str, Json]:
    flat: dict[str, Json] = {}
    for key, cell in row.items():
        if isinstance(cell, dict) and cell and depth < _MAX_DEPTH:
            flat.update(_flatten(cell, f"{prefix}{key}.", depth + 1))
        else:
            flat[f"{prefix}{key}"] = _cell(cell)
    return flat


def _cell(cell: Json) -> Json:
    if isinstance(cell, dict | list):
        import orjson

        return orjson.dumps(cell, option=orjson.OPT_SORT_KEYS).decode() if cell else None
    if isinstance(cell, float) and not math.isfinite(cell):
        return None
    return cell


def _unique(names: Iterable[str], notes: list[str]) -> list[str]:
    taken: set[str] = set()
    unique: list[str] = []
    for position, name in enumerate(names, 1):
        wanted = name or f"column {position}"
        candidate, number = wanted, 2
        while candidate in taken:
            candidate, number = f"{wanted} ({number})", number + 1
        if candidate != name:
            notes.append(f"column {position} is called {candidate!r}")
        taken.add(candidate)
        unique.append(candidate)
    return unique


def _sniff(text: str) -> str:
    lines = [line for line in text[:100_000].splitlines()[:60] if line.strip()]

    def fit(delimiter: str) -> tuple[float, int]:
        counts = [len(cells) for cells in csv.reader(lines, delimiter=delimiter)]
        if not counts or counts[0] < 2:
            return (0.0, 0)
        return (counts.count(counts[0]) / len(counts), counts[0])

    try:
        return max(_DELIMITERS, key=fit)
    except csv.Error as error:
        raise TableError(f"it cannot be split into cells ({error})") from error


def _type_columns(rows: list[list[Any]], num_columns: int, *, comma_decimals: bool) -> None:
    """Turn a column of text into numbers or booleans, in place, where every cell that is not missing
    agrees."""
    for column in range(num_columns):
        cells = [row[column].strip() for row in rows]
        present = [cell for cell in cells if cell.lower() not in _MISSING]
        typed: list[Json] = [None if cell.lower() in _MISSING else cell for cell in cells]
        if present and all(_NUMBER.fullmatch(cell) for cell in present):
            typed = [None if cell is None else _number(cell) for cell in typed]
        elif present and comma_decimals and all(_COMMA_NUMBER.fullmatch(cell) for cell in present):
            typed = [
                None if cell is None else _number(cell.replace(".", "").replace(",", ".")) for cell in typed
            ]
        elif present and all(cell.lower() in _BOOLEANS for cell in present):
            typed = [None if cell is None else _BOOLEANS[cell.lower()] for cell in typed]
        for row, cell in zip(rows, typed, strict=True):
            row[column] = cell


def _number(text: str) -> int | float | None:
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    number = float(text.strip())
    return number if math.isfinite(number) else None
