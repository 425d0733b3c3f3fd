"""The report: it says what the numbers say, and the same every time."""

from __future__ import annotations

import copy
import json
import re

import pytest

from actors.agents.data_analysis import DataAnalysis
from actors.agents.data_ingest import DataIngest
from actors.agents.synthesis import Synthesis
from actors.agents.wording import in_words, plural, say_list, say_number, say_share
from cluster.errors import FailureCode, StepError


@pytest.fixture
def inputs(context, samples):
    context.input_dirs = (str(samples),)
    return {
        "inputs": [
            {"input_id": "sales", "type": "json", "url": "file:sales.json"},
            {"input_id": "notes", "type": "text", "url": "file:notes.txt"},
            {"input_id": "photo", "type": "image", "url": "file:photo.jpg"},
        ]
    }


def numbers_in(value) -> set[str]:
    """All numbers of a JSON value as a sentence may write them: plain, and as a percentage."""
    if isinstance(value, dict):
        return set().union(*(numbers_in(inner) for inner in value.values()), set())
    if isinstance(value, list):
        return set().union(*(numbers_in(inner) for inner in value), set())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return set(re.findall(r"\d[\d,.]*\d|\d", value)) if isinstance(value, str) else set()
    return {
        say_number(abs(value)),
        say_share(abs(value)).rstrip("%"),
        say_number(round(value, 1)),
        str(value),
    }


async def test_report_has_every_part_and_finds_what_the_samples_hold(context, inputs) -> None:
    report = await Synthesis().execute(inputs, context)
    assert report["type"] == "json_report"
    assert set(report) == {
        "type",
        "report_id",
        "title",
        "executive_summary",
        "detailed_findings",
        "recommendations",
    }
    findings = report["detailed_findings"]
    assert set(findings) == {"statistics", "insights", "anomalies", "trends"}
    assert report["title"] == "Report on sales.json, notes.txt and photo.jpg"
    said = {
        kind: " ".join(f["statement"] for f in findings[kind]) for kind in ("insights", "anomalies", "trends")
    }
    assert "delivery_days and customer_rating clearly move against each other" in said["insights"]
    assert "notes.txt and sales.json speak of the same things" in said["insights"]
    assert "units has 5 outliers" in said["anomalies"]
    assert "customer_rating is missing in 240 rows (16%)" in said["anomalies"]
    assert "The mean of units per month rises" in said["trends"]
    assert any("Verify the extreme values" in sentence for sentence in report["recommendations"])


async def test_every_number_in_a_sentence_comes_from_the_analysis(context, inputs) -> None:
    analysis = await DataAnalysis().execute(inputs, context)
    report = await Synthesis().execute({"analysis": analysis}, context)
    for part in analysis["images"]:
        part.pop("preview")
    known = numbers_in(analysis)
    sentences = [report["executive_summary"], *report["recommendations"]]
    sentences += [
        entry["statement"]
        for kind in ("insights", "anomalies", "trends")
        for entry in report["detailed_findings"][kind]
    ]
    names = r"sales\.json|notes\.txt|photo\.jpg|counted from 0|#[0-9a-f]{6}|\d{4}-\d\d-\d\d"
    for sentence in sentences:
        for number in re.findall(r"\d[\d,.]*\d|\d", re.sub(names, "", sentence)):
            assert number in known, f"{number} in {sentence!r}"


async def test_report_is_the_same_from_any_point_of_the_chain(context, inputs) -> None:
    ingested = await DataIngest().execute(inputs, context)
    analysis = await DataAnalysis().execute({"data": ingested}, context)
    reports = [
        await Synthesis().execute(given, context)
        for given in (
            inputs,
            {"ingested": ingested, "analysis": None},
            {"analysis": copy.deepcopy(analysis), "ingested": ingested},
            {"analysis": context.write_blob(json.dumps(analysis).encode(), "application/json")},
        )
    ]
    assert len({json.dumps(report) for report in reports}) == 1


@pytest.mark.parametrize(
    "inputs", [None, {}, {"inputs": []}, {"analysis": None, "ingested": None, "inputs": None}]
)
async def test_report_without_inputs_says_that_there_was_nothing(context, inputs) -> None:
    report = await Synthesis().execute(inputs, context)
    assert "nothing to analyse" in report["executive_summary"]
    assert report["recommendations"][0].startswith("Send at least one input")
    assert report["detailed_findings"]["insights"] == []


async def test_report_id_follows_from_the_run(context) -> None:
    first = (await Synthesis().execute({}, context))["report_id"]
    assert first == (await Synthesis().execute({}, context))["report_id"]
    context.run_id = "run-2"
    assert first != (await Synthesis().execute({}, context))["report_id"]


@pytest.mark.parametrize(
    "metadata", [{"report_title": " My Report "}, {"metadata": {"report_title": "My Report"}}]
)
async def test_title_is_taken_from_the_metadata(context, metadata) -> None:
    context.metadata = metadata
    assert (await Synthesis().execute({}, context))["title"] == "My Report"


async def test_documented_example_gives_a_report_on_its_text(context) -> None:
    report = await Synthesis().execute(
        {"inputs": [{"input_id": "input-1", "type": "text", "data": "Sample data"}]}, context
    )
    assert "one text (2 words)" in report["executive_summary"]
    assert any("only 2 words" in entry["statement"] for entry in report["detailed_findings"]["anomalies"])


async def test_clean_data_gets_no_made_up_advice(context) -> None:
    rows = [{"city": "A" if n % 2 else "B", "v": (n * 7919) % 211} for n in range(200)]
    report = await Synthesis().execute({"inputs": [{"type": "json", "data": rows}]}, context)
    assert report["recommendations"] == [
        "No action is needed: nothing in the data stands out as wrong or missing."
    ]


def test_numbers_are_written_for_people() -> None:
    written = [say_number(n) for n in (0, 7, 1234567, 1234.56, 99.994, 0.01234, 0.0000123, -3.456, None)]
    assert written == ["0", "7", "1,234,567", "1,235", "99.99", "0.012", "1.23e-05", "-3.46", "unknown"]
    assert [say_share(n) for n in (0, 0.5, 0.1234, 0.0001, 1.5)] == [
        "0%",
        "50%",
        "12.3%",
        "under 0.1%",
        "150%",
    ]
    assert (plural(1, "row"), plural(1500, "row"), in_words(3), in_words(30)) == (
        "1 row",
        "1,500 rows",
        "three",
        "30",
    )
    assert (say_list([]), say_list(["a"]), say_list(["a", "b", "c"])) == ("", "a", "a, b and c")


async def test_report_of_separate_ingests_is_the_report_of_all_at_once(context, inputs) -> None:
    each = [await DataIngest().execute({"inputs": [entry]}, context) for entry in inputs["inputs"]]
    assert await Synthesis().execute({"ingested": each}, context) == await Synthesis().execute(
        inputs, context
    )


@pytest.mark.parametrize("analysis", ["text", [], {"items": []}])
async def test_what_no_analysis_made_is_refused(context, analysis) -> None:
    with pytest.raises(StepError, match="output of data_analysis") as raised:
        await Synthesis().execute({"analysis": analysis}, context)
    assert raised.value.code == FailureCode.VALIDATION_ERROR


async def test_trend_of_counts_says_that_the_ends_are_left_out(context, inputs) -> None:
    report = await Synthesis().execute(inputs, context)
    units, rows = (found["statement"] for found in report["detailed_findings"]["trends"][:2])
    assert "+26.3%) along a straight line over 18 months; the line explains 75.8%" in units
    assert "over 16 months, without the first and the last, which may not be whole; the line" in rows
