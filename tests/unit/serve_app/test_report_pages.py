"""The report as a page."""

from __future__ import annotations

import html.parser
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from actors.agents.columns import read_columns
from actors.agents.synthesis import write_report
from actors.agents.table_statistics import describe_table
from actors.agents.text_statistics import describe_text
from serve_app.report_charts import bar_chart, heat_map, line_chart, row_bars
from serve_app.report_pages import render_html, render_markdown

EVIL = "<script>alert('x')</script>\"&|`*\u202e"


def report_of(name: str = "value", title: str = "A title") -> dict:
    rows = [[f"2024-{1 + n // 20:02d}-{1 + n % 20:02d}", float(n + n % 7), "ab"[n % 2]] for n in range(200)]
    table = describe_table(
        {"input_id": "t", "name": f"{name}.json", "columns": ["day", name, "kind"], "rows": rows}
    )
    text = describe_text(
        {"input_id": "n", "text": f"The {name} is here. It is a good thing. We like it. It stays."}
    )
    parts = {
        "tables": [table],
        "texts": [text],
        "images": [],
        "values": [],
        "binaries": [],
        "summary": {"num_rows": 200},
    }
    return write_report(parts, "run-1", title)


class Outside(html.parser.HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        for key, value in attrs:
            if key.startswith("on") or (key in ("src", "href") and not (value or "").startswith("data:")):
                self.found.append(f"{tag} {key}={value}")
        if tag in ("script", "link", "iframe", "object", "embed", "base", "form"):
            self.found.append(tag)


def test_page_is_one_file_without_scripts_or_foreign_resources() -> None:
    page = render_html(report_of())
    outside = Outside()
    outside.feed(page)
    assert outside.found == []
    assert "default-src 'none'" in page
    assert page.count("<svg") >= 5
    assert "@import" not in page and "url(" not in page


def test_charts_are_well_formed_and_inside_their_frame() -> None:
    for svg in re.findall(r"<svg.*?</svg>", render_html(report_of()), re.DOTALL):
        root = ET.fromstring(svg)
        width, height = (float(part) for part in root.attrib["viewBox"].split()[2:])
        for element in root.iter():
            for key, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                if key in element.attrib:
                    assert -1 <= float(element.attrib[key]) <= limit + 1


def test_text_from_outside_is_escaped_everywhere() -> None:
    page = render_html(report_of(EVIL, EVIL))
    outside = Outside()
    outside.feed(page)
    assert outside.found == []
    assert "alert(" in page and "<script" not in page
    assert "\u202e" not in page
    markdown = render_markdown(report_of(EVIL, EVIL))
    assert "<script" not in markdown.replace("\\<", "")


def test_pictures_and_colours_are_checked_before_they_are_shown() -> None:
    report = report_of()
    image = {
        "input_id": "p",
        "width": 3,
        "height": 2,
        "preview": "data:text/html;base64,AAAA",
        "dominant_colours": [
            {"hex": "red;background:url(x)", "fraction": 1},
            {"hex": "#00ff00", "fraction": 0.5},
        ],
    }
    report["detailed_findings"]["statistics"]["images"] = [image]
    page = render_html(report)
    assert "data:text" not in page and "red;" not in page
    assert "background:#00ff00" in page
    image["preview"] = "data:image/png;base64,iVBORw0="
    assert 'src="data:image/png;base64,iVBORw0="' in render_html(report)


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"title": "Only a title"},
        {"title": "Plain", "detailed_findings": {"insights": ["a sentence"], "trends": None}},
        write_report({}, "run-1"),
    ],
)
def test_report_that_lacks_parts_still_gives_a_page(report) -> None:
    assert "<h1>" in render_html(report)
    assert render_markdown(report).startswith("# ")


def test_markdown_has_the_findings_and_a_table_of_columns() -> None:
    markdown = render_markdown(report_of("unit_price"))
    assert "# A title" in markdown
    assert "| unit_price | number | 0% |" in markdown
    assert "- The mean of unit_price per week rises" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {5}


def test_same_report_gives_the_same_page() -> None:
    assert render_html(report_of()) == render_html(report_of())


def test_charts_without_data_are_left_out() -> None:
    assert line_chart([], [], None, "") == ""
    assert line_chart(["a"], [1.0], None, "") == ""
    assert bar_chart([], [], "") == ""
    assert row_bars([], "") == ""
    assert heat_map(["a"], [[1.0]], "") == ""


def test_constant_and_huge_series_are_drawn() -> None:
    for values in ([3.0, 3.0, 3.0], [1e15, 2e15, None, 4e15], [-1e-9, 1e-9], [0.0, 0.0]):
        ET.fromstring(str(line_chart(["x"] * len(values), values, (values[0], 5.0), "t")))


def test_import_of_the_agents_is_light() -> None:
    """A replica that never sees an image must not pay for the libraries that read one."""
    folder = Path(__file__).resolve().parents[3] / "actors" / "agents"
    for path in sorted(folder.glob("*.py")):
        top = re.findall(
            r"^(?:import|from) "
            "(numpy|pandas|cv2|PIL|charset_normalizer|httpx)\b",
            path.read_text(),
            re.M,
        )
        assert top == [], path.name
    assert read_columns([], []) == []
