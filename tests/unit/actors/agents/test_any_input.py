"""Whatever comes in, there is a report and a page, or a refusal that names the input."""

from __future__ import annotations

import asyncio
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.agents.synthesis import Synthesis
from cluster.errors import FailureCode, StepError
from serve_app.report_pages import render_html, render_markdown

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=12),
    st.sampled_from(["2024-01-01", "2024-02-30", "1", "-3.5", "0001", "31.12.1999", "9999-12-31T23:59:59Z"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
)
names = st.sampled_from(["a", "b", "created_at", "year", "", "c\n"])
records = st.lists(st.dictionaries(names, scalars, max_size=4), min_size=1, max_size=40)
columns = st.integers(1, 30).flatmap(
    lambda size: st.dictionaries(
        names,
        st.one_of(
            st.lists(st.floats(-1e9, 1e9), min_size=size, max_size=size),
            st.lists(st.integers(-3, 3), min_size=size, max_size=size),
            st.lists(st.sampled_from(["x", "y", None]), min_size=size, max_size=size),
            st.lists(st.dates().map(str), min_size=size, max_size=size),
        ),
        min_size=1,
        max_size=4,
    )
)
entries = st.one_of(
    st.builds(lambda data: {"type": "json", "data": data}, st.one_of(values, records, columns)),
    st.builds(
        lambda data, kind: {"type": "text", "data": data, "metadata": {"format": kind}},
        st.one_of(st.text(max_size=200), st.text(alphabet='a1,;"\n\t .', max_size=200)),
        st.sampled_from(["csv", "text", "json", "jsonl", ""]),
    ),
)


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(entry=entries)
def test_any_input_ends_in_a_report_and_a_page_or_in_a_clear_refusal(context, entry) -> None:
    try:
        report = asyncio.run(Synthesis().execute({"inputs": [entry]}, context))
    except StepError as error:
        assert error.code == FailureCode.VALIDATION_ERROR
        assert "input-1" in error.message
        return
    report = json.loads(json.dumps(report, allow_nan=False))
    assert "<h1>" in render_html(report)
    assert render_markdown(report).startswith("# ")
