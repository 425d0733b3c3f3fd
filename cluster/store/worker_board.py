"""The board: which outside workers there are and wait, and which offers nobody has yet.

It brings both together: an offer goes to the best waiting worker (`scheduling/matching.py` chooses), a worker
that comes gets the first offer that it can serve. Each step is one script, so that no offer and no suitable
worker wait side by side, and no offer goes to two. All of it is an index: owners post again what is missing,
and only the claim of an offer (`step_leases.py`) decides who has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import orjson
from redis.asyncio import Redis

from cluster.scheduling.matching import WorkerNeed, WorkerOffer, WorkerStrategy, choose_worker, unmet_by
from cluster.scheduling.reasons import NoWorker
from cluster.store import scripts
from cluster.store.connection import redis_errors_as_ours
from cluster.store.keys import WorkerKeys

__all__ = ["BoardOffer", "WaitAnswer", "WorkerBoard", "WorkerLine"]

_GIVEN_MS = 3000
_LOOK_AT = 20
_MAX_CANDIDATES = 32
_MAX_CANDIDATES_FOR_NEEDS = 2000
_MAX_SWEPT = 500
_MAX_REJECTED = 500
_CANCELS_TTL_S = 3600

_profiles = msgspec.json.Decoder(WorkerOffer)
_encode = msgspec.json.encode


class BoardOffer(msgspec.Struct, frozen=True, omit_defaults=True):
    """An offer as the board knows it.

    Attributes:
        kind: What a worker must serve.
        priority: 0 to 100.
        created_at: Of its Run, Unix seconds: the older one of the same priority goes first.
        strategy: Which of several workers.
        gpu_model, gpu_memory_gb, num_cpus, models, max_cost: See WorkerNeed.
    """

    kind: str
    priority: int = 50
    created_at: float = 0.0
    strategy: WorkerStrategy = WorkerStrategy.DEFAULT
    gpu_model: str = ""
    gpu_memory_gb: float = 0.0
    num_cpus: float = 0.0
    models: frozenset[str] = frozenset()
    max_cost: float | None = None

    @property
    def order(self) -> str:
        """Its place among offers, as text that sorts."""
        return f"{100 - self.priority:03d}-{max(int(self.created_at * 1000), 0):015d}"

    @property
    def need(self) -> WorkerNeed:
        """What a worker must have."""
        return WorkerNeed(
            self.kind, self.gpu_model, self.gpu_memory_gb, self.num_cpus, self.models, self.max_cost
        )

    @property
    def is_for_any(self) -> bool:
        """Whether any worker that serves its kind will do."""
        return self.need == WorkerNeed(self.kind)


class WaitAnswer(NamedTuple):
    """What a poll came to: unknown | busy | waiting | given, with the offer."""

    kind: str
    offer_id: str = ""


class WorkerLine(NamedTuple):
    """A living worker, for readers: what it told, what it is to the board, how many leases it has."""

    document: dict[str, Any]
    profile: WorkerOffer
    num_running: int
    is_paused: bool
    is_draining: bool


class WorkerBoard:
    """Access for owners and ingress replicas.

    Args:
        redis: Shared.
        ttl_s: Silence after which a worker is forgotten.
        lease_s: See StepLeases.
    """

    def __init__(self, redis: Redis, ttl_s: float, lease_s: float) -> None:
        self.redis = redis
        self._ttl_ms = int(ttl_s * 1000)
        self._lease_ms = int(lease_s * 1000)

    # -- workers

    async def register(self, profile: WorkerOffer, document: dict[str, Any]) -> None:
        """Register a worker, or replace what is known of it."""
        await self._seen(profile.worker_id, _encode(profile), orjson.dumps(document), is_new=True)

    async def update(self, profile: WorkerOffer, document: dict[str, Any]) -> bool:
        """Change what is known of a worker; False where it is not known."""
        seen = await self._seen(profile.worker_id, _encode(profile), orjson.dumps(document))
        return seen is not None

    async def touch(self, worker_id: str) -> dict[str, Any] | None:
        """Note a sign of life and return what the worker told; None where it is not known."""
        return await self._seen(worker_id, b"", b"")

    async def _seen(
        self, worker_id: str, profile: bytes, document: bytes, *, is_new: bool = False
    ) -> dict[str, Any] | None:
        names = [WorkerKeys.profiles, WorkerKeys.documents, WorkerKeys.seen, WorkerKeys.paused]
        arguments: list[scripts.Argument] = [worker_id, self._ttl_ms, profile, document, int(is_new)]
        with redis_errors_as_ours():
            reply: bytes = await scripts.call(self.redis, scripts.WORKER_SEEN, names, arguments)
        return orjson.loads(reply) if reply else None

    async def forget(self, worker_id: str) -> None:
        """Forget a worker; its leases are the caller's to end."""
        await self.unwait(worker_id, "")
        with redis_errors_as_ours():
            pipe = self.redis.pipeline(transaction=False)
            pipe.hdel(WorkerKeys.profiles, worker_id)
            pipe.hdel(WorkerKeys.documents, worker_id)
            pipe.zrem(WorkerKeys.seen, worker_id)
            pipe.srem(WorkerKeys.paused, f"drain:{worker_id}")
            pipe.delete(WorkerKeys.held(worker_id), WorkerKeys.cancels(worker_id))
            await pipe.execute()

    async def workers(self) -> list[WorkerLine]:
        """List living workers by id."""
        with redis_errors_as_ours():
            seconds, _ = await self.redis.time()
            ids: Any = await self.redis.zrangebyscore(WorkerKeys.seen, seconds * 1000, "+inf")
            if not ids:
                return []
            pipe = self.redis.pipeline(transaction=False)
            pipe.hmget(WorkerKeys.profiles, ids)
            pipe.hmget(WorkerKeys.documents, ids)
            pipe.smembers(WorkerKeys.paused)
            for worker_id in ids:
                pipe.zcount(WorkerKeys.held(worker_id.decode()), seconds * 1000, "+inf")
            profiles, documents, paused, *counts = await pipe.execute()
        found = []
        rows = zip(ids, profiles, documents, counts, strict=True)
        for worker_id, profile, document, count in rows:
            if profile and document:
                flags = (b"worker:" + worker_id in paused, b"drain:" + worker_id in paused)
                found.append(WorkerLine(orjson.loads(document), _profiles.decode(profile), count, *flags))
        return sorted(found, key=lambda line: line.profile.worker_id)

    async def held(self, worker_id: str) -> list[str]:
        """List offers that a worker has, or was given."""
        with redis_errors_as_ours():
            found: Any = await self.redis.zrange(WorkerKeys.held(worker_id), 0, -1)
        return [offer_id.decode() for offer_id in found]

    async def hold(self, worker_id: str, kept: Sequence[str], lost: Sequence[str]) -> None:
        """Note which of a worker's leases were renewed and which have ended."""
        if not kept and not lost:
            return
        name = WorkerKeys.held(worker_id)
        with redis_errors_as_ours():
            seconds, micros = await self.redis.time()
            until_ms = seconds * 1000 + micros // 1000 + self._lease_ms
            pipe = self.redis.pipeline(transaction=False)
            if kept:
                pipe.zadd(name, dict.fromkeys(kept, until_ms))
                pipe.pexpire(name, max(3_600_000, 2 * self._lease_ms))
            if lost:
                pipe.zrem(name, *lost)
            await pipe.execute()

    # -- polls

    async def wait(self, worker_id: str, poll_id: str, replica_id: str, wait_s: float) -> WaitAnswer:
        """Give a polling worker the first offer it can serve, or let it wait for one.

        Args:
            worker_id: Who.
            poll_id: New for each poll; what is given to it later is told to the replica under this id.
            replica_id: Who holds the poll.
            wait_s: How long.
        """
        names = [
            WorkerKeys.profiles,
            WorkerKeys.seen,
            WorkerKeys.polls,
            WorkerKeys.waiting,
            WorkerKeys.board,
            WorkerKeys.offers,
            WorkerKeys.given,
            WorkerKeys.paused,
            WorkerKeys.held(worker_id),
        ]
        rejected: list[str] = []
        while True:
            arguments: list[scripts.Argument] = [worker_id, poll_id, replica_id, int(wait_s * 1000)]
            arguments += [self._ttl_ms, _GIVEN_MS, _LOOK_AT, *rejected]
            with redis_errors_as_ours():
                kind, *rest = await scripts.call(self.redis, scripts.WORKER_WAIT, names, arguments)
            if kind == b"taken":
                return WaitAnswer("given", rest[0].decode())
            if kind != b"look":
                return WaitAnswer(kind.decode())
            offers = [(rest[n].decode(), rest[n + 1]) for n in range(0, len(rest), 2)]
            taken = await self._take_one(worker_id, offers)
            if taken:
                return WaitAnswer("given", taken)
            rejected += [offer_id for offer_id, _ in offers]
            if len(rejected) > _MAX_REJECTED:
                return WaitAnswer("busy")

    async def _take_one(self, worker_id: str, offers: Sequence[tuple[str, bytes]]) -> str:
        """Take the first of several offers that a worker which polls now can serve; "" where none."""
        with redis_errors_as_ours():
            raw: Any = await self.redis.hget(WorkerKeys.profiles, worker_id)
        if not raw:
            return ""
        profile = _profiles.decode(raw)
        for offer_id, need in offers:
            lacking = unmet_by(_offers.decode(need).need, profile) if need else ""
            if not lacking and await self._give(offer_id, worker_id, is_waiting=False) == b"given":
                return offer_id
        return ""

    async def unwait(self, worker_id: str, poll_id: str) -> None:
        """End a poll ("": whichever there is)."""
        names = [WorkerKeys.polls, WorkerKeys.waiting]
        with redis_errors_as_ours():
            await scripts.call(self.redis, scripts.WORKER_UNWAIT, names, [worker_id, poll_id])

    # -- offers

    async def post(self, offer_id: str, offer: BoardOffer) -> str:
        """Put an offer on the board and give it to the best waiting worker; returns who, "" for none."""
        return await self._match(offer_id, offer, is_known=False)

    async def _match(self, offer_id: str, offer: BoardOffer, *, is_known: bool) -> str:
        with redis_errors_as_ours():
            rows: Any = await scripts.call(self.redis, *self.post_call(offer_id, offer, is_known=is_known))
        return await self.give_best(offer_id, offer, rows)

    def post_call(self, offer_id: str, offer: BoardOffer, *, is_known: bool = False) -> scripts.Call:
        """Make the first call of `post`, to be sent with others; `give_best` takes its reply.

        Args:
            offer_id: Which.
            offer: What it asks for.
            is_known: Only if it is on the board already.
        """
        names = [
            WorkerKeys.offers,
            WorkerKeys.board,
            WorkerKeys.given,
            WorkerKeys.waiting,
            WorkerKeys.profiles,
            WorkerKeys.polls,
            WorkerKeys.paused,
        ]
        is_simple = offer.is_for_any and offer.strategy in {
            WorkerStrategy.DEFAULT,
            WorkerStrategy.ROUND_ROBIN,
        }
        most = _MAX_CANDIDATES if is_simple else _MAX_CANDIDATES_FOR_NEEDS
        need = b"" if offer.is_for_any else _encode(offer)
        arguments: list[scripts.Argument] = [offer_id, offer.kind, offer.order, need, most, int(is_known)]
        return scripts.BOARD_POST, names, arguments

    async def give_best(self, offer_id: str, offer: BoardOffer, rows: Any) -> str:
        """Give an offer to the best of the workers that `post_call` told of; returns who, "" for none."""
        candidates = [
            msgspec.structs.replace(
                _profiles.decode(rows[n + 1]), num_running=int(rows[n + 2]), last_given_at=float(n)
            )
            for n in range(0, len(rows), 3)
        ]
        while candidates:
            chosen = choose_worker(offer.need, candidates, offer.strategy)
            if isinstance(chosen, NoWorker):
                return ""
            given = await self._give(offer_id, chosen.worker_id, is_waiting=True)
            if given == b"given":
                return chosen.worker_id
            if given == b"taken":
                return ""
            candidates.remove(chosen)
        return ""

    async def _give(self, offer_id: str, worker_id: str, *, is_waiting: bool) -> bytes:
        names = [
            WorkerKeys.offers,
            WorkerKeys.board,
            WorkerKeys.given,
            WorkerKeys.waiting,
            WorkerKeys.polls,
            WorkerKeys.paused,
            WorkerKeys.held(worker_id),
        ]
        prefix = WorkerKeys.replica("") if is_waiting else ""
        with redis_errors_as_ours():
            reply: bytes = await scripts.call(
                self.redis, scripts.BOARD_GIVE, names, [offer_id, worker_id, _GIVEN_MS, prefix]
            )
        return reply

    async def settle(self, offer_id: str, worker_id: str, what: str) -> None:
        """Say what became of an offer: claimed | returned (it was given and not claimed) | over."""
        with redis_errors_as_ours():
            await scripts.call(self.redis, *self.settle_call(offer_id, worker_id, what))

    def settle_call(self, offer_id: str, worker_id: str, what: str) -> scripts.Call:
        """Make the call behind `settle`, to be sent with others; it tells what the worker is to stop. `done`:
        the worker is no longer at it.
        """
        names = [WorkerKeys.offers, WorkerKeys.board, WorkerKeys.given]
        names += [WorkerKeys.held(worker_id), WorkerKeys.cancels(worker_id)]
        return scripts.BOARD_SETTLE, names, [offer_id, what, self._lease_ms]

    async def give_back(self, offer_id: str, worker_id: str) -> None:
        """Return an offer that a worker was given and will not claim; the next one gets it."""
        await self.settle(offer_id, worker_id, "returned")
        with redis_errors_as_ours():
            raw: Any = await self.redis.hget(WorkerKeys.offers, offer_id)
        if raw:
            await self._match(offer_id, _offer_of(raw), is_known=True)

    async def missing(self, offer_ids: Sequence[str]) -> list[str]:
        """List those of some offers that the board does not know."""
        if not offer_ids:
            return []
        with redis_errors_as_ours():
            found: Any = await self.redis.hmget(WorkerKeys.offers, list(offer_ids))
        return [offer_id for offer_id, raw in zip(offer_ids, found, strict=True) if not raw]

    async def sweep(self) -> None:
        """Put back what was given and not claimed, forget silent workers, and match what is left over."""
        names = [
            WorkerKeys.offers,
            WorkerKeys.board,
            WorkerKeys.given,
            WorkerKeys.waiting,
            WorkerKeys.polls,
            WorkerKeys.profiles,
            WorkerKeys.documents,
            WorkerKeys.seen,
        ]
        with redis_errors_as_ours():
            rows: Any = await scripts.call(self.redis, scripts.BOARD_SWEEP, names, [_MAX_SWEPT])
        for n in range(0, len(rows), 2):
            await self._match(rows[n].decode(), _offer_of(rows[n + 1]), is_known=True)

    # -- what workers are told

    async def ask_to_stop(self, worker_id: str, offer_id: str, run_id: str) -> None:
        """Ask a worker to stop what it does: at once where it listens, else with its next call."""
        name = WorkerKeys.cancels(worker_id)
        with redis_errors_as_ours():
            pipe = self.redis.pipeline(transaction=False)
            pipe.sadd(name, offer_id)
            pipe.expire(name, _CANCELS_TTL_S)
            pipe.publish(WorkerKeys.news, f"stop {worker_id} {offer_id} {run_id}")
            pipe.zrem(WorkerKeys.held(worker_id), offer_id)
            await pipe.execute()

    async def announce_listener(self, worker_id: str, listener: str) -> None:
        """Tell all replicas that a worker listens anew: who listened for it before may go."""
        with redis_errors_as_ours():
            await self.redis.publish(WorkerKeys.news, f"open {worker_id} {listener} -")

    async def to_stop(self, worker_id: str) -> list[str]:
        """List offers that a worker was asked to stop."""
        with redis_errors_as_ours():
            found: Any = await self.redis.smembers(WorkerKeys.cancels(worker_id))
        return sorted(offer_id.decode() for offer_id in found)

    async def stopped(self, worker_id: str, offer_id: str) -> None:
        """Note that a worker is no longer at something."""
        await self.settle(offer_id, worker_id, "done")

    # -- pauses

    async def pause(self, what: str) -> None:
        """Let a `type:<type>`, a `worker:<id>` or (`drain:<id>`) a draining worker get nothing."""
        with redis_errors_as_ours():
            await self.redis.sadd(WorkerKeys.paused, what)

    async def resume(self, what: str) -> None:
        """Take a pause back."""
        with redis_errors_as_ours():
            await self.redis.srem(WorkerKeys.paused, what)
        await self.sweep()

    async def paused(self) -> list[str]:
        """List what is paused."""
        with redis_errors_as_ours():
            found: Any = await self.redis.smembers(WorkerKeys.paused)
        return sorted(each.decode() for each in found)


_offers = msgspec.json.Decoder(BoardOffer)


def _offer_of(raw: bytes) -> BoardOffer:
    """Read an offer from its entry on the board."""
    entry = orjson.loads(raw)
    if entry["need"]:
        return _offers.decode(entry["need"])
    rank, _, created_ms = entry["order"].partition("-")
    return BoardOffer(entry["type"], 100 - int(rank), int(created_ms) / 1000)
