"""What outside workers may do, once for every wire: come, poll, report, leave; and who listens for them.

Polls are held here, in the ingress replica: each is one coroutine. One subscription a replica brings all that
polls and listeners wait for. Nothing is kept that another replica would need: what a worker has stands in
Redis.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
import structlog
from redis.exceptions import RedisError

from cluster.errors import Forbidden, InvalidInput, NotFound, TuttiError
from cluster.model.blob_reference import has_reserved_key, resolve
from cluster.model.run_id import client_id
from cluster.model.worker_result import WorkerResult
from cluster.scheduling.matching import WorkerOffer
from cluster.store.blobs import BlobStore
from cluster.store.connection import connect_redis, redis_errors_as_ours
from cluster.store.keys import WorkerKeys
from cluster.store.scripts import Call, call_many
from cluster.store.step_leases import Claim, Completion, LeaseEnd, StepLeases
from cluster.store.worker_board import WorkerBoard, WorkerLine

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from cluster.settings import Settings

__all__ = ["Listener", "WorkerService", "check_worker_id"]

_log = structlog.get_logger("tutti.workers")
_WORKER_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_BUSY_RECHECK_S = 1.0
_RECONNECT_S = 0.2
_SUBSCRIBE_S = 2.0
_MAX_MESSAGE = 2000

Listener = Callable[[str, str, str], Awaitable[None]]
"""Told `stop`, an offer id and a run id, or `replaced`, "" and "", when another listens for the same
worker.
"""


def check_worker_id(worker_id: object) -> str:
    """Return a worker's id.

    Raises:
        InvalidInput: It cannot be one.
    """
    if not isinstance(worker_id, str) or not _WORKER_ID.fullmatch(worker_id):
        raise InvalidInput(f"worker_id: must match {_WORKER_ID.pattern}", field="worker_id", malformed=True)
    return worker_id


class WorkerService:
    """One per process.

    Args:
        redis: Shared.
        settings: The service's.

    Attributes:
        board: Who is there, and what waits.
        leases: Who has what.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.board = WorkerBoard(redis, settings.worker_ttl_s, settings.worker_lease_s)
        self.leases = StepLeases(redis, settings.num_partitions, settings.worker_lease_s)
        self._url = settings.redis_url
        self._inline_limit_bytes = settings.inline_limit_bytes
        self._blobs = BlobStore(settings.blobs_dir)
        self._replica_id = uuid4().hex
        self._polls: dict[str, asyncio.Future[str]] = {}
        self._listeners: dict[str, tuple[str, Listener]] = {}
        self._nameless: dict[str, Listener] = {}
        self._subscription: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End the subscription, and what is under way."""
        for told in self._polls.values():
            told.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        while self._subscription is not None and not self._subscription.done():
            self._subscription.cancel()  # again and again: redis-py may swallow one
            await asyncio.wait([self._subscription], timeout=0.1)

    # -- coming and going

    async def register(self, profile: WorkerOffer, document: dict[str, Any]) -> None:
        """Register a worker, or replace what is known of it."""
        await self.board.register(profile, document)

    async def document(self, worker_id: str) -> dict[str, Any]:
        """Note a sign of life of a worker and return what it told of itself.

        Raises:
            NotFound: It is not registered (any more).
        """
        document = await self.board.touch(worker_id)
        if document is None:
            raise NotFound(f"worker {worker_id} is not registered")
        return document

    async def update(self, profile: WorkerOffer, document: dict[str, Any]) -> None:
        """Change what is known of a worker.

        Raises:
            NotFound: It is not registered (any more).
        """
        if not await self.board.update(profile, document):
            raise NotFound(f"worker {profile.worker_id} is not registered")

    async def renew(self, worker_id: str, named: Sequence[str] | None) -> None:
        """Renew the leases of a worker.

        Args:
            worker_id: Whose.
            named: Those it says it works on; None where it does not say. What it does not name runs out.
        """
        held = await self.board.held(worker_id)
        if named is not None and (not named or set(named) & set(held)):
            held = [offer_id for offer_id in held if offer_id in named]
        kept: list[str] = []
        lost: list[str] = []
        for offer_id in held:
            (kept if await self.leases.renew(offer_id, worker_id) else lost).append(offer_id)
        await self.board.hold(worker_id, kept, lost)

    async def drain(self, worker_id: str) -> None:
        """Let a worker get nothing more until it registers again; what it has it may finish.

        Raises:
            NotFound: It is not registered (any more).
        """
        await self.document(worker_id)
        await self.board.pause(f"drain:{worker_id}")
        await self.board.unwait(worker_id, "")

    async def leave(self, worker_id: str) -> None:
        """Forget a worker; what it has goes to others at once.

        Raises:
            NotFound: It is not registered (any more).
        """
        await self.document(worker_id)
        for offer_id in await self.board.held(worker_id):
            await self.leases.end(offer_id, LeaseEnd.RELEASED, "its worker left", worker_id)
            await self.board.give_back(offer_id, worker_id)
        await self.board.forget(worker_id)

    async def workers(self) -> list[WorkerLine]:
        """List living workers by id."""
        return await self.board.workers()

    async def to_stop(self, worker_id: str) -> list[str]:
        """List what a worker was asked to stop."""
        return await self.board.to_stop(worker_id)

    # -- polls

    async def poll(self, worker_id: str, wait_s: float, hung_up: asyncio.Future[Any]) -> Claim | None:
        """Wait for something to do.

        Args:
            worker_id: Who.
            wait_s: How long at most.
            hung_up: Done when nobody waits for the answer any more.

        Returns:
            A lease that has begun; None where there was nothing.

        Raises:
            NotFound: The worker is not registered (any more).
        """
        await self._ensure_subscribed()
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while not hung_up.done() and (left_s := until - loop.time()) > 0:
            offer_id = await self._wait(worker_id, left_s, hung_up)
            if offer_id is None:
                await asyncio.wait([hung_up], timeout=min(left_s, _BUSY_RECHECK_S))
            elif offer_id and (claim := await self._claim(offer_id, worker_id, hung_up)) is not None:
                return claim
        return None

    async def _wait(self, worker_id: str, left_s: float, hung_up: asyncio.Future[Any]) -> str | None:
        """Wait for an offer; "" where none came, None where the worker gets none now."""
        poll_id = f"{worker_id}:{uuid4().hex}"
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._polls[poll_id] = told
        is_waiting = True
        try:
            answer = await self.board.wait(worker_id, poll_id, self._replica_id, left_s)
            if answer.kind == "waiting":
                await asyncio.wait([told, hung_up], timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                if told.done() and not told.cancelled():
                    is_waiting = False
                    return told.result()
                return ""
            is_waiting = False
            if answer.kind == "unknown":
                raise NotFound(f"worker {worker_id} is not registered")
            return answer.offer_id if answer.kind == "given" else None
        finally:
            # From here on the subscription gives back what is given to this poll.
            del self._polls[poll_id]
            if is_waiting:
                self._spawn(self.board.unwait(worker_id, poll_id))

    async def _claim(self, offer_id: str, worker_id: str, hung_up: asyncio.Future[Any]) -> Claim | None:
        if hung_up.done():
            self._spawn(self.board.give_back(offer_id, worker_id))
            return None
        # A shield: who is cancelled here must still know whether it has a lease.
        claiming = asyncio.ensure_future(self._claim_now(offer_id, worker_id))
        try:
            claim = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            self._spawn(self._release(claiming, worker_id))
            raise
        if claim is not None and hung_up.done():
            await self._give_up(claim, worker_id)
            return None
        return claim

    async def _claim_now(self, offer_id: str, worker_id: str) -> Claim | None:
        token = uuid4().hex
        call = self.leases.claim_call(offer_id, worker_id, token)
        if call is None:
            return None
        reply, to_stop = await self._send(call, self.board.settle_call(offer_id, worker_id, "claimed"))
        claim = self.leases.claim_of(reply, offer_id, token)
        if claim is None:
            await self.board.stopped(worker_id, offer_id)
            return None
        return claim._replace(to_stop=tuple(sorted(each.decode() for each in to_stop)))

    async def _send(self, *calls: Call) -> list[Any]:
        """Call scripts in one round trip."""
        with redis_errors_as_ours():
            replies = await call_many(self.board.redis, calls)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies

    async def _release(self, claiming: asyncio.Future[Claim | None], worker_id: str) -> None:
        claim = await claiming
        if claim is not None:
            await self._give_up(claim, worker_id)

    async def _give_up(self, claim: Claim, worker_id: str) -> None:
        reason = "its worker hung up before it got it"
        await self.leases.end(claim.offer_id, LeaseEnd.RELEASED, reason, worker_id, claim.token)
        await self.board.stopped(worker_id, claim.offer_id)

    async def body_of(self, claim: Claim) -> dict[str, Any]:
        """Return what the worker is told; large inputs are fetched from the blob store."""
        body: dict[str, Any] = msgspec.json.decode(claim.body)
        if b'"$blob"' in claim.body:
            body["inputs"] = await asyncio.to_thread(resolve, body["inputs"], self._blobs.read)
        return body

    # -- reports

    async def progress(
        self, worker_id: str, offer_id: str, progress: float, message: str, token: str = ""
    ) -> bool:
        """Take progress, 0 to 1, and renew the lease; whether the worker still has it."""
        told = (min(max(progress, 0.0), 1.0), message[:_MAX_MESSAGE])
        has_it = await self.leases.renew(offer_id, worker_id, token, told)
        await self.board.hold(worker_id, [offer_id] if has_it else [], [] if has_it else [offer_id])
        return has_it

    async def complete(
        self, worker_id: str, offer_id: str, run_id: str, token: str, result: WorkerResult
    ) -> Completion:
        """Take a result; a large one goes to the blob store first.

        Raises:
            NotFound: There is no such task, or it is not of that Run.
            Forbidden: Another worker has it.
            InvalidInput: The data has a key that is reserved.
        """
        raw = msgspec.json.encode(result)
        if b"$blob" in raw and has_reserved_key(result.data):
            raise InvalidInput("result.data: the key $blob is reserved", field="result.data")
        if len(raw) > self._inline_limit_bytes:
            content = msgspec.json.encode(result.data)
            reference = await asyncio.to_thread(self._blobs.put, content, "application/json")
            raw = msgspec.json.encode(msgspec.structs.replace(result, data=reference))
        completion = await self._complete(worker_id, offer_id, run_id, token, raw)
        if completion is Completion.MISNAMED:  # the store's name of another tenant's Run is longer
            stored = await self.leases.run_of(offer_id) or ""
            if run_id not in {"", client_id(stored)}:
                raise NotFound("no such task")
            completion = await self._complete(worker_id, offer_id, stored, token, raw)
        if completion in {Completion.UNKNOWN, Completion.MISNAMED}:
            raise NotFound("no such task")
        if completion is Completion.FOREIGN:
            raise Forbidden("another worker has this task")
        return completion

    async def _complete(
        self, worker_id: str, offer_id: str, run_id: str, token: str, raw: bytes
    ) -> Completion:
        call = self.leases.complete_call(offer_id, run_id, worker_id, token, raw)
        if call is None:
            return Completion.UNKNOWN
        reply, _ = await self._send(call, self.board.settle_call(offer_id, worker_id, "done"))
        return Completion(reply.decode())

    async def holder_of(self, offer_id: str) -> str:
        """Say who has a task: for connections that do not say whose they are.

        Raises:
            NotFound: There is no such task.
        """
        if await self.leases.run_of(offer_id) is None:
            raise NotFound("no such task")
        return (await self.leases.state(offer_id))[1]

    # -- listeners

    async def listen(self, worker_id: str, listener: Listener) -> str:
        """Tell a listener what its worker is to stop; it replaces any other of the worker. Returns its id.

        Args:
            worker_id: Who; "" where the connection does not say: it is told what any worker is to stop.
            listener: Called with each.
        """
        await self._ensure_subscribed()
        listener_id = uuid4().hex
        if not worker_id:
            self._nameless[listener_id] = listener
            return listener_id
        before = self._listeners.get(worker_id)
        self._listeners[worker_id] = (listener_id, listener)
        if before is not None:
            await before[1]("replaced", "", "")
        await self.board.announce_listener(worker_id, listener_id)
        return listener_id

    def listen_no_more(self, worker_id: str, listener_id: str) -> None:
        """End what `listen` began."""
        self._nameless.pop(listener_id, None)
        if self._listeners.get(worker_id, ("", None))[0] == listener_id:
            del self._listeners[worker_id]

    # -- the subscription

    async def _ensure_subscribed(self) -> None:
        if self._subscription is None or self._subscription.done():
            self._subscribed.clear()
            self._subscription = asyncio.get_running_loop().create_task(self._subscribe())
        if not self._subscribed.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._subscribed.wait(), _SUBSCRIBE_S)

    async def _subscribe(self) -> None:
        redis = connect_redis(self._url, socket_timeout_s=None)
        own, news = WorkerKeys.replica(self._replica_id), WorkerKeys.news
        try:
            while True:
                pubsub = redis.pubsub()
                try:
                    await pubsub.subscribe(own, news)
                    async for message in pubsub.listen():
                        if message["type"] == "subscribe":
                            self._subscribed.set()
                        elif message["type"] == "message":
                            self._receive(message["channel"] == news.encode(), message["data"].decode())
                except (RedisError, OSError):
                    await asyncio.sleep(_RECONNECT_S)
                finally:
                    with suppress(RedisError, OSError):
                        await pubsub.aclose()  # type: ignore[no-untyped-call]
        finally:
            await redis.aclose()

    def _receive(self, is_news: bool, text: str) -> None:
        if not is_news:
            poll_id, _, offer_id = text.partition(" ")
            told = self._polls.get(poll_id)
            if told is not None and not told.done():
                told.set_result(offer_id)
            else:
                self._spawn(self.board.give_back(offer_id, poll_id.partition(":")[0]))
            return
        kind, worker_id, subject, run_id = text.split(" ", 3)
        if kind == "stop":
            for each in self._nameless.values():
                self._spawn(each("stop", subject, run_id))
        listener_id, listener = self._listeners.get(worker_id, ("", None))
        if listener is None:
            return
        if kind == "stop":
            self._spawn(listener("stop", subject, run_id))
        elif subject != listener_id:
            del self._listeners[worker_id]
            self._spawn(listener("replaced", "", ""))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.get_running_loop().create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _logged(work: Awaitable[None]) -> None:
    """What is left undone here is found by the owners' sweep."""
    try:
        await work
    except TuttiError as error:
        _log.warning("workers wait", reason=error.message)
