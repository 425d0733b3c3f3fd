"""What an API call is asked to be: inputs and metadata in all their forms, made into requests. No network.

A request is found in one of these, and what it leaves out is filled from the metadata of its input, then of
the Run:

    directly ("url" works too):
        {"endpoint": "https://…", "method": "GET", "headers": {}, "body": …, "timeout_s": 30}
    as an input, an object or a string of it:
        {"inputs": [{"input_id": "…", "type": "json", "data": {"endpoint": "https://…"}}]}
    as an input that is the body alone; the endpoint is in the metadata:
        {"inputs": [{"type": "json", "data": {"any": "other object"}}]}
    all in the metadata:
        {"inputs": []}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from cluster.errors import FailureCode, StepError
from cluster.model.blob_reference import is_reference
from cluster.model.plan import Json

__all__ = ["ApiRequest", "api_requests"]

_DEFAULT_TIMEOUT_S = 30.0
_MAX_TIMEOUT_S = 600.0
_MAX_REQUESTS = 100
_FIELDS = frozenset({"endpoint", "url", "method", "headers", "body"})
_MIN_SECRET_CHARS = 6
_SECRET_NAME = re.compile(r"auth|cookie|token|secret|key|passw|signature|credential|session", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """One call to make.

    Attributes:
        url: As given; the egress guard judges it.
        method: Upper case.
        headers: Lower-case names.
        body: As given, None for none; may be a reference to a blob.
        content: The encoded body, None for none or for a blob.
        timeout_s: In (0, 600].
    """

    url: str
    method: str
    headers: Mapping[str, str]
    body: Json
    content: bytes | None
    timeout_s: float

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that must not come out again: those of headers that carry credentials, longest first."""
        found: set[str] = set()
        for name, value in self.headers.items():
            if _SECRET_NAME.search(name):
                # "Bearer abc" is a secret, and so is "abc" alone; a scheme's name is none.
                found.update({value, value.partition(" ")[2].strip()})
        return tuple(sorted((s for s in found if len(s) >= _MIN_SECRET_CHARS), key=len, reverse=True))


def api_requests(inputs: Json, metadata: Mapping[str, Json]) -> list[ApiRequest]:
    """Find the requests in an agent's inputs.

    Args:
        inputs: One of the forms above.
        metadata: The Run's.

    Raises:
        StepError: VALIDATION_ERROR: no endpoint, or a part that cannot be used. The message never holds a
            value.
    """
    if not isinstance(inputs, dict):
        raise _refusal("the inputs of an API call are an object")
    if "endpoint" in inputs or "url" in inputs:
        return [_request(inputs, {}, metadata)]
    items = inputs.get("inputs") or []
    if not isinstance(items, list):
        raise _refusal("`inputs` is a list")
    if not items:
        return [_request({}, {}, metadata)]
    if len(items) > _MAX_REQUESTS:
        raise _refusal(f"at most {_MAX_REQUESTS} requests go into one API call")
    return [_of_item(item, metadata) for item in items]


def _of_item(item: Json, metadata: Mapping[str, Json]) -> ApiRequest:
    if not isinstance(item, dict):
        raise _refusal("an input is an object")
    kind = str(item.get("type", "json")).lower()
    if kind not in {"json", "text"}:
        raise _refusal(f"an API call takes json inputs, not {kind}")
    own = item.get("metadata") or {}
    if not isinstance(own, dict):
        raise _refusal("an input's metadata is an object")
    payload = item.get("data")
    if payload is None:
        payload = {"url": item["url"]} if item.get("url") else {}
    elif isinstance(payload, str) and kind == "json" and payload:
        try:
            payload = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise _refusal("an input's data is not JSON") from None
    if not isinstance(payload, dict) or is_reference(payload) or (payload and not payload.keys() & _FIELDS):
        payload = {"body": payload}
    return _request(payload, own, metadata)


def _request(
    payload: Mapping[str, Json], own: Mapping[str, Json], metadata: Mapping[str, Json]
) -> ApiRequest:
    def found(name: str) -> Json:
        for source in (payload, own, metadata):
            if source.get(name) is not None:
                return source[name]
        return None

    url = found("endpoint") or found("url")
    if not isinstance(url, str):
        raise _refusal("an API call needs an `endpoint`")
    method = found("method") or "GET"
    if not isinstance(method, str):
        raise _refusal("`method` is a string")
    headers = _headers(found("headers"))
    body = found("body")
    content: bytes | None = None
    if body is not None and not is_reference(body):
        content, content_type = _encoded(body)
        headers.setdefault("content-type", content_type)
    return ApiRequest(url, method.upper(), headers, body, content, _timeout_s(found("timeout_s")))


def _headers(value: Json) -> dict[str, str]:
    if isinstance(value, str):
        # Metadata that came through gRPC is all strings.
        try:
            value = orjson.loads(value or "{}")
        except orjson.JSONDecodeError:
            raise _refusal("`headers` is not JSON") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _refusal("`headers` is an object")
    headers: dict[str, str] = {}
    for name, content in value.items():
        if not isinstance(content, str | int | float) or isinstance(content, bool):
            raise _refusal(f"header {name!r} is a string or a number")
        headers[str(name).lower()] = str(content)
    return headers


def _encoded(body: Json) -> tuple[bytes, str]:
    if not isinstance(body, str):
        return orjson.dumps(body), "application/json"
    content = body.encode()
    if body.lstrip()[:1] in {"{", "["}:
        try:
            orjson.loads(content)
        except orjson.JSONDecodeError:
            pass
        else:
            return content, "application/json"
    return content, "text/plain; charset=utf-8"


def _timeout_s(value: Json) -> float:
    if value is None:
        return _DEFAULT_TIMEOUT_S
    try:
        timeout_s = float(value) if not isinstance(value, bool) else 0.0
    except (TypeError, ValueError):
        timeout_s = 0.0
    if not 0 < timeout_s <= _MAX_TIMEOUT_S:
        raise _refusal(f"`timeout_s` is a number of seconds in (0, {_MAX_TIMEOUT_S:g}]")
    return timeout_s


def _refusal(message: str) -> StepError:
    return StepError(message, FailureCode.VALIDATION_ERROR)
