"""How the numbers of a table move over time, or over its rows where it has no time.

A trend is judged on the means of equal periods by two independent tests: a fitted line (how much of the
    movement it
explains) and the Mann-Kendall test (whether the order could be chance). It refuses to forecast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from actors.agents.columns import Column
from actors.agents.rounding import rounded
from cluster.model.plan import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MAX_PERIODS", "say_instant", "trends_of"]

MAX_PERIODS = 60
"""Longest series that is handed on, in whole periods; it may touch one more at its ends."""

_MIN_PERIODS = 5
_MAX_NUMBERS = 30
_CHANCE_BELOW = 0.01
_DAY_S = 86_400.0


def trends_of(
    columns: list[Column], num_rows: int, outlying_rows: Mapping[str, NDArray[np.bool_]]
) -> tuple[Column | None, list[dict[str, Json]]]:
    """Find the time column and the trend of every number column, and of the number of rows where there is
    time.

    Args:
        columns: All columns of the table.
        num_rows: Rows of the table.
        outlying_rows: Rows to leave out, by column: a single typing error would bend a mean.

    Returns:
        The time column (the one with most instants, the first among equals) or None, and per number `{column,
        over, period, direction, strength, slope_per_period, r_squared, mann_kendall_p, fitted_first,
        fitted_last, change_fraction, series}`; series is `{labels, values, counts}` of at most 60 periods,
        values are means, null for a period without rows.
    """
    import numpy as np

    numbers = [column for column in columns if column.kind == "number"][:_MAX_NUMBERS]
    times = [column for column in columns if column.kind == "time" and column.instants_s is not None]
    best = max(
        times, key=lambda column: len(column.cells) - column.num_missing - column.num_invalid, default=None
    )
    if best is not None and best.instants_s is not None:
        instants = best.instants_s
        present = instants[np.isfinite(instants)]
        if present.size and present.max() > present.min():
            period, key = _period_for(float(present.min()), float(present.max()), int(present.size))
            codes, labels = _codes(instants, key, period)
            trends = _all_trends(numbers, codes, labels, best.name, period, outlying_rows=outlying_rows)
            growth = _count_trend(codes, labels)
            if growth:
                trends.append(
                    {"column": None, "measure": "count", "over": best.name, "period": period, **growth}
                )
            return best, trends
    if num_rows < _MIN_PERIODS:
        return None, []
    size = max(1, math.ceil(num_rows / MAX_PERIODS))
    codes = np.arange(num_rows) // size
    labels = [str(first) for first in range(0, num_rows, size)]
    return None, _all_trends(
        numbers, codes, labels, "row", f"{size} rows" if size > 1 else "row", outlying_rows=outlying_rows
    )


def say_instant(instant_s: float) -> str:
    """Write an instant as short as it allows: a date, or a date and a time, in UTC."""
    moment = datetime.fromtimestamp(instant_s, UTC)
    if moment.hour == moment.minute == moment.second == 0:
        return moment.strftime("%Y-%m-%d")
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _all_trends(
    numbers: list[Column],
    codes: NDArray[np.int64],
    labels: list[str],
    over: str,
    period: str,
    *,
    outlying_rows: Mapping[str, NDArray[np.bool_]],
) -> list[dict[str, Json]]:
    import numpy as np

    trends: list[dict[str, Json]] = []
    for column in numbers:
        if column.numbers is None:
            continue
        outlying = outlying_rows.get(column.name)
        kept = column.numbers if outlying is None else np.where(outlying, np.nan, column.numbers)
        trend = _trend_of_means(kept, codes, labels)
        if trend:
            trends.append({"column": column.name, "measure": "mean", "over": over, "period": period, **trend})
    return trends


def _period_for(first_s: float, last_s: float, num_instants: int) -> tuple[str, Callable[[float], int]]:
    """The finest period that makes at most 60 of them, and not more than there are instants."""
    span_s = last_s - first_s
    most = min(MAX_PERIODS, max(_MIN_PERIODS, num_instants))
    for name, length_s in (
        ("second", 1.0),
        ("minute", 60.0),
        ("hour", 3600.0),
        ("day", _DAY_S),
        ("week", 7 * _DAY_S),
    ):
        if span_s // length_s + 1 <= most:
            # Weeks begin on Mondays: the epoch was a Thursday.
            shift = 3 * _DAY_S if name == "week" else 0.0
            return name, lambda instant, length_s=length_s, shift=shift: math.floor(
                (instant + shift) / length_s
            )
    for name, months in (("month", 1), ("quarter", 3), ("year", 12), ("decade", 120)):
        if span_s // (months * 30.44 * _DAY_S) + 1 <= most:
            return name, lambda instant, months=months: _month(instant) // months
    return "century", lambda instant: _month(instant) // 1200


def _month(instant_s: float) -> int:
    moment = datetime.fromtimestamp(instant_s, UTC)
    return moment.year * 12 + moment.month - 1


def _codes(
    instants: NDArray[np.float64], key: Callable[[float], int], period: str
) -> tuple[NDArray[np.int64], list[str]]:
    """Number the periods from 0, gaps included; -1 where there is no instant. Labels are the earliest
    instants."""
    import numpy as np

    keys = [key(float(instant)) if math.isfinite(instant) else None for instant in instants]
    known = [k for k in keys if k is not None]
    first = min(known)
    earliest: dict[int, float] = {}
    for k, instant in zip(keys, instants, strict=True):
        if k is not None:
            earliest[k] = min(earliest.get(k, math.inf), float(instant))
    cut = {"month": 7, "quarter": 7, "year": 4, "decade": 4, "century": 4}.get(period)
    labels = [say_instant(earliest[k])[:cut] if k in earliest else "" for k in range(first, max(known) + 1)]
    return np.array([-1 if k is None else k - first for k in keys]), labels


def _trend_of_means(
    numbers: NDArray[np.float64], codes: NDArray[np.int64], labels: list[str]
) -> dict[str, Json] | None:
    import numpy as np

    usable = np.isfinite(numbers) & (codes >= 0)
    counts = np.bincount(codes[usable], minlength=len(labels))
    sums = np.bincount(codes[usable], weights=numbers[usable], minlength=len(labels))
    filled = np.flatnonzero(counts)
    trend = _fit(filled.astype(np.float64), sums[filled] / counts[filled])
    if trend is None:
        return None
    values = [rounded(float(s / c)) if c else None for s, c in zip(sums, counts, strict=True)]
    return {
        **trend,
        "series": {"labels": labels, "values": values, "counts": [int(count) for count in counts]},
    }


def _count_trend(codes: NDArray[np.int64], labels: list[str]) -> dict[str, Json] | None:
    """Fit the number of rows per period; the first and the last are seldom whole and are left out."""
    import numpy as np

    counts = np.bincount(codes[codes >= 0], minlength=len(labels))[1:-1].astype(np.float64)
    trend = _fit(np.arange(counts.size, dtype=np.float64), counts)
    if trend is None:
        return None
    whole = [int(count) for count in counts]
    return {**trend, "series": {"labels": labels[1:-1], "values": [float(n) for n in whole], "counts": whole}}


def _fit(x: NDArray[np.float64], means: NDArray[np.float64]) -> dict[str, Json] | None:
    import numpy as np

    if x.size < _MIN_PERIODS:
        return None
    spread_x = float(((x - x.mean()) ** 2).sum())
    spread_y = float(((means - means.mean()) ** 2).sum())
    # A constant column leaves rounding noise instead of zero, and noise must not look like a trend.
    if spread_y <= 1e-20 * max(1.0, float(np.abs(means).max()) ** 2):
        return None
    shared = float(((x - x.mean()) * (means - means.mean())).sum())
    slope = shared / spread_x
    r_squared = shared**2 / (spread_x * spread_y)
    p_value = _mann_kendall_p(means)
    start = float(means.mean() + slope * (x[0] - x.mean()))
    end = float(means.mean() + slope * (x[-1] - x.mean()))
    strength = _strength(r_squared, p_value)
    return {
        "direction": "steady" if strength == "none" else "rising" if slope > 0 else "falling",
        "strength": strength,
        "num_periods": int(x.size),
        "slope_per_period": rounded(slope),
        "r_squared": rounded(r_squared),
        "mann_kendall_p": rounded(p_value),
        "fitted_first": rounded(start),
        "fitted_last": rounded(end),
        # Over a start near or below zero a percentage says nothing.
        "change_fraction": rounded((end - start) / start) if start > abs(end - start) * 0.05 else None,
    }


def _strength(r_squared: float, p_value: float) -> str:
    if p_value >= _CHANCE_BELOW or r_squared < 0.1:
        return "none"
    return "strong" if r_squared >= 0.6 else "moderate" if r_squared >= 0.3 else "weak"


def _mann_kendall_p(values: NDArray[np.float64]) -> float:
    """Two-sided p-value of the Mann-Kendall trend test, normal approximation with ties.

    Source: Mann, Econometrica 13 (1945); Kendall, "Rank Correlation Methods" (1948).
    """
    import numpy as np

    n = values.size
    score = float(sum(np.sign(values[i + 1 :] - values[i]).sum() for i in range(n - 1)))
    _, ties = np.unique(values, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if score == 0 or variance <= 0:
        return 1.0
    return math.erfc((abs(score) - 1) / math.sqrt(variance) / math.sqrt(2))
