"""Statistics of a table: what its columns hold, how they hang together, how they move, what stands out.

Every number here is computed from the rows; nothing is sampled, so the same table gives the same numbers.
This module refuses to put anything into words (`report_findings` does) and to hide a lack: what cannot be
computed is null.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from actors.agents.associations import correlate, group_effects, missing_where
from actors.agents.columns import Column, label_of, read_columns
from actors.agents.outliers import find_outliers, skewness
from actors.agents.rounding import rounded
from actors.agents.time_trends import trends_of
from cluster.model.plan import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["describe_table"]

_MAX_BINS = 24
_MAX_BESIDE = 0.1
_MAX_CATEGORIES_SHOWN = 12
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def describe_table(
    item: dict[str, Json], step_done: Callable[[float, str], None] = lambda _fraction, _message: None
) -> dict[str, Json]:
    """Describe a table.

    Args:
        item: A table of the ingest: `input_id`, `columns`, `rows`.
        step_done: Called with 0 to 1 and a line for people after each part; what it raises ends the work.

    Returns:
        `{input_id, num_rows, num_columns, num_missing, missing_fraction, num_duplicate_rows, columns,
        correlations, group_effects, time_column, trends, outliers}`.
    """
    names, rows = item["columns"], item["rows"]
    columns = read_columns(names, rows)
    step_done(0.3, "columns read")
    described = [_describe(column) for column in columns]
    for column, description in zip(columns, described, strict=True):
        if where := missing_where(column, columns):
            description["missing_where"] = where
    step_done(0.5, "columns described")
    correlations = correlate(columns)
    step_done(0.65, "correlations found")
    effects = group_effects(columns)
    outliers, outlying_rows = find_outliers(columns, effects)
    step_done(0.8, "outliers found")
    time_column, trends = trends_of(columns, len(rows), outlying_rows)
    if time_column:
        for outlier in (row for found in outliers for row in found["rows"]):
            outlier["at"] = time_column.cells[outlier["row"]]
    num_missing = sum(column.num_missing for column in columns)
    num_cells = len(rows) * len(columns)
    return {
        "input_id": item["input_id"],
        **({"name": item["name"]} if item.get("name") else {}),
        "num_rows": len(rows),
        "num_columns": len(columns),
        "num_missing": num_missing,
        "missing_fraction": rounded(num_missing / num_cells) if num_cells else 0.0,
        "num_duplicate_rows": _num_duplicates(rows),
        "columns": described,
        "correlations": correlations,
        "group_effects": effects,
        "time_column": time_column.name if time_column else None,
        "trends": trends,
        "outliers": outliers,
        **({"notes": item["notes"]} if item.get("notes") else {}),
    }


def _describe(column: Column) -> dict[str, Json]:
    num_rows = len(column.cells)
    described: dict[str, Json] = {
        "name": column.name,
        "kind": column.kind,
        "num_missing": column.num_missing,
        "missing_fraction": rounded(column.num_missing / num_rows) if num_rows else 0.0,
        "num_invalid": column.num_invalid,
        "num_distinct": len({str(cell) for cell in column.cells if cell is not None}),
    }
    if column.kind == "number" and column.numbers is not None:
        described["is_whole"] = column.is_whole
        described |= _distribution(column.numbers, is_whole=column.is_whole)
    elif column.kind == "time" and column.instants_s is not None:
        described |= _time_span(column.instants_s)
    elif column.kind in ("category", "boolean", "text"):
        described |= _frequencies(column)
    return described


def _distribution(numbers: NDArray[np.float64], *, is_whole: bool) -> dict[str, Json]:
    import numpy as np

    present = numbers[np.isfinite(numbers)]
    count = int(present.size)
    if not count:
        return {"count": 0}
    mean = float(present.mean())
    quantiles = [float(value) for value in np.quantile(present, _QUANTILES)]
    return {
        "count": count,
        "sum": rounded(float(present.sum())),
        "mean": rounded(mean),
        "std": rounded(float(present.std(ddof=1))) if count > 1 else None,
        "min": rounded(float(present.min())),
        "max": rounded(float(present.max())),
        "quantiles": {
            f"p{round(share * 100):02d}": rounded(value)
            for share, value in zip(_QUANTILES, quantiles, strict=True)
        },
        "skewness": skewness(present),
        "excess_kurtosis": _kurtosis(present),
        "num_zero": int((present == 0).sum()),
        "num_negative": int((present < 0).sum()),
        "histogram": _histogram(present, quantiles[1], quantiles[3], is_whole=is_whole),
    }


def _kurtosis(present: NDArray[np.float64]) -> float | None:
    """Excess kurtosis G2 with the small-sample correction. Source: Joanes and Gill, The Statistician 47
    (1998)."""
    count = present.size
    if count < 4:
        return None
    deviations = present - present.mean()
    spread = float((deviations**2).mean())
    if spread <= 1e-24 * max(1.0, float(abs(present).max()) ** 2):
        return None
    excess = float((deviations**4).mean()) / spread**2 - 3
    return rounded((count - 1) / ((count - 2) * (count - 3)) * ((count + 1) * excess + 6))


def _histogram(
    present: NDArray[np.float64], lower: float, upper: float, *, is_whole: bool
) -> dict[str, Json]:
    """Count by equal bins. Where few numbers lie over three quartile ranges out, they are counted beside the
    bins.

    The width follows Freedman and Diaconis, "On the histogram as a density estimator" (1981); bins of whole
    numbers are whole, else some would hold two numbers and their neighbours one.
    """
    import numpy as np

    spread = upper - lower
    low, high = float(present.min()), float(present.max())
    if spread > 0:
        fence_low, fence_high = max(low, lower - 3 * spread), min(high, upper + 3 * spread)
        if int(((present < fence_low) | (present > fence_high)).sum()) <= _MAX_BESIDE * present.size:
            inside = present[(present >= fence_low) & (present <= fence_high)]
            low, high = float(inside.min()), float(inside.max())
    if high <= low:
        return {"edges": [rounded(low), rounded(high)], "counts": [int(present.size)], "below": 0, "above": 0}
    width = 2 * spread / present.size ** (1 / 3) if spread > 0 else (high - low) / 10
    # Not by dividing first: between a normal number and the smallest ones the quotient is infinite.
    num_bins = _MAX_BINS if high - low >= _MAX_BINS * width else max(5, math.ceil((high - low) / width))
    top = high
    if is_whole:
        width = max(1, math.ceil((high - low + 1) / num_bins))
        num_bins = math.ceil((high - low + 1) / width)
        top = low + num_bins * width
    counts, edges = np.histogram(present[present <= high], bins=num_bins, range=(low, top))
    return {
        "edges": [rounded(float(edge)) for edge in edges],
        "counts": [int(count) for count in counts],
        "below": int((present < low).sum()),
        "above": int((present > high).sum()),
    }


def _time_span(instants_s: NDArray[np.float64]) -> dict[str, Json]:
    import numpy as np

    from actors.agents.time_trends import say_instant

    present = np.sort(instants_s[np.isfinite(instants_s)])
    if not present.size:
        return {"count": 0}
    gaps = np.diff(present)
    first, last = float(present[0]), float(present[-1])
    return {
        "count": int(present.size),
        "first": say_instant(first),
        "last": say_instant(last),
        "span_days": rounded((last - first) / 86_400),
        "median_gap_s": rounded(float(np.median(gaps))) if gaps.size else None,
        "is_sorted": bool((np.diff(instants_s[np.isfinite(instants_s)]) >= 0).all()),
    }


def _frequencies(column: Column) -> dict[str, Json]:
    counts = Counter(label_of(cell) for cell in column.cells if cell is not None)
    total = sum(counts.values())
    top = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:_MAX_CATEGORIES_SHOWN]
    shares = [count / total for count in counts.values()]
    entropy = -sum(share * math.log(share) for share in shares)
    described: dict[str, Json] = {
        "count": total,
        "top": [{"value": value, "count": count, "fraction": rounded(count / total)} for value, count in top],
        "num_other": total - sum(count for _, count in top),
        # 1 is an even spread over all values, 0 a single value.
        "evenness": rounded(entropy / math.log(len(shares))) if len(shares) > 1 else None,
    }
    if column.kind == "text":
        lengths = [len(str(cell)) for cell in column.cells if cell is not None]
        described["mean_length"] = rounded(sum(lengths) / len(lengths))
        described["top"] = described["top"][:3]
    return described


def _num_duplicates(rows: list[list[Json]]) -> int:
    return len(rows) - len({tuple((type(cell), cell) for cell in row) for row in rows})
