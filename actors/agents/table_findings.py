"""What the statistics of a table say, in sentences.

Every number in a sentence is one of the analysis, rounded for the eye; the exact ones stand in its evidence.
Findings that could be chance are not told. This module refuses to explain causes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actors.agents.rounding import rounded
from actors.agents.wording import plural, say_list, say_number, say_share
from cluster.model.plan import Json

__all__ = ["Findings", "find_in_table", "finding"]

_CORRELATION_FROM = 0.3
_CHANCE_BELOW = 0.001
_EFFECT_FROM = 0.02
_MISSING_FROM = 0.01


@dataclass(slots=True)
class Findings:
    """Findings by kind; each is `{input_id, subject, statement, importance, evidence}`, importance 0 to 1.

    Attributes:
        insights: How things are and hang together.
        anomalies: What is missing, odd or wrong.
        trends: What moves.
        recommendations: What to do, `(importance, sentence)`.
    """

    insights: list[dict[str, Json]] = field(default_factory=list)
    anomalies: list[dict[str, Json]] = field(default_factory=list)
    trends: list[dict[str, Json]] = field(default_factory=list)
    recommendations: list[tuple[float, str]] = field(default_factory=list)


def finding(
    part: dict[str, Any], subject: str, statement: str, importance: float, evidence: dict[str, Json]
) -> dict[str, Json]:
    """Make a finding about one input."""
    return {
        "input_id": part["input_id"],
        "subject": subject,
        "statement": statement,
        "importance": rounded(round(min(1.0, max(0.0, importance)), 3)),
        "evidence": evidence,
    }


def find_in_table(table: dict[str, Any], name: str, found: Findings) -> None:
    """Add what a table's statistics say.

    Args:
        table: Of `describe_table`.
        name: What the table is called in sentences.
        found: Added to.
    """
    if not table["num_rows"]:
        found.anomalies.append(finding(table, name, f"{name} has no rows.", 1.0, {"num_rows": 0}))
        found.recommendations.append((0.9, f"Check why {name} is empty."))
        return
    _extent(table, name, found)
    _correlations(table, found)
    _effects(table, found)
    _distributions(table, found)
    _trends(table, name, found)
    _outliers(table, found)
    _gaps(table, name, found)


def _extent(table: dict[str, Any], name: str, found: Findings) -> None:
    time = next((column for column in table["columns"] if column["name"] == table["time_column"]), None)
    span = f", from {time['first']} to {time['last']}" if time else ""
    missing = (
        f"{say_share(table['missing_fraction'])} of its cells are empty"
        if table["num_missing"]
        else "no cell is empty"
    )
    statement = (
        f"{name} holds {plural(table['num_rows'], 'row')} in "
        f"{plural(table['num_columns'], 'column')}{span}; {missing}."
    )
    evidence = {key: table[key] for key in ("num_rows", "num_columns", "num_missing", "missing_fraction")}
    found.insights.append(finding(table, name, statement, 0.5, evidence))


def _correlations(table: dict[str, Any], found: Findings) -> None:
    told = 0
    for pair in table["correlations"]["pairs"]:
        rank = pair["spearman"]
        if abs(rank) < _CORRELATION_FROM or pair["p_value"] >= _CHANCE_BELOW or told == 5:
            continue
        told += 1
        how = "rise together" if rank > 0 else "move against each other"
        size = "strongly" if abs(rank) >= 0.7 else "clearly" if abs(rank) >= 0.5 else "moderately"
        statement = (
            f"{pair['a']} and {pair['b']} {size} {how}: rank correlation {say_number(rank)} "
            f"over {plural(pair['num_rows'], 'row')}"
        )
        if abs(abs(pair["pearson"]) - abs(rank)) > 0.2:
            statement += (
                f"; the linear one is {say_number(pair['pearson'])}, so a few extreme rows or a bend matter"
            )
        found.insights.append(
            finding(table, f"{pair['a']}, {pair['b']}", f"{statement}.", 0.45 + 0.5 * abs(rank), dict(pair))
        )
        if abs(rank) >= 0.95:
            found.recommendations.append(
                (
                    0.4,
                    f"Use only one of {pair['a']} and {pair['b']} in a model: they carry the same "
                    f"information.",
                )
            )


def _effects(table: dict[str, Any], found: Findings) -> None:
    told: set[str] = set()
    for effect in table["group_effects"]:
        number, category = effect["number"], effect["category"]
        if (
            effect["eta_squared"] < _EFFECT_FROM
            or len(told) == 4
            or number in told
            or effect["num_rows"] < 30
        ):
            continue
        told.add(number)
        high, low = effect["groups"][0], effect["groups"][-1]
        statement = (
            f"{number} differs by {category}: on average {say_number(high['mean'])} for {high['value']} and "
            f"{say_number(low['mean'])} for {low['value']}; {category} explains "
            f"{say_share(effect['eta_squared'])} "
            "of its variance."
        )
        importance = 0.35 + 0.4 * float(effect["eta_squared"]) ** 0.5
        found.insights.append(finding(table, f"{number}, {category}", statement, importance, dict(effect)))


def _distributions(table: dict[str, Any], found: Findings) -> None:
    for column in table["columns"]:
        name = column["name"]
        if column["kind"] == "number" and column.get("count", 0) >= 10:
            middle = column["quantiles"]
            low, high = middle["p25"], middle["p75"]
            statement = (
                f"Half of the values of {name} lie between {say_number(low)} and {say_number(high)}, "
                f"the median is {say_number(middle['p50'])}"
            )
            skew = column["skewness"]
            if skew is not None and abs(skew) >= 1:
                side = "high" if skew > 0 else "low"
                statement += f"; the mean of {say_number(column['mean'])} is pulled by {side} values"
            evidence = {"mean": column["mean"], "skewness": skew, **middle}
            found.insights.append(finding(table, name, f"{statement}.", 0.3, evidence))
        elif column["kind"] == "category" and column.get("top") and column["num_distinct"] > 1:
            first = column["top"][0]
            if first["count"] < 3:
                continue
            statement = (
                f"{first['value']} is the most frequent {name}, with {say_share(first['fraction'])} of "
                f"{plural(column['count'], 'row')} in {plural(column['num_distinct'], 'value')}."
            )
            found.insights.append(
                finding(table, name, statement, 0.2 + 0.2 * float(first["fraction"]), dict(first))
            )


def _trends(table: dict[str, Any], name: str, found: Findings) -> None:
    steady: list[str] = []
    for trend in table["trends"]:
        counted = trend["measure"] == "count"
        subject = f"rows of {name}" if counted else str(trend["column"])
        if trend["strength"] == "none":
            steady.append(subject)
            continue
        verb = "rises" if trend["direction"] == "rising" else "falls"
        what = f"The number of {subject}" if counted else f"The mean of {subject}"
        by_time = table["time_column"] is not None
        where = f"per {trend['period']}" if by_time else f"over blocks of {trend['period']}"
        statement = (
            f"{what} {where} {verb} from {say_number(trend['fitted_first'])} to "
            f"{say_number(trend['fitted_last'])}"
        )
        if trend["change_fraction"] is not None:
            statement += (
                f" ({'+' if trend['change_fraction'] > 0 else ''}{say_share(trend['change_fraction'])})"
            )
        # The reader counts one period at each end more in the table, and must not wonder where they are.
        ends = ", without the first and the last, which may not be whole" if counted and by_time else ""
        periods = plural(trend["num_periods"], trend["period"] if by_time else "block")
        statement += (
            f" along a straight line over {periods}{ends}; the line explains "
            f"{say_share(trend['r_squared'])} of the movement ({trend['strength']} trend)."
        )
        importance = {"strong": 0.85, "moderate": 0.7, "weak": 0.45}[trend["strength"]]
        if not by_time:
            importance -= 0.3
        evidence = {key: trend[key] for key in trend if key != "series"}
        found.trends.append(finding(table, subject, statement, importance, evidence))
    if steady:
        over = f" over {table['time_column']}" if table["time_column"] else ""
        statement = f"No reliable trend{over} is seen in {say_list(steady)}."
        found.trends.append(finding(table, name, statement, 0.2, {"columns": steady}))
    strong = [trend for trend in table["trends"] if trend["strength"] == "strong" and table["time_column"]]
    if strong:
        names = say_list([trend["column"] or f"the number of rows of {name}" for trend in strong])
        found.recommendations.append(
            (0.5, f"Plan with the trend in {names}, and check next {strong[0]['period']} that it holds.")
        )


def _outliers(table: dict[str, Any], found: Findings) -> None:
    medians = {
        column["name"]: column["quantiles"]["p50"] for column in table["columns"] if "quantiles" in column
    }
    to_check: list[str] = []
    for outliers in table["outliers"]:
        column, count = outliers["column"], outliers["num_outliers"]
        first = outliers["rows"][0]
        if outliers["is_heavy_tail"]:
            statement = (
                f"{column} spreads widely: {plural(count, 'value')} "
                f"({say_share(outliers['fraction'])}) lie far "
                f"from the median of {say_number(medians[column])}; these are too many to be exceptions."
            )
            found.anomalies.append(finding(table, column, statement, 0.35, _short(outliers)))
            continue
        at = f" ({first['at']})" if first.get("at") is not None else ""
        within = f" for its {outliers['within']}" if outliers["within"] else ""
        statement = (
            f"{column} has {plural(count, 'outlier')} ({say_share(outliers['fraction'])} of its values); the "
            f"farthest is {say_number(first['value'])} in row {first['row']}{at}{within}, while the "
            f"median is "
            f"{say_number(medians[column])}."
        )
        severity = min(1.0, abs(float(first["score"])) / 20)
        found.anomalies.append(finding(table, column, statement, 0.5 + 0.45 * severity, _short(outliers)))
        if abs(float(first["score"])) >= 5:
            rows = [str(row["row"]) for row in outliers["rows"] if abs(float(row["score"])) >= 5][:5]
            to_check.append(f"{column} in {'row' if len(rows) == 1 else 'rows'} {say_list(rows)}")
    if to_check:
        found.recommendations.append(
            (
                0.8,
                f"Verify the extreme values before using averages: {'; '.join(to_check[:4])} "
                f"(counted from 0).",
            )
        )


def _short(outliers: dict[str, Any]) -> dict[str, Json]:
    return {**outliers, "rows": outliers["rows"][:5]}


def _gaps(table: dict[str, Any], name: str, found: Findings) -> None:
    to_fill: list[str] = []
    for column in table["columns"]:
        label, fraction = column["name"], column["missing_fraction"]
        if column["kind"] == "empty":
            found.anomalies.append(
                finding(
                    table,
                    label,
                    f"{label} is empty in every row.",
                    0.5,
                    {"num_missing": column["num_missing"]},
                )
            )
            found.recommendations.append(
                (0.4, f"Drop the column {label} or find out why nothing is written to it.")
            )
            continue
        if fraction >= _MISSING_FROM:
            statement = (
                f"{label} is missing in {plural(column['num_missing'], 'row')} ({say_share(fraction)})"
            )
            evidence = {"num_missing": column["num_missing"], "missing_fraction": fraction}
            where = column.get("missing_where")
            if where:
                statement += (
                    f"; {say_share(where['fraction_of_missing'])} of these rows have "
                    f"{where['column']} {where['value']}, "
                    "so the gap looks intended"
                )
                evidence["missing_where"] = where
            elif fraction >= 0.05:
                to_fill.append(f"{label} ({say_share(fraction)})")
            importance = 0.3 + (0.0 if where else min(0.5, 1.5 * float(fraction)))
            found.anomalies.append(finding(table, label, f"{statement}.", importance, evidence))
        if column["num_invalid"]:
            noun = "cell" if column["num_invalid"] == 1 else "cells"
            statement = (
                f"{label} is a column of {column['kind']}s, but "
                f"{say_number(column['num_invalid'])} {noun} are not."
            )
            found.anomalies.append(
                finding(table, label, statement, 0.5, {"num_invalid": column["num_invalid"]})
            )
        if column["num_distinct"] == 1 and table["num_rows"] >= 10:
            found.anomalies.append(
                finding(
                    table,
                    label,
                    f"{label} has the same value in every row that has one.",
                    0.25,
                    {"num_distinct": 1},
                )
            )
    if to_fill:
        found.recommendations.append((0.6, f"Decide how to treat the missing values of {say_list(to_fill)}."))
    if table["num_duplicate_rows"]:
        count = table["num_duplicate_rows"]
        statement = (
            f"{plural(count, 'row')} of {name} {'repeats' if count == 1 else 'repeat'} an "
            f"earlier one exactly."
        )
        found.anomalies.append(finding(table, name, statement, 0.6, {"num_duplicate_rows": count}))
        found.recommendations.append((0.6, f"Remove the repeated rows of {name}, unless they are meant."))
    for note in table.get("notes", []):
        found.anomalies.append(finding(table, name, f"While {name} was read: {note}.", 0.4, {"note": note}))
    if table["num_rows"] < 30:
        found.recommendations.append(
            (
                0.5,
                f"Collect more rows for {name}: {plural(table['num_rows'], 'row')} carry no firm conclusion.",
            )
        )
