"""Statistics, held against pandas and against data whose answers are known."""

from __future__ import annotations

import base64
import io
import json
import math

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from actors.agents.data_analysis import DataAnalysis
from actors.agents.data_ingest import DataIngest
from actors.agents.synthesis import Synthesis
from cluster.errors import FailureCode, StepError


async def analyse_one(context, **entry):
    result = await DataAnalysis().execute({"inputs": [{"input_id": "x", **entry}]}, context)
    json.dumps(result, allow_nan=False)
    return next(part for kind in ("tables", "texts", "images", "values", "binaries") for part in result[kind])


async def analyse_table(context, columns):
    return await analyse_one(context, type="json", data=columns)


def column_of(table, name):
    return next(column for column in table["columns"] if column["name"] == name)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


async def test_distribution_agrees_with_pandas(context, samples) -> None:
    orders = json.loads((samples / "sales.json").read_text())
    table = await analyse_table(context, orders)
    frame = pd.DataFrame(orders)
    for name in ("units", "unit_price", "discount_percent", "revenue", "delivery_days", "customer_rating"):
        column, expected = column_of(table, name), pd.to_numeric(frame[name])
        assert column["count"] == expected.count()
        assert column["num_missing"] == expected.isna().sum()
        for key, value in (
            ("mean", expected.mean()),
            ("std", expected.std()),
            ("skewness", expected.skew()),
            ("excess_kurtosis", expected.kurt()),
            ("min", expected.min()),
            ("max", expected.max()),
        ):
            assert column[key] == pytest.approx(value, rel=1e-8)
        assert column["quantiles"]["p25"] == pytest.approx(expected.quantile(0.25))
        histogram = column["histogram"]
        assert sum(histogram["counts"]) + histogram["below"] + histogram["above"] == expected.count()


async def test_correlations_agree_with_pandas_also_with_ties_and_gaps(context, samples) -> None:
    orders = json.loads((samples / "sales.json").read_text())
    pairs = (await analyse_table(context, orders))["correlations"]["pairs"]
    frame = pd.DataFrame(orders)
    assert len(pairs) == 15
    for pair in pairs:
        both = frame[[pair["a"], pair["b"]]].apply(pd.to_numeric).dropna()
        assert pair["num_rows"] == len(both)
        assert pair["pearson"] == pytest.approx(both.corr().iloc[0, 1], abs=1e-9)
        assert pair["spearman"] == pytest.approx(both.rank().corr().iloc[0, 1], abs=1e-9)


async def test_group_effect_agrees_with_pandas(context, samples) -> None:
    orders = json.loads((samples / "sales.json").read_text())
    effects = (await analyse_table(context, orders))["group_effects"]
    effect = next(e for e in effects if (e["category"], e["number"]) == ("category", "revenue"))
    frame = pd.DataFrame(orders)
    means = frame.groupby("category")["revenue"].transform("mean")
    expected = ((means - frame["revenue"].mean()) ** 2).sum() / (
        (frame["revenue"] - frame["revenue"].mean()) ** 2
    ).sum()
    assert effect["eta_squared"] == pytest.approx(expected)
    assert {g["value"]: g["mean"] for g in effect["groups"]} == pytest.approx(
        frame.groupby("category")["revenue"].mean().to_dict()
    )


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1, 5, 2, None], "number"),
        (["1", "5", "2.5", ""], "number"),
        ([True, False, None, True], "boolean"),
        (["red", "blue", "red", "red"], "category"),
        (["2024-01-05", "2024-02-01", "2024-03-01", None], "time"),
        (["31.12.2024", "01.01.2025", "02.01.2025", "03.01.2025"], "time"),
        (["2024-01-05T10:00:00+02:00", "2024-02-01T00:00:00Z", "2024-03-01", None], "time"),
        ([None, None, "", None], "empty"),
        (["a1", "b2", "c3", "d4"], "identifier"),
        (
            [
                "A longer remark about the weather of today",
                "Another one that is just as long as it",
                "Nothing much to say on this one, I fear",
                "The parcel came late but in good order",
            ],
            "text",
        ),
    ],
)
async def test_kind_of_a_column_follows_from_its_cells(context, cells, kind) -> None:
    table = await analyse_table(context, {"c": cells, "other": [1, 2, 3, 4]})
    assert column_of(table, "c")["kind"] == kind


async def test_day_and_month_are_told_apart_by_the_whole_column(context) -> None:
    table = await analyse_table(context, {"d": ["03/04/2024", "05/04/2024", "25/04/2024"], "n": [1, 2, 3]})
    assert (column_of(table, "d")["first"], column_of(table, "d")["last"]) == ("2024-04-03", "2024-04-25")


async def test_epoch_numbers_are_time_only_under_a_name_that_says_so(context) -> None:
    cells = [1_700_000_000 + 60 * n**2 for n in range(12)]
    table = await analyse_table(context, {"created_at": cells, "population": cells})
    assert column_of(table, "created_at")["kind"] == "time"
    assert column_of(table, "population")["kind"] == "number"


async def test_trend_over_time_is_found_in_shuffled_rows(context, rng) -> None:
    days = pd.date_range("2024-01-01", periods=300).strftime("%Y-%m-%d").tolist()
    rows = [
        {"day": day, "up": 10 + 0.1 * n + rng.normal(), "flat": rng.normal()} for n, day in enumerate(days)
    ]
    rng.shuffle(rows)
    table = await analyse_table(context, rows)
    trends = {trend["column"]: trend for trend in table["trends"]}
    assert table["time_column"] == "day"
    assert (trends["up"]["direction"], trends["up"]["strength"]) == ("rising", "strong")
    assert trends["up"]["slope_per_period"] == pytest.approx(0.7, rel=0.1)
    assert trends["up"]["period"] == "week"
    assert trends["flat"]["strength"] == "none"
    assert len(trends["up"]["series"]["values"]) <= 61


async def test_trend_over_rows_is_found_where_there_is_no_time(context) -> None:
    table = await analyse_table(context, {"a": [float(n * n) for n in range(200)], "b": [3.0] * 200})
    assert table["time_column"] is None
    assert [(t["column"], t["direction"]) for t in table["trends"]] == [("a", "rising")]


async def test_twelve_months_make_twelve_periods(context) -> None:
    months = [f"2024-{month:02d}-01" for month in range(1, 13)]
    table = await analyse_table(context, {"m": months, "v": [float(n % 5) for n in range(12)]})
    assert table["trends"][0]["period"] == "month"
    assert table["trends"][0]["series"]["labels"][0] == "2024-01"


async def test_single_typing_error_is_an_outlier_and_does_not_bend_the_trend(context, rng) -> None:
    days = pd.date_range("2024-01-01", periods=200).strftime("%Y-%m-%d").tolist()
    values = [float(50 + rng.normal()) for _ in days]
    values[120] = 5000.0
    table = await analyse_table(context, {"day": days, "v": values})
    outliers = table["outliers"][0]
    assert (outliers["num_outliers"], outliers["rows"][0]["row"], outliers["rows"][0]["value"]) == (
        1,
        120,
        5000.0,
    )
    assert outliers["rows"][0]["at"] == days[120]
    assert table["trends"][0]["strength"] == "none"


async def test_groups_that_hardly_overlap_are_no_outliers_of_each_other(context, rng) -> None:
    kinds = ["cheap"] * 90 + ["dear"] * 30
    prices = [float(10 + rng.normal()) for _ in range(90)] + [float(500 + rng.normal()) for _ in range(30)]
    prices[100] = 600.0
    table = await analyse_table(context, {"kind": kinds, "price": prices})
    assert [row["row"] for row in table["outliers"][0]["rows"]] == [100]
    assert table["outliers"][0]["within"] == "kind"


async def test_missing_cells_that_belong_to_one_group_are_explained(context) -> None:
    channel = ["store", "web"] * 30
    delivery = [None if name == "store" else float(n) for n, name in enumerate(channel)]
    table = await analyse_table(context, {"channel": channel, "delivery": delivery})
    where = column_of(table, "delivery")["missing_where"]
    assert (where["column"], where["value"], where["fraction_of_missing"]) == ("channel", "store", 1.0)


async def test_extreme_tables_give_finite_numbers(context) -> None:
    for data in (
        [{"a": 1}],
        {"a": [1e308, -1e308, 1e308, 0.0, 5.0]},
        {"a": [float(1)] * 20, "b": list(range(20))},
        {"a": [math.nan, 1.0, math.inf, 2.0]},
        {"a": [[], []], "b": [None, None]},
        {"columns": ["a"], "rows": []},
        [{"a": "x" * 500, "b": True}] * 3,
    ):
        await analyse_one(context, type="json", data=data)


TEXTS = {
    "en": "The harbour was quiet in the morning, and the boats had not yet left. We walked along "
    "the water because "
    "it was too early for coffee. When the first shop opened, there was already a line of people before it.",
    "de": "Der Hafen war am Morgen still, und die Boote waren noch nicht ausgelaufen. Wir gingen am "
    "Wasser entlang, "
    "weil es für einen Kaffee zu früh war. Als das erste Geschäft öffnete, standen schon viele Leute davor.",
    "fr": "Le port était calme le matin et les bateaux n'étaient pas encore partis. Nous avons "
    "marché le long de "
    "l'eau parce qu'il était trop tôt pour un café. Quand la boutique a ouvert, il y avait déjà du "
    "monde devant.",
    "es": "El puerto estaba tranquilo por la mañana y los barcos aún no habían salido. Caminamos "
    "junto al agua porque "
    "era muy temprano para un café. Cuando abrió la primera tienda, ya había mucha gente delante de ella.",
    "it": "Il porto era tranquillo la mattina e le barche non erano ancora partite. Abbiamo "
    "camminato lungo l'acqua "
    "perché era troppo presto per un caffè. Quando il primo negozio ha aperto, c'era già molta "
    "gente davanti.",
    "nl": "De haven was stil in de ochtend en de boten waren nog niet vertrokken. Wij liepen langs "
    "het water omdat "
    "het te vroeg was voor koffie. Toen de eerste winkel openging, stonden er al veel mensen voor de deur.",
    "ru": "Утром в гавани было тихо, и лодки ещё не вышли в море. Мы шли вдоль воды.",
    "ja": "朝の港は静かで、船はまだ出ていませんでした。",
    "und": "12 34 56",
}


@pytest.mark.parametrize("code", TEXTS)
async def test_language_is_guessed(context, code) -> None:
    text = await analyse_one(context, type="text", data=TEXTS[code])
    assert text["language"]["code"] == code
    assert (text["readability"] is None) == (code in ("ru", "ja", "und"))


async def test_abbreviations_do_not_end_sentences(context) -> None:
    text = await analyse_one(
        context, type="text", data="Dr. Smith met Mr. Jones at 5 p.m. today. They left! Why? Nobody knows."
    )
    assert text["num_sentences"] == 4


async def test_short_words_read_easier_than_long_ones(context) -> None:
    easy = await analyse_one(context, type="text", data="The cat sat on the mat. It was a big red cat. " * 5)
    hard = await analyse_one(
        context,
        type="text",
        data="Institutional considerations necessitate comprehensive organisational accountability "
        "throughout the "
        "implementation of interdisciplinary environmental legislation and of international administrative "
        "harmonisation initiatives, notwithstanding jurisdictional incompatibilities and the constitutional "
        "limitations of participating representatives. " * 2,
    )
    assert easy["readability"]["flesch_reading_ease"] > 90
    assert hard["readability"]["flesch_reading_ease"] < 0


async def test_key_terms_are_topics_and_not_stop_words(context, samples) -> None:
    text = await analyse_one(context, type="text", data=(samples / "notes.txt").read_text())
    terms = {term["term"] for term in text["key_terms"]}
    assert {"delivery", "east region", "carrier"} <= terms
    assert not terms & {"the", "and", "would", "because"}
    assert text["num_paragraphs"] == 7


def picture(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


async def test_blurred_picture_is_softer_than_the_sharp_one(context, rng) -> None:
    sharp = cv2.resize(
        rng.integers(0, 255, (40, 60, 3)).astype(np.uint8), (600, 400), interpolation=cv2.INTER_NEAREST
    )
    first = await analyse_one(context, type="image", data=picture(sharp))
    second = await analyse_one(context, type="image", data=picture(cv2.GaussianBlur(sharp, (0, 0), 12)))
    assert first["sharpness"]["verdict"] == "sharp"
    assert second["sharpness"]["verdict"] == "soft"
    assert (first["width"], first["height"]) == (600, 400)


async def test_exposure_and_colours_are_measured(context) -> None:
    dark = np.full((100, 100, 3), 12)
    assert (await analyse_one(context, type="image", data=picture(dark)))["exposure"][
        "verdict"
    ] == "underexposed"
    flag = np.zeros((90, 120, 3))
    flag[:60] = (255, 0, 0)
    flag[60:] = (0, 0, 255)
    colours = (await analyse_one(context, type="image", data=picture(flag)))["dominant_colours"]
    assert [colour["hex"] for colour in colours[:2]] == ["#ff0000", "#0000ff"]
    assert colours[0]["fraction"] == pytest.approx(0.667, abs=0.02)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
async def test_every_pixel_mode_is_understood(context, mode) -> None:
    image = Image.new("RGB", (32, 20), (10, 200, 90))
    image = Image.new("I;16", (32, 20), 900) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    result = await analyse_one(context, type="image", data=base64.b64encode(buffer.getvalue()).decode())
    assert (result["width"], result["height"]) == (32, 20)


async def test_same_input_gives_the_same_result_to_the_byte(context, samples) -> None:
    context.input_dirs = (str(samples),)
    inputs = {
        "inputs": [
            {"input_id": "sales", "type": "json", "url": "file:sales.json"},
            {"input_id": "notes", "type": "text", "url": "file:notes.txt"},
            {"input_id": "photo", "type": "image", "url": "file:photo.jpg"},
        ]
    }
    alone = await DataAnalysis().execute(inputs, context)
    chained = await DataAnalysis().execute({"data": await DataIngest().execute(inputs, context)}, context)
    assert json.dumps(alone) == json.dumps(chained)
    fractions = [fraction for fraction, _ in context.told]
    assert fractions[-1] == 1.0


async def test_ingested_data_that_went_to_the_blob_store_is_read_back(context) -> None:
    ingested = await DataIngest().execute({"inputs": [{"type": "text", "data": "words here"}]}, context)
    reference = context.write_blob(json.dumps(ingested).encode(), "application/json")
    assert (await DataAnalysis().execute({"data": reference}, context))["summary"]["num_words"] == 2


async def test_cancelled_analysis_stops_between_its_parts(context, samples) -> None:
    context.input_dirs = (str(samples),)
    context.stop_after = 3
    with pytest.raises(StepError) as caught:
        await DataAnalysis().execute({"inputs": [{"type": "json", "url": "file:sales.json"}]}, context)
    assert caught.value.code == FailureCode.CANCELLED
    assert len(context.told) == 3


@pytest.mark.parametrize(
    "data", [5, {}, {"items": 3}, {"items": [1]}, {"items": [{"input_id": "a", "kind": "table"}]}]
)
async def test_data_that_was_not_ingested_is_refused(context, data) -> None:
    with pytest.raises(StepError) as caught:
        await DataAnalysis().execute({"data": data}, context)
    assert caught.value.code == FailureCode.VALIDATION_ERROR


async def test_outputs_of_many_ingests_count_as_one_in_their_order(context, samples) -> None:
    context.input_dirs = (str(samples),)
    entries = [
        {"input_id": "sales", "type": "json", "url": "file:sales.json"},
        {"input_id": "notes", "type": "text", "url": "file:notes.txt"},
        {"input_id": "photo", "type": "image", "url": "file:photo.jpg"},
    ]
    together = await DataIngest().execute({"inputs": entries}, context)
    each = [await DataIngest().execute({"inputs": [entry]}, context) for entry in entries]
    expected = await DataAnalysis().execute({"data": together}, context)
    assert await DataAnalysis().execute({"data": each}, context) == expected
    stored = [context.write_blob(json.dumps(output).encode(), "application/json") for output in each]
    assert await DataAnalysis().execute({"data": stored}, context) == expected


async def test_unnamed_inputs_of_many_ingests_stay_apart(context) -> None:
    entries = [{"type": "text", "data": text} for text in ("One short text.", "And a second one.")]
    each = [await DataIngest().execute({"inputs": [entry]}, context) for entry in entries]
    result = await DataAnalysis().execute({"data": each}, context)
    assert [text["input_id"] for text in result["texts"]] == ["input-1", "input-1 (2)"]
    assert result["summary"]["num_items"] == 2


async def test_empty_list_of_ingests_is_an_empty_analysis(context) -> None:
    result = await DataAnalysis().execute({"data": []}, context)
    assert result["summary"]["num_items"] == 0


@pytest.mark.parametrize(
    "data", ["text", {"rows": []}, [None], [{"items": []}, {"items": 3}], [{"items": [{}]}]]
)
async def test_what_no_ingest_made_is_refused(context, data) -> None:
    with pytest.raises(StepError, match="data") as raised:
        await DataAnalysis().execute({"data": data}, context)
    assert raised.value.code == FailureCode.VALIDATION_ERROR


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 0.0, 0.0, 0.0, 2.0, 1.1125369292536007e-308],
        [0.0, 0.0, 0.0, 0.0, 2.0, 1.1125369292536007e-308] * 8,
        [-1.7e308, 1.7e308, 0.0, 1.0, 2.0, 1e308] * 8 + [float(n) for n in range(60)],
        [5e-324, 0.0, 1e-323, 1e300, 7.0] * 8 + [float(n) for n in range(60)],
    ],
)
async def test_numbers_at_the_ends_of_what_floats_hold_are_described(context, values) -> None:
    entry = {"input_id": "x", "type": "json", "data": {"a": values, "b": values[::-1]}}
    result = await DataAnalysis().execute({"inputs": [entry]}, context)
    json.dumps(result, allow_nan=False)
    assert column_of(result["tables"][0], "a")["count"] == len(values)
    report = await Synthesis().execute({"analysis": result}, context)
    assert report["executive_summary"]
