"""Offers and leases on a real Redis: whoever doubles, comes late or lies changes nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

import orjson
import pytest
from redis.asyncio import Redis

from cluster.store.connection import connect_redis
from cluster.store.keys import PartitionKeys
from cluster.store.run_store import RunStore
from cluster.store.step_leases import Completion, LeaseEnd, OfferState, StepLeases, offer_id_of
from tests.integration.store.owner import NUM_PARTITIONS, ids_in, submission

RUN = ids_in(0, 1)[0]
OFFER = offer_id_of(RUN, 0, -1, 1, NUM_PARTITIONS)
NAMES = PartitionKeys(0)


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    redis = connect_redis(url)
    yield redis
    await redis.aclose()


@pytest.fixture
async def leases(redis: Redis, store: RunStore) -> StepLeases:
    """Leases of a Run that is there, with one attempt offered."""
    from cluster.model.compiled import compile_plan

    given = submission(RUN)
    await store.submit(given, compile_plan(given.plan))
    leases = StepLeases(redis, NUM_PARTITIONS, 30.0)
    await leases.offer(OFFER, RUN, (0, -1), 1, b'{"n":1}', again=False)
    return leases


async def news(redis: Redis) -> list[dict[str, str]]:
    """What the owner is told, after the submission."""
    rows = await redis.xrange(NAMES.inbox)
    told = [{k.decode(): v.decode() for k, v in fields.items()} for _, fields in rows]
    return [each for each in told if each["k"] != "submit"]


async def end_time_of(leases: StepLeases) -> None:
    """Let the lease's time be over, as if it had passed."""
    await leases.redis.zadd(NAMES.leases, {OFFER: int(time.time() * 1000) - 60_000})


async def test_claim_begins_the_lease_and_tells_the_owner(leases: StepLeases, redis: Redis) -> None:
    claim = await leases.claim(OFFER, "w1", "token-1")
    assert claim == (OFFER, b'{"n":1}', RUN, 1, "token-1", ())
    assert await leases.state(OFFER) == (OfferState.LEASED, "w1")
    (told,) = await news(redis)
    assert told == {"k": "claimed", "r": RUN, "o": OFFER, "s": "0", "i": "-1", "a": "1", "w": "w1"}


async def test_offer_is_claimed_by_one_of_many_at_once(leases: StepLeases, redis: Redis) -> None:
    claims = await asyncio.gather(*(leases.claim(OFFER, f"w{n}", f"t{n}") for n in range(20)))
    assert sum(claim is not None for claim in claims) == 1
    assert len(await news(redis)) == 1


async def test_claim_whose_answer_was_lost_is_answered_again_and_told_once(
    leases: StepLeases, redis: Redis
) -> None:
    first = await leases.claim(OFFER, "w1", "token-1")
    assert await leases.claim(OFFER, "w1", "token-1") == first
    assert await leases.claim(OFFER, "w1", "token-2") is None
    assert len(await news(redis)) == 1


async def test_result_ends_the_lease_and_a_second_one_changes_nothing(
    leases: StepLeases, redis: Redis
) -> None:
    await leases.claim(OFFER, "w1", "token-1")
    assert await leases.complete(OFFER, RUN, "w1", "token-1", b'{"x":1}') is Completion.ACCEPTED
    assert await leases.complete(OFFER, RUN, "w1", "", b'{"x":2}') is Completion.REPEATED
    assert [told["k"] for told in await news(redis)] == ["claimed", "result"]
    assert (await news(redis))[-1]["d"] == '{"x":1}'
    assert await redis.zcard(NAMES.leases) == 0


async def test_worker_that_does_not_echo_the_token_is_known_by_its_id(leases: StepLeases) -> None:
    await leases.claim(OFFER, "w1", "token-1")
    assert await leases.complete(OFFER, RUN, "w2", "", b"{}") is Completion.FOREIGN
    assert await leases.complete(OFFER, RUN, "w1", "", b"{}") is Completion.ACCEPTED


async def test_wrong_token_or_worker_changes_nothing(leases: StepLeases, redis: Redis) -> None:
    await leases.claim(OFFER, "w1", "token-1")
    assert await leases.complete(OFFER, RUN, "w1", "token-2", b"{}") is Completion.LATE
    assert await leases.complete(OFFER, RUN, "w2", "token-1", b"{}") is Completion.FOREIGN
    assert not await leases.renew(OFFER, "w2", "token-1")
    assert not await leases.renew(OFFER, "w1", "token-2")
    assert await leases.end(OFFER, LeaseEnd.RELEASED, "", "w2") is None
    assert len(await news(redis)) == 1


@pytest.mark.parametrize("offer_id", ["", "no-offer", "9999-00", "0-", "0-ff", "-1", "²-0"])
async def test_unknown_offer_is_unknown_to_every_call(leases: StepLeases, offer_id: str) -> None:
    assert await leases.run_of(offer_id) is None
    assert await leases.claim(offer_id, "w1", "t") is None
    assert not await leases.renew(offer_id, "w1")
    assert await leases.complete(offer_id, RUN, "w1", "", b"{}") is Completion.UNKNOWN
    assert await leases.end(offer_id, LeaseEnd.RELEASED, "", "w1") is None


async def test_result_after_the_lease_is_late_although_nobody_swept(leases: StepLeases, redis: Redis) -> None:
    await leases.claim(OFFER, "w1", "token-1")
    await end_time_of(leases)
    assert await leases.complete(OFFER, RUN, "w1", "token-1", b"{}") is Completion.LATE
    assert not await leases.renew(OFFER, "w1", "token-1")
    assert await leases.expired([0, 1]) == [OFFER]
    assert await leases.end(OFFER, LeaseEnd.EXPIRED, "silent") == ("w1", RUN)
    assert await leases.end(OFFER, LeaseEnd.EXPIRED, "silent") is None
    assert await leases.complete(OFFER, RUN, "w1", "token-1", b"{}") is Completion.LATE
    assert [told["k"] for told in await news(redis)] == ["claimed", "lost"]


async def test_lease_that_was_renewed_does_not_expire(leases: StepLeases, redis: Redis) -> None:
    await leases.claim(OFFER, "w1", "token-1")
    assert await leases.renew(OFFER, "w1", "", (0.5, "half"))
    assert await leases.expired([0, 1]) == []
    assert await leases.end(OFFER, LeaseEnd.EXPIRED, "silent") is None
    assert (await news(redis))[-1] | {"r": ""} == {
        "k": "progress", "r": "", "o": OFFER, "s": "0", "i": "-1", "a": "1", "p": "0.5", "m": "half"
    }  # fmt: skip


async def test_what_a_worker_gave_back_is_lost_at_once(leases: StepLeases, redis: Redis) -> None:
    await leases.claim(OFFER, "w1", "token-1")
    assert await leases.end(OFFER, LeaseEnd.RELEASED, "left", "w1") == ("w1", RUN)
    assert (await news(redis))[-1]["c"] == "0"
    assert await leases.complete(OFFER, RUN, "w1", "token-1", b"{}") is Completion.LATE


async def test_withdrawn_offer_cannot_be_claimed_until_it_is_offered_again(leases: StepLeases) -> None:
    assert await leases.end(OFFER, LeaseEnd.WITHDRAWN, "paused") == ("", RUN)
    assert await leases.claim(OFFER, "w1", "token-1") is None
    again = await leases.offer(OFFER, RUN, (0, -1), 1, b"{}", again=False)
    assert again is OfferState.WITHDRAWN
    assert await leases.claim(OFFER, "w1", "token-1") is not None


async def test_result_of_a_withdrawn_lease_is_late_and_its_holder_is_named(leases: StepLeases) -> None:
    await leases.claim(OFFER, "w1", "token-1")
    assert await leases.end(OFFER, LeaseEnd.WITHDRAWN, "cancelled") == ("w1", RUN)
    assert await leases.complete(OFFER, RUN, "w1", "token-1", b"{}") is Completion.LATE
    await leases.offer(OFFER, RUN, (0, -1), 1, b"{}", again=False)
    await leases.claim(OFFER, "w2", "token-2")
    assert await leases.complete(OFFER, RUN, "w1", "", b"{}") is Completion.LATE
    assert await leases.complete(OFFER, RUN, "w3", "", b"{}") is Completion.FOREIGN


@pytest.mark.parametrize("had", ["leased", "done", "lost"])
async def test_new_owner_does_not_offer_again_what_somebody_had(leases: StepLeases, had: str) -> None:
    await leases.claim(OFFER, "w1", "token-1")
    if had == "done":
        await leases.complete(OFFER, RUN, "w1", "", b"{}")
    if had == "lost":
        await leases.end(OFFER, LeaseEnd.RELEASED, "", "w1")
    assert await leases.offer(OFFER, RUN, (0, -1), 1, b"{}", again=False) == had
    assert await leases.claim(OFFER, "w2", "token-2") is None
    assert await leases.offer(OFFER, RUN, (0, -1), 1, b"{}", again=True) == had
    assert await leases.claim(OFFER, "w2", "token-2") is not None


async def test_result_for_a_run_that_has_ended_is_late(leases: StepLeases, redis: Redis) -> None:
    await leases.claim(OFFER, "w1", "token-1")
    record = orjson.loads(await redis.hget(NAMES.run(RUN), "record"))
    await redis.hset(NAMES.run(RUN), "record", orjson.dumps(record | {"status": "cancelled"}))
    assert await leases.complete(OFFER, RUN, "w1", "", b"{}") is Completion.LATE
    await redis.delete(NAMES.run(RUN), NAMES.events(RUN))
    assert await leases.complete(OFFER, RUN, "w1", "", b"{}") is Completion.LATE


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_a_lease_ends_once_and_the_owner_hears_it_in_order(
    leases: StepLeases, redis: Redis, seed: int
) -> None:
    """Workers claim, renew, complete and give back at random, with right and wrong tokens, while time runs
    out and the owner withdraws and offers again: each claim is followed by at most one end.
    """
    chance = random.Random(seed)
    tokens: list[tuple[str, str]] = [("w9", "none")]
    accepted = 0

    async def act() -> None:
        nonlocal accepted
        worker, token = chance.choice(tokens)
        wrong = chance.choice([token, token, "", "wrong"])
        kind = chance.choice(
            ["claim", "claim", "renew", "complete", "complete", "release", "expire", "owner"]
        )
        if kind == "claim":
            claim = await leases.claim(OFFER, name := f"w{chance.randrange(3)}", f"t{chance.random()}")
            if claim is not None:
                tokens.append((name, claim.token))
        elif kind == "renew":
            await leases.renew(OFFER, worker, wrong)
        elif kind == "complete":
            done = await leases.complete(OFFER, RUN, worker, wrong, b"{}")
            accepted += done is Completion.ACCEPTED
        elif kind == "release":
            await leases.end(OFFER, LeaseEnd.RELEASED, "", worker, wrong)
        elif kind == "expire":
            if await redis.zcard(NAMES.leases):
                await end_time_of(leases)
            await leases.end(OFFER, LeaseEnd.EXPIRED, "")
        else:
            await leases.end(OFFER, LeaseEnd.WITHDRAWN, "")
            await leases.offer(OFFER, RUN, (0, -1), 1, b"{}", again=True)

    for _ in range(40):
        await asyncio.gather(*(act() for _ in range(4)))
    told = [each["k"] for each in await news(redis)]
    assert told.count("result") == accepted
    has_lease = False
    for kind in told:
        if kind == "claimed":
            has_lease = True
        else:
            assert has_lease, f"{kind} without a lease: {told}"
            has_lease = False
    state, _ = await leases.state(OFFER)
    assert (state is OfferState.LEASED) == bool(await redis.zcard(NAMES.leases))
