"""The `synthesis` agent: the report.

It puts the findings in order, writes the summary from them and hands on the statistics the charts need. Same
analysis, same report, to the byte: no clock, no chance. It refuses to add anything that the numbers do not
say.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from actors.agent import AgentContext, agent
from actors.agents.data_analysis import analyse
from actors.agents.data_ingest import ingest, resolve_blob
from actors.agents.media_findings import find_in_image, find_in_text, find_in_value, find_links
from actors.agents.table_findings import Findings, find_in_table
from actors.agents.wording import in_words, plural, say_list
from cluster.errors import FailureCode, StepError
from cluster.model.plan import Json
from cluster.model.run_id import client_id

__all__ = ["Synthesis", "write_report"]

_MAX_RECOMMENDATIONS = 8
_MAX_NAMES_IN_TITLE = 3
_SUMMARY_SENTENCES = 4


def write_report(analysis: dict[str, Any], run_id: str, title: str = "") -> dict[str, Json]:
    """Write the report of an analysis.

    Args:
        analysis: Output of `data_analysis`.
        run_id: Makes the report's id: the same Run gives the same one.
        title: "" makes one of the inputs' names.

    Returns:
        `{"type": "json_report", report_id, title, executive_summary, detailed_findings: {statistics,
        insights, anomalies, trends}, recommendations}`; findings come with the most important first.
    """
    parts = {name: analysis.get(name) or [] for name in ("tables", "texts", "images", "values", "binaries")}
    names = {
        part["input_id"]: str(part.get("name") or part["input_id"])
        for kind in parts.values()
        for part in kind
    }
    found = Findings()
    for table in parts["tables"]:
        find_in_table(table, names[table["input_id"]], found)
    for text in parts["texts"]:
        find_in_text(text, names[text["input_id"]], found)
    for image in parts["images"]:
        find_in_image(image, names[image["input_id"]], found)
    for value in parts["values"]:
        find_in_value(value, names[value["input_id"]], found)
    find_links(parts["texts"], parts["tables"], names, found)
    for kind in (found.insights, found.anomalies, found.trends):
        # Sorting keeps the order of equals, so the inputs' own order decides there.
        kind.sort(key=lambda entry: -float(entry["importance"]))
    recommendations = _recommendations(found, is_empty=not names)
    return {
        "type": "json_report",
        "report_id": f"report-{hashlib.sha256(run_id.encode()).hexdigest()[:16]}",
        "title": title or _title(list(names.values())),
        "executive_summary": _summary(parts, found, recommendations),
        "detailed_findings": {
            "statistics": {"summary": analysis.get("summary") or {}, **parts},
            "insights": found.insights,
            "anomalies": found.anomalies,
            "trends": found.trends,
        },
        "recommendations": recommendations,
    }


def _title(names: list[str]) -> str:
    if not names:
        return "Data report"
    if len(names) <= _MAX_NAMES_IN_TITLE:
        return f"Report on {say_list(names)}"
    return f"Report on {say_list([*names[: _MAX_NAMES_IN_TITLE - 1], plural(len(names) - 2, 'other input')])}"


def _summary(parts: dict[str, list[dict[str, Any]]], found: Findings, recommendations: list[str]) -> str:
    if not any(parts.values()):
        return "There was nothing to analyse: the request came without inputs."
    scope: list[str] = []
    if parts["tables"]:
        rows = sum(table["num_rows"] for table in parts["tables"])
        scope.append(
            f"{in_words(len(parts['tables']))} {_noun(parts['tables'], 'table')} ({plural(rows, 'row')})"
        )
    if parts["texts"]:
        words = sum(text["num_words"] for text in parts["texts"])
        scope.append(
            f"{in_words(len(parts['texts']))} {_noun(parts['texts'], 'text')} ({plural(words, 'word')})"
        )
    for kind, noun in (("images", "image"), ("values", "JSON value"), ("binaries", "binary input")):
        if parts[kind]:
            scope.append(f"{in_words(len(parts[kind]))} {_noun(parts[kind], noun)}")
    sentences = [f"This report covers {say_list(scope)}."]
    # One of each kind first, so that a summary never speaks of one thing only; a mere description is no news.
    news = [entry for entry in found.insights if float(entry["importance"]) > 0.5]
    for entries in (found.trends, news, found.anomalies, news[1:], found.trends[1:]):
        if len(sentences) == _SUMMARY_SENTENCES:
            break
        if entries and float(entries[0]["importance"]) >= 0.4:
            sentences.append(str(entries[0]["statement"]))
    if len(sentences) == 1 and found.insights:
        sentences.append(str(found.insights[0]["statement"]))
    if recommendations and len(sentences) > 1:
        sentences.append(f"First step: {recommendations[0][0].lower()}{recommendations[0][1:]}")
    return " ".join(sentences)


def _noun(parts: list[dict[str, Any]], noun: str) -> str:
    return noun if len(parts) == 1 else f"{noun}s"


def _recommendations(found: Findings, *, is_empty: bool) -> list[str]:
    if is_empty:
        return ["Send at least one input: a table as JSON or CSV, a text, or an image."]
    ordered = sorted(found.recommendations, key=lambda pair: -pair[0])
    sentences = list(dict.fromkeys(sentence for _, sentence in ordered))[:_MAX_RECOMMENDATIONS]
    return sentences or ["No action is needed: nothing in the data stands out as wrong or missing."]


@agent("synthesis")
class Synthesis:
    """Writes the report from an analysis, or from raw inputs where it has to work alone."""

    async def execute(self, inputs: Json, context: AgentContext) -> Json:
        """Write the report.

        Args:
            inputs: `{"analysis": …}`; or `{"ingested": …}` (one output of data_ingest, or a list) or
                `{"inputs": […]}`, which are analysed first; or nothing. `metadata.report_title` here or in
                the Run's metadata is the title.
            context: Progress, blobs, the Run's id.

        Returns:
            See `write_report`.

        Raises:
            StepError: The analysis is none; or see `data_ingest.ingest` and `data_analysis.analyse`.
        """
        given = inputs if isinstance(inputs, dict) else {"inputs": inputs}
        analysis = await asyncio.to_thread(resolve_blob, given.get("analysis"), context)
        if analysis is None:
            ingested = await asyncio.to_thread(resolve_blob, given.get("ingested"), context)
            if ingested is None:
                ingested = await ingest(given, context, progress_share=0.2)
            analysis = await asyncio.to_thread(analyse, ingested, context, 0.2, 0.8)
        if not isinstance(analysis, dict) or analysis.get("type") != "analysis_result":
            raise StepError("analysis must be the output of data_analysis", code=FailureCode.VALIDATION_ERROR)
        await context.progress(0.9, "writing the report")
        title = _title_told(given.get("metadata")) or _title_told(context.metadata)
        return await asyncio.to_thread(write_report, analysis, client_id(context.run_id), title)


def _title_told(metadata: Json) -> str:
    """The client's title, from its metadata or from the metadata that a dialect keeps inside its own."""
    if not isinstance(metadata, dict):
        return ""
    title = metadata.get("report_title")
    if isinstance(title, str) and title.strip():
        return title.strip()[:300]
    return _title_told(metadata.get("metadata"))
