"""Reads: Runs, lists, events and figures, straight from Redis, without any actor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from redis.asyncio import Redis

from cluster.engine import Run
from cluster.errors import InvalidInput, NotFound, Unavailable
from cluster.lifecycle.run_status import RunStatus
from cluster.model.compiled import CompiledPlan, compile_plan
from cluster.model.plan import Plan
from cluster.model.run_id import client_id
from cluster.model.view import RunEvent, RunSummary, RunView
from cluster.store import keys
from cluster.store.connection import redis_errors_as_ours
from cluster.store.event_feed import EventFeed
from cluster.store.run_codec import (
    decode_events,
    decode_header,
    decode_record,
    decode_run,
    summary_of,
    view_of,
)

if TYPE_CHECKING:
    from cluster.settings import Settings

__all__ = ["PartitionFigures", "RunReader", "Totals"]

_PRIOR_STEP_S = 1.0
_CACHE_S = 1.0
_SCAN_CHUNK = 200
_MAX_SCANNED = 20_000


class Totals(NamedTuple):
    """All-time counts of Runs."""

    submitted: int
    succeeded: int
    failed: int
    cancelled: int
    unfinished: int


class PartitionFigures(NamedTuple):
    """How a partition stands: its lease (seconds left, 0 where nobody owns it), what waits in its inbox, and
    webhooks to be delivered and given up.
    """

    number: int
    epoch: int
    lease_s: float
    inbox: int
    webhooks: int
    webhooks_dead: int


class RunReader:
    """The reading half of RunStore. All methods raise Unavailable when Redis is away."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self._settings = settings
        self._partitions = [keys.PartitionKeys(p) for p in range(settings.num_partitions)]
        self._feed = EventFeed(settings.redis_url, self._partitions)
        self._durations: tuple[float, dict[str, tuple[float, float]]] = (0.0, {})

    async def close(self) -> None:
        """Close all connections."""
        await self._feed.close()
        await self.redis.aclose()

    def keys_of(self, run_id: str) -> keys.PartitionKeys:
        """Keys of the Run's partition."""
        return self._partitions[keys.partition_of(run_id, len(self._partitions))]

    async def ping(self) -> bool:
        """Whether Redis answers now."""
        try:
            with redis_errors_as_ours():
                return bool(await asyncio.wait_for(self.redis.ping(), 2.0))
        except (Unavailable, TimeoutError):
            return False

    async def get(self, run_id: str, tenant: str | None) -> RunView:
        """Read a Run.

        Args:
            tenant: Whose it must be; None for any.

        Raises:
            NotFound: Unknown, expired, or another tenant's.
        """
        with redis_errors_as_ours():
            fields: Any = await self.redis.hgetall(self.keys_of(run_id).run(run_id))
        if not fields or b"header" not in fields:
            raise NotFound(f"run {client_id(run_id)} not found")
        run = decode_run(fields)
        if tenant is not None and run.header.tenant != tenant:
            raise NotFound(f"run {client_id(run_id)} not found")
        return view_of(run)

    async def summary(self, run_id: str, tenant: str | None) -> RunSummary:
        """Read a Run without its Steps; raises as `get`."""
        found = await self._summaries([run_id])
        if found[0] is None or (tenant is not None and found[0].tenant != tenant):
            raise NotFound(f"run {client_id(run_id)} not found")
        return found[0]

    async def events(self, run_id: str, tenant: str | None) -> list[RunEvent]:
        """Read what has happened to a Run so far; raises as `get`."""
        await self.summary(run_id, tenant)
        with redis_errors_as_ours():
            rows: Any = await self.redis.xrange(self.keys_of(run_id).events(run_id))
        return [event for _, fields in rows for event in decode_events(fields[b"e"])]

    async def ended_outputs(self, run_ids: Sequence[str]) -> list[Run | NotFound | None]:
        """For each id the Run if it has ended, NotFound if it is unknown, None while it goes on."""
        found: list[Run | NotFound | None] = []
        with redis_errors_as_ours():
            pipe = self.redis.pipeline(transaction=False)
            for run_id in run_ids:
                pipe.hget(self.keys_of(run_id).run(run_id), "record")
            records = await pipe.execute()
        for run_id, raw in zip(run_ids, records, strict=True):
            if raw is None:
                found.append(NotFound(f"run {client_id(run_id)} not found"))
            elif not decode_record(raw).status.is_terminal:
                found.append(None)
            else:
                with redis_errors_as_ours():
                    fields: Any = await self.redis.hgetall(self.keys_of(run_id).run(run_id))
                found.append(decode_run(fields) if fields else NotFound(f"run {client_id(run_id)} not found"))
        return found

    async def _summaries(self, run_ids: Sequence[str]) -> list[RunSummary | None]:
        with redis_errors_as_ours():
            pipe = self.redis.pipeline(transaction=False)
            for run_id in run_ids:
                pipe.hmget(self.keys_of(run_id).run(run_id), ["header", "record"])
            rows = await pipe.execute()
        return [
            None
            if header is None or record is None
            else summary_of(decode_header(header), decode_record(record))
            for header, record in rows
        ]

    async def list_runs(
        self,
        tenant: str,
        *,
        statuses: Sequence[RunStatus] = (),
        dialect: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[RunSummary], str | None]:
        """List a tenant's Runs, newest first.

        Args:
            limit: 1 to 1,000.
            cursor: What the last page gave, or None.

        Returns:
            The page and the cursor of the next, None at the end.

        Raises:
            InvalidInput: The cursor is not one of ours.
        """
        before = _parse_cursor(cursor)
        page: list[RunSummary] = []
        scanned = 0
        while scanned < _MAX_SCANNED:
            ids = await self._ids_before(tenant, before)
            if not ids:
                return page, None
            for (run_id, created_at), found in zip(
                ids, await self._summaries([i for i, _ in ids]), strict=True
            ):
                scanned += 1
                before = (created_at, run_id)
                if found is None or (statuses and found.status not in statuses):
                    continue
                if dialect is not None and found.dialect != dialect:
                    continue
                page.append(found)
                if len(page) == limit:
                    return page, f"{created_at!r}:{run_id}"
        return page, f"{before[0]!r}:{before[1]}"

    async def _ids_before(self, tenant: str, before: tuple[float, str]) -> list[tuple[str, float]]:
        """Merge what the partitions list next, newest first; empty at the end.

        A partition may list many Runs of one instant that were seen already: it is asked on until it shows an
        unseen one. What lies below the last row of a partition that has more is left for the next call.
        """
        rows: list[tuple[float, str]] = []
        horizon = (float("-inf"), "")
        start_by_partition = dict.fromkeys(self._partitions, 0)
        while start_by_partition:
            asked = list(start_by_partition.items())
            start_by_partition = {}
            with redis_errors_as_ours():
                pipe = self.redis.pipeline(transaction=False)
                for partition, start in asked:
                    name = partition.index(tenant)
                    pipe.zrevrangebyscore(name, before[0], "-inf", start, _SCAN_CHUNK, withscores=True)
                parts: list[Any] = await pipe.execute()
            for (partition, start), part in zip(asked, parts, strict=True):
                listed = [(float(score), run_id.decode()) for run_id, score in part]
                unseen = [row for row in listed if row < before]
                rows += unseen
                if len(listed) == _SCAN_CHUNK and unseen:
                    horizon = max(horizon, listed[-1])
                elif len(listed) == _SCAN_CHUNK:
                    start_by_partition[partition] = start + _SCAN_CHUNK
        rows = sorted((row for row in rows if row >= horizon), reverse=True)[:_SCAN_CHUNK]
        return [(run_id, score) for score, run_id in rows]

    async def follow(self, run_id: str, tenant: str | None, after_seq: int = 0) -> AsyncIterator[RunEvent]:
        """Yield the Run's events after `after_seq`: the past, then the present; ends after the terminal one.

        Raises:
            NotFound: Unknown, expired, or another tenant's.
        """
        await self.summary(run_id, tenant)
        async for event in self.follow_known(run_id, after_seq):
            yield event

    def follow_known(self, run_id: str, after_seq: int = 0) -> AsyncIterator[RunEvent]:
        """The same for a Run that the caller has just read: whose it is was seen then."""
        return self._feed.follow(self.redis, self.keys_of(run_id), run_id, after_seq)

    # -- figures

    async def totals(self) -> Totals:
        """Count all Runs ever, and those that have not ended."""
        with redis_errors_as_ours():
            pipe = self.redis.pipeline(transaction=False)
            for partition in self._partitions:
                pipe.hgetall(partition.totals)
                pipe.zcard(partition.active)
            rows = await pipe.execute()
        sums = dict.fromkeys((b"submitted", b"succeeded", b"failed", b"cancelled"), 0)
        for counters in rows[::2]:
            for name in sums:
                sums[name] += int(counters.get(name, 0))
        return Totals(
            sums[b"submitted"], sums[b"succeeded"], sums[b"failed"], sums[b"cancelled"], sum(rows[1::2])
        )

    async def metrics_snapshots(self) -> list[dict[str, Any]]:
        """Read what the orchestrators told of themselves in the last seconds."""
        with redis_errors_as_ours():
            names = [keys.metrics_key(str(number)) for number in range(self._settings.num_orchestrators)]
            values = await self.redis.mget(names)
        return [orjson.loads(value) for value in values if value]

    async def partition_figures(self) -> list[PartitionFigures]:
        """Read how each partition stands, by Redis's clock."""
        with redis_errors_as_ours():
            pipe = self.redis.pipeline(transaction=False)
            pipe.time()
            for partition in self._partitions:
                pipe.hmget(partition.owner, ["epoch", "until_ms"])
                pipe.xlen(partition.inbox)
                pipe.hlen(partition.webhooks)
                pipe.hlen(partition.webhooks_dead)
            (seconds, micros), *rows = await pipe.execute()
        now_ms = seconds * 1000 + micros / 1000
        found = []
        for partition, start in zip(self._partitions, range(0, len(rows), 4), strict=True):
            (epoch, until_ms), inbox, webhooks, dead = rows[start : start + 4]
            lease_s = max((float(until_ms or 0) - now_ms) / 1000, 0.0)
            found.append(
                PartitionFigures(partition.partition, int(epoch or 0), lease_s, inbox, webhooks, dead)
            )
        return found

    async def put_ingress_snapshot(self, process: str, snapshot: bytes) -> None:
        """Show the counts of an ingress replica to all others for some seconds.

        Args:
            process: The replica's name.
            snapshot: JSON with `at`, Unix seconds.
        """
        with redis_errors_as_ours():
            pipe = self.redis.pipeline(transaction=True)
            pipe.hset(keys.INGRESS_METRICS, process, snapshot)
            pipe.expire(keys.INGRESS_METRICS, keys.METRICS_TTL_S)
            await pipe.execute()

    async def ingress_snapshots(self) -> list[dict[str, Any]]:
        """Read what ingress replicas counted; what the dead have left is removed."""
        with redis_errors_as_ours():
            values: Any = await self.redis.hgetall(keys.INGRESS_METRICS)
            found = {process: orjson.loads(value) for process, value in values.items()}
            before = time.time() - keys.METRICS_TTL_S
            dead = [process for process, each in found.items() if each["at"] < before]
            if dead:
                await self.redis.hdel(keys.INGRESS_METRICS, *dead)
        return [each for process, each in found.items() if process not in dead]

    async def estimate_ms(self, plan: Plan) -> int:
        """Estimate submit to end: the longest path of measured mean durations, with the present waits for
        a slot. Of a Blueprint nobody knows how many Steps it will make: it counts as one.
        """
        now = time.monotonic()
        if now - self._durations[0] > _CACHE_S:
            with redis_errors_as_ours():
                rows: Any = await self.redis.hgetall(keys.DURATIONS)
            means = {name.decode(): tuple(float(x) for x in value.split()) for name, value in rows.items()}
            self._durations = (now, {name: (pair[0], pair[1]) for name, pair in means.items()})
        known = self._durations[1]
        compiled = compile_plan(plan)
        ends = [0.0] * len(compiled.steps)
        for index in _topological(compiled):
            step = compiled.steps[index]
            mean_s, wait_s = known.get(step.step.capability, (_PRIOR_STEP_S, 0.0))
            ends[index] = max((ends[need] for need in step.needs), default=0.0) + mean_s + wait_s
        return max(round(max(ends, default=_PRIOR_STEP_S) * 1000), 1)


def _topological(compiled: CompiledPlan) -> list[int]:
    remaining = [len(step.needs) for step in compiled.steps]
    order = list(compiled.roots)
    for index in order:
        for dependent in compiled.steps[index].dependents:
            remaining[dependent] -= 1
            if not remaining[dependent]:
                order.append(dependent)
    return order


def _parse_cursor(cursor: str | None) -> tuple[float, str]:
    if cursor is None:
        return (float("inf"), "")
    text, _, run_id = cursor.partition(":")
    try:
        created_at = float(text)
    except ValueError:
        created_at = nan
    if not isfinite(created_at):
        raise InvalidInput("cursor: not one this list gave out", field="cursor")
    return (created_at, run_id)
