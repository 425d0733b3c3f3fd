"""The arithmetic of the benchmark report; nothing is measured here."""

from __future__ import annotations

import io

import orjson
import pytest
from rich.console import Console

from benchmarks.report import Bar, Baseline, Figure, Sense, as_json, print_report, spread_of

FASTER = Figure(
    name="engine.chain3",
    title="chain3",
    unit="Runs/s",
    values=(1000.0, 1200.0, 3000.0),
    bar=Bar(Sense.AT_LEAST, 4.0, is_ratio=True),
    baselines=(
        Baseline("plain Ray", (200.0, 400.0, 500.0)),
        Baseline("plain Ray, references", (500.0, 500.0, 500.0)),
    ),
)


def test_spread_is_the_median_and_the_extremes() -> None:
    assert spread_of([3.0, 1.0, 2.0, 10.0]) == (2.5, 1.0, 10.0)


def test_ratio_is_taken_round_by_round_so_that_noise_hits_both() -> None:
    assert FASTER.ratios(FASTER.baselines[0]) == (5.0, 3.0, 6.0)


def test_bar_is_judged_by_the_median_of_ratios_not_by_the_ratio_of_medians() -> None:
    assert spread_of(FASTER.values).median / spread_of(FASTER.baselines[0].values).median == 3.0
    assert FASTER.meets() is True


def test_bar_against_another_baseline_is_judged_for_itself() -> None:
    assert FASTER.meets(FASTER.baselines[1]) is False


def test_baseline_with_a_missing_round_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        FASTER.ratios(Baseline("plain Ray", (1.0, 2.0)))


@pytest.mark.parametrize(
    ("sense", "number", "is_met"),
    [
        (Sense.AT_LEAST, 10.0, True),
        (Sense.AT_LEAST, 9.9, False),
        (Sense.AT_MOST, 10.0, True),
        (Sense.AT_MOST, 10.1, False),
        (Sense.BELOW, 10.0, False),
        (Sense.BELOW, 9.9, True),
    ],
)
def test_bar_holds_its_limit_only_where_its_sense_includes_it(
    sense: Sense, number: float, is_met: bool
) -> None:
    assert Bar(sense, 10.0).is_met_by(number) is is_met


def test_absolute_bar_judges_the_value_whatever_stands_beside_it() -> None:
    figure = Figure("http.submit", "submits", "1/s", (900.0,), Bar(Sense.AT_LEAST, 1000.0), FASTER.baselines)
    assert figure._replace(baselines=()).meets() is False


def test_figure_without_a_bar_is_neither_met_nor_missed() -> None:
    assert FASTER._replace(bar=None).meets() is None


def test_ratio_bar_without_a_baseline_is_neither_met_nor_missed() -> None:
    assert FASTER._replace(baselines=()).meets() is None


def test_json_keeps_every_round_and_every_ratio() -> None:
    document = orjson.loads(orjson.dumps(as_json([FASTER], {"cpu": "two cores"})))
    (figure,) = document["figures"]
    assert document["environment"] == {"cpu": "two cores"}
    assert figure["values"] == [1000.0, 1200.0, 3000.0]
    assert (figure["median"], figure["min"], figure["max"], figure["met"]) == (1200.0, 1000.0, 3000.0, True)
    assert figure["bar"] == {"sense": ">=", "limit": 4.0, "is_ratio": True}
    assert [each["ratio"]["median"] for each in figure["baselines"]] == [5.0, 2.4]
    assert [each["met"] for each in figure["baselines"]] == [True, False]


def test_table_names_what_was_missed() -> None:
    slow = FASTER._replace(name="engine.slow", values=(100.0, 100.0, 100.0), notes=("one of two cores",))
    text = io.StringIO()
    print_report([FASTER, slow], {"cpu": "two cores"}, Console(file=text, width=160))
    assert "1 of 2 bars met" in text.getvalue()
    assert "missed: engine.slow" in text.getvalue()
    assert "one of two cores" in text.getvalue()
    assert ">= 4 x plain Ray" in text.getvalue()
