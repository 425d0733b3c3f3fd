"""References to blobs inside JSON values: what they look like, where they stand, what they become.

A reference is `{"$blob": "sha256:<64 hex>", "size_bytes": n, "media_type": "…", "seal": "<32 hex>"}`, with an
optional `"path"`: a dotted way into the decoded content of a JSON blob. The seal shows that the store of
blobs has made it: who only knows or guesses a digest has no reference. This file refuses to know where the
bytes are: the caller passes `read`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import orjson

from cluster.errors import FailureCode, InvalidInput, PayloadTooLarge, StepError
from cluster.model.plan import Json

__all__ = [
    "MAX_RESOLVED_BYTES",
    "RESERVED_KEY",
    "blob_reference",
    "has_reserved_key",
    "is_json_media_type",
    "is_reference",
    "references_in",
    "reserved_objects",
    "resolve",
]

MAX_RESOLVED_BYTES = 512 << 20
"""Bytes one `resolve` decodes at most: a small value may name a blob many times, and that one others."""

RESERVED_KEY = "$blob"
"""No object of a client's may have this key, whatever stands beside or below it."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TYPES: dict[str, type] = {"$blob": str, "size_bytes": int, "media_type": str, "seal": str, "path": str}


def blob_reference(digest: str, size_bytes: int, media_type: str, seal: str) -> dict[str, Any]:
    """Build a reference."""
    return {"$blob": digest, "size_bytes": size_bytes, "media_type": media_type, "seal": seal}


def is_reference(value: object) -> TypeGuard[dict[str, Any]]:
    """Say whether a value is a reference: an object with a well-formed digest, no foreign keys, and values of
    the right types. Whether its seal is right only the store knows.
    """
    return (
        isinstance(value, dict)
        and RESERVED_KEY in value
        and all(type(each) is _TYPES.get(key) for key, each in value.items())
        and _DIGEST.fullmatch(value[RESERVED_KEY]) is not None
    )


def has_reserved_key(value: Json) -> bool:
    """Say whether an object with the reserved key stands anywhere in a JSON value, well-formed or not."""
    return next(reserved_objects(value), None) is not None


def reserved_objects(value: Json) -> Iterator[dict[str, Any]]:
    """Walk over the objects with the reserved key in a JSON value, well-formed or not, but not into them."""
    pending = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if RESERVED_KEY in node:
                yield node
            else:
                pending.extend(node.values())
        elif isinstance(node, list | tuple):
            pending.extend(node)


def is_json_media_type(media_type: object) -> bool:
    """Say whether content of this type decodes to a JSON value; parameters (a charset) do not matter."""
    if not isinstance(media_type, str):
        return False
    name = media_type.partition(";")[0].strip().lower()
    return name == "application/json" or name.endswith("+json")


def references_in(value: Json) -> list[str]:
    """List the digests a value names, each once, in the order of their first occurrence."""
    found: dict[str, None] = {}
    pending = [value]
    while pending:
        node = pending.pop()
        if is_reference(node):
            found[node["$blob"]] = None
        elif isinstance(node, dict):
            pending.extend(reversed(node.values()))
        elif isinstance(node, list | tuple):
            pending.extend(reversed(node))
    return list(found)


def resolve(
    value: Json, read: Callable[[dict[str, Any]], bytes], max_bytes: int = MAX_RESOLVED_BYTES
) -> Json:
    """Put the content of every JSON blob in the place of its reference, also inside what was put there.

    References to other content (an image) stay as they are: agents read them when they want them. The value
    itself is not changed.

    Args:
        value: Any JSON value.
        read: Returns the bytes behind a reference; called once for each digest.
        max_bytes: Limit of all bytes decoded together; the same blob counts each time.

    Raises:
        PayloadTooLarge: `max_bytes` is passed.
        StepError: A path leads nowhere, a blob that says it is JSON is not, or a reference is none that the
            store has made (VALIDATION_ERROR).
        NotFound: As `read` raises it.
    """
    if not any(True for _ in references_in(value)):
        return value
    content_by_digest: dict[str, bytes] = {}
    num_bytes = 0

    def decoded(reference: dict[str, Any]) -> Json:
        nonlocal num_bytes
        digest = reference["$blob"]
        if digest not in content_by_digest:
            try:
                content_by_digest[digest] = read(reference)
            except InvalidInput as error:
                raise StepError(error.message, FailureCode.VALIDATION_ERROR) from None
        content = content_by_digest[digest]
        num_bytes += len(content)
        if num_bytes > max_bytes:
            raise PayloadTooLarge(f"blobs decode to more than {max_bytes} bytes", limit_bytes=max_bytes)
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            message = f"blob {digest} says it is JSON but is not"
            raise StepError(message, FailureCode.VALIDATION_ERROR) from None

    def content_of(node: Json) -> Json:
        """Decode until the value in this place is no JSON reference any more."""
        while _is_json_reference(node):
            path = node.get("path")
            node = _walk(decoded(node), path.split(".") if isinstance(path, str) and path else [])
        return node

    result = [value]
    pending: list[tuple[Any, Any]] = [(result, 0)]
    while pending:
        container, key = pending.pop()
        node = content_of(container[key])
        if isinstance(node, dict) and not is_reference(node):
            node = dict(node)
            pending.extend((node, child) for child in node)
        elif isinstance(node, list | tuple):
            node = list(node)
            pending.extend((node, position) for position in range(len(node)))
        container[key] = node
    return result[0]


def _is_json_reference(node: Json) -> TypeGuard[dict[str, Any]]:
    return is_reference(node) and is_json_media_type(node.get("media_type"))


def _walk(node: Json, path: list[str]) -> Json:
    """Walk a path as references do: null stays null, a blob on the way takes the rest of the path along."""
    for position, key in enumerate(path):
        if node is None:
            return None
        if is_reference(node):
            before = node.get("path")
            rest = ".".join(path[position:])
            return {**node, "path": f"{before}.{rest}" if before else rest}
        try:
            node = node[int(key)] if isinstance(node, list) else node[key]
        except (KeyError, IndexError, TypeError, ValueError):
            message = f"blob path {'.'.join(path)}: nothing at {key!r}"
            raise StepError(message, FailureCode.VALIDATION_ERROR) from None
    return node
