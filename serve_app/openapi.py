"""Describes bodies and answers in /openapi.json from the msgspec types that parse and render them.

Routes take a raw request and give a raw response, which keeps FastAPI's own validation off the hot path; this
module puts the descriptions back. It refuses to describe anything by hand that a type already says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

__all__ = ["ErrorBody", "ErrorDetail", "body_schema", "described", "install_openapi"]

_JSON = "application/json"


class ErrorDetail(msgspec.Struct, omit_defaults=True):
    """Stable code, one sentence, and the field where there is one."""

    code: str
    message: str
    field: str = ""


class ErrorBody(msgspec.Struct):
    """What went wrong."""

    error: ErrorDetail
    detail: str


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def body_schema(name: str, *, is_required: bool = True) -> dict[str, Any]:
    """Describe a JSON body by the name of its type, for `openapi_extra`."""
    return {"requestBody": {"required": is_required, "content": {_JSON: {"schema": _reference(name)}}}}


def described(
    name: str | None, *, status_code: int = 200, media_type: str = _JSON, has_errors: bool = True
) -> dict[str, Any]:
    """Describe the answer of a route by the name of its type, as arguments of the route's decorator.

    Args:
        name: A type's name, or None for text.
        status_code: Of the answer when all is well.
        media_type: Of the answer.
        has_errors: Whether errors of the common shape can come instead.
    """
    schema = {"type": "string"} if name is None else _reference(name)
    responses: dict[int | str, dict[str, Any]] = {
        status_code: {"description": "Done", "content": {media_type: {"schema": schema}}}
    }
    if has_errors:
        responses["default"] = {
            "description": "Refused or failed",
            "content": {_JSON: {"schema": _reference("ErrorBody")}},
        }
    return {"responses": responses, "status_code": status_code}


def install_openapi(app: FastAPI, types: Iterable[type]) -> None:
    """Make /openapi.json, once, with the schemas of `types`."""
    build = _builder(app, (*types, ErrorBody))
    app.openapi = build  # type: ignore[method-assign]


def _builder(app: FastAPI, types: tuple[type, ...]) -> Callable[[], dict[str, Any]]:
    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
            components = document.setdefault("components", {})
            components.setdefault("schemas", {}).update(schemas)
            components["securitySchemes"] = _CREDENTIALS
            document["security"] = [{name: []} for name in _CREDENTIALS] + [{}]
            app.openapi_schema = document
        return app.openapi_schema

    return build


_CREDENTIALS = {
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "clientToken": {"type": "apiKey", "in": "header", "name": "X-Client-Token"},
    "workerToken": {"type": "apiKey", "in": "header", "name": "X-Worker-Token"},
}
