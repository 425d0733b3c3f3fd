"""How columns hang together: correlations of numbers, and how a number differs between the groups of a
category.

It refuses to call an association a cause, and leaves out pairs with too few rows to mean anything.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from actors.agents.columns import Column, label_of
from actors.agents.rounding import rounded
from cluster.model.plan import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["correlate", "group_effects", "missing_where"]

_MIN_ROWS = 10
_MIN_GROUP_ROWS = 5
_MAX_COLUMNS = 40
_MAX_MATRIX = 12
_MAX_PAIRS = 20
_MAX_EFFECTS = 12
_MAX_GROUPS = 12


def correlate(columns: list[Column]) -> dict[str, Json]:
    """Correlate all pairs of number columns (the first 40).

    Returns:
        `pairs`: the strongest 20 as `{a, b, pearson, spearman, num_rows, p_value}`, by the larger of the two;
        `matrix`: `{columns, pearson}` of the first 12 columns, null where there are too few rows.
    """
    import numpy as np

    chosen = [column for column in columns if column.kind == "number" and column.numbers is not None]
    chosen = [column for column in chosen if _varies(column.numbers)][:_MAX_COLUMNS]
    pairs: list[dict[str, Json]] = []
    matrix: list[list[float | None]] = [
        [1.0 if a == b else None for b in range(len(chosen))] for a in range(len(chosen))
    ]
    for a, first in enumerate(chosen):
        for b in range(a + 1, len(chosen)):
            second = chosen[b]
            if first.numbers is None or second.numbers is None:
                continue
            both = np.isfinite(first.numbers) & np.isfinite(second.numbers)
            num_rows = int(both.sum())
            if num_rows < _MIN_ROWS:
                continue
            pearson = _pearson(first.numbers[both], second.numbers[both])
            spearman = _pearson(_ranks(first.numbers[both]), _ranks(second.numbers[both]))
            matrix[a][b] = matrix[b][a] = rounded(pearson)
            if pearson is None or spearman is None:
                continue
            pairs.append(
                {
                    "a": first.name,
                    "b": second.name,
                    "pearson": rounded(pearson),
                    "spearman": rounded(spearman),
                    "num_rows": num_rows,
                    "p_value": rounded(_p_of_correlation(spearman, num_rows)),
                }
            )
    pairs.sort(key=lambda pair: (-max(abs(pair["pearson"]), abs(pair["spearman"])), pair["a"], pair["b"]))
    return {
        "pairs": pairs[:_MAX_PAIRS],
        "matrix": {
            "columns": [column.name for column in chosen[:_MAX_MATRIX]],
            "pearson": [row[:_MAX_MATRIX] for row in matrix[:_MAX_MATRIX]],
        },
    }


def group_effects(columns: list[Column]) -> list[dict[str, Json]]:
    """Say how much of a number's variance the groups of a category explain.

    Returns:
        The strongest 12 as `{category, number, eta_squared, num_rows, groups}`; eta squared is between-group
        over total variance, 0 to 1; groups are `{value, mean, count}` of at least 5 rows, highest mean first.
    """
    import numpy as np

    categories = [column for column in columns if column.kind in ("category", "boolean")]
    numbers = [column for column in columns if column.kind == "number" and _varies(column.numbers)]
    effects: list[dict[str, Json]] = []
    for category in categories[:_MAX_COLUMNS]:
        labels = [None if cell is None else label_of(cell) for cell in category.cells]
        values = sorted({label for label in labels if label is not None})
        if not 2 <= len(values) <= 50:
            continue
        index = {value: position for position, value in enumerate(values)}
        codes = np.array([-1 if label is None else index[label] for label in labels])
        for number in numbers[:_MAX_COLUMNS]:
            if number.numbers is None:
                continue
            known = (codes >= 0) & np.isfinite(number.numbers)
            # A group of a few rows would let one odd number look like an effect of the category.
            sizes = np.bincount(codes[known], minlength=len(values))
            known &= sizes[codes] >= _MIN_GROUP_ROWS
            if int(known.sum()) < _MIN_ROWS:
                continue
            effect = _effect(codes[known], number.numbers[known], values)
            if effect:
                effects.append({"category": category.name, "number": number.name, **effect})
    effects.sort(key=lambda effect: (-effect["eta_squared"], effect["category"], effect["number"]))
    return effects[:_MAX_EFFECTS]


def missing_where(column: Column, columns: list[Column]) -> dict[str, Json] | None:
    """Find the one value of a category under which nearly all missing cells of a column lie.

    Returns:
        `{column, value, num_missing, fraction_of_missing, missing_fraction}` where at least 90% of the
        missing cells lie under it and at least 90% of the cells under it are missing; else None.
    """
    if column.num_missing < _MIN_ROWS:
        return None
    for category in columns:
        if category.kind not in ("category", "boolean") or category is column:
            continue
        totals: dict[str, int] = {}
        missing: dict[str, int] = {}
        for cell, group in zip(column.cells, category.cells, strict=True):
            if group is not None:
                label = label_of(group)
                totals[label] = totals.get(label, 0) + 1
                missing[label] = missing.get(label, 0) + (cell is None)
        if len(totals) < 2:
            continue
        label = max(missing, key=lambda name: (missing[name], name))
        if missing[label] >= 0.9 * max(column.num_missing, totals[label]):
            return {
                "column": category.name,
                "value": label,
                "num_missing": missing[label],
                "fraction_of_missing": rounded(missing[label] / column.num_missing),
                "missing_fraction": rounded(missing[label] / totals[label]),
            }
    return None


def _effect(
    codes: NDArray[np.int64], numbers: NDArray[np.float64], values: list[str]
) -> dict[str, Json] | None:
    import numpy as np

    counts = np.bincount(codes, minlength=len(values))
    sums = np.bincount(codes, weights=numbers, minlength=len(values))
    total = float(((numbers - numbers.mean()) ** 2).sum())
    if total <= 0:
        return None
    with_rows = counts > 0
    means = np.divide(sums, counts, out=np.zeros(len(values)), where=with_rows)
    between = float((counts[with_rows] * (means[with_rows] - numbers.mean()) ** 2).sum())
    groups = [
        {"value": value, "mean": rounded(float(means[code])), "count": int(counts[code])}
        for code, value in enumerate(values)
        if counts[code]
    ]
    if len(groups) < 2:
        return None
    groups.sort(key=lambda group: (-float(group["mean"] or 0.0), str(group["value"])))
    # The ends are what is told of a long list: keep them, drop the middle.
    half = _MAX_GROUPS // 2
    shown = groups if len(groups) <= _MAX_GROUPS else groups[:half] + groups[-half:]
    return {
        "eta_squared": rounded(min(1.0, between / total)),
        "num_rows": int(codes.size),
        "groups": shown,
    }


def _varies(numbers: NDArray[np.float64] | None) -> bool:
    import numpy as np

    if numbers is None:
        return False
    present = numbers[np.isfinite(numbers)]
    return bool(present.size >= _MIN_ROWS and present.max() > present.min())


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    left, right = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((left**2).sum()) * float((right**2).sum()))
    if scale <= 0 or not math.isfinite(scale):
        return None
    return max(-1.0, min(1.0, float((left * right).sum()) / scale))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, ties share their mean rank."""
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_ranks: NDArray[np.float64] = (last - (counts - 1) / 2).astype(np.float64)
    return mean_ranks[inverse]


def _p_of_correlation(correlation: float, num_rows: int) -> float:
    """Two-sided p-value by Fisher's z, which is close for ten rows or more. Source: Fisher, Metron 1
    (1921)."""
    bounded = max(-0.999999999, min(0.999999999, correlation))
    return math.erfc(abs(math.atanh(bounded)) * math.sqrt(num_rows - 3) / math.sqrt(2))
