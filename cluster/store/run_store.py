"""The store as clients of the engine see it: submit, command, read. It never touches an actor.

Submits that arrive while one is on its way to Redis go out together in the next round trip.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from uuid import uuid4

import msgspec
import orjson
from redis.asyncio import Redis

from cluster.engine import Run
from cluster.errors import (
    AlreadyExists,
    Conflict,
    InvalidInput,
    LimitExceeded,
    NotFound,
    TuttiError,
    Unavailable,
)
from cluster.lifecycle.run_status import RunStatus
from cluster.model.compiled import CompiledPlan, compile_plan
from cluster.model.plan import Plan, Submission
from cluster.model.view import RunEvent, RunSummary, RunView
from cluster.store import keys, scripts
from cluster.store.connection import connect_redis, redis_errors_as_ours
from cluster.store.event_feed import EventFeed
from cluster.store.run_codec import (
    EncodedSubmission,
    decode_header,
    decode_record,
    decode_run,
    encode_submission,
    summary_of,
    view_of,
)

if TYPE_CHECKING:
    from cluster.settings import Settings

__all__ = ["RunStore", "SubmitOutcome", "Totals"]

_PRIOR_STEP_S = 1.0
_CACHE_S = 1.0
_SCAN_CHUNK = 200
_MAX_SCANNED = 20_000


class SubmitOutcome(NamedTuple):
    """What became of a Submission: `created` is False where the same was given before."""

    run_id: str
    created: bool


class Totals(NamedTuple):
    """All-time counts of Runs."""

    submitted: int
    succeeded: int
    failed: int
    cancelled: int
    unfinished: int


class _Waiting(NamedTuple):
    submission: EncodedSubmission
    answer: asyncio.Future[str]


class RunStore:
    """One per process. All methods raise Unavailable when Redis is away."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self._settings = settings
        self._partitions = [keys.PartitionKeys(p) for p in range(settings.num_partitions)]
        self._feed = EventFeed(settings.redis_url, self._partitions)
        self._waiting: list[_Waiting] = []
        self._flusher: asyncio.Task[None] | None = None
        self._unfinished: dict[str, tuple[float, int]] = {}
        self._durations: tuple[float, dict[str, tuple[float, float]]] = (0.0, {})
        self._memory: tuple[float, int] = (0.0, 0)

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """Open the store; nothing is sent before the first call."""
        return cls(connect_redis(settings.redis_url, is_shared=True), settings)

    async def close(self) -> None:
        """Close all connections."""
        if self._flusher is not None:
            await self._flusher
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

    # -- submit

    async def submit(self, submission: Submission, compiled: CompiledPlan | None = None) -> SubmitOutcome:
        """Accept a Run durably.

        Raises:
            AlreadyExists: The run_id was given with another digest.
            LimitExceeded: The tenant's unfinished Runs or the store's memory are at their limit.
            InvalidPlan: The Plan breaks a rule.
        """
        encoded = encode_submission(submission, time.time(), compiled)
        await self.check_room(submission.tenant, 1)
        (reply,) = await self._enqueue([encoded])
        return _outcome_of(submission.run_id, reply)

    async def submit_many(self, submissions: Sequence[Submission]) -> list[SubmitOutcome | TuttiError]:
        """Accept many; each is answered for itself, in order.

        Raises:
            LimitExceeded: There is no room for all of them; none was accepted.
            InvalidPlan: One Plan breaks a rule; none was accepted.
        """
        now = time.time()
        encoded = [encode_submission(submission, now) for submission in submissions]
        for tenant in {submission.tenant for submission in submissions}:
            await self.check_room(tenant, sum(s.tenant == tenant for s in submissions))
        replies = await self._enqueue(encoded)
        outcomes: list[SubmitOutcome | TuttiError] = []
        for submission, reply in zip(submissions, replies, strict=True):
            try:
                outcomes.append(_outcome_of(submission.run_id, reply))
            except AlreadyExists as error:
                outcomes.append(error)
        return outcomes

    async def check_room(self, tenant: str, num_runs: int) -> None:
        """Refuse what is over a bound. The tenant's count is at most a second old, but fresh near the limit."""
        limit = self._settings.max_unfinished_runs
        now = time.monotonic()
        checked_at, count = self._unfinished.get(tenant, (0.0, 0))
        if now - checked_at > _CACHE_S or count + num_runs > limit * 0.9:
            count = await self.count_unfinished(tenant)
            checked_at = now
        if count + num_runs > limit:
            raise LimitExceeded(
                f"tenant {tenant} has {count} unfinished runs; the limit is {limit}",
                retry_after_s=1.0,
                limit=limit,
            )
        self._unfinished[tenant] = (checked_at, count + num_runs)
        await self._check_memory(now)

    async def _check_memory(self, now: float) -> None:
        limit = self._settings.max_redis_bytes
        if not limit:
            return
        if now - self._memory[0] > _CACHE_S:
            with redis_errors_as_ours():
                info = await self.redis.info("memory")
            self._memory = (now, int(info["used_memory"]))
        if self._memory[1] > limit:
            raise LimitExceeded("the store is at its memory limit", retry_after_s=5.0, limit=limit)

    async def count_unfinished(self, tenant: str) -> int:
        """Count the tenant's Runs that have not ended."""
        with redis_errors_as_ours():
            pipe = self.redis.pipeline(transaction=False)
            for partition in self._partitions:
                pipe.hget(partition.tenants, tenant)
            return sum(int(count or 0) for count in await pipe.execute())

    async def _enqueue(self, encoded: Sequence[EncodedSubmission]) -> list[str]:
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(each, loop.create_future()) for each in encoded]
        self._waiting += waiting
        if self._flusher is None or self._flusher.done():
            self._flusher = loop.create_task(self._flush())
        return [await each.answer for each in waiting]

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._send(batch)
            except TuttiError as error:
                for each in batch:
                    if not each.answer.done():
                        each.answer.set_exception(error)

    async def _send(self, batch: list[_Waiting]) -> None:
        by_partition: dict[int, list[_Waiting]] = {}
        for each in batch:
            by_partition.setdefault(
                keys.partition_of(each.submission.run_id, len(self._partitions)), []
            ).append(each)
        calls: list[scripts.Call] = []
        groups: list[list[_Waiting]] = []
        for partition, members in by_partition.items():
            for start in range(0, len(members), 256):
                group = members[start : start + 256]
                groups.append(group)
                calls.append(_submit_call(self._partitions[partition], group))
        with redis_errors_as_ours():
            replies = await scripts.call_many(self.redis, calls)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        for group, reply in zip(groups, replies, strict=True):
            for each, word in zip(group, reply, strict=True):
                if not each.answer.done():
                    each.answer.set_result(word.decode())

    # -- commands

    async def command(
        self,
        run_id: str,
        tenant: str | None,
        kind: str,
        *,
        command_id: str | None = None,
        reason: str = "",
        priority: int | None = None,
    ) -> None:
        """Send a command to the Run's owner and wait for its verdict.

        Args:
            kind: cancel, pause, resume or priority.
            command_id: The same id again gets the same verdict.

        Raises:
            NotFound: No such Run of this tenant.
            Conflict, InvalidInput: The owner refused.
            Unavailable: No verdict in time; the command stays in the inbox and may still be carried out.
        """
        command_id = command_id or uuid4().hex
        partition = self.keys_of(run_id)
        verdict_key = partition.verdict(command_id)
        body = orjson.dumps({"kind": kind, "reason": reason, "priority": priority})
        async with self._feed.verdict(partition, command_id) as arrived:
            with redis_errors_as_ours():
                reply = await scripts.call(
                    self.redis,
                    scripts.POST,
                    [partition.inbox, partition.run(run_id), verdict_key],
                    [run_id, command_id, body, tenant or "", keys.VERDICT_TTL_S * 1000],
                )
            if reply[0] == b"unknown":
                raise NotFound(f"run {run_id} not found")
            text = (
                reply[1].decode()
                if reply[0] == b"verdict"
                else await self._await_verdict(arrived, verdict_key)
            )
        _raise_verdict(text)

    async def _await_verdict(self, arrived: asyncio.Future[str], verdict_key: str) -> str:
        deadline = time.monotonic() + self._settings.command_wait_s
        while (left_s := deadline - time.monotonic()) > 0:
            done, _ = await asyncio.wait([arrived], timeout=min(left_s, 0.5))
            if done:
                return arrived.result()
            with redis_errors_as_ours():
                stored: Any = await self.redis.get(verdict_key)
            if stored and stored != b"posted":
                return str(stored.decode())
        raise Unavailable("the owner of this run gave no verdict in time; try again", retry_after_s=1.0)

    # -- reads

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
            raise NotFound(f"run {run_id} not found")
        run = decode_run(fields)
        if tenant is not None and run.header.tenant != tenant:
            raise NotFound(f"run {run_id} not found")
        return view_of(run)

    async def summary(self, run_id: str, tenant: str | None) -> RunSummary:
        """Read a Run without its Steps; raises as `get`."""
        found = await self._summaries([run_id])
        if found[0] is None or (tenant is not None and found[0].tenant != tenant):
            raise NotFound(f"run {run_id} not found")
        return found[0]

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
                found.append(NotFound(f"run {run_id} not found"))
            elif not decode_record(raw).status.is_terminal:
                found.append(None)
            else:
                with redis_errors_as_ours():
                    fields: Any = await self.redis.hgetall(self.keys_of(run_id).run(run_id))
                found.append(decode_run(fields) if fields else NotFound(f"run {run_id} not found"))
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
        with redis_errors_as_ours():
            pipe = self.redis.pipeline(transaction=False)
            for partition in self._partitions:
                pipe.zrevrangebyscore(
                    partition.index(tenant), before[0], "-inf", start=0, num=_SCAN_CHUNK, withscores=True
                )
            rows = [(run_id.decode(), score) for part in await pipe.execute() for run_id, score in part]
        rows.sort(key=lambda row: (row[1], row[0]), reverse=True)
        return [row for row in rows if (row[1], row[0]) < before][:_SCAN_CHUNK]

    async def follow(self, run_id: str, tenant: str | None, after_seq: int = 0) -> AsyncIterator[RunEvent]:
        """Yield the Run's events after `after_seq`: the past, then the present; ends after the terminal one.

        Raises:
            NotFound: Unknown, expired, or another tenant's.
        """
        await self.summary(run_id, tenant)
        async for event in self._feed.follow(self.redis, self.keys_of(run_id), run_id, after_seq):
            yield event

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
        """Read what every actor told of itself in the last seconds."""
        with redis_errors_as_ours():
            names = [name async for name in self.redis.scan_iter(match=keys.metrics_key("*"), count=500)]
            values = await self.redis.mget(names) if names else []
        return [orjson.loads(value) for value in values if value]

    async def estimate_ms(self, plan: Plan) -> int:
        """Estimate submit to end: the longest path of measured mean durations, with the present waits for a slot."""
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
        return max(round(max(ends) * 1000), 1)


def _topological(compiled: CompiledPlan) -> list[int]:
    remaining = [len(step.needs) for step in compiled.steps]
    order = list(compiled.roots)
    for index in order:
        for dependent in compiled.steps[index].dependents:
            remaining[dependent] -= 1
            if not remaining[dependent]:
                order.append(dependent)
    return order


def _submit_call(partition: keys.PartitionKeys, group: list[_Waiting]) -> scripts.Call:
    names = [partition.inbox, partition.active, partition.totals, partition.tenants]
    arguments: list[Any] = [len(group)]
    for each in group:
        run = each.submission
        names += (partition.run(run.run_id), partition.events(run.run_id), partition.index(run.tenant))
        arguments += (
            run.run_id,
            run.digest,
            run.header,
            run.plan,
            run.inputs,
            run.record,
            run.event,
            run.tenant,
            run.created_at,
            run.dialect,
        )
    return scripts.SUBMIT, names, arguments


def _outcome_of(run_id: str, reply: str) -> SubmitOutcome:
    if reply == "taken":
        raise AlreadyExists(f"run {run_id} exists with a different request", run_id=run_id)
    return SubmitOutcome(run_id, reply == "created")


def _parse_cursor(cursor: str | None) -> tuple[float, str]:
    if cursor is None:
        return (float("inf"), "")
    created_at, _, run_id = cursor.partition(":")
    try:
        return (float(created_at), run_id)
    except ValueError:
        raise InvalidInput("cursor: not one this list gave out", field="cursor") from None


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The owner's answer to a command: `code` is "" where it was carried out."""

    code: str = ""
    message: str = ""
    details: dict[str, Any] = msgspec.field(default_factory=dict)


_verdicts = msgspec.json.Decoder(Verdict)


def _raise_verdict(text: str) -> None:
    verdict = _verdicts.decode(text)
    for kind in (Conflict, InvalidInput, NotFound):
        if verdict.code == kind.code:
            raise kind(verdict.message, **verdict.details)
