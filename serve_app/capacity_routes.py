"""Pools, limits and the capacity map over HTTP: parse and render, no rules.

Reading needs a user; changing needs an operator, an admin of no tenant, because pools are shared by all
tenants and name the code that their replicas run.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from cluster.errors import InvalidInput
from cluster.scheduling.pools import PoolSpec
from cluster.store.capacity import (
    CapacitySnapshot,
    DeviceState,
    Holder,
    LimitSpec,
    NodeState,
    ReplicaState,
)
from serve_app.access import requires
from serve_app.auth import Principal
from serve_app.dialect import convert, json_response, read_object
from serve_app.openapi import body_schema, described
from serve_app.reason_lines import ReasonLine, instant_text, reason_line

if TYPE_CHECKING:
    from serve_app.capacity_service import CapacityService, KnownLimit, KnownPool

__all__ = [
    "SCHEMAS",
    "CapacityMap",
    "DeviceLine",
    "HolderLine",
    "LimitLine",
    "LimitPage",
    "NodeLine",
    "PoolLine",
    "PoolPage",
    "Removed",
    "ReplicaLine",
    "WaitLine",
    "capacity_routes",
]

_User = Annotated[Principal, Depends(requires("user"))]
_Operator = Annotated[Principal, Depends(requires("admin", is_for_operators=True))]


class ReplicaLine(msgspec.Struct):
    """A replica: `state` is ready, starting or retiring."""

    id: str
    node: str
    state: str
    since: str


class PoolLine(msgspec.Struct):
    """A pool as it is declared (`spec`, `source`: built-in, agents, file or run time) and as it stands."""

    name: str
    source: str
    spec: dict[str, Any]
    capabilities: list[str]
    replicas: list[ReplicaLine]
    waiting: int
    running: int
    oldest_s: float
    reason: ReasonLine | None
    trouble: str


class PoolPage(msgspec.Struct):
    """All pools by name; `at` is when the scheduler told how they stand, null while it is silent."""

    pools: list[PoolLine]
    at: str | None


class LimitLine(msgspec.Struct):
    """A limited key, and how many StepRuns have it now."""

    key: str
    max_concurrent: int | None
    rate: str
    burst: float
    source: str
    num_used: int


class LimitPage(msgspec.Struct):
    """The limited keys that the caller may see."""

    limits: list[LimitLine]


class HolderLine(msgspec.Struct):
    """Who has a share (0 to 1) of a device."""

    replica: str
    pool: str
    share: float
    since: str


class DeviceLine(msgspec.Struct):
    """A GPU; `free` is the share (0 to 1) that nobody has."""

    index: int
    free: float
    total_gb: float
    free_gb: float
    holders: list[HolderLine]


class NodeLine(msgspec.Struct):
    """A node with its devices."""

    name: str
    labels: dict[str, str]
    num_cpus: float
    free_cpus: float
    devices: list[DeviceLine]


class WaitLine(msgspec.Struct):
    """How long Steps of a capability wait for a slot, in seconds."""

    capability: str
    p50_s: float
    p95_s: float


class Removed(msgspec.Struct):
    """What was removed."""

    removed: str


class CapacityMap(msgspec.Struct):
    """What there is, who has it since when, and what waits."""

    at: str
    nodes: list[NodeLine]
    pools: list[PoolLine]
    limits: list[LimitLine]
    utilisation: float
    fragmentation: float
    scale_events: dict[str, int]
    waits: list[WaitLine]


SCHEMAS: tuple[type, ...] = (CapacityMap, LimitPage, LimitSpec, PoolPage, PoolSpec, Removed)


def _replica(replica: ReplicaState) -> ReplicaLine:
    return ReplicaLine(replica.id, replica.node, replica.state, instant_text(replica.since))


def _pool(known: KnownPool) -> PoolLine:
    state = known.state
    return PoolLine(
        name=known.spec.name,
        source=known.source,
        spec=msgspec.structs.asdict(known.spec),
        capabilities=list(known.spec.capabilities if state is None else state.capabilities),
        replicas=[] if state is None else [_replica(each) for each in state.replicas],
        waiting=0 if state is None else state.waiting,
        running=0 if state is None else state.running,
        oldest_s=0.0 if state is None else state.oldest_s,
        reason=None if state is None or state.reason is None else reason_line(state.reason, time.time()),
        trouble="" if state is None else state.trouble,
    )


def _limit(known: KnownLimit) -> LimitLine:
    spec = known.spec
    return LimitLine(known.key, spec.max_concurrent, spec.rate, spec.burst, known.source, known.num_used)


def _holder(holder: Holder) -> HolderLine:
    return HolderLine(holder.replica, holder.pool, holder.share, instant_text(holder.since))


def _device(device: DeviceState) -> DeviceLine:
    holders = [_holder(each) for each in device.holders]
    return DeviceLine(device.index, device.free, device.total_gb, device.free_gb, holders)


def _node(node: NodeState) -> NodeLine:
    devices = [_device(each) for each in node.devices]
    return NodeLine(node.name, node.labels, node.num_cpus, node.free_cpus, devices)


def _map(snapshot: CapacitySnapshot, pools: list[KnownPool], limits: list[KnownLimit]) -> CapacityMap:
    return CapacityMap(
        at=instant_text(snapshot.at),
        nodes=[_node(each) for each in snapshot.nodes],
        pools=[_pool(each) for each in pools],
        limits=[_limit(each) for each in limits],
        utilisation=snapshot.utilisation,
        fragmentation=snapshot.fragmentation,
        scale_events=snapshot.scale_events,
        waits=[WaitLine(name, p50, p95) for name, (p50, p95) in sorted(snapshot.wait_s.items())],
    )


def _spec_of(name: str, body: dict[str, Any]) -> PoolSpec:
    if body.setdefault("name", name) != name:
        raise InvalidInput(f"name: the path says {name!r}", field="name")
    return convert(body, PoolSpec)


def capacity_routes(capacity: CapacityService) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["capacity"])

    @router.get(
        "/api/v1/pools", summary="List pools: declared how, and how they stand", **described("PoolPage")
    )
    async def list_pools(principal: _User) -> Response:
        found = await capacity.pools()
        at = None if found.at is None else instant_text(found.at)
        return json_response(PoolPage([_pool(each) for each in found.pools], at))

    @router.get("/api/v1/pools/{name}", summary="Look at a pool", **described("PoolLine"))
    async def get_pool(name: str, principal: _User) -> Response:
        return json_response(_pool(await capacity.pool(name)))

    @router.put(
        "/api/v1/pools/{name}",
        summary="Declare or change a pool; acts on what runs",
        openapi_extra=body_schema("PoolSpec"),
        **described("PoolLine"),
    )
    async def put_pool(name: str, request: Request, principal: _Operator) -> Response:
        spec = _spec_of(name, await read_object(request))
        return json_response(_pool(await capacity.put_pool(principal, spec)))

    @router.delete("/api/v1/pools/{name}", summary="Remove a pool", **described("Removed"))
    async def remove_pool(name: str, principal: _Operator) -> Response:
        await capacity.remove_pool(principal, name)
        return json_response(Removed(name))

    @router.get(
        "/api/v1/limits", summary="List concurrency and rate keys with their use", **described("LimitPage")
    )
    async def list_limits(principal: _User) -> Response:
        return json_response(LimitPage([_limit(each) for each in await capacity.limits(principal)]))

    @router.get("/api/v1/limits/{key}", summary="Look at a key", **described("LimitLine"))
    async def get_limit(key: str, principal: _User) -> Response:
        return json_response(_limit(await capacity.limit(principal, key)))

    @router.put(
        "/api/v1/limits/{key}",
        summary="Limit a key: how many at a time, how many in a while",
        openapi_extra=body_schema("LimitSpec"),
        **described("LimitLine"),
    )
    async def put_limit(key: str, request: Request, principal: _Operator) -> Response:
        spec = convert(await read_object(request), LimitSpec)
        return json_response(_limit(await capacity.put_limit(principal, key, spec)))

    @router.delete("/api/v1/limits/{key}", summary="Free a key", **described("Removed"))
    async def remove_limit(key: str, principal: _Operator) -> Response:
        await capacity.remove_limit(principal, key)
        return json_response(Removed(key))

    @router.get(
        "/api/v1/capacity",
        summary="Nodes, devices, who holds them since when, and what waits",
        **described("CapacityMap"),
    )
    async def get_capacity(principal: _User) -> Response:
        snapshot = await capacity.snapshot()
        pools = await capacity.pools(snapshot)
        return json_response(_map(snapshot, pools.pools, await capacity.limits(principal, snapshot)))

    return router
