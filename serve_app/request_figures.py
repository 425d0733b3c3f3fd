"""What a replica of the edge counts of its requests, and how all replicas' counts come into one answer.

Each replica counts for itself and puts what it has into Redis every few seconds, so that any of them can
answer /metrics for all. Routes are told by their pattern, never by a path: ids would make names without end.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cluster.errors import Unavailable

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from cluster.store.run_reader import RunReader

__all__ = ["RequestFigures", "measured", "measured_stream"]

_PUBLISH_EVERY_S = 2.0
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OK = "OK"


class RequestFigures:
    """Counts of one replica.

    Attributes:
        process: Name of this replica among all.
    """

    def __init__(self) -> None:
        self.process = f"ingress:{uuid4().hex[:8]}"
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "tutti_http_requests",
            "Answers over HTTP, by the route's pattern",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tutti_http_request_seconds",
            "Time until an answer over HTTP began",
            ("method", "route"),
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._open = Gauge(
            "tutti_http_requests_open",
            "Requests over HTTP in work, streams included",
            registry=self._registry,
        )
        self._calls = Counter(
            "tutti_grpc_requests", "Calls over gRPC", ("method", "code"), registry=self._registry
        )
        self._call_seconds = Histogram(
            "tutti_grpc_request_seconds",
            "Time until a gRPC call was answered, of a stream until its first message",
            ("method",),
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._publisher: asyncio.Task[None] | None = None

    async def serve(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Pass one request on to `app` and count its answer."""
        began = time.perf_counter()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count_answer(scope, message["status"], time.perf_counter() - began)
            await send(message)

        self._open.inc()
        try:
            await app(scope, receive, counting)
        finally:
            self._open.dec()

    def _count_answer(self, scope: Scope, status: int, took_s: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", "other")
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(took_s)

    def count_call(self, method: str, code: str, took_s: float) -> None:
        """Count one call over gRPC; `code` is a status's name."""
        self._calls.labels(method, code).inc()
        self._call_seconds.labels(method).observe(took_s)

    def snapshot(self) -> dict[str, Any]:
        """Say all counts: families with their samples."""
        families = [
            {
                "name": family.name,
                "type": family.type,
                "help": family.documentation,
                "samples": [[each.name, each.labels, each.value] for each in family.samples],
            }
            for family in self._registry.collect()
        ]
        return {"process": self.process, "at": time.time(), "families": families}

    def publish_from_now_on(self, store: RunReader) -> None:
        """Put the counts into Redis every two seconds, until `close`; a second call changes nothing."""
        if self._publisher is None:
            self._publisher = asyncio.get_running_loop().create_task(self._publish(store))

    async def close(self) -> None:
        """Stop publishing."""
        if self._publisher is not None:
            self._publisher.cancel()
            with suppress(asyncio.CancelledError):
                await self._publisher

    async def _publish(self, store: RunReader) -> None:
        while True:
            with suppress(Unavailable):
                await store.put_ingress_snapshot(self.process, orjson.dumps(self.snapshot()))
            await asyncio.sleep(_PUBLISH_EVERY_S)


def measured(method: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """Count the calls of a unary gRPC method of a servicer that has `figures`."""

    @functools.wraps(method)
    async def counting(self: Any, request: Any, grpc_context: Any) -> Any:
        began = time.perf_counter()
        try:
            return await method(self, request, grpc_context)
        finally:
            self.figures.count_call(method.__name__, _code_of(grpc_context), time.perf_counter() - began)

    return counting


def measured_stream(method: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
    """Count the calls of a streaming gRPC method of a servicer that has `figures`, when they end."""

    @functools.wraps(method)
    async def counting(self: Any, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        began, took_s = time.perf_counter(), None
        try:
            async for message in method(self, request, grpc_context):
                if took_s is None:
                    took_s = time.perf_counter() - began
                yield message
        finally:
            took_s = time.perf_counter() - began if took_s is None else took_s
            self.figures.count_call(method.__name__, _code_of(grpc_context), took_s)

    return counting


def _code_of(grpc_context: Any) -> str:
    code = grpc_context.code()
    return str(getattr(code, "name", code or _OK))
