"""Live events and verdicts: one Pub/Sub connection a process, whoever many follow.

A wake message only says which Runs have news; the news itself is read from the Run's stream, so that a
message lost in a reconnect costs time, not an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from cluster.errors import Unavailable
from cluster.lifecycle.run_status import RunEventKind
from cluster.model.view import RunEvent
from cluster.store.connection import connect_redis, redis_errors_as_ours
from cluster.store.run_codec import decode_events

if TYPE_CHECKING:
    from cluster.store.keys import PartitionKeys

__all__ = ["EventFeed"]

_RECHECK_S = 5.0
_RECONNECT_S = 0.2
_PATIENCE_S = 15.0
_PAGE = 500
_TERMINAL = frozenset({RunEventKind.SUCCEEDED, RunEventKind.FAILED, RunEventKind.CANCELLED})


class EventFeed:
    """Wakes followers of Runs and waiters for verdicts.

    Attributes:
        _followers: Run id to the wake-up events of those who follow it.
        _verdicts: Command id to the future of who waits.
    """

    def __init__(self, url: str, partitions: Sequence[PartitionKeys]) -> None:
        self._url = url
        self._partitions = partitions
        self._followers: dict[str, set[asyncio.Event]] = {}
        self._verdicts: dict[str, asyncio.Future[str]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()
        self._reads: list[tuple[str, int, asyncio.Future[list[RunEvent]]]] = []
        self._reader: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """End the connection."""
        for task in (self._listener, self._reader):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._listener = self._reader = None

    async def _ensure_listening(self) -> None:
        if self._listener is None or self._listener.done():
            self._subscribed.clear()
            self._listener = asyncio.get_running_loop().create_task(self._listen())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._subscribed.wait(), 2.0)

    async def _listen(self) -> None:
        redis = connect_redis(self._url, socket_timeout_s=None)
        wakes = {partition.wake.encode() for partition in self._partitions}
        channels = [name for p in self._partitions for name in (p.wake, p.verdicts)]
        try:
            while True:
                pubsub = redis.pubsub()
                try:
                    await pubsub.subscribe(*channels)
                    self._subscribed.set()
                    self._wake_all()
                    async for message in pubsub.listen():
                        if message["type"] == "message":
                            self._receive(message["channel"] in wakes, message["data"])
                except (RedisError, OSError):
                    await asyncio.sleep(_RECONNECT_S)
                finally:
                    with suppress(RedisError, OSError):
                        await pubsub.aclose()  # type: ignore[no-untyped-call]
        finally:
            await redis.aclose()

    def _receive(self, is_wake: bool, data: bytes) -> None:
        if is_wake:
            if self._followers:
                for run_id in data.decode().split("\n"):
                    for event in self._followers.get(run_id, ()):
                        event.set()
            return
        command_id, _, verdict = data.decode().partition(" ")
        waiter = self._verdicts.get(command_id)
        if waiter is not None and not waiter.done():
            waiter.set_result(verdict)

    def _wake_all(self) -> None:
        for events in self._followers.values():
            for event in events:
                event.set()

    @asynccontextmanager
    async def verdict(self, _partition: PartitionKeys, command_id: str) -> AsyncIterator[asyncio.Future[str]]:
        """Give a future that resolves when the owner speaks on the command."""
        await self._ensure_listening()
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._verdicts[command_id] = waiter
        try:
            yield waiter
        finally:
            self._verdicts.pop(command_id, None)
            waiter.cancel()

    async def follow(
        self, redis: Redis, partition: PartitionKeys, run_id: str, after_seq: int
    ) -> AsyncIterator[RunEvent]:
        """Yield events after `after_seq`, ending after the terminal one or when the stream has expired.

        Raises:
            Unavailable: The store is away: at once when nothing could be read yet, since the caller can
                still answer with an error; later only when it stays away for 15 s.
        """
        await self._ensure_listening()
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        self._followers.setdefault(run_id, set()).add(woken)
        give_up_at = loop.time()
        try:
            while True:
                woken.clear()
                try:
                    events = await self._read(redis, partition.events(run_id), after_seq)
                    if not events and await self._is_over(redis, partition, run_id, after_seq):
                        return
                except Unavailable:
                    if loop.time() >= give_up_at:
                        raise
                    await asyncio.sleep(_RECONNECT_S)
                    continue
                for event in events:
                    after_seq = event.seq
                    yield event
                    if event.type in _TERMINAL:
                        return
                if len(events) < _PAGE:  # a full page of entries has as many events at least
                    with suppress(TimeoutError):
                        await asyncio.wait_for(woken.wait(), _RECHECK_S)
                give_up_at = loop.time() + _PATIENCE_S
        finally:
            followers = self._followers.get(run_id)
            if followers is not None:
                followers.discard(woken)
                if not followers:
                    del self._followers[run_id]

    async def _is_over(self, redis: Redis, partition: PartitionKeys, run_id: str, after_seq: int) -> bool:
        """Whether nothing will come: the stream has expired, or the caller has already seen its end."""
        with redis_errors_as_ours():
            newest: Any = await redis.xrevrange(partition.events(run_id), count=1)
        if not newest:
            return True
        event = decode_events(newest[0][1][b"e"])[-1]
        return event.type in _TERMINAL and event.seq <= after_seq

    async def _read(self, redis: Redis, stream: str, after_seq: int) -> list[RunEvent]:
        """Read a page of a stream; reads that come while one is under way share the next round trip."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[RunEvent]] = loop.create_future()
        self._reads.append((stream, after_seq, answer))
        if self._reader is None or self._reader.done():
            self._reader = loop.create_task(self._flush_reads(redis))
        return await answer

    async def _flush_reads(self, redis: Redis) -> None:
        while self._reads:
            batch, self._reads = self._reads, []
            pipe = redis.pipeline(transaction=False)
            for stream, after_seq, _ in batch:
                pipe.xrange(stream, min=f"{after_seq + 1}-0", count=_PAGE)
            try:
                with redis_errors_as_ours():
                    pages: list[Any] = await pipe.execute()
            except Exception as error:  # noqa: BLE001 - handed to everyone who waits for this round trip
                for _, _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, after_seq, answer), page in zip(batch, pages, strict=True):
                if not answer.done():
                    answer.set_result(_events_of(page, after_seq))


def _events_of(page: Any, after_seq: int) -> list[RunEvent]:
    """Read a page; its first entry may begin with events that were seen before."""
    events = [event for _, fields in page for event in decode_events(fields[b"e"])]
    return [event for event in events if event.seq > after_seq]
