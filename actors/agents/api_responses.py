"""How the answer of an API is shown: decoded where it is JSON or text, apart where large, without secrets."""

from __future__ import annotations

import base64
import codecs
import datetime
import re
from collections.abc import Mapping, Sequence
from email.message import Message
from email.utils import parsedate_to_datetime

import orjson

from cluster.model.blob_reference import is_json_media_type
from cluster.model.plan import Json

__all__ = ["redact", "render_body", "retry_after_s", "shown_headers"]

_MAX_INLINE_BYTES = 128 * 1024
_MAX_RETRY_AFTER_S = 300.0
_REDACTED = "[redacted]"
_HIDDEN_HEADERS = frozenset({"authorization", "proxy-authenticate", "set-cookie", "set-cookie2"})
_TEXT_TYPES = re.compile(
    r"text/|application/(xml|javascript|x-www-form-urlencoded|yaml|x-ndjson|jsonl)\b|[^;]*\+xml\b"
)
_SLOW_CODECS = frozenset({"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "utf-7"})


def redact(text: str, secrets: Sequence[str]) -> str:
    """Blot out every secret in a text."""
    for secret in secrets:
        text = text.replace(secret, _REDACTED)
    return text


def shown_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Leave out the headers that hand out credentials."""
    return {name: value for name, value in headers.items() if name not in _HIDDEN_HEADERS}


def render_body(content: bytes, content_type: str, secrets: Sequence[str]) -> tuple[Json, str, bytes | None]:
    """Decode a body by its type.

    Args:
        content: The body.
        content_type: The header's value, "" for none.
        secrets: Blotted out of JSON and text.

    Returns:
        The body as JSON, its encoding (json, text, base64, blob), and for a blob the bytes to store: the
        caller puts the reference in the place of the body.
    """
    is_json = is_json_media_type(content_type)
    is_text = _TEXT_TYPES.match(content_type.strip().lower()) is not None
    if is_json or is_text:
        for secret in secrets:
            content = content.replace(secret.encode("latin-1"), _REDACTED.encode())
    if len(content) > _MAX_INLINE_BYTES:
        return None, "blob", content
    if is_json:
        try:
            return orjson.loads(content), "json", None
        except orjson.JSONDecodeError:
            is_text = True
    if is_text or not content:
        return content.decode(_charset(content_type), errors="replace"), "text", None
    return base64.b64encode(content).decode(), "base64", None


def retry_after_s(value: str, now: float) -> float | None:
    """Read a Retry-After header: seconds or a date.

    Args:
        value: The header's value, "" for none.
        now: Unix seconds.

    Returns:
        Seconds in [0, 300], None where it says nothing of use. Source: RFC 9110, 10.2.3.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), _MAX_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return min(max(0.0, moment.timestamp() - now), _MAX_RETRY_AFTER_S)


def _charset(content_type: str) -> str:
    header = Message()
    header["content-type"] = content_type
    name = header.get_param("charset", "utf-8")
    try:
        found = codecs.lookup(str(name)).name
        # Also turns down codecs that are no text encodings at all ("zlib", "hex").
        "".encode(found)
    except (LookupError, ValueError):
        return "utf-8"
    return "utf-8" if found in _SLOW_CODECS else found
