"""References to blobs: recognised strictly, resolved in depth, within bounds."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest

from cluster.errors import FailureCode, InvalidInput, NotFound, PayloadTooLarge, StepError
from cluster.model.blob_reference import (
    blob_reference,
    has_reserved_key,
    is_json_media_type,
    is_reference,
    references_in,
    resolve,
)

SEAL = "0f" * 16


class Contents:
    """Blobs by digest, counting reads."""

    def __init__(self) -> None:
        self.content_by_digest: dict[str, bytes] = {}
        self.num_reads = 0

    def put(self, value: Any, media_type: str = "application/json", **more: Any) -> dict[str, Any]:
        content = value if isinstance(value, bytes) else orjson.dumps(value)
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.content_by_digest[digest] = content
        return {**blob_reference(digest, len(content), media_type, SEAL), **more}

    def read(self, reference: dict[str, Any]) -> bytes:
        self.num_reads += 1
        try:
            return self.content_by_digest[reference["$blob"]]
        except KeyError:
            raise NotFound("no such blob") from None


DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    "value", [{"$blob": DIGEST}, blob_reference(DIGEST, 3, "image/png", SEAL), {"$blob": DIGEST, "path": "a"}]
)
def test_a_reference_is_recognised(value: Any) -> None:
    assert is_reference(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        DIGEST,
        [DIGEST],
        {},
        {"$blob": 1},
        {"$blob": "sha256:" + "0A" * 32},
        {"$blob": "sha256:" + "0a" * 31},
        {"$blob": DIGEST + "\n"},
        {"$blob": "../../etc/passwd"},
        {"$blob": DIGEST, "other": 1},
        {"$blob": DIGEST, "path": ["a"]},
        {"$blob": DIGEST, "size_bytes": "1"},
        {"$blob": DIGEST, "size_bytes": True},
        {"$blob": DIGEST, "media_type": None},
        {"$blob": DIGEST, "seal": 1},
    ],
)
def test_what_only_looks_like_a_reference_is_none(value: Any) -> None:
    assert not is_reference(value)


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/problem+json", True),
        ("text/plain", False),
        ("application/jsonl", False),
        (None, False),
    ],
)
def test_json_is_told_by_its_media_type(media_type: Any, expected: bool) -> None:
    assert is_json_media_type(media_type) is expected


def test_digests_are_listed_once_in_order() -> None:
    other = "sha256:" + "1b" * 32
    value = {"a": [{"$blob": other}, 1], "b": {"c": {"$blob": DIGEST}}, "d": {"$blob": other}}
    assert references_in(value) == [other, DIGEST]
    assert references_in({"a": [1, "x", None]}) == []


def test_json_blobs_are_put_in_place_and_others_stay() -> None:
    contents = Contents()
    image = contents.put(b"\x89PNG", "image/png")
    rows = contents.put([1, {"x": 2}])
    value = {"rows": rows, "image": image, "again": [rows], "plain": {"k": None}}
    resolved = resolve(value, contents.read)
    assert resolved == {"rows": [1, {"x": 2}], "image": image, "again": [[1, {"x": 2}]], "plain": {"k": None}}
    assert value["rows"] is rows
    assert contents.num_reads == 1
    resolved["rows"][1]["x"] = 3
    assert resolved["again"] == [[1, {"x": 2}]]


def test_a_value_without_references_comes_back_as_it_is() -> None:
    value = {"a": [1, 2]}
    assert resolve(value, Contents().read) is value


def test_a_path_leads_into_the_content() -> None:
    contents = Contents()
    content = {"a": {"b": [{"c": 7}, None]}}
    assert resolve(contents.put(content, path="a.b.0.c"), contents.read) == 7
    assert resolve(contents.put(content, path="a.b.1.c.d"), contents.read) is None
    assert resolve(contents.put(content, path=""), contents.read) == content


@pytest.mark.parametrize("path", ["x", "a.x", "a.b.9", "a.b.x", "a.b.0.c.d"])
def test_a_path_that_leads_nowhere_is_a_validation_error(path: str) -> None:
    contents = Contents()
    with pytest.raises(StepError, match="nothing at") as error:
        resolve(contents.put({"a": {"b": [{"c": 7}]}}, path=path), contents.read)
    assert error.value.code == FailureCode.VALIDATION_ERROR


def test_blobs_inside_blobs_are_resolved_also_on_a_path() -> None:
    contents = Contents()
    inner = contents.put({"x": [5, 6]})
    outer = contents.put({"inner": inner, "sub": {**inner, "path": "x"}})
    assert resolve(outer, contents.read) == {"inner": {"x": [5, 6]}, "sub": [5, 6]}
    assert resolve({**outer, "path": "inner.x.1"}, contents.read) == 6
    assert resolve({**outer, "path": "sub.0"}, contents.read) == 5


def test_a_value_nested_deeper_than_the_stack_is_resolved() -> None:
    contents = Contents()
    value: Any = contents.put([1])
    for _ in range(5000):
        value = [value]
    resolved = resolve(value, contents.read)
    for _ in range(5000):
        resolved = resolved[0]
    assert resolved == [1]


def test_blobs_that_name_blobs_many_times_are_cut_off() -> None:
    """Ten levels of ten references each are a kilobyte apiece and ten thousand million values together."""
    contents = Contents()
    value: Any = contents.put(["x" * 100])
    for _ in range(10):
        value = contents.put([value] * 10)
    with pytest.raises(PayloadTooLarge):
        resolve(value, contents.read, max_bytes=1 << 20)


def test_a_json_blob_that_is_none_is_a_validation_error() -> None:
    contents = Contents()
    with pytest.raises(StepError, match="says it is JSON but is not"):
        resolve(contents.put(b"{oops"), contents.read)


def test_a_missing_blob_is_told_by_its_reader() -> None:
    with pytest.raises(NotFound):
        resolve(blob_reference(DIGEST, 1, "application/json", SEAL), Contents().read)


def test_a_reference_that_its_reader_has_not_made_is_a_validation_error() -> None:
    def refuse(_reference: dict[str, Any]) -> bytes:
        raise InvalidInput("not a reference that this service has made")

    with pytest.raises(StepError, match="not a reference that this service has made") as error:
        resolve(blob_reference(DIGEST, 1, "application/json", SEAL), refuse)
    assert (error.value.code, error.value.retryable) == (FailureCode.VALIDATION_ERROR, False)


@pytest.mark.parametrize(
    "value",
    [{"$blob": 1}, [{"a": {"$blob": {"$ref": "inputs.x"}}}], {"$blob": None, "x": 1}, ({"$blob": ""},)],
)
def test_reserved_key_is_found_at_any_depth_and_with_any_value(value: Any) -> None:
    assert has_reserved_key(value)


@pytest.mark.parametrize("value", [None, "$blob", ["$blob"], {"a": "$blob", "blob": 1}])
def test_reserved_word_that_is_no_key_is_harmless(value: Any) -> None:
    assert not has_reserved_key(value)
