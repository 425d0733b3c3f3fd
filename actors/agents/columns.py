"""What each column of a table is: numbers, instants, categories, text; as arrays that statistics can use.

A column is judged by its cells, not its name (a name only tips the scale for numbers that could be instants).
This module refuses to drop cells silently: what does not fit its column's kind is counted as invalid.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cluster.model.plan import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Column", "label_of", "read_columns"]

_MAX_CATEGORIES = 50
_DATE_FORMATS = (
    "%d.%m.%Y",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y %H:%M:%S",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M",
    "%Y/%m/%d",
    "%Y/%m/%d %H:%M:%S",
    "%Y-%m",
    "%b %Y",
    "%d %b %Y",
    "%b %d, %Y",
)
_DATE_SHAPE = re.compile(r"\d{1,4}[-./]\d{1,2}|[A-Za-z]{3} \d{4}|\d{1,2} [A-Za-z]{3} |[A-Za-z]{3} \d{1,2}, ")
_TIME_NAME = re.compile(r"(?i)(^|[_\W])(time|timestamp|ts|date|datetime|epoch|at|created|updated)($|[_\W])")
_NUMBER_TEXT = re.compile(r"[+-]?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_INVALID_SHARE = 0.05
_LARGEST = 1e70  # The fourth power, which the kurtosis takes, must still be a float64.


@dataclass(frozen=True, slots=True)
class Column:
    """A column, judged.

    Attributes:
        name: Its name.
        kind: number | time | boolean | category | text | identifier | empty.
        cells: As they came, None for missing.
        num_missing: Cells that are None or empty text.
        num_invalid: Cells present that do not fit the kind (text or over 1e70 in a column of numbers).
        numbers: (rows,) float64, NaN where missing or invalid; for number and boolean (0 and 1), else None.
        instants_s: (rows,) float64, Unix seconds, NaN where missing or invalid; for time, else None.
        is_whole: All numbers are whole.
    """

    name: str
    kind: str
    cells: list[Json]
    num_missing: int
    num_invalid: int
    numbers: NDArray[np.float64] | None = None
    instants_s: NDArray[np.float64] | None = None
    is_whole: bool = False


def read_columns(names: list[str], rows: list[list[Json]]) -> list[Column]:
    """Judge all columns of a table.

    Args:
        names: Column names.
        rows: Lists as long as `names`.
    """
    return [_read(name, [row[index] for row in rows]) for index, name in enumerate(names)]


def label_of(cell: Json) -> str:
    """Write a cell as the name of a category, at most 60 characters."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    text = str(cell).strip()
    return text if len(text) <= 60 else f"{text[:59]}…"


def _read(name: str, cells: list[Json]) -> Column:
    cells = [None if isinstance(cell, str) and not cell.strip() else cell for cell in cells]
    present = [cell for cell in cells if cell is not None]
    num_missing = len(cells) - len(present)
    if not present:
        return Column(name, "empty", cells, num_missing, 0)
    if all(isinstance(cell, bool) for cell in present):
        numbers = _array([math.nan if cell is None else float(cell) for cell in cells])
        return Column(name, "boolean", cells, num_missing, 0, numbers=numbers, is_whole=True)
    allowed = len(present) * _INVALID_SHARE
    values = [_number(cell) for cell in cells]
    num_invalid = sum(value is None and cell is not None for value, cell in zip(values, cells, strict=True))
    if num_invalid <= allowed:
        return _numeric(name, cells, values, num_missing, num_invalid)
    instants = _instants(present, cells)
    if instants is not None:
        num_invalid = len(present) - sum(instant is not None for instant in instants)
        array = _array([math.nan if instant is None else instant for instant in instants])
        return Column(name, "time", cells, num_missing, num_invalid, instants_s=array)
    return Column(name, _kind_of_text(present), cells, num_missing, 0)


def _numeric(
    name: str, cells: list[Json], values: list[float | None], num_missing: int, num_invalid: int
) -> Column:
    finite = [value for value in values if value is not None]
    is_whole = all(value.is_integer() for value in finite)
    array = _array([math.nan if value is None else value for value in values])
    if is_whole and finite:
        low, high = min(finite), max(finite)
        if name.strip().lower() in ("year", "jahr", "année", "año") and low >= 1000 and high <= 3000:
            years = [
                math.nan if value is None else datetime(int(value), 1, 1, tzinfo=UTC).timestamp()
                for value in values
            ]
            return Column(name, "time", cells, num_missing, num_invalid, instants_s=_array(years))
        if _TIME_NAME.search(name):
            for unit_s in (1.0, 0.001):
                # Instants between 1990 and 2100: outside of that, a number called "time" is more likely a
                # duration.
                if low * unit_s >= 6.3e8 and high * unit_s <= 4.1e9:
                    return Column(name, "time", cells, num_missing, num_invalid, instants_s=array * unit_s)
        steps = [later - earlier for earlier, later in pairwise(finite)]
        if len(finite) >= 10 and num_missing == 0 and all(step == 1.0 for step in steps):
            return Column(name, "identifier", cells, num_missing, num_invalid)
    return Column(name, "number", cells, num_missing, num_invalid, numbers=array, is_whole=is_whole)


def _number(cell: Json) -> float | None:
    if isinstance(cell, bool) or cell is None:
        return None
    if isinstance(cell, int | float):
        return float(cell) if abs(cell) <= _LARGEST else None
    if isinstance(cell, str) and _NUMBER_TEXT.fullmatch(cell.strip()):
        value = float(cell.strip())
        return value if abs(value) <= _LARGEST else None
    return None


def _instants(present: list[Json], cells: list[Json]) -> list[float | None] | None:
    sample = present[:20]
    if not all(isinstance(cell, str) and _DATE_SHAPE.match(cell.strip()) for cell in sample):
        return None
    best: list[float | None] | None = None
    best_parsed = 0
    # Of two formats that read a date (3/4/2024), the one that reads all cells wins: day or month goes over
    # 12.
    for pattern in ("", *_DATE_FORMATS):
        if _instant(sample[0], pattern) is None and _instant(sample[-1], pattern) is None:
            continue
        instants = [_instant(cell, pattern) for cell in cells]
        parsed = sum(instant is not None for instant in instants)
        if parsed > best_parsed:
            best, best_parsed = instants, parsed
        if parsed == len(present):
            break
    return best if best_parsed >= len(present) * (1 - _INVALID_SHARE) else None


def _instant(cell: Json, pattern: str) -> float | None:
    if not isinstance(cell, str):
        return None
    try:
        text = cell.strip()
        moment = datetime.strptime(text, pattern) if pattern else datetime.fromisoformat(text)
    except ValueError:
        return None
    # Without an offset UTC is taken: the same data must give the same report wherever the machine stands.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _kind_of_text(present: list[Json]) -> str:
    texts = [str(cell) for cell in present]
    num_distinct = len(set(texts))
    mean_length = sum(map(len, texts)) / len(texts)
    if num_distinct <= max(2, min(_MAX_CATEGORIES, len(texts) // 2)):
        return "category"
    if num_distinct == len(texts) and mean_length <= 40 and not any(" " in text.strip() for text in texts):
        return "identifier"
    return "text" if mean_length > 30 else "category"


def _array(values: list[Any]) -> NDArray[np.float64]:
    import numpy as np

    return np.asarray(values, dtype=np.float64)
