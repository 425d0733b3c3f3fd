"""Numbers that stand far from the rest of their column, or from the rest of their own group.

Where a category splits a column into groups that hardly overlap (prices by product), each number is compared
with its group: else the smaller group would be one great outlier. It refuses to delete anything; it only
    points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from actors.agents.columns import Column, label_of
from actors.agents.rounding import rounded
from cluster.model.plan import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["find_outliers", "skewness"]

_MAX_SHOWN = 20
_MIN_ROWS = 10
_ROBUST_Z_LIMIT = 3.5
_QUARTILE_LIMIT = 3.0
_SPLITS_FROM = 0.5
_HEAVY_TAIL_FRACTION = 0.05


def find_outliers(
    columns: Sequence[Column], effects: Sequence[Mapping[str, Json]]
) -> tuple[list[dict[str, Json]], dict[str, NDArray[np.bool_]]]:
    """Find the outliers of every number column.

    Args:
        columns: All columns of the table.
        effects: What `group_effects` found; a category that explains half of a number's variance splits it.

    Returns:
        Per column that has any: `{column, method, limit, within, num_outliers, fraction, num_high, num_low,
        is_heavy_tail, rows}`; rows are the farthest 20 as `{row, value, score}`, row numbers from 0. Beside
        it the masks of outlying rows by column, without heavy tails: over 5% are no exceptions any more.
    """
    import numpy as np

    column_by_name = {column.name: column for column in columns}
    splitting: dict[str, Column] = {}
    for effect in effects:
        if effect["eta_squared"] >= _SPLITS_FROM and effect["category"] in column_by_name:
            splitting.setdefault(str(effect["number"]), column_by_name[str(effect["category"])])
    found: list[dict[str, Json]] = []
    masks: dict[str, NDArray[np.bool_]] = {}
    for column in columns:
        numbers = column.numbers
        if column.kind != "number" or numbers is None:
            continue
        category = splitting.get(column.name)
        scores, method, limit = _scores_by_group(numbers, category) if category else _scores(numbers)
        outside = np.abs(scores) > limit
        count = int(outside.sum())
        if not count:
            continue
        fraction = count / int(np.isfinite(numbers).sum())
        if fraction <= _HEAVY_TAIL_FRACTION:
            masks[column.name] = outside
        ranked = sorted(
            (int(row) for row in np.flatnonzero(outside)), key=lambda row: (-abs(float(scores[row])), row)
        )
        found.append(
            {
                "column": column.name,
                "method": method,
                "limit": limit,
                "within": category.name if category else None,
                "num_outliers": count,
                "fraction": rounded(fraction),
                "num_high": int((scores[outside] > 0).sum()),
                "num_low": int((scores[outside] < 0).sum()),
                "is_heavy_tail": fraction > _HEAVY_TAIL_FRACTION,
                "rows": [
                    {"row": row, "value": rounded(float(numbers[row])), "score": rounded(float(scores[row]))}
                    for row in ranked[:_MAX_SHOWN]
                ],
            }
        )
    return found, masks


def skewness(present: NDArray[np.float64]) -> float | None:
    """Adjusted Fisher-Pearson coefficient G1. Source: Joanes and Gill, The Statistician 47 (1998)."""
    count = present.size
    if count < 3:
        return None
    deviations = present - present.mean()
    spread = float((deviations**2).mean())
    if spread <= 1e-24 * max(1.0, float(abs(present).max()) ** 2):
        return None
    skew = float((deviations**3).mean()) / spread**1.5
    return rounded(skew * math.sqrt(count * (count - 1)) / (count - 2))


def _scores_by_group(
    numbers: NDArray[np.float64], category: Column
) -> tuple[NDArray[np.float64], str, float]:
    import numpy as np

    scores = np.zeros(numbers.size)
    labels = np.array(["" if cell is None else label_of(cell) for cell in category.cells])
    for label in np.unique(labels):
        rows = labels == label
        group, _, limit = _scores(numbers[rows])
        scores[rows] = group * (_ROBUST_Z_LIMIT / limit)
    return scores, "robust z within groups", _ROBUST_Z_LIMIT


def _scores(numbers: NDArray[np.float64]) -> tuple[NDArray[np.float64], str, float]:
    """Score by the modified z-score, on logarithms where those are the less skewed; 0 where nothing can be
    said.

    Where more than half of the numbers are equal that score has no scale; quartile ranges beyond the
    quartiles are counted then. Source: Iglewicz and Hoaglin, "How to Detect and Handle Outliers" (1993);
    Tukey, "Exploratory Data Analysis" (1977).
    """
    import numpy as np

    finite = np.isfinite(numbers)
    if int(finite.sum()) < _MIN_ROWS:
        return np.zeros(numbers.size), "robust z", _ROBUST_Z_LIMIT
    inside, method = numbers[finite], "robust z"
    if float(inside.min()) > 0:
        raw, logged = skewness(inside), skewness(np.log(inside))
        if raw is not None and logged is not None and raw > 1 and abs(logged) < raw / 2:
            inside, method = np.log(inside), "robust z of logarithms"
    median = float(np.median(inside))
    deviation = float(np.median(np.abs(inside - median)))
    scores = np.zeros(numbers.size)
    if deviation > 0:
        scores[finite] = 0.6745 * (inside - median) / deviation
        return scores, method, _ROBUST_Z_LIMIT
    lower, upper = (float(value) for value in np.quantile(inside, (0.25, 0.75)))
    if upper > lower:
        above, below = np.maximum(inside - upper, 0.0), np.minimum(inside - lower, 0.0)
        scores[finite] = (above + below) / (upper - lower)
    return scores, "quartile ranges", _QUARTILE_LIMIT
