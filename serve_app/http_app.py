"""Puts the HTTP side together: dialects, shared paths, operations, errors, descriptions.

Two routes for one method and path are a mistake found here, at start-up, never settled by their order.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cluster.errors import Forbidden, InvalidInput, NotFound, TuttiError
from cluster.store.capacity import CapacityStore
from serve_app.access import Door, Gate
from serve_app.api_pages import api_pages
from serve_app.capacity_routes import SCHEMAS, capacity_routes
from serve_app.capacity_service import CapacityService
from serve_app.dialect import (
    Dialect,
    ErrorShape,
    TaskForm,
    default_error_shape,
    error_response,
    json_response,
)
from serve_app.dialects import jobs, runs, tasks, workers
from serve_app.job_service import JobService
from serve_app.openapi import described, install_openapi
from serve_app.operations import HealthReport, operations_routes
from serve_app.problems import Problem, Wording
from serve_app.request_figures import RequestFigures
from serve_app.task_paths import task_routes

if TYPE_CHECKING:
    from cluster.settings import Settings
    from serve_app.service import RunService

__all__ = ["DIALECTS", "TASK_FORMS", "api_routes", "build_app", "check_paths"]

DIALECTS: tuple[Dialect, ...] = (tasks.DIALECT, runs.DIALECT, jobs.DIALECT, workers.DIALECT)
TASK_FORMS: tuple[TaskForm, ...] = (tasks.FORM,)

_log = logging.getLogger("tutti.http")
_PARAMETER = re.compile(r"\{[^}]*\}")


def build_app(service: RunService, settings: Settings) -> Door:
    """Build the ASGI application.

    Raises:
        ValueError: Two routes, or a route and a blueprint, have the same method and path.
        InvalidSetting: A credential in the settings cannot be used.
    """
    app = FastAPI(
        title="Tutti",
        description="A durable orchestrator for AI work on Ray.",
        version=service.version,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.gate = Gate(settings)
    app.state.dialects = [dialect.name for dialect in DIALECTS]
    app.state.figures = figures = RequestFigures()
    # The busiest routes come first: each request walks the list.
    app.include_router(task_routes(service, TASK_FORMS))
    for dialect in DIALECTS:
        router = APIRouter(tags=[dialect.name])
        dialect.add_routes(router, service)
        app.include_router(router)
    capacity = CapacityStore(service.store.redis)
    app.include_router(capacity_routes(CapacityService(capacity, settings)))
    app.include_router(operations_routes(service, figures, capacity))
    app.include_router(api_pages())
    check_paths(app)
    _serve_blueprints(app, service)
    schemas = (*(kind for dialect in DIALECTS for kind in dialect.schemas), *SCHEMAS, HealthReport)
    install_openapi(app, schemas)
    _add_error_handlers(app)
    return Door(app, settings, lambda error, path: error_response(error, _shape_of(path)))


def check_paths(app: FastAPI) -> None:
    """Refuse paths that differ in nothing but the names of their parameters.

    Raises:
        ValueError: Two routes have the same method and path.
    """
    seen: dict[tuple[str, str], str] = {}
    for route in api_routes(app.routes):
        for method in route.methods or ():
            key = (method, _PARAMETER.sub("{}", route.path))
            if key in seen:
                raise ValueError(f"{method} {route.path} clashes with {seen[key]}")
            seen[key] = route.path


def _serve_blueprints(app: FastAPI, service: RunService) -> None:
    """Route the paths of blueprints, now and whenever new ones are loaded."""
    posts = [route for route in api_routes(app.routes) if "POST" in (route.methods or ())]
    fixed = [route for route in posts if route.path != jobs.START_PATH]
    put_up: set[str] = set()
    job_service = JobService(service, service.blueprints)

    def is_taken(path: str) -> str | None:
        return next((route.path for route in fixed if route.path_regex.match(path)), None)

    def route(path: str) -> None:
        if path in put_up:
            return
        put_up.add(path)
        app.add_api_route(
            path,
            jobs.start_route(job_service, path),
            methods=["POST"],
            tags=[jobs.DIALECT.name],
            summary="Create a job",
            **described("JobAccepted", status_code=202),
        )
        app.openapi_schema = None

    service.blueprints.open(is_taken, route)


def api_routes(routes: Sequence[Any]) -> list[APIRoute]:
    """List the routes that have handlers of ours, those of included routers too."""
    found: list[APIRoute] = []
    for route in routes:
        if isinstance(route, APIRoute):
            found.append(route)
        elif (router := getattr(route, "original_router", None)) is not None:
            found += api_routes(router.routes)
    return found


def _shape_of(path: str) -> ErrorShape:
    for dialect in DIALECTS:
        for prefix in dialect.prefixes:
            if path == prefix or path.startswith(prefix + "/"):
                return dialect.error_shape
    return default_error_shape


def _add_error_handlers(app: FastAPI) -> None:
    async def on_ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, TuttiError)  # noqa: S101 - what the handler is registered for
        return error_response(error, _shape_of(request.url.path))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - what the handler is registered for
        known = {404: NotFound, 403: Forbidden}.get(error.status_code)
        if known is not None:
            return error_response(known(str(error.detail)), _shape_of(request.url.path))
        code = "METHOD_NOT_ALLOWED" if error.status_code == 405 else "HTTP_ERROR"
        wording = Wording(Problem(error.status_code, "UNIMPLEMENTED"), code, str(error.detail), None, None)
        response = json_response(_shape_of(request.url.path)(wording), error.status_code)
        response.headers.update(error.headers or {})
        return response

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - what the handler is registered for
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        return error_response(
            InvalidInput(f"{field}: {first['msg']}", field=field), _shape_of(request.url.path)
        )

    async def on_unexpected(request: Request, error: Exception) -> Response:
        _log.error("unexpected error in %s %s", request.method, request.url.path, exc_info=error)
        return error_response(TuttiError("internal error"), _shape_of(request.url.path))

    app.add_exception_handler(TuttiError, on_ours)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_unexpected)
