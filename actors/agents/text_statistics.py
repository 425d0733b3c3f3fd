"""Statistics of a text: its size, language, readability, key terms and key sentences.

All of it is counting and weighing of the text's own words. It refuses to invent a summary: key sentences are
the text's own.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from actors.agents.languages import LANGUAGES, Language, guess_language
from actors.agents.rounding import rounded
from cluster.model.plan import Json

__all__ = ["describe_text"]

_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+(?=[\"'“‘«(\[¿¡]*[A-ZÀ-ÞĀ-ŽΑ-ΩА-Я0-9])|(?<=[。！？])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|vs|etc|approx|No|Nr|Abb|bzw|ca|vgl|Fig|Inc|Ltd|Jr|Sr|e\.g|i\.e|z\.B)\.)$"
)
_READING_WORDS_PER_MINUTE = 230
_MAX_TERMS = 15
_MAX_KEY_SENTENCES = 3
_EASE_LEVELS = (
    (80.0, "very easy"),
    (65.0, "easy"),
    (50.0, "plain"),
    (30.0, "difficult"),
)


def describe_text(item: dict[str, Json]) -> dict[str, Json]:
    """Describe a text.

    Args:
        item: A text of the ingest: `input_id`, `text`.

    Returns:
        `{input_id, num_characters, num_words, num_distinct_words, num_sentences, num_paragraphs,
        lexical_diversity, mean_sentence_words, longest_sentence_words, sentence_lengths, reading_minutes,
        language, readability, key_terms, key_sentences}`.
    """
    text = str(item["text"])
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    sentences_by_paragraph = [_sentences(paragraph) for paragraph in paragraphs]
    sentences = [sentence for part in sentences_by_paragraph for sentence in part]
    words_by_sentence = [[word.lower() for word in _WORD.findall(sentence)] for sentence in sentences]
    words_by_sentence = [words for words in words_by_sentence if words]
    words = [word for part in words_by_sentence for word in part]
    guess = guess_language(text, words)
    language = LANGUAGES.get(guess.code)
    lengths = [len(part) for part in words_by_sentence]
    terms = _key_terms(paragraphs, sentences, language)
    return {
        "input_id": item["input_id"],
        **({"name": item["name"]} if item.get("name") else {}),
        "num_characters": len(text),
        "num_words": len(words),
        "num_distinct_words": len(set(words)),
        "num_sentences": len(words_by_sentence),
        "num_paragraphs": len(paragraphs),
        # Over the first thousand words, as longer texts repeat themselves more.
        "lexical_diversity": rounded(len(set(words[:1000])) / len(words[:1000])) if words else None,
        "mean_word_length": rounded(sum(map(len, words)) / len(words)) if words else None,
        "mean_sentence_words": rounded(sum(lengths) / len(lengths)) if lengths else None,
        "longest_sentence_words": max(lengths, default=0),
        "sentence_lengths": _length_histogram(lengths),
        "reading_minutes": rounded(len(words) / _READING_WORDS_PER_MINUTE),
        "language": {"code": guess.code, "name": guess.name, "confidence": guess.confidence},
        "readability": _readability(words, len(words_by_sentence), language),
        "key_terms": terms,
        "key_sentences": _key_sentences(sentences, terms),
    }


def _sentences(paragraph: str) -> list[str]:
    flat = " ".join(paragraph.split())
    pieces = [piece.strip() for piece in _SENTENCE_END.split(flat) if piece and piece.strip()]
    joined: list[str] = []
    for piece in pieces:
        if joined and _ABBREVIATION.search(joined[-1]):
            joined[-1] = f"{joined[-1]} {piece}"
        else:
            joined.append(piece)
    return joined


def _length_histogram(lengths: list[int]) -> dict[str, Json]:
    if not lengths:
        return {"edges": [], "counts": []}
    width = max(1, math.ceil((max(lengths) + 1) / 12))
    num_bins = max(lengths) // width + 1
    counts = [0] * num_bins
    for length in lengths:
        counts[length // width] += 1
    return {"edges": [width * position for position in range(num_bins + 1)], "counts": counts}


def _readability(words: list[str], num_sentences: int, language: Language | None) -> dict[str, Json] | None:
    """Flesch reading ease with the language's own constants; None where there are none or under 30 words."""
    if language is None or language.reading_ease is None or len(words) < 30 or not num_sentences:
        return None
    constant, per_word, per_syllable = language.reading_ease
    is_english = language.name == "English"
    num_syllables = sum(_syllables(word, language.vowels, is_english=is_english) for word in words)
    words_per_sentence, syllables_per_word = len(words) / num_sentences, num_syllables / len(words)
    ease = constant - per_word * words_per_sentence - per_syllable * syllables_per_word
    level = next((name for least, name in _EASE_LEVELS if ease >= least), "very difficult")
    grade = 0.39 * words_per_sentence + 11.8 * syllables_per_word - 15.59 if is_english else None
    return {
        "flesch_reading_ease": rounded(round(ease, 2)),
        # Source: Kincaid et al., Navy Research Branch Report 8-75 (1975); made for English only.
        "flesch_kincaid_grade": None if grade is None else rounded(round(grade, 2)),
        "level": level,
        "formula_language": language.name,
        "syllables_per_word": rounded(round(syllables_per_word, 4)),
    }


def _syllables(word: str, vowels: str, *, is_english: bool) -> int:
    """Count groups of vowels; English words lose a silent final e, but not after l (ta-ble)."""
    groups = len(re.findall(f"[{vowels}]+", word))
    if is_english and len(word) > 3 and _has_silent_end(word):
        groups -= 1
    return max(1, groups)


def _has_silent_end(word: str) -> bool:
    if word.endswith("es"):
        return word[-3] not in "aeiouyszxc" and not word.endswith(("shes", "ches"))
    if word.endswith("ed"):
        return word[-3] not in "aeiouytd"
    if word.endswith("le"):
        return word[-3] in "aeiouy"
    return word.endswith("e") and word[-2] not in "aeiouy"


def _key_terms(
    paragraphs: list[str], sentences: list[str], language: Language | None
) -> list[dict[str, Json]]:
    """Weigh words and pairs of words: how often, times how much they belong to few parts (tf-idf over the
    parts)."""
    parts = paragraphs if len(paragraphs) >= 4 else sentences
    stop_words = language.stop_words if language else frozenset()
    counts: Counter[str] = Counter()
    num_parts_with: Counter[str] = Counter()
    singulars = _singulars(parts)
    for part in parts:
        terms = _terms(part, stop_words, singulars)
        counts.update(terms)
        num_parts_with.update(set(terms))
    scored: list[tuple[float, str]] = []
    for term, count in counts.items():
        is_pair = " " in term
        if is_pair and count < 2:
            continue
        rarity = math.log((1 + len(parts)) / (1 + num_parts_with[term])) + 1
        scored.append((count * rarity * (1.6 if is_pair else 1.0), term))
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    chosen: list[tuple[float, str]] = []
    for score, term in scored:
        # A word that is told already by a stronger pair, and as often, would only repeat it.
        if any(term in other.split() and counts[term] <= counts[other] for _, other in chosen):
            continue
        chosen.append((score, term))
        if len(chosen) == _MAX_TERMS:
            break
    return [{"term": term, "score": rounded(score), "count": counts[term]} for score, term in chosen]


def _singulars(parts: list[str]) -> dict[str, str]:
    """Map words to the same word without its last s where the text has both, so that they count as one."""
    seen = {_plain(word) for part in parts for word in _WORD.findall(part)}
    return {word: word[:-1] for word in seen if len(word) > 3 and word.endswith("s") and word[:-1] in seen}


def _plain(word: str) -> str:
    return word.lower().replace("’", "'").removesuffix("'s")


def _terms(part: str, stop_words: frozenset[str], singulars: dict[str, str]) -> list[str]:
    terms: list[str] = []
    for clause in re.split(r"[.,;:!?()\[\]\"“”—–\n]+\s*", part):
        previous = ""
        for match in _WORD.findall(clause):
            word = _plain(match)
            word = singulars.get(word, word)
            if word in stop_words or len(word) < 3:
                previous = ""
                continue
            terms.append(word)
            if previous:
                terms.append(f"{previous} {word}")
            previous = word
    return terms


def _key_sentences(sentences: list[str], terms: list[dict[str, Json]]) -> list[str]:
    """Pick the sentences that hold most of the key terms, damped by length, and give them in the text's
    order."""
    if len(sentences) < 4:
        return []
    weights = {str(term["term"]): float(term["score"]) for term in terms}
    scored: list[tuple[float, int]] = []
    for position, sentence in enumerate(sentences):
        words = [word.lower() for word in _WORD.findall(sentence)]
        if not 6 <= len(words) <= 45:
            continue
        found = f" {' '.join(words)} "
        weight = sum(score for term, score in weights.items() if f" {term} " in found)
        scored.append((weight / math.sqrt(len(words)), position))
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    return [
        sentences[position] for position in sorted(position for _, position in scored[:_MAX_KEY_SENTENCES])
    ]
