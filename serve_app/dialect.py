"""What a dialect is: one of the APIs by which clients speak to the one engine.

A dialect parses requests into calls of `RunService` and renders what comes back. It refuses to decide: it
never branches on a Run's status, computes progress or picks a timeout. Dialects do not know each other; where
two share a path, the path belongs to a module of its own (`task_paths`) that asks each whether a body is its
own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
import orjson
from starlette.responses import Response

from cluster.errors import InvalidInput, TuttiError
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus

if TYPE_CHECKING:
    from fastapi import APIRouter
    from starlette.requests import Request

    from cluster.model.view import RunEvent, RunView
    from serve_app.auth import Principal
    from serve_app.problems import Wording
    from serve_app.service import RunService

__all__ = [
    "Dialect",
    "ErrorShape",
    "TaskForm",
    "convert",
    "default_error_shape",
    "error_response",
    "json_response",
    "read_object",
]

_T = TypeVar("_T")
ErrorShape = Callable[["Wording"], Any]
"""Makes the body of an error, JSON-able."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API.

    Attributes:
        name: Stored with each Run that comes through it.
        prefixes: Paths it owns; errors below them have its shape.
        run_words: Its word for every RunStatus.
        step_words: Its word for every StepStatus.
        error_shape: Makes the body of its errors.
        add_routes: Puts its routes on a router.
        schemas: msgspec types that its routes' descriptions name.
    """

    name: str
    prefixes: tuple[str, ...]
    run_words: Mapping[RunStatus, str]
    step_words: Mapping[StepStatus, str]
    error_shape: ErrorShape
    add_routes: Callable[[APIRouter, RunService], None]
    schemas: tuple[type, ...] = ()


class TaskForm(Protocol):
    """A dialect's way to use the shared paths `/api/v1/tasks` and `/api/v1/tasks/{id}`.

    Attributes:
        dialect: Its name.
        marker: The field that makes a body its own; exactly one form's marker must be there.
    """

    dialect: str
    marker: str

    async def submit(self, service: RunService, principal: Principal, body: dict[str, Any]) -> Response:
        """Answer POST /api/v1/tasks."""

    def render(self, view: RunView) -> Response:
        """Answer GET /api/v1/tasks/{id}."""

    async def cancel(
        self, service: RunService, principal: Principal, run_id: str, body: dict[str, Any]
    ) -> Response:
        """Answer DELETE /api/v1/tasks/{id}."""

    def render_update(self, run_id: str, event: RunEvent) -> bytes:
        """Make the data of one event of GET /api/v1/tasks/{id}/events."""


async def read_object(request: Request) -> dict[str, Any]:
    """Read a body that must be a JSON object; an empty body is an empty object.

    Raises:
        InvalidInput: It is no JSON (`malformed`), or no object.
        PayloadTooLarge: It is over the limit.
    """
    content = await request.body()
    if not content:
        return {}
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not valid JSON: {error}", malformed=True) from None
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    return body


def convert(body: dict[str, Any], kind: type[_T]) -> _T:
    """Check a body's fields against a msgspec type.

    Raises:
        InvalidInput: A field is missing or has the wrong type; the message names it.
    """
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        field = path.strip("`.") or None
        raise InvalidInput(f"{field}: {text}" if field else text, field=field) from None


_encoder = msgspec.json.Encoder()


def json_response(value: Any, status_code: int = 200) -> Response:
    """Answer with JSON; msgspec values are encoded as they are."""
    return Response(_encoder.encode(value), status_code, media_type="application/json")


def default_error_shape(wording: Wording) -> Any:
    """The shape of document 000, for its own routes and for paths that no dialect owns."""
    error: dict[str, Any] = {"code": wording.code, "message": wording.message}
    if wording.field is not None:
        error["field"] = wording.field
    return {"error": error, "detail": wording.message}


def error_response(error: TuttiError, shape: ErrorShape) -> Response:
    """Answer with an error in a dialect's shape."""
    from serve_app.problems import wording_of

    wording = wording_of(error)
    response = json_response(shape(wording), wording.problem.http_status)
    if wording.retry_after_s is not None:
        response.headers["Retry-After"] = str(wording.retry_after_s)
    if wording.problem.http_status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    allowance = error.details.get("allowance")
    if allowance is not None:
        for name, value in allowance.headers:
            response.headers[name.decode()] = value.decode()
    return response
