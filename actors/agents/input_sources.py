"""Where the bytes of an input come from: its own text, base64, a blob, an address or a file.

Whatever is wrong with a source is said in one sentence that names the input. This module refuses to look into
the bytes (`input_formats` does), to call any address without the egress guard, and to open a file that does
not really lie below an allowed folder.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from actors.agent import AgentContext
from cluster.errors import FailureCode, StepError
from cluster.model.plan import Json

__all__ = [
    "INPUT_TYPES",
    "MAX_INPUT_BYTES",
    "InputSpec",
    "Material",
    "load",
    "read_spec",
    "refusal",
    "refuse",
]

MAX_INPUT_BYTES = 64 * 1024 * 1024
"""Largest single input that is taken, in bytes, after base64 is undone."""

INPUT_TYPES = ("text", "image", "video", "audio", "json", "binary")
_DEFAULT_ENCODING = {"text": "plain", "json": "json"}
_FETCH_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input as the client sent it, its fields checked.

    Attributes:
        input_id: Names the input in results and errors.
        type: One of INPUT_TYPES.
        data: Text, any JSON, or a blob reference; None where `url` is used.
        encoding: plain | base64 | json: how `data` is to be read when it is a string.
        url: http(s) or file address, "" for none.
        metadata: The client's notes; `format`, `charset`, `content_type` and `filename` are understood.
    """

    input_id: str
    type: str
    data: Json
    encoding: str
    url: str
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Material:
    """What a source gave: raw bytes, or JSON that came decoded.

    Attributes:
        content: The bytes; None where `value` is used.
        value: Decoded JSON, or text that needs no charset.
        origin: inline | blob | url | file.
        name: Last part of the path, "" where there is none; its ending is a hint of the format.
        content_type: Media type a server or blob told, "" where unknown.
        reference: The blob reference the bytes were read from, so that they need not be stored again.
    """

    content: bytes | None
    value: Json
    origin: str
    name: str = ""
    content_type: str = ""
    reference: dict[str, Any] | None = field(default=None)


def refusal(input_id: str, reason: str) -> StepError:
    """Make the error of an input that cannot be used; its id is in the text and in `details["input_id"]`."""
    return StepError(
        f"input {input_id!r}: {reason}", code=FailureCode.VALIDATION_ERROR, retryable=False, input_id=input_id
    )


def refuse(input_id: str, reason: str) -> NoReturn:
    """Raise `refusal`.

    Raises:
        StepError: Always.
    """
    raise refusal(input_id, reason)


def read_spec(entry: Json, position: int) -> InputSpec:
    """Check the fields of one input.

    Args:
        entry: What the client sent.
        position: 1-based; names an input without an id.

    Raises:
        StepError: The entry is no object, or a field has a wrong type or an unknown value.
    """
    fallback = f"input-{position}"
    if not isinstance(entry, dict):
        refuse(fallback, "must be an object with input_id, type and data or url")
    input_id = entry.get("input_id") or fallback
    if not isinstance(input_id, str):
        refuse(fallback, "input_id must be a string")
    kind = entry.get("type", "text")
    if kind not in INPUT_TYPES:
        refuse(input_id, f"unknown type {kind!r}; known are {', '.join(INPUT_TYPES)}")
    encoding = entry.get("encoding") or _DEFAULT_ENCODING.get(kind, "base64")
    if encoding not in ("plain", "base64", "json"):
        refuse(input_id, f"unknown encoding {encoding!r}; known are plain, base64, json")
    url = entry.get("url") or ""
    if not isinstance(url, str):
        refuse(input_id, "url must be a string")
    metadata = entry.get("metadata") or {}
    if not isinstance(metadata, dict):
        refuse(input_id, "metadata must be an object")
    return InputSpec(input_id, kind, entry.get("data"), encoding, url, metadata)


async def load(spec: InputSpec, context: AgentContext) -> Material:
    """Get the bytes or the value of one input. Inline data goes before `url` where both are given.

    Raises:
        StepError: There is no source, it is not allowed, not there, too large or not decodable; retryable
            only where the server behind an address may do better later.
    """
    if spec.data is not None and not (spec.data == "" and spec.url):
        if isinstance(spec.data, dict) and "$blob" in spec.data:
            return await asyncio.to_thread(_from_blob, spec, spec.data, context)
        return _from_inline(spec, spec.data)
    if not spec.url:
        refuse(spec.input_id, "has neither data nor url")
    try:
        scheme = urlsplit(spec.url).scheme.lower()
    except ValueError:
        refuse(spec.input_id, "the url cannot be read")
    if scheme in ("http", "https"):
        return await _from_address(spec, context)
    if scheme == "file":
        return await asyncio.to_thread(_from_file, spec, context.input_dirs)
    refuse(spec.input_id, f"url scheme {scheme or 'none'!r} is not supported; use https, http or file")


def _from_inline(spec: InputSpec, data: Json) -> Material:
    if not isinstance(data, str):
        if spec.type not in ("json", "text"):
            refuse(spec.input_id, f"data of a {spec.type} must be base64 text, not {type(data).__name__}")
        return Material(None, data, "inline")
    if len(data) > MAX_INPUT_BYTES * 4 // 3 + 4:
        refuse(spec.input_id, f"is over the limit of {MAX_INPUT_BYTES // 2**20} MiB")
    content_type = ""
    if spec.encoding == "base64":
        if data.startswith("data:") and ";base64," in data[:200]:
            head, _, data = data.partition(";base64,")
            content_type = head.removeprefix("data:")
        return Material(_checked(spec, _unbase64(spec, data)), None, "inline", "", content_type)
    return Material(None, data, "inline")


def _unbase64(spec: InputSpec, text: str) -> bytes:
    compact = "".join(text.split()).translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        refuse(spec.input_id, f"data is not valid base64 ({error})")


def _from_blob(spec: InputSpec, reference: dict[str, Any], context: AgentContext) -> Material:
    try:
        content = context.read_blob(reference)
    except (OSError, KeyError, ValueError) as error:
        raise StepError(
            f"input {spec.input_id!r}: its blob cannot be read ({error})",
            retryable=True,
            input_id=spec.input_id,
        ) from error
    media_type = str(reference.get("media_type", ""))
    if media_type == "application/json" and spec.type != "json":
        # A long `data` string that went to the blob store as the JSON value it was.
        import orjson

        try:
            value = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            refuse(spec.input_id, f"its blob says application/json but is not ({error})")
        return _from_inline(spec, value)
    return Material(_checked(spec, content), None, "blob", "", media_type, reference)


async def _from_address(spec: InputSpec, context: AgentContext) -> Material:
    from actors.egress import fetch

    try:
        answer = await fetch(
            spec.url, allow=context.egress_allow, timeout_s=_FETCH_TIMEOUT_S, max_bytes=MAX_INPUT_BYTES
        )
    except StepError as error:
        raise StepError(
            f"input {spec.input_id!r}: {error.message}",
            code=error.code,
            retryable=error.retryable,
            input_id=spec.input_id,
        ) from error
    if answer.status in (408, 425, 429) or answer.status >= 500:
        raise StepError(
            f"input {spec.input_id!r}: the server answered {answer.status}",
            retryable=True,
            input_id=spec.input_id,
        )
    if not 200 <= answer.status < 300:
        refuse(spec.input_id, f"the server answered {answer.status}")
    headers = {name.lower(): value for name, value in answer.headers.items()}
    name = unquote(urlsplit(answer.url).path.rpartition("/")[2])
    return Material(_checked(spec, answer.content), None, "url", name, headers.get("content-type", ""))


def _from_file(spec: InputSpec, input_dirs: tuple[str, ...]) -> Material:
    if not input_dirs:
        refuse(spec.input_id, "file inputs are switched off: no input folder is configured")
    parts = urlsplit(spec.url)
    if parts.netloc not in ("", "localhost"):
        refuse(spec.input_id, f"a file url names no other host ({parts.netloc!r})")
    asked = unquote(parts.path)
    if not asked or "\0" in asked:
        refuse(spec.input_id, "the file url has no usable path")
    roots = [Path(folder).resolve() for folder in input_dirs]
    # An absolute path swallows the root it is joined to, so one line serves `file:///a/b` and `file:b` alike.
    try:
        candidates = [path for root in roots if (path := (root / asked).resolve()).is_relative_to(root)]
    except (OSError, RuntimeError):
        refuse(spec.input_id, "the file url runs in a circle of links")
    if not candidates:
        # The same answer whether or not something is there: outside, even existence is nobody's business.
        refuse(spec.input_id, "the file does not lie below an allowed input folder")
    found = next((path for path in candidates if os.access(path, os.F_OK)), None)
    if found is None:
        refuse(spec.input_id, f"no such file: {candidates[0].name}")
    return Material(_read_regular(spec, found), None, "file", found.name)


def _read_regular(spec: InputSpec, path: Path) -> bytes:
    try:
        # The path is resolved, so a link here was put in place after the check; and a pipe must not block us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        refuse(spec.input_id, f"{path.name} cannot be opened ({error.strerror})")
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            refuse(spec.input_id, f"{path.name} is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return _checked(spec, stream.read(MAX_INPUT_BYTES + 1))
    finally:
        os.close(descriptor)


def _checked(spec: InputSpec, content: bytes) -> bytes:
    if len(content) > MAX_INPUT_BYTES:
        refuse(spec.input_id, f"is over the limit of {MAX_INPUT_BYTES // 2**20} MiB")
    return content
