"""Offers of StepRuns to outside workers, and the leases on them: each change is one script, on Redis's clock.

An offer belongs to one attempt of a StepRun. What its lease decides (claimed, a result, progress, lost)
reaches the owner of the Run through its inbox, written together with the decision; the owner's engine has the
last word, by the attempt's number. Nothing here chooses a worker: the board does.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Any, NamedTuple

from redis.asyncio import Redis

from cluster.store import scripts
from cluster.store.connection import redis_errors_as_ours
from cluster.store.keys import OFFER_TTL_S, OVER_OFFER_TTL_S, PartitionKeys, partition_of

__all__ = ["Claim", "Completion", "Ended", "LeaseEnd", "OfferState", "StepLeases", "offer_id_of"]


class OfferState(StrEnum):
    """What an offer can be."""

    NONE = ""
    """Never made, or forgotten."""
    OFFERED = "offered"
    """Any worker may claim it."""
    LEASED = "leased"
    """A worker has it until its lease ends."""
    DONE = "done"
    """Its result was accepted; the owner is told."""
    LOST = "lost"
    """Its lease ended without a result; the owner is told."""
    WITHDRAWN = "withdrawn"
    """The owner took it back; it may offer it again."""


class Completion(StrEnum):
    """What became of a result."""

    ACCEPTED = "accepted"
    REPEATED = "repeated"
    """It was accepted before."""
    LATE = "late"
    """The worker had the lease, and has it no more."""
    FOREIGN = "foreign"
    """Another worker has it."""
    UNKNOWN = "unknown"
    """There is no such offer."""
    MISNAMED = "misnamed"
    """It is of another Run."""


class LeaseEnd(StrEnum):
    """Who ends a lease."""

    EXPIRED = "expired"
    RELEASED = "released"
    WITHDRAWN = "withdrawn"


class Claim(NamedTuple):
    """A lease that has begun: what the worker is told, the fencing token, and what else it is to stop."""

    offer_id: str
    body: bytes
    run_id: str
    attempt: int
    token: str
    to_stop: tuple[str, ...] = ()


class Ended(NamedTuple):
    """A lease or an offer that was ended: the worker that had the lease, "" where none had."""

    worker_id: str
    run_id: str


def offer_id_of(run_id: str, step: int, item: int, attempt: int, num_partitions: int) -> str:
    """Name the offer of an attempt: always the same, so that a new owner does not offer it twice.

    The partition goes before, so that its keys can be found.
    """
    text = f"{run_id}\n{step}\n{item}\n{attempt}".encode()
    return f"{partition_of(run_id, num_partitions)}-{blake2b(text, digest_size=12).hexdigest()}"


class StepLeases:
    """Access for owners and ingress replicas.

    Args:
        redis: Shared.
        num_partitions: As everywhere.
        lease_s: Silence after which a worker loses what it has.
    """

    def __init__(self, redis: Redis, num_partitions: int, lease_s: float) -> None:
        self.redis = redis
        self.lease_ms = int(lease_s * 1000)
        self._partitions = [PartitionKeys(number) for number in range(num_partitions)]

    def _names(self, offer_id: str) -> PartitionKeys | None:
        number, dash, _ = offer_id.partition("-")
        if not dash or not number.isascii() or not number.isdigit() or len(number) > 4:
            return None
        return self._partitions[int(number)] if int(number) < len(self._partitions) else None

    def _names_of_ours(self, offer_id: str) -> PartitionKeys:
        names = self._names(offer_id)
        if names is None:
            raise ValueError(f"no offer of ours: {offer_id}")
        return names

    # -- owners

    async def offer(
        self, offer_id: str, run_id: str, unit: tuple[int, int], attempt: int, body: bytes, *, again: bool
    ) -> OfferState:
        """Offer an attempt.

        Args:
            offer_id: As `offer_id_of` names it.
            run_id: Whose.
            unit: Step and item.
            attempt: The number it will have.
            body: JSON for the worker.
            again: Offer it although somebody had it: only for an owner who knows that this counted nothing.

        Returns:
            The state before. Where it is LEASED, DONE or LOST, and not `again`, nothing was changed: the
            inbox brings the news.
        """
        call = self.offer_call(offer_id, run_id, unit, attempt, body, again=again)
        with redis_errors_as_ours():
            reply: bytes = await scripts.call(self.redis, *call)
        return OfferState(reply.decode())

    def offer_call(
        self, offer_id: str, run_id: str, unit: tuple[int, int], attempt: int, body: bytes, *, again: bool
    ) -> scripts.Call:
        """Make the call behind `offer`, to be sent with others."""
        arguments: list[scripts.Argument] = [run_id, *unit, attempt, body, OFFER_TTL_S * 1000, int(again)]
        return scripts.OFFER, [self._names_of_ours(offer_id).offer(offer_id)], arguments

    async def keep(self, offer_ids: Sequence[str]) -> None:
        """Let offers live on that have waited for long."""
        with redis_errors_as_ours():
            pipe = self.redis.pipeline(transaction=False)
            for offer_id in offer_ids:
                pipe.expire(self._names_of_ours(offer_id).offer(offer_id), OFFER_TTL_S)
            await pipe.execute()

    async def state(self, offer_id: str) -> tuple[OfferState, str]:
        """Read an offer's state, and who has it."""
        with redis_errors_as_ours():
            found: Any = await self.redis.hmget(
                self._names_of_ours(offer_id).offer(offer_id), ["state", "worker"]
            )
        state, worker = (each.decode() if each else "" for each in found)
        return OfferState(state), worker

    async def expired(self, partitions: Sequence[int]) -> list[str]:
        """List leases whose time is over."""
        with redis_errors_as_ours():
            seconds, micros = await self.redis.time()
            pipe = self.redis.pipeline(transaction=False)
            for number in partitions:
                pipe.zrangebyscore(
                    self._partitions[number].leases, "-inf", seconds * 1000 + micros // 1000, 0, 1000
                )
            return [offer_id.decode() for page in await pipe.execute() for offer_id in page]

    async def end(
        self, offer_id: str, how: LeaseEnd, reason: str, worker_id: str = "", token: str = ""
    ) -> Ended | None:
        """End a lease without a result; None where that changes nothing.

        Args:
            offer_id: Which.
            how: EXPIRED only if its time is over; RELEASED only by the worker that has it; WITHDRAWN by the
                owner, who tells itself.
            reason: For people; the owner is told it.
            worker_id: For RELEASED.
            token: For RELEASED, "" where the worker does not echo it.
        """
        names = self._names(offer_id)
        if names is None:
            return None
        with redis_errors_as_ours():
            reply: Any = await scripts.call(
                self.redis,
                scripts.LEASE_END,
                [names.offer(offer_id), names.inbox, names.leases],
                [offer_id, how, worker_id, token, reason, OVER_OFFER_TTL_S * 1000],
            )
        return Ended(reply[1].decode(), reply[2].decode()) if reply[0] else None

    # -- workers

    async def claim(self, offer_id: str, worker_id: str, token: str) -> Claim | None:
        """Begin a lease; None where the offer cannot be had.

        Args:
            offer_id: Which.
            worker_id: Who.
            token: New for each claim; the same again, where the first answer was lost, gets the same answer.
        """
        call = self.claim_call(offer_id, worker_id, token)
        if call is None:
            return None
        with redis_errors_as_ours():
            reply: Any = await scripts.call(self.redis, *call)
        return self.claim_of(reply, offer_id, token)

    def claim_call(self, offer_id: str, worker_id: str, token: str) -> scripts.Call | None:
        """Make the call behind `claim`, to be sent with others; None where there is no such offer."""
        names = self._names(offer_id)
        if names is None:
            return None
        keys_ = [names.offer(offer_id), names.inbox, names.leases]
        return scripts.LEASE_CLAIM, keys_, [offer_id, worker_id, token, self.lease_ms]

    @staticmethod
    def claim_of(reply: Any, offer_id: str, token: str) -> Claim | None:
        """Read the reply to a call of `claim_call`."""
        return Claim(offer_id, reply[0], reply[1].decode(), int(reply[2]), token) if reply else None

    async def renew(
        self,
        offer_id: str,
        worker_id: str,
        token: str = "",
        progress: tuple[float, str] | None = None,
    ) -> bool:
        """Renew a lease, and tell of progress (0 to 1, message); whether the worker still has it."""
        names = self._names(offer_id)
        if names is None:
            return False
        done, message = ("", "") if progress is None else (repr(progress[0]), progress[1])
        with redis_errors_as_ours():
            reply: int = await scripts.call(
                self.redis,
                scripts.LEASE_RENEW,
                [names.offer(offer_id), names.inbox, names.leases],
                [offer_id, worker_id, token, self.lease_ms, done, message],
            )
        return bool(reply)

    async def run_of(self, offer_id: str) -> str | None:
        """Find the Run of an offer."""
        names = self._names(offer_id)
        if names is None:
            return None
        with redis_errors_as_ours():
            found: Any = await self.redis.hget(names.offer(offer_id), "run")
        return found.decode() if found else None

    async def complete(
        self, offer_id: str, run_id: str, worker_id: str, token: str, result: bytes
    ) -> Completion:
        """Hand a result in.

        Args:
            offer_id: Which.
            run_id: As `run_of` says.
            worker_id: Who.
            token: "" where the worker does not echo it.
            result: JSON for the owner.
        """
        call = self.complete_call(offer_id, run_id, worker_id, token, result)
        if call is None:
            return Completion.UNKNOWN
        with redis_errors_as_ours():
            reply: bytes = await scripts.call(self.redis, *call)
        return Completion(reply.decode())

    def complete_call(
        self, offer_id: str, run_id: str, worker_id: str, token: str, result: bytes
    ) -> scripts.Call | None:
        """Make the call behind `complete`, to be sent with others; None where there is no such offer."""
        names = self._names(offer_id)
        if names is None:
            return None
        keys_ = [names.offer(offer_id), names.inbox, names.leases, names.run(run_id)]
        arguments: list[scripts.Argument] = [offer_id, worker_id, token, result]
        return scripts.LEASE_COMPLETE, keys_, [*arguments, OVER_OFFER_TTL_S * 1000, run_id]
