"""What operators ask: health and metrics. Anybody may; nothing here names a Run or a tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from fastapi import APIRouter, Depends
from starlette.responses import Response

from cluster.errors import Unavailable
from serve_app.access import public
from serve_app.dialect import json_response
from serve_app.metrics import CONTENT_TYPE, ServiceFigures, render_metrics
from serve_app.openapi import described

if TYPE_CHECKING:
    from cluster.store.capacity import CapacityStore
    from serve_app.request_figures import RequestFigures
    from serve_app.service import Health, RunService

__all__ = ["HealthReport", "HealthStats", "QueueStats", "operations_routes", "report_of"]


class QueueStats(msgspec.Struct):
    """Counts of Runs: waiting, in work, all ever."""

    pending_tasks: int
    processing_tasks: int
    total_tasks: int


class HealthStats(msgspec.Struct):
    """Runs that have not ended, and all-time counts by metric name."""

    active_tasks: int
    metrics: dict[str, int]


class HealthReport(msgspec.Struct):
    """What /health says: one body for all dialects."""

    healthy: bool
    status: str
    service: str
    version: str
    uptime_seconds: int
    redis: str
    queue_stats: QueueStats
    stats: HealthStats


def report_of(health: Health) -> HealthReport:
    """Render it."""
    return HealthReport(
        healthy=health.is_healthy,
        status="healthy" if health.is_healthy else "unhealthy",
        service="tutti",
        version=health.version,
        uptime_seconds=int(health.uptime_s),
        redis="connected" if health.is_healthy else "disconnected",
        queue_stats=QueueStats(health.num_waiting, health.num_active, health.num_submitted),
        stats=HealthStats(health.num_waiting + health.num_active, _metrics(health)),
    )


def _metrics(health: Health) -> dict[str, int]:
    return {
        "tasks_submitted_total": health.num_submitted,
        "tasks_completed_total": health.num_succeeded,
        "tasks_failed_total": health.num_failed,
        "tasks_cancelled_total": health.num_cancelled,
    }


def operations_routes(service: RunService, figures: RequestFigures, capacity: CapacityStore) -> APIRouter:
    """Make the routes; `figures` are this replica's own."""
    router = APIRouter(tags=["operations"], dependencies=[Depends(public())])

    @router.get("/health", summary="Whether the service can take work", **described("HealthReport"))
    async def health() -> Response:
        found = await service.health()
        return json_response(report_of(found), 200 if found.is_healthy else 503)

    text = described(None, media_type="text/plain", has_errors=False)

    @router.get("/metrics", summary="Figures in Prometheus' format", **text)
    @router.get("/_public/metrics", summary="Figures in Prometheus' format", **text)
    async def metrics() -> Response:
        own, store = figures.snapshot(), service.store
        try:
            others = [each for each in await store.ingress_snapshots() if each["process"] != own["process"]]
            told = ServiceFigures(
                totals=await store.totals(),
                orchestrators=await store.metrics_snapshots(),
                partitions=await store.partition_figures(),
                ingress=[own, *others],
                capacity=await capacity.snapshot(),
                uptime_s=service.uptime_s,
            )
        except Unavailable:
            told = ServiceFigures(totals=None, ingress=[own], uptime_s=service.uptime_s)
        return Response(render_metrics(told), media_type=CONTENT_TYPE)

    return router
