"""A report as a page for people: one self-contained HTML file, or Markdown.

The report is data from outside: every text in it is escaped, colours and pictures are checked before they
    stand in an
attribute, and the page forbids scripts and foreign resources to itself. It refuses to judge: what is not in
the report is not on the page. A report that lacks parts, or has findings as plain sentences, still gives a
page.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from actors.agents.wording import say_list, say_number, say_share
from serve_app.report_charts import bar_chart, heat_map, line_chart, row_bars, spark_bars

__all__ = ["render_html", "render_markdown"]

_MAX_TREND_CHARTS = 6
_MAX_BAR_CHARTS = 4
_PICTURE = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_KINDS = (("trends", "Trends"), ("insights", "Insights"), ("anomalies", "Anomalies"))


def render_html(report: dict[str, Any]) -> str:
    """Write the report as one HTML page with charts, light or dark as the reader has it.

    Args:
        report: A `json_report`, as `synthesis` writes it.
    """
    report = _clean(report)
    details = report.get("detailed_findings") or {}
    statistics = details.get("statistics") or {}
    page = _template().render(
        title=str(report.get("title") or "Report"),
        report_id=str(report.get("report_id") or ""),
        generated_at=str(report.get("generated_at") or ""),
        summary=str(report.get("executive_summary") or ""),
        recommendations=[str(sentence) for sentence in report.get("recommendations") or []],
        findings=[(kind, title, _findings(details.get(kind))) for kind, title in _KINDS],
        tiles=_tiles(statistics, details),
        tables=[_table_view(table) for table in statistics.get("tables") or []],
        texts=[_text_view(text) for text in statistics.get("texts") or []],
        images=[_image_view(image) for image in statistics.get("images") or []],
    )
    return page + "\n"


def render_markdown(report: dict[str, Any]) -> str:
    """Write the report as Markdown (with tables as GitHub has them)."""
    report = _clean(report)
    details = report.get("detailed_findings") or {}
    statistics = details.get("statistics") or {}
    lines = [f"# {_md(report.get('title') or 'Report')}", ""]
    if report.get("report_id"):
        lines += [f"`{str(report['report_id']).replace('`', '')}`", ""]
    lines += ["## Summary", "", _md(report.get("executive_summary") or ""), ""]
    recommendations = report.get("recommendations") or []
    if recommendations:
        lines += ["## Recommendations", ""]
        lines += [f"{number}. {_md(sentence)}" for number, sentence in enumerate(recommendations, 1)]
        lines.append("")
    for kind, title in _KINDS:
        findings = _findings(details.get(kind))
        if findings:
            lines += [f"## {title}", "", *(f"- {_md(entry['statement'])}" for entry in findings), ""]
    for table in statistics.get("tables") or []:
        lines += [f"## Columns of {_md(_name(table))}", "", "| column | kind | missing | summary |"]
        lines.append("| --- | --- | ---: | --- |")
        for column in table.get("columns") or []:
            cells = (
                column.get("name", ""),
                column.get("kind", ""),
                say_share(column.get("missing_fraction")),
                _column_summary(column),
            )
            lines.append(f"| {' | '.join(_md(cell) for cell in cells)} |")
        lines.append("")
    for text in statistics.get("texts") or []:
        terms = [str(term.get("term", "")) for term in text.get("key_terms") or []]
        lines += [f"## Key terms of {_md(_name(text))}", "", _md(", ".join(terms) or "none"), ""]
    for image in statistics.get("images") or []:
        colours = [f"`{colour['hex']}` {say_share(colour['fraction'])}" for colour in _colours(image)]
        lines += [f"## Colours of {_md(_name(image))}", "", ", ".join(colours) or "none", ""]
    return "\n".join(lines).rstrip() + "\n"


@cache
def _template() -> Template:
    folder = Path(__file__).resolve().parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _clean(value: Any) -> Any:
    """Copy JSON without control characters and without those that turn the direction of text around."""
    if isinstance(value, str):
        return _CONTROL.sub("", value)
    if isinstance(value, dict):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    return value


def _md(value: object) -> str:
    """Escape what Markdown would take for markup; an underscore inside a word is none."""
    text = " ".join(str(value).split())
    text = re.sub(r"([\\`*\[\]<>|~])", r"\\\1", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return re.sub(r"^(#+|[-+]|\d+\.)(?=\s)", r"\\\1", text)


def _findings(entries: Any) -> list[dict[str, Any]]:
    shown = []
    for entry in entries or []:
        if isinstance(entry, dict):
            importance = entry.get("importance")
            weight = importance if isinstance(importance, int | float) else 0.5
            shown.append(
                {
                    "statement": str(entry.get("statement") or ""),
                    "subject": str(entry.get("subject") or ""),
                    "level": "high" if weight >= 0.65 else "middle" if weight >= 0.4 else "low",
                }
            )
        else:
            shown.append({"statement": str(entry), "subject": "", "level": "middle"})
    return [entry for entry in shown if entry["statement"]]


def _tiles(statistics: dict[str, Any], details: dict[str, Any]) -> list[tuple[str, str]]:
    summary = statistics.get("summary") or {}
    tiles = [
        (say_number(summary[key]), label)
        for key, label in (
            ("num_rows", "rows"),
            ("num_words", "words"),
            ("num_images", "images"),
        )
        if summary.get(key)
    ]
    for kind, title in _KINDS:
        if details.get(kind):
            tiles.append((str(len(details[kind])), title.lower()))
    return [(value, label[:-1] if value == "1" else label) for value, label in tiles]


def _name(part: dict[str, Any]) -> str:
    return str(part.get("name") or part.get("input_id") or "input")


def _column_summary(column: dict[str, Any]) -> str:
    if "quantiles" in column:
        middle = column["quantiles"]
        return (
            f"median {say_number(middle['p50'])}, middle half {say_number(middle['p25'])} to "
            f"{say_number(middle['p75'])}, from {say_number(column['min'])} to {say_number(column['max'])}"
        )
    if column.get("first"):
        return f"{column['first']} to {column['last']}"
    top = column.get("top") or []
    if top and column.get("kind") != "text":
        return ", ".join(f"{entry['value']} {say_share(entry['fraction'])}" for entry in top[:3])
    return f"{say_number(column.get('num_distinct', 0))} different values"


def _table_view(table: dict[str, Any]) -> dict[str, Any]:
    columns = table.get("columns") or []
    matrix = (table.get("correlations") or {}).get("matrix") or {}
    return {
        "name": _name(table),
        "size": f"{say_number(table.get('num_rows', 0))} rows, {say_number(len(columns))} columns",
        "columns": [
            {
                "name": str(column.get("name", "")),
                "kind": str(column.get("kind", "")),
                "missing": say_share(column.get("missing_fraction")),
                "has_missing": bool(column.get("num_missing")),
                "summary": _column_summary(column),
                "spark": _spark(column),
            }
            for column in columns
        ],
        "trends": [_trend_view(trend) for trend in _chosen_trends(table)],
        "heat_map": heat_map(
            matrix.get("columns") or [], matrix.get("pearson") or [], "Linear correlations of the columns"
        ),
        "histograms": [
            (
                str(column["name"]),
                _beside(column["histogram"]),
                bar_chart(
                    column["histogram"]["edges"],
                    column["histogram"]["counts"],
                    f"Distribution of {column['name']}",
                ),
            )
            for column in columns
            if "histogram" in column
        ][:_MAX_BAR_CHARTS],
        "categories": [
            (str(column["name"]), row_bars(_category_rows(column), f"Frequencies of {column['name']}"))
            for column in columns
            if column.get("kind") in ("category", "boolean") and column.get("top")
        ][:_MAX_BAR_CHARTS],
        "effects": [_effect_view(effect) for effect in (table.get("group_effects") or [])[:_MAX_BAR_CHARTS]],
        "outliers": [
            {
                "column": str(entry["column"]),
                "count": f"{say_number(entry['num_outliers'])} ({say_share(entry['fraction'])})",
                "method": str(entry["method"]),
                "farthest": say_list(
                    [f"{say_number(row['value'])} (row {row['row']})" for row in entry["rows"][:3]]
                ),
            }
            for entry in table.get("outliers") or []
        ],
    }


def _spark(column: dict[str, Any]) -> Any:
    if "histogram" in column:
        return spark_bars(column["histogram"]["counts"])
    if column.get("kind") in ("category", "boolean"):
        return spark_bars([entry["count"] for entry in column.get("top") or []])
    return ""


def _chosen_trends(table: dict[str, Any]) -> list[dict[str, Any]]:
    order = {"strong": 0, "moderate": 1, "weak": 2, "none": 3}
    trends = [trend for trend in table.get("trends") or [] if trend.get("series")]
    # Without time the order of rows says little: only what clearly moves along it is worth a chart.
    if not table.get("time_column"):
        trends = [trend for trend in trends if trend["strength"] in ("strong", "moderate")]
    return sorted(trends, key=lambda trend: order.get(trend["strength"], 3))[:_MAX_TREND_CHARTS]


def _trend_view(trend: dict[str, Any]) -> dict[str, Any]:
    counted = trend.get("measure") == "count"
    what = "Number of rows" if counted else f"Mean of {trend['column']}"
    fitted = None if trend["strength"] == "none" else (trend["fitted_first"], trend["fitted_last"])
    change = trend.get("change_fraction")
    told = "no reliable trend"
    if fitted:
        told = f"{trend['strength']}, {trend['direction']}"
        if change is not None:
            told += f" {'+' if change > 0 else ''}{say_share(change)}"
    series = trend["series"]
    return {
        "title": f"{what} per {trend['period']}",
        "told": told,
        "chart": line_chart(
            series["labels"], series["values"], fitted, f"{what} per {trend['period']}: {told}"
        ),
    }


def _beside(histogram: dict[str, Any]) -> str:
    out = [
        f"{say_number(histogram[side])} {side} the range shown"
        for side in ("below", "above")
        if histogram.get(side)
    ]
    return say_list(out)


def _category_rows(column: dict[str, Any]) -> list[tuple[str, float, str]]:
    rows = [
        (str(entry["value"]), float(entry["count"]), say_number(entry["count"]))
        for entry in column["top"][:8]
    ]
    rest = sum(entry["count"] for entry in column["top"][8:]) + column.get("num_other", 0)
    return [*rows, ("all others", float(rest), say_number(rest))] if rest else rows


def _effect_view(effect: dict[str, Any]) -> tuple[str, str, Any]:
    title = f"Mean {effect['number']} by {effect['category']}"
    groups = [group for group in effect["groups"] if group["mean"] is not None]
    told = f"explains {say_share(effect['eta_squared'])} of the variance"
    if any(group["mean"] < 0 for group in groups):
        return title, told, ""
    rows = [(str(group["value"]), float(group["mean"]), say_number(group["mean"])) for group in groups[:8]]
    return title, told, row_bars(rows, title)


def _text_view(text: dict[str, Any]) -> dict[str, Any]:
    ease = text.get("readability") or {}
    lengths = text.get("sentence_lengths") or {}
    facts = [
        ("language", str((text.get("language") or {}).get("name", "undetermined"))),
        ("words", say_number(text.get("num_words", 0))),
        ("sentences", say_number(text.get("num_sentences", 0))),
        ("paragraphs", say_number(text.get("num_paragraphs", 0))),
        ("words per sentence", say_number(text.get("mean_sentence_words"))),
    ]
    if ease:
        facts.append(
            ("Flesch reading ease", f"{say_number(ease.get('flesch_reading_ease'))} ({ease.get('level')})")
        )
    return {
        "name": _name(text),
        "facts": facts,
        "terms": row_bars(
            [
                (str(term["term"]), float(term["score"] or 0), f"{term['count']} x")
                for term in (text.get("key_terms") or [])[:10]
            ],
            "Key terms by weight",
        ),
        "lengths": bar_chart(lengths.get("edges") or [], lengths.get("counts") or [], "Words per sentence"),
        "sentences": [str(sentence) for sentence in text.get("key_sentences") or []],
    }


def _image_view(image: dict[str, Any]) -> dict[str, Any]:
    preview = str(image.get("preview") or "")
    luma = image.get("luminance_histogram") or []
    sharpness, exposure = image.get("sharpness") or {}, image.get("exposure") or {}
    contrast = image.get("contrast") or {}
    width, height = image.get("width", 0), image.get("height", 0)
    return {
        "name": _name(image),
        "preview": preview if _PICTURE.fullmatch(preview) else "",
        "facts": [
            ("size", f"{width} x {height} px"),
            ("format", str(image.get("format", "")).upper()),
            ("sharpness", f"{sharpness.get('verdict')} ({say_number(sharpness.get('laplacian_variance'))})"),
            ("exposure", f"{exposure.get('verdict')} ({say_number(exposure.get('mean_luminance'))} of 255)"),
            ("contrast", f"{contrast.get('verdict')} ({say_number(contrast.get('rms'))})"),
            ("colourfulness", say_number(image.get("colourfulness"))),
        ],
        "colours": [
            {
                "hex": colour["hex"],
                "share": say_share(colour["fraction"]),
                "grow": round(colour["fraction"] * 1000),
            }
            for colour in _colours(image)
        ],
        "luma": bar_chart(
            [index * 256 / len(luma) for index in range(len(luma) + 1)] if luma else [], luma, "Luminance"
        ),
    }


def _colours(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"hex": colour["hex"], "fraction": float(colour.get("fraction") or 0)}
        for colour in image.get("dominant_colours") or []
        if isinstance(colour, dict) and _COLOUR.fullmatch(str(colour.get("hex")))
    ]
