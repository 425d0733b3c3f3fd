"""The store as an owner of partitions sees it: leases, inboxes, commits, recovery, the outbox.

One connection blocks on inboxes; everything else shares the pool. Nothing here decides anything about a Run.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any, NamedTuple

import msgspec
import structlog
from redis.asyncio import Redis

from cluster.engine import GrowingRun, Run
from cluster.errors import StaleOwner, TuttiError
from cluster.store import keys, scripts
from cluster.store.connection import connect_redis, redis_errors_as_ours
from cluster.store.run_codec import (
    Creation,
    decode_run,
    encode_events,
    encode_growth,
    encode_record,
    encode_step,
    field_of,
)
from cluster.store.webhook_bodies import end_webhook, quarantine_webhook

__all__ = ["CommitBatch", "InboxEntry", "Journal", "Ownership", "RunChange"]

_log = structlog.get_logger("tutti.journal")
_LOAD_CHUNK = 500
_INBOX_BLOCK_MS = 500
_INBOX_COUNT = 1000
_EVENTS_TOGETHER = 100  # in one entry of a Run's stream
_NUM_CREATIONS, _NUM_NOTICES = 3, 8  # their places among the arguments of commit.lua


class Ownership(NamedTuple):
    """The answer to a claim: `owned` by the caller under `epoch`; `is_new` asks for a reload."""

    epoch: int
    owned: bool
    is_new: bool
    others_left_s: float


class InboxEntry(NamedTuple):
    """One message: `fields` as submit.lua, post.lua and the relay write them."""

    partition: int
    entry_id: str
    fields: dict[bytes, bytes]


class RunChange:
    """What a batch writes of one Run; `creation` is what else is written where the Run is new."""

    __slots__ = ("creation", "events", "growths", "results", "run", "units")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.creation: Creation | None = None
        self.units: dict[tuple[int, int], None] = {}
        self.results: dict[tuple[int, int], None] = {}
        self.growths: list[int] = []
        self.events: list[Any] = []


class CommitBatch(NamedTuple):
    """One call of commit.lua.

    Attributes:
        trim_to: Inbox ids below it are done, or "".
        verdicts: (command id, verdict JSON).
    """

    partition: int
    epoch: int
    number: int
    trim_to: str
    changes: Sequence[RunChange]
    verdicts: Sequence[tuple[str, str]]


class Journal:
    """Access for one orchestrator to all partitions."""

    def __init__(self, url: str, num_partitions: int, owner_id: str, retention_s: float) -> None:
        self.redis: Redis = connect_redis(url)
        self._blocking: Redis = connect_redis(url, socket_timeout_s=None)
        self.partitions = [keys.PartitionKeys(p) for p in range(num_partitions)]
        self._owner_id = owner_id
        self._retention_ms = int(retention_s * 1000)

    async def close(self) -> None:
        """Close all connections."""
        await self._blocking.aclose()
        await self.redis.aclose()

    async def check_format(self) -> None:
        """Write or compare the version of the key layout.

        Raises:
            StaleOwner: The data belongs to another version.
        """
        with redis_errors_as_ours():
            await self.redis.set(keys.FORMAT, keys.FORMAT_VERSION, nx=True)
            found: Any = await self.redis.get(keys.FORMAT)
        if found.decode() != keys.FORMAT_VERSION:
            raise StaleOwner(f"the store has format {found.decode()}, this is {keys.FORMAT_VERSION}")

    async def server_run_id(self) -> str:
        """Name the server's incarnation; another one may have lost the last second in `everysec`."""
        with redis_errors_as_ours():
            info = await self.redis.info("server")
        return str(info["run_id"])

    # -- ownership

    async def announce(self, silence_s: float = 5.0) -> list[str]:
        """Show a sign of life and return the ids of living orchestrators, sorted.

        Args:
            silence_s: Who gave no sign for this long counts as dead.
        """
        now = time.time()
        with redis_errors_as_ours():
            pipe = self.redis.pipeline(transaction=False)
            pipe.zadd(keys.ORCHESTRATORS, {self._owner_id: now})
            pipe.zremrangebyscore(keys.ORCHESTRATORS, "-inf", now - 60)
            pipe.zrangebyscore(keys.ORCHESTRATORS, now - silence_s, "+inf")
            *_, living = await pipe.execute()
            names = {each.decode() for each in living}
            # One actor has one incarnation: those before this one are dead, whatever they told last.
            number = self._owner_id.partition("-")[0] + "-"
            before = {name for name in names if name.startswith(number) and name != self._owner_id}
            if before:
                await self.redis.zrem(keys.ORCHESTRATORS, *before)
        return sorted(names - before)

    async def leave(self) -> None:
        """Be no longer among the living."""
        with redis_errors_as_ours():
            await self.redis.zrem(keys.ORCHESTRATORS, self._owner_id)

    async def own(self, partitions: Sequence[int], lease_s: float) -> dict[int, Ownership]:
        """Claim or renew partitions; a lease of 0 releases them."""
        if not partitions:
            return {}
        calls: list[scripts.Call] = [
            (scripts.OWN, [self.partitions[p].owner], [self._owner_id, int(lease_s * 1000)])
            for p in partitions
        ]
        with redis_errors_as_ours():
            replies = await scripts.call_many(self.redis, calls)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return {
            p: Ownership(int(r[0]), bool(r[1]), bool(r[2]), r[3] / 1000)
            for p, r in zip(partitions, replies, strict=True)
        }

    # -- inbox and recovery

    async def read_inbox(self, cursors: dict[int, str]) -> list[InboxEntry]:
        """Wait for entries behind the cursors (partition to last id seen), at most half a second."""
        streams: dict[Any, Any] = {self.partitions[p].inbox: cursor for p, cursor in cursors.items()}
        by_name = {self.partitions[p].inbox.encode(): p for p in cursors}
        with redis_errors_as_ours():
            replies: Any = await self._blocking.xread(streams, count=_INBOX_COUNT, block=_INBOX_BLOCK_MS)
        rows = replies.items() if isinstance(replies, dict) else replies
        return [
            InboxEntry(by_name[name], entry_id.decode(), fields)
            for name, entries in rows or ()
            for entry_id, fields in _flat(entries)
        ]

    async def read_backlog(self, partition: int) -> list[InboxEntry]:
        """Read the whole inbox at a takeover."""
        with redis_errors_as_ours():
            rows: Any = await self.redis.xrange(self.partitions[partition].inbox)
        return [InboxEntry(partition, entry_id.decode(), fields) for entry_id, fields in rows]

    async def active_ids(self, partition: int) -> list[tuple[str, float]]:
        """Return (run_id, created_at) of Runs that have not ended, oldest first."""
        with redis_errors_as_ours():
            rows: Any = await self.redis.zrange(self.partitions[partition].active, 0, -1, withscores=True)
        return [(run_id.decode(), created_at) for run_id, created_at in rows]

    async def load(self, partition: int, run_ids: Sequence[str]) -> AsyncIterator[Run]:
        """Stream Runs back from the store."""
        names = self.partitions[partition]
        for start in range(0, len(run_ids), _LOAD_CHUNK):
            with redis_errors_as_ours():
                pipe = self.redis.pipeline(transaction=False)
                for run_id in run_ids[start : start + _LOAD_CHUNK]:
                    pipe.hgetall(names.run(run_id))
                rows: list[Any] = await pipe.execute()
            for run_id, fields in zip(run_ids[start : start + _LOAD_CHUNK], rows, strict=True):
                if not fields:
                    continue
                try:
                    run = decode_run(fields)
                except (msgspec.MsgspecError, TuttiError, ValueError, KeyError) as error:
                    # One that cannot be read must not keep all others of its partition from going on.
                    _log.error("run cannot be read and is left alone", run_id=run_id, reason=str(error))
                    continue
                yield run

    # -- commits

    async def commit(self, batches: Sequence[CommitBatch]) -> list[int]:
        """Write batches of several partitions in one round trip.

        Returns:
            For each batch the number of messages it put into the outbox, or -1 where the epoch is over.

        Raises:
            Unavailable: It is unknown which were written; the same batches may be committed again.
        """
        calls = [self._commit_call(batch) for batch in batches]
        return await self.send(calls)

    async def send(self, calls: Sequence[scripts.Call]) -> list[int]:
        """Send encoded batches; may be repeated."""
        with redis_errors_as_ours():
            replies = await scripts.call_many(self.redis, calls)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return [int(reply) for reply in replies]

    def encode(self, batch: CommitBatch) -> scripts.Call:
        """Encode a batch as it stands now; later changes of its Runs belong to the next one."""
        return self._commit_call(batch)

    def _commit_call(self, batch: CommitBatch) -> scripts.Call:
        part = self.partitions[batch.partition]
        names = [
            part.owner,
            part.inbox,
            part.active,
            part.totals,
            part.tenants,
            part.outbox,
            part.webhooks,
            part.webhooks_due,
        ]
        arguments: list[Any] = [
            batch.epoch,
            batch.number,
            batch.trim_to,
            0,
            len(batch.changes),
            len(batch.verdicts),
            part.wake,
            part.verdicts,
            0,
        ]
        for change in batch.changes:
            if change.creation is not None:
                header = change.run.header
                arguments[_NUM_CREATIONS] += 1
                names.append(part.index(header.tenant))
                arguments += (header.run_id, header.tenant, header.created_at)
        for change in batch.changes:
            run_id = change.run.header.run_id
            names += (part.run(run_id), part.events(run_id), part.watchers(run_id))
            self._encode_change(change, arguments)
        for command_id, verdict in batch.verdicts:
            names.append(part.verdict(command_id))
            arguments += (command_id, verdict, keys.VERDICT_TTL_S * 1000)
        for change in batch.changes:
            if change.growths and change.run.header.webhook_url:
                _add_notices(change, arguments)
        return scripts.COMMIT, names, arguments

    def _encode_change(self, change: RunChange, arguments: list[Any]) -> None:
        run = change.run
        record = run.record
        creation = change.creation
        num_fields = 1 + len(change.units) + len(change.results) + (0 if creation is None else 4)
        place = len(arguments) + 1
        arguments += (run.header.run_id, num_fields, "record", encode_record(record))
        if creation is not None:
            arguments += ("digest", creation.digest, "header", creation.header)
            arguments += ("plan", run.plan.raw, "inputs", run.inputs)
        for step, item in change.units:
            arguments += (field_of("s", step, item), encode_step(run.unit(step, item).to_record()))
        if change.growths and isinstance(run, GrowingRun):
            arguments[place] += len(change.growths)
            for number in change.growths:
                arguments += (f"g:{number}", encode_growth(run.growths[number]))
        for step, item in change.results:
            arguments += (field_of("r", step, item), run.unit(step, item).output or b"null")
        events = change.events
        arguments.append(-(-len(events) // _EVENTS_TOGETHER))
        for start in range(0, len(events), _EVENTS_TOGETHER):
            entry = events[start : start + _EVENTS_TOGETHER]
            arguments += (entry[-1].seq, encode_events(entry))
        if not record.status.is_terminal:
            arguments.append("")
            return
        arguments += (record.status, run.header.tenant, self._retention_ms, record.ended_at or 0.0)
        arguments.append(end_webhook(run) if run.header.webhook_url else "")

    # -- messages between Runs

    async def watch(self, watches: Sequence[tuple[str, str]]) -> list[str]:
        """Ask to be told of Runs' ends.

        Args:
            watches: Id of the Run to be watched, id of the Run that waits.

        Returns:
            For each the status of the watched Run if it has ended, else "".
        """
        calls: list[scripts.Call] = []
        for run_id, watcher in watches:
            names = self.partitions[keys.partition_of(run_id, len(self.partitions))]
            arguments: list[scripts.Argument] = [watcher, keys.WATCHERS_TTL_S * 1000]
            calls.append((scripts.WATCH, [names.run(run_id), names.watchers(run_id)], arguments))
        with redis_errors_as_ours():
            replies = await scripts.call_many(self.redis, calls)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return [reply.decode() for reply in replies]

    async def relay_outbox(self, partition: int) -> int:
        """Carry the outbox to the inboxes it is meant for; a message may arrive twice, never not at all."""
        outbox = self.partitions[partition].outbox
        with redis_errors_as_ours():
            rows: Any = await self.redis.xrange(outbox, count=_INBOX_COUNT)
            if not rows:
                return 0
            pipe = self.redis.pipeline(transaction=False)
            for _, fields in rows:
                target = fields[b"to"].decode()
                names = self.partitions[keys.partition_of(target, len(self.partitions))]
                message = {"k": "ended", "r": target, "run": fields[b"run"], "status": fields[b"status"]}
                pipe.xadd(names.inbox, message)  # type: ignore[arg-type]
            await pipe.execute()
            await self.redis.xdel(outbox, *[entry_id for entry_id, _ in rows])
        return len(rows)

    async def age_out_indexes(self, owned: Collection[int], before: float) -> None:
        """Drop index entries of Runs created before `before` (Unix seconds) whose record has expired.

        It walks the whole key space: once an hour is enough.
        """
        with redis_errors_as_ours():
            async for index in self.redis.scan_iter(match="tutti:*:index:*", count=1000):
                partition = int(index[index.index(b"{") + 1 : index.index(b"}")])
                if partition in owned:
                    await self._age_out(index, self.partitions[partition], before)

    async def _age_out(self, index: bytes, names: keys.PartitionKeys, before: float) -> None:
        start = 0
        while True:
            old: Any = await self.redis.zrangebyscore(index, "-inf", before, start=start, num=_INBOX_COUNT)
            if not old:
                return
            pipe = self.redis.pipeline(transaction=False)
            for run_id in old:
                pipe.exists(names.run(run_id.decode()))
            gone = [run_id for run_id, found in zip(old, await pipe.execute(), strict=True) if not found]
            if gone:
                await self.redis.zrem(index, *gone)
            start += len(old) - len(gone)


def _add_notices(change: RunChange, arguments: list[Any]) -> None:
    """Tell who asked for it of visits that wait in quarantine."""
    run = change.run
    if isinstance(run, GrowingRun):
        for number in change.growths:
            failure = run.growths[number].failure
            if failure is not None:
                arguments[_NUM_NOTICES] += 1
                arguments += (f"{run.run_id}!{number}", quarantine_webhook(run, failure), time.time())


def _flat(entries: Any) -> Any:
    """RESP3 nests a stream's entries one list deeper than RESP2."""
    return entries[0] if entries and isinstance(entries[0], list) else entries
