import dataclasses
import enum
import math

import numpy as np
import orjson
import pytest

from cluster.model.strict_json import encode_strictly


@dataclasses.dataclass
class _Reading:
    value: float


class _Name(str):
    __slots__ = ()


class _Level(enum.Enum):
    UNKNOWN = math.nan


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        {"a": [1, {"b": math.inf}]},
        (1.0, (-math.inf,)),
        [_Reading(math.nan)],
        {"level": _Level.UNKNOWN},
        {"a": None, "b": np.float64("nan")},
        {"a": np.float32("inf")},
        {"rows": np.array([[1.0, 2.0], [3.0, math.nan]])},
        np.array([math.inf], dtype=np.float16),
    ],
    ids=repr,
)
def test_number_that_is_not_finite_is_refused_wherever_it_stands(value):
    with pytest.raises(TypeError, match="no JSON number"):
        encode_strictly(value, numpy=True)


@pytest.mark.parametrize("key", [1, 1.5, None, True, (1, 2)])
def test_key_that_is_no_string_is_refused(key):
    with pytest.raises(TypeError, match="is no string"):
        encode_strictly({"a": [{key: 1}]})


def test_key_of_a_kind_of_string_is_taken_but_its_value_is_still_looked_at():
    assert encode_strictly({_Name("a"): 1}) == b'{"a":1}'
    with pytest.raises(TypeError, match="no JSON number"):
        encode_strictly({_Name("a"): math.nan})


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": None, "null": "null", "b": [1.5, True, "x", None]},
        {"a": np.array([1.5, 2.5]), "b": None, "c": np.array([1, 2]), "d": np.float32(0.5)},
    ],
    ids=repr,
)
def test_null_that_was_meant_is_kept(value):
    raw = encode_strictly(value, numpy=True)
    assert raw == orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def test_what_is_no_json_at_all_is_refused():
    with pytest.raises(TypeError):
        encode_strictly({"a": object()})
    with pytest.raises(TypeError):
        encode_strictly(np.array([1.0]))
