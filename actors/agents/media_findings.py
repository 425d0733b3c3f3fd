"""What the statistics of texts, images and other values say, in sentences; and what inputs have in common.

The rules are those of `table_findings`: no number that is not in the analysis, no causes.
"""

from __future__ import annotations

import re
from typing import Any

from actors.agents.table_findings import Findings, finding
from actors.agents.wording import plural, say_list, say_number, say_share

__all__ = ["find_in_image", "find_in_text", "find_in_value", "find_links"]


def find_in_text(text: dict[str, Any], name: str, found: Findings) -> None:
    """Add what a text's statistics say."""
    language, ease = text["language"], text["readability"]
    written = f" in {language['name']}" if language["code"] != "und" else ""
    statement = (
        f"{name} is a text{written} of {plural(text['num_words'], 'word')} in "
        f"{plural(text['num_sentences'], 'sentence')} "
        f"and {plural(text['num_paragraphs'], 'paragraph')}, about "
        f"{say_number(round(text['reading_minutes'], 1))} "
        "minutes of reading"
    )
    evidence = {key: text[key] for key in ("num_words", "num_sentences", "num_paragraphs", "reading_minutes")}
    if ease:
        score = ease["flesch_reading_ease"]
        statement += f"; its reading level is {ease['level']} (Flesch {say_number(score)})"
        evidence |= {"flesch_reading_ease": score, "level": ease["level"]}
    found.insights.append(finding(text, name, f"{statement}.", 0.5, evidence))
    terms = [str(term["term"]) for term in text["key_terms"][:5] if term["count"] > 1]
    if terms:
        statement = f"{name} is mostly about {say_list(terms)}."
        found.insights.append(finding(text, name, statement, 0.6, {"key_terms": text["key_terms"][:5]}))
    if text["key_sentences"]:
        sentence = text["key_sentences"][0]
        found.insights.append(
            finding(
                text, name, f"The most telling sentence of {name}: “{sentence}”", 0.4, {"sentence": sentence}
            )
        )
    if ease and ease["flesch_reading_ease"] < 30:
        found.anomalies.append(
            finding(
                text,
                name,
                f"{name} is very hard to read.",
                0.5,
                {"flesch_reading_ease": ease["flesch_reading_ease"]},
            )
        )
        found.recommendations.append(
            (
                0.5,
                f"Shorten the sentences of {name}: they have "
                f"{say_number(text['mean_sentence_words'])} words on average.",
            )
        )
    if text["longest_sentence_words"] >= 50:
        statement = f"The longest sentence of {name} has {plural(text['longest_sentence_words'], 'word')}."
        found.anomalies.append(
            finding(text, name, statement, 0.3, {"longest_sentence_words": text["longest_sentence_words"]})
        )
    if text["num_words"] < 20:
        statement = (
            f"{name} has only {plural(text['num_words'], 'word')}: too little for key terms "
            f"or a language to be sure."
        )
        found.anomalies.append(finding(text, name, statement, 0.4, {"num_words": text["num_words"]}))


def find_in_image(image: dict[str, Any], name: str, found: Findings) -> None:
    """Add what an image's statistics say."""
    sharpness, exposure, contrast = image["sharpness"], image["exposure"], image["contrast"]
    colours = image["dominant_colours"]
    statement = (
        f"{name} is a {image['format'].upper()} of {image['width']} x {image['height']} pixels; it is "
        f"{sharpness['verdict']}, its exposure is {exposure['verdict']} and its contrast "
        f"{contrast['verdict']}"
    )
    if colours:
        statement += f". Its main colour, {colours[0]['hex']}, covers {say_share(colours[0]['fraction'])}"
    evidence = {
        "width": image["width"],
        "height": image["height"],
        "laplacian_variance": sharpness["laplacian_variance"],
        "mean_luminance": exposure["mean_luminance"],
        "rms_contrast": contrast["rms"],
        "dominant_colours": colours[:1],
    }
    found.insights.append(finding(image, name, f"{statement}.", 0.5, evidence))
    if sharpness["verdict"] != "sharp":
        value = sharpness["laplacian_variance"]
        statement = f"{name} is {sharpness['verdict']}: the variance of its Laplacian is {say_number(value)}."
        found.anomalies.append(finding(image, name, statement, 0.6, dict(sharpness)))
        found.recommendations.append((0.5, f"Take {name} again with a steadier hand or a closer focus."))
    if exposure["verdict"] != "balanced":
        statement = (
            f"The exposure of {name} is off ({exposure['verdict']}): mean luminance "
            f"{say_number(exposure['mean_luminance'])} "
            f"of 255, {say_share(exposure['shadow_fraction'])} of its pixels black, "
            f"{say_share(exposure['highlight_fraction'])} white."
        )
        found.anomalies.append(finding(image, name, statement, 0.6, dict(exposure)))
        found.recommendations.append((0.5, f"Correct the exposure of {name}."))
    if contrast["verdict"] == "low":
        statement = (
            f"{name} has little contrast: its luminance spreads by {say_number(contrast['rms'])} only."
        )
        found.anomalies.append(finding(image, name, statement, 0.4, dict(contrast)))
    if max(image["width"], image["height"]) < 320:
        found.anomalies.append(
            finding(
                image, name, f"{name} is small: {image['width']} x {image['height']} pixels.", 0.3, evidence
            )
        )


def find_in_value(value: dict[str, Any], name: str, found: Findings) -> None:
    """Add what can be said of JSON that is no table."""
    entries = (
        f" with {plural(value['num_entries'], 'entry', 'entries')}"
        if value["num_entries"] is not None
        else ""
    )
    statement = f"{name} is a JSON {value['value_type']}{entries}, {plural(value['depth'], 'level')} deep."
    found.insights.append(
        finding(value, name, statement, 0.2, {"num_entries": value["num_entries"], "depth": value["depth"]})
    )


def find_links(
    texts: list[dict[str, Any]], tables: list[dict[str, Any]], names: dict[str, str], found: Findings
) -> None:
    """Say which key terms of a text are columns or categories of a table."""
    for text in texts:
        terms = [str(term["term"]) for term in text["key_terms"]]
        for table in tables:
            links: dict[str, str] = {}
            for column in table["columns"]:
                if column["kind"] == "identifier":
                    continue
                words = set(re.findall(r"[a-z]{4,}", str(column["name"]).lower()))
                values = {str(top["value"]).lower() for top in column.get("top", [])}
                for term in terms:
                    if words & set(term.split()) or any(word in values for word in (term, *term.split())):
                        links.setdefault(str(column["name"]), term)
            if links:
                pairs = [f"{column} (“{term}”)" for column, term in list(links.items())[:5]]
                statement = (
                    f"{names[text['input_id']]} and {names[table['input_id']]} speak of the same "
                    f"things: the text's key "
                    f"terms meet the {'column' if len(pairs) == 1 else 'columns'} {say_list(pairs)}."
                )
                found.insights.append(
                    finding(text, "common ground", statement, 0.65, {"terms_by_column": links})
                )
