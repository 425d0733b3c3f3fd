"""The store as clients of the engine see it: submit, command, read. It never touches an actor.

Submits that arrive while one is on its way to Redis go out together in the next round trip.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from uuid import uuid4

import msgspec
import orjson
from redis.asyncio import Redis

from cluster.errors import (
    AlreadyExists,
    Conflict,
    InvalidInput,
    LimitExceeded,
    NotFound,
    TuttiError,
    Unavailable,
)
from cluster.model.compiled import CompiledPlan
from cluster.model.plan import Submission
from cluster.model.run_id import client_id
from cluster.scheduling.reasons import StepWait
from cluster.store import keys, scripts
from cluster.store.connection import connect_redis, redis_errors_as_ours
from cluster.store.run_codec import EncodedSubmission, decode_header, encode_submission
from cluster.store.run_reader import RunReader
from cluster.store.tenant_room import TenantRoom

if TYPE_CHECKING:
    from cluster.settings import Settings

__all__ = ["RunStore", "SubmitOutcome", "Verdict"]


class SubmitOutcome(NamedTuple):
    """What became of a Submission: `created` is False where the same was given before."""

    run_id: str
    created: bool


class _Waiting(NamedTuple):
    submission: EncodedSubmission
    answer: asyncio.Future[str]


class RunStore(RunReader):
    """One per process. All methods raise Unavailable when Redis is away."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        super().__init__(redis, settings)
        self._waiting: list[_Waiting] = []
        self._flusher: asyncio.Task[None] | None = None
        self.room = TenantRoom(redis, self._partitions, settings)

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """Open the store; nothing is sent before the first call."""
        return cls(connect_redis(settings.redis_url, is_shared=True), settings)

    async def close(self) -> None:
        """Close all connections, after what is on its way."""
        if self._flusher is not None:
            await self._flusher
        await super().close()

    # -- submit

    async def submit(
        self, submission: Submission, compiled: CompiledPlan | None = None, *, has_room: bool = False
    ) -> SubmitOutcome:
        """Accept a Run durably.

        Args:
            has_room: The caller has taken room for it.

        Raises:
            AlreadyExists: The run_id was given with another digest.
            InvalidInput: It comes after a Run that is unknown.
            LimitExceeded: The tenant's unfinished Runs or the store's memory are at their limit.
            InvalidPlan: The Plan breaks a rule.
        """
        encoded = encode_submission(submission, time.time(), compiled)
        if submission.after:
            await self.check_predecessors([submission])
        if has_room:
            (reply,) = await self._enqueue([encoded])
            return _outcome_of(submission.run_id, reply)
        try:
            async with self.room.of(submission.tenant, 1):
                (reply,) = await self._enqueue([encoded])
        except LimitExceeded:
            if await self._was_given(encoded):
                return SubmitOutcome(submission.run_id, created=False)
            raise
        return _outcome_of(submission.run_id, reply)

    async def _was_given(self, encoded: EncodedSubmission) -> bool:
        """Whether this very Submission was accepted before: a repetition needs no room.

        Raises:
            AlreadyExists: Its id was given with another digest.
        """
        with redis_errors_as_ours():
            digest: Any = await self.redis.hget(self.keys_of(encoded.run_id).run(encoded.run_id), "digest")
        if digest is None:
            return False
        return not _outcome_of(
            encoded.run_id, "same" if digest.decode() == encoded.digest else "taken"
        ).created

    async def check_predecessors(self, submissions: Sequence[Submission]) -> None:
        """Refuse what would wait for a Run that is unknown, or was and has expired: it could wait for ever.
        Since only Runs that exist can be named, none can wait for itself over others.

        Args:
            submissions: In the order of their acceptance: each may name those before it.

        Raises:
            InvalidInput: One names an unknown Run.
        """
        known: set[str] = set()
        wanted: list[tuple[str, str]] = []
        for submission in submissions:
            wanted += [(other, submission.tenant) for other in submission.after if other not in known]
            known.add(submission.run_id)
        with redis_errors_as_ours():
            pipe = self.redis.pipeline(transaction=False)
            for other, _ in wanted:
                pipe.hget(self.keys_of(other).run(other), "header")
            headers = await pipe.execute()
        for (other, tenant), header in zip(wanted, headers, strict=True):
            if header is None or decode_header(header).tenant != tenant:
                raise InvalidInput(f"after: there is no run {client_id(other)}", field="after")

    async def submit_many(
        self, submissions: Sequence[Submission], *, has_room: bool = False
    ) -> list[SubmitOutcome | TuttiError]:
        """Accept many; each is answered for itself, in order.

        Args:
            has_room: The caller has taken room for them.

        Raises:
            LimitExceeded: There is no room for all of them; none was accepted.
            InvalidPlan: One Plan breaks a rule; none was accepted.
        """
        encoded = [encode_submission(submission, time.time()) for submission in submissions]
        if any(submission.after for submission in submissions):
            await self.check_predecessors(submissions)
        async with AsyncExitStack() as taken:
            by_tenant = Counter(each.tenant for each in submissions)
            for tenant, num_runs in () if has_room else by_tenant.items():
                await taken.enter_async_context(self.room.of(tenant, num_runs))
            replies = await self._enqueue(encoded)
        outcomes: list[SubmitOutcome | TuttiError] = []
        for submission, reply in zip(submissions, replies, strict=True):
            try:
                outcomes.append(_outcome_of(submission.run_id, reply))
            except AlreadyExists as error:
                outcomes.append(error)
        return outcomes

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
        **arguments: Any,
    ) -> None:
        """Send a command to the Run's owner and wait for its verdict.

        Args:
            kind: cancel (`reason`), pause, resume, priority (`priority`) or answer (`step`, `answer`, `data`,
                `by`).
            command_id: The same id again gets the same verdict.
            arguments: What the kind takes, JSON-able.

        Raises:
            NotFound: No such Run of this tenant.
            Conflict, InvalidInput: The owner refused.
            Unavailable: No verdict in time; the command stays in the inbox and may still be carried out.
        """
        body = orjson.dumps({"kind": kind, **arguments})
        await self._ask_owner(run_id, tenant, command_id or uuid4().hex, body)

    async def why(self, run_id: str, tenant: str | None) -> list[StepWait]:
        """Ask the Run's owner why StepRuns of it wait.

        Returns:
            In Plan order, the first 100 of them one by one, all others by Step and kind of reason; none where
            nothing waits or the Run has ended.

        Raises:
            NotFound: No such Run of this tenant.
            Unavailable: No answer in time.
        """
        verdict = await self._ask_owner(run_id, tenant, uuid4().hex, orjson.dumps({"kind": "why"}))
        return msgspec.convert(verdict.details.get("waits", []), list[StepWait])

    async def _ask_owner(self, run_id: str, tenant: str | None, command_id: str, body: bytes) -> Verdict:
        """Put a message into the Run's inbox and wait for the verdict; raises as `command`."""
        partition = self.keys_of(run_id)
        verdict_key = partition.verdict(command_id)
        async with self._feed.verdict(partition, command_id) as arrived:
            with redis_errors_as_ours():
                reply = await scripts.call(
                    self.redis,
                    scripts.POST,
                    [partition.inbox, partition.run(run_id), verdict_key],
                    [run_id, command_id, body, tenant or "", keys.VERDICT_TTL_S * 1000],
                )
            if reply[0] == b"unknown":
                raise NotFound(f"run {client_id(run_id)} not found")
            text = (
                reply[1].decode()
                if reply[0] == b"verdict"
                else await self._await_verdict(arrived, verdict_key)
            )
        return _read_verdict(text)

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
        raise AlreadyExists(f"run {client_id(run_id)} exists with a different request", run_id=run_id)
    return SubmitOutcome(run_id, reply == "created")


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The owner's answer to a command: `code` is "" where it was carried out."""

    code: str = ""
    message: str = ""
    details: dict[str, Any] = msgspec.field(default_factory=dict)


_verdicts = msgspec.json.Decoder(Verdict)


def _read_verdict(text: str) -> Verdict:
    verdict = _verdicts.decode(text)
    for kind in (Conflict, InvalidInput, NotFound):
        if verdict.code == kind.code:
            raise kind(verdict.message, **verdict.details)
    return verdict
