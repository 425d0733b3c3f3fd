"""Encodes what Python code hands in, and refuses what the encoder would quietly make something else of.

JSON has neither NaN nor infinity (they would become null), and its keys are strings (1 and "1" would become
one). Looking costs next to nothing where all is well: only an encoding with a `null` in it can hide a number
that is none.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from enum import Enum
from math import isfinite
from typing import Any

import msgspec
import orjson

__all__ = ["check_strictly", "encode_strictly"]

_PLAIN = frozenset({str, int, bool, type(None), bytes})


def encode_strictly(value: object, *, sort_keys: bool = False, numpy: bool = False) -> bytes:
    """Encode a value as JSON, all of it or nothing.

    Args:
        value: Builtins, dataclasses, enums, dates, UUIDs.
        sort_keys: Whether equal objects get equal bytes.
        numpy: Whether arrays and numbers of numpy count as JSON.

    Raises:
        TypeError: It holds what is no JSON, a number that is not finite or a key that is no string, or is
            nested too deep; one line says what.
    """
    option = (orjson.OPT_SORT_KEYS if sort_keys else 0) | (orjson.OPT_SERIALIZE_NUMPY if numpy else 0)
    try:
        raw = orjson.dumps(value, option=option)
    except TypeError as error:
        if not str(error).startswith("Dict key"):
            raise
        # A key of a subclass of str is a string all the same.
        check_strictly(value)
        return orjson.dumps(value, option=option | orjson.OPT_NON_STR_KEYS)
    if b"null" in raw:
        check_strictly(value)
    return raw


def check_strictly(value: object) -> None:
    """Refuse numbers that are not finite and keys that are no strings, wherever they stand.

    Args:
        value: What an encoder has taken, so that it is known to be no circle; msgspec's structs too.

    Raises:
        TypeError: It holds one.
    """
    pending: list[Any] = [value]
    while pending:
        node = pending.pop()
        kind = type(node)
        if kind in _PLAIN:
            continue
        if kind is float:
            if not isfinite(node):
                raise TypeError(f"{node} is no JSON number")
        elif isinstance(node, dict):
            for key in node:
                if not isinstance(key, str):
                    raise TypeError(f"the key {_short(key)} is no string")
            pending.extend(node.values())
        elif isinstance(node, list | tuple):
            pending.extend(node)
        else:
            pending.extend(_parts(node))


def _parts(node: Any) -> Iterable[Any]:
    """What a rarer value is made of, as far as it can hide a number."""
    if isinstance(node, float):
        return (float(node),)
    if isinstance(node, Enum):
        return (node.value,)
    if dataclasses.is_dataclass(node):
        return [getattr(node, field.name) for field in dataclasses.fields(node)]
    if isinstance(node, msgspec.Struct):
        return [getattr(node, name) for name in node.__struct_fields__]
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        if isinstance(node, numpy.floating):
            return (float(node),)
        if isinstance(node, numpy.ndarray) and node.dtype.kind == "f":
            return [float(each) for each in node[~numpy.isfinite(node)][:1]]
    return ()


def _short(key: object) -> str:
    return f"of type {type(key).__name__}"
