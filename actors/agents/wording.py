"""How numbers and names stand in a sentence. It refuses to compute: it rounds for the eye and nothing
else."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["in_words", "plural", "say_list", "say_number", "say_share"]

_SMALL_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def say_number(value: float | None) -> str:
    """Write a number with about three significant digits, or all of a whole one: 1,234 and 12.3 and
    0.0123."""
    if value is None:
        return "unknown"
    size = abs(value)
    if float(value).is_integer() and size < 1e15:
        return f"{int(value):,}"
    if size >= 1000:
        return f"{value:,.0f}"
    if size < 0.001 or size >= 1e15:
        return f"{value:.2e}"
    digits = 1 if size >= 100 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}".rstrip("0").rstrip(".")


def say_share(fraction: float | None) -> str:
    """Write a fraction as a percentage: 0.0312 is 3.1%."""
    if fraction is None:
        return "unknown"
    percent = abs(fraction) * 100
    sign = "-" if fraction < 0 else ""
    if 0 < percent < 0.1:
        return f"{sign}under 0.1%"
    return f"{sign}{percent:,.1f}".removesuffix(".0") + "%"


def plural(count: float, noun: str, nouns: str = "") -> str:
    """Write a count with its noun: 1 row, 1,500 rows."""
    return f"{say_number(count)} {noun if count == 1 else nouns or noun + 's'}"


def in_words(count: int) -> str:
    """Write a small count as a word."""
    return _SMALL_NUMBERS[count] if 0 <= count < len(_SMALL_NUMBERS) else say_number(count)


def say_list(parts: Sequence[str]) -> str:
    """Join: a, b and c."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
