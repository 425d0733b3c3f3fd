"""Moves what is too large to stand inline in a Run's inputs into the blob store, before the Run is submitted.

Agents meet a reference where the value stood. The store of blobs has synced a value when its reference is
handed out, so an accepted Run never names bytes that are not there.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Protocol

import orjson

from cluster.model.plan import Json

__all__ = ["BlobWriter", "offload_inputs"]

_JSON = "application/json"


class BlobWriter(Protocol):
    """The part of the blob store that is used here."""

    def put(self, content: bytes, media_type: str) -> dict[str, Any]:
        """Store bytes, synced, and return their reference."""


def offload_inputs(inputs: Json, blobs: BlobWriter, limit_bytes: int) -> Json:
    """Return the inputs with large values replaced by references. Blocks on the disk; call it in a thread.

    Input elements (`{"inputs": [{"data": …}]}`) give up their data, largest first; then top-level values,
    largest first; at last the whole.

    Args:
        inputs: JSON whose encoding is over the limit.
        blobs: Where to.
        limit_bytes: Largest encoding that may stay inline.
    """
    if not isinstance(inputs, dict):
        return _put_json(inputs, blobs) if _size(inputs) > limit_bytes else inputs
    slim = dict(inputs)
    elements = inputs.get("inputs")
    if isinstance(elements, list) and all(isinstance(each, dict) and "data" in each for each in elements):
        slim["inputs"] = _offload_elements(elements, blobs, limit_bytes - _size({**inputs, "inputs": []}))
    total_bytes = _size(slim)
    if total_bytes <= limit_bytes:
        return slim
    for name, value in sorted(slim.items(), key=lambda pair: _size(pair[1]), reverse=True):
        saved_bytes = _size(value)
        if saved_bytes <= limit_bytes // 16:
            break
        slim[name] = _put_json(value, blobs)
        total_bytes += _size(slim[name]) - saved_bytes
        if total_bytes <= limit_bytes:
            return slim
    return _put_json(inputs, blobs)


def _offload_elements(
    elements: list[dict[str, Any]], blobs: BlobWriter, room_bytes: int
) -> list[dict[str, Any]]:
    slim = [dict(each) for each in elements]
    sizes = [_size(each["data"]) for each in elements]
    total_bytes = sum(_size(each) for each in elements)
    for index in sorted(range(len(slim)), key=sizes.__getitem__, reverse=True):
        if total_bytes <= room_bytes:
            break
        slim[index]["data"] = _put_data(elements[index], blobs)
        total_bytes += _size(slim[index]["data"]) - sizes[index]
    return slim


def _put_data(element: dict[str, Any], blobs: BlobWriter) -> dict[str, Any]:
    """Base64 is stored as the bytes it stands for, JSON text as it is, all else as the JSON value it was."""
    data = element["data"]
    if isinstance(data, str) and element.get("encoding") == "base64" and not data.startswith("data:"):
        try:
            return blobs.put(base64.b64decode(data, validate=True), "application/octet-stream")
        except binascii.Error:
            pass  # the agent says what is wrong with it
    if isinstance(data, str) and element.get("encoding") == "json":
        return blobs.put(data.encode(), _JSON)
    return _put_json(data, blobs)


def _put_json(value: Json, blobs: BlobWriter) -> dict[str, Any]:
    return blobs.put(orjson.dumps(value), _JSON)


def _size(value: Json) -> int:
    return len(orjson.dumps(value))
