"""The paths below `/api/v1/tasks`, which more than one dialect uses.

A body belongs to the one form whose marker it has; a Run remembers its dialect, and reads and cancellations
by id answer in it. This module refuses to know what a form's bodies mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from cluster.errors import InvalidInput
from serve_app.access import requires
from serve_app.auth import Principal
from serve_app.dialect import TaskForm, read_object
from serve_app.openapi import body_schema, described
from serve_app.streams import event_stream, last_event_id

if TYPE_CHECKING:
    from serve_app.service import RunService

__all__ = ["PATH", "task_routes"]

PATH = "/api/v1/tasks"
_RESERVED_MARKERS = ("template",)
"""Fields of forms that are still to come: a body that has one beside another form's is neither's."""

_User = Annotated[Principal, Depends(requires("user"))]


def task_routes(service: RunService, forms: Sequence[TaskForm]) -> APIRouter:
    """Make the routes.

    Args:
        service: The use cases.
        forms: Who shares the paths; a Run of none of them is shown in the first one's form.
    """
    router = APIRouter(prefix=PATH, tags=["tasks"])
    form_by_dialect = {form.dialect: form for form in forms}
    form_by_marker = {form.marker: form for form in forms}
    reserved = [marker for marker in _RESERVED_MARKERS if marker not in form_by_marker]

    def form_of(dialect: str) -> TaskForm:
        return form_by_dialect.get(dialect, forms[0])

    @router.post(
        "", summary="Submit a task", openapi_extra=body_schema("TaskBody"), **described("TaskAccepted")
    )
    async def submit_task(request: Request, principal: _User) -> Response:
        body = await read_object(request)
        owners = [form for marker, form in form_by_marker.items() if marker in body]
        if not owners:
            raise InvalidInput(_marker_message(list(form_by_marker), False), field=forms[0].marker)
        if len(owners) > 1 or any(marker in body for marker in reserved):
            raise InvalidInput(_marker_message([*form_by_marker, *reserved], True), field=forms[0].marker)
        return await owners[0].submit(service, principal, body)

    @router.get("/{task_id}", summary="Get a task's status and output", **described("TaskState"))
    async def get_task(task_id: str, principal: _User) -> Response:
        view = await service.get(principal, task_id)
        return form_of(view.dialect).render(view)

    @router.delete(
        "/{task_id}",
        summary="Cancel a task",
        openapi_extra=body_schema("TaskCancelBody", is_required=False),
        **described("TaskCancelled"),
    )
    async def cancel_task(task_id: str, request: Request, principal: _User) -> Response:
        body: dict[str, Any] = await read_object(request)
        summary = await service.summary(principal, task_id)
        return await form_of(summary.dialect).cancel(service, principal, task_id, body)

    @router.get(
        "/{task_id}/events",
        summary="Follow a task: server-sent events, resumable with Last-Event-ID",
        **described("TaskUpdate", media_type="text/event-stream"),
    )
    async def follow_task(task_id: str, request: Request, principal: _User) -> Response:
        after_seq = last_event_id(request)
        summary, events = await service.follow(principal, task_id, after_seq)
        form = form_of(summary.dialect)
        return await event_stream(
            events, lambda event: form.render_update(task_id, event), summary.status.is_terminal
        )

    return router


def _marker_message(markers: list[str], has_several: bool) -> str:
    if len(markers) == 1:
        return f"{markers[0]}: is missing"
    rule = "only one of" if has_several else "one of"
    return f"the body must have {rule} {', '.join(markers)}"
