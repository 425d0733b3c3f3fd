"""How one field of `Settings` is declared, read from text and checked.

It knows kinds of values (sizes, flags, folders), not one setting, and refuses to look at the environment.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.errors import InvalidSetting

__all__ = [
    "PREFIX",
    "RESERVED",
    "check_range",
    "parse_field",
    "read_flag",
    "read_folders",
    "read_items",
    "read_optional_number",
    "read_optional_path",
    "read_path",
    "read_size",
    "read_text",
    "read_whole",
    "setting",
    "variable_of",
]

PREFIX = "TUTTI_"
"""What the name of every variable of our own begins with."""

RESERVED = "reserved: nothing uses it yet"
"""Ends the meaning of a setting whose name is promised and whose feature is still to come."""

_MIB = 1024 * 1024
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "b": 1, "kib": 1024, "mib": _MIB, "gib": 1024 * _MIB, "tib": 1024 * 1024 * _MIB}
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"", "0", "false", "no", "off"})


def read_text(raw: str) -> str:
    """Take text as it is."""
    return raw


def read_whole(raw: str) -> int:
    """Read a whole number; underscores may part its digits."""
    return int(raw.replace("_", ""))


def read_flag(raw: str) -> bool:
    """Read 1 or 0, or a word for them."""
    if raw.lower() in _YES:
        return True
    if raw.lower() in _NO:
        return False
    raise ValueError("must be 1 or 0")


def read_size(raw: str) -> int:
    """Read bytes: "262144", "256 KiB", "1.5GiB"."""
    found = _SIZE.fullmatch(raw.strip())
    if found is None:
        raise ValueError("must be a number of bytes, or a number with KiB, MiB or GiB")
    return int(float(found[1]) * _SIZE_UNITS[(found[2] or "").lower()])


def read_optional_number(raw: str) -> float | None:
    """Read a number; empty means None."""
    return float(raw) if raw else None


def read_path(raw: str) -> Path:
    """Read a path and make it absolute, so that it means the same in every process."""
    return Path(raw).expanduser().absolute()


def read_optional_path(raw: str) -> Path | None:
    """Read a path; empty means None."""
    return read_path(raw) if raw else None


def read_items(raw: str) -> tuple[str, ...]:
    """Split at commas and blanks."""
    return tuple(item for item in re.split(r"[,\s]+", raw.strip()) if item)


def read_folders(raw: str) -> tuple[str, ...]:
    """Split at colons, as PATH does: a folder's name may hold a comma or a blank."""
    return tuple(str(Path(item).expanduser()) for item in raw.split(os.pathsep) if item)


def setting(
    default: Any,
    parse: Callable[[str], Any],
    meaning: str,
    *,
    unit: str = "",
    special: str = "",
    variable: str = "",
    secret: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declare a field with all that `tutti settings` shows about it."""
    metadata = {
        "parse": parse,
        "meaning": meaning,
        "unit": unit,
        "special": special,
        "variable": variable,
        "secret": secret,
        "minimum": minimum,
        "maximum": maximum,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata, hash=False)
    return dataclasses.field(default=default, metadata=metadata)


def variable_of(field: dataclasses.Field[Any]) -> str:
    """Name the environment variable of a field."""
    return str(field.metadata["variable"] or PREFIX + field.name.upper())


def parse_field(field: dataclasses.Field[Any], raw: str) -> Any:
    """Read a field's value from the text of its variable.

    Raises:
        InvalidSetting: The text cannot be read; a secret is not shown.
    """
    try:
        return field.metadata["parse"](raw)
    except (ValueError, OverflowError) as error:
        kind = {"read_whole": "a whole number", "float": "a number", "read_optional_number": "a number"}
        expected = kind.get(field.metadata["parse"].__name__)
        reason = f"must be {expected}" if expected else str(error) or "is malformed"
        shown = "the value" if field.metadata["secret"] else repr(raw)
        raise InvalidSetting(f"{variable_of(field)}: {shown} cannot be used, it {reason}") from None


def check_range(field: dataclasses.Field[Any], value: Any) -> None:
    """Check a number against the field's bounds; None and fields without bounds pass.

    Raises:
        InvalidSetting: The value is out of range or no finite number.
    """
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    if (low is None and high is None) or value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidSetting(f"{variable_of(field)}: {value!r} is not a finite number")
    if (low is not None and value < low) or (high is not None and value > high):
        allowed = f"between {low} and {high}" if high is not None else f"at least {low}"
        raise InvalidSetting(f"{variable_of(field)}: {value} is out of range, it must be {allowed}")
