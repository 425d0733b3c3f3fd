"""Server-sent events: framing, keep-alive, resumption. What an event says is the dialect's business.

Source: WHATWG HTML Living Standard, section 9.2, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.responses import Response, StreamingResponse

from cluster.errors import InvalidInput, TuttiError

if TYPE_CHECKING:
    from starlette.requests import Request

    from cluster.model.view import RunEvent

__all__ = ["KEEPALIVE_S", "event_stream", "last_event_id"]

KEEPALIVE_S = 15.0
"""Silence after which a comment is sent, so that no proxy takes the stream for dead."""

_MAX_FRAMES = 256
"""Events in one piece; more would only make the first of them wait."""

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def last_event_id(request: Request) -> int:
    """Number of the last event the client has seen, 0 for none; also from the query `last_event_id`.

    Raises:
        InvalidInput: It is no number that a stream of ours could have given.
    """
    text = request.headers.get("last-event-id") or request.query_params.get("last_event_id") or "0"
    if not (text.isascii() and text.isdigit()) or len(text) > 15:
        raise InvalidInput("Last-Event-ID must be the id of an event of this stream", field="Last-Event-ID")
    return int(text)


async def event_stream(
    events: AsyncIterator[RunEvent],
    render: Callable[[RunEvent], bytes],
    is_over: bool,
    keepalive_s: float = KEEPALIVE_S,
) -> Response:
    """Answer with a stream that ends after the terminal event.

    Args:
        events: What to send.
        render: Makes an event's data, one line.
        is_over: Whether the Run has ended, so that all there is to send is there.
        keepalive_s: Silence before a comment is sent, > 0.

    Returns:
        The stream, or 204 where the client has seen it all: that tells an EventSource to stop asking.
    """
    first = None
    if is_over:
        first = await anext(events, None)
        if first is None:
            return Response(status_code=204)
    return StreamingResponse(
        _frames(first, events, render, keepalive_s), media_type="text/event-stream", headers=_HEADERS
    )


async def _frames(
    first: RunEvent | None,
    events: AsyncIterator[RunEvent],
    render: Callable[[RunEvent], bytes],
    keepalive_s: float,
) -> AsyncIterator[bytes]:
    yield b": following\n\n" if first is None else _frame(first, render)
    upcoming: asyncio.Task[RunEvent | None] | None = None
    try:
        while True:
            if upcoming is None:
                upcoming = asyncio.ensure_future(_next(events))
            done, _ = await asyncio.wait((upcoming,), timeout=keepalive_s)
            if not done:
                yield b": still here\n\n"
                continue
            frames: list[bytes] = []
            # What came with one page of the store is there at once and goes out in one piece.
            while upcoming.done() and len(frames) < _MAX_FRAMES:
                try:
                    event = upcoming.result()
                except TuttiError:
                    # The store is away, or the Run has expired: the client comes back with its last id.
                    yield b"".join([*frames, b"retry: 1000\n: interrupted\n\n"])
                    return
                if event is None:
                    if frames:
                        yield b"".join(frames)
                    return
                frames.append(_frame(event, render))
                upcoming = asyncio.ensure_future(_next(events))
                await asyncio.sleep(0)
            yield b"".join(frames)
    finally:
        if upcoming is not None:
            upcoming.cancel()
            with suppress(asyncio.CancelledError, TuttiError):
                await upcoming
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def _next(events: AsyncIterator[RunEvent]) -> RunEvent | None:
    return await anext(events, None)


def _frame(event: RunEvent, render: Callable[[RunEvent], bytes]) -> bytes:
    return b"id: %d\ndata: %s\n\n" % (event.seq, render(event))
