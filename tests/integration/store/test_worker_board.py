"""Offers and waiting workers on a real Redis: they meet, and nothing goes to two."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from cluster.scheduling.matching import WorkerOffer, WorkerStrategy
from cluster.store.connection import connect_redis
from cluster.store.keys import WorkerKeys
from cluster.store.worker_board import BoardOffer, WorkerBoard


class Replica:
    """Holds polls like an ingress replica; notes what it is told."""

    def __init__(self, redis: Redis, name: str = "r1") -> None:
        self.name = name
        self.told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._pubsub = redis.pubsub()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._pubsub.subscribe(WorkerKeys.replica(self.name))
        await self._pubsub.get_message(timeout=5)
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for message in self._pubsub.listen():
            poll_id, _, offer_id = message["data"].decode().partition(" ")
            self.told.put_nowait((poll_id, offer_id))

    async def next(self) -> tuple[str, str]:
        return await asyncio.wait_for(self.told.get(), 5)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    redis = connect_redis(url)
    yield redis
    await redis.aclose()


@pytest.fixture
def board(redis: Redis) -> WorkerBoard:
    return WorkerBoard(redis, 120.0, 30.0)


@pytest.fixture
async def replica(redis: Redis) -> AsyncIterator[Replica]:
    replica = Replica(redis)
    await replica.start()
    yield replica
    await replica.stop()


async def come(board: WorkerBoard, name: str, *kinds: str, **fields: object) -> None:
    profile = WorkerOffer(worker_id=name, capabilities=frozenset(kinds or ("echo",)), **fields)  # type: ignore[arg-type]
    await board.register(profile, {"worker_id": name})


async def wait(board: WorkerBoard, name: str, poll: str = "", replica: str = "r1") -> tuple[str, str]:
    return await board.wait(name, poll or f"poll-of-{name}", replica, 30.0)


def echo(priority: int = 50, **fields: object) -> BoardOffer:
    return BoardOffer("echo", priority, **fields)  # type: ignore[arg-type]


async def test_offer_wakes_exactly_one_waiting_worker(board: WorkerBoard, replica: Replica) -> None:
    for name in ("w1", "w2", "w3"):
        await come(board, name)
        assert await wait(board, name) == ("waiting", "")
    given_to = await board.post("o1", echo())
    assert await replica.next() == (f"poll-of-{given_to}", "o1")
    assert replica.told.empty()
    assert await board.post("o1", echo()) == ""


async def test_worker_that_comes_gets_the_most_urgent_offer_then_the_oldest(board: WorkerBoard) -> None:
    await come(board, "w1", "echo", "other", max_running=5)
    await board.post("low", echo(10, created_at=1.0))
    await board.post("high-late", echo(90, created_at=3.0))
    await board.post("high", BoardOffer("other", 90, created_at=2.0))
    got = [(await wait(board, "w1"))[1] for _ in range(3)]
    assert got == ["high", "high-late", "low"]
    assert await wait(board, "w1") == ("waiting", "")


async def test_worker_of_another_type_is_left_alone(board: WorkerBoard, replica: Replica) -> None:
    await come(board, "w1", "echo2", "ech")
    await wait(board, "w1")
    assert await board.post("o1", echo()) == ""
    await come(board, "w2")
    assert await wait(board, "w2") == ("given", "o1")


async def test_unregistered_worker_is_unknown(board: WorkerBoard) -> None:
    assert await wait(board, "w1") == ("unknown", "")
    assert await board.touch("w1") is None


async def test_busy_full_paused_and_draining_workers_get_nothing(board: WorkerBoard) -> None:
    await board.post("o1", echo())
    await come(board, "busy", is_busy=True)
    assert await wait(board, "busy") == ("busy", "")
    await come(board, "held")
    await board.pause("worker:held")
    await board.pause("drain:held")
    assert await wait(board, "held") == ("busy", "")
    await board.resume("worker:held")
    assert await wait(board, "held") == ("busy", "")
    await come(board, "held")
    assert await wait(board, "held") == ("given", "o1")
    await board.settle("o1", "held", "claimed")
    await board.post("o2", echo())
    assert await wait(board, "held") == ("busy", "")
    await board.stopped("held", "o1")
    assert await wait(board, "held") == ("given", "o2")


async def test_paused_type_waits_on_the_board_until_it_is_resumed(
    board: WorkerBoard, replica: Replica
) -> None:
    await come(board, "w1")
    await board.pause("type:echo")
    assert await wait(board, "w1") == ("waiting", "")
    assert await board.post("o1", echo()) == ""
    await board.resume("type:echo")
    # What it waits for was decided when its poll came: the next one brings it.
    assert await wait(board, "w1") == ("given", "o1")


async def test_offer_with_needs_goes_past_those_who_lack_them(board: WorkerBoard, replica: Replica) -> None:
    await come(board, "small", gpu_model="RTX 3060", gpu_memory_gb=12.0)
    await come(board, "large", gpu_model="NVIDIA A100", gpu_memory_gb=80.0)
    await wait(board, "small")
    assert await board.post("o1", echo(gpu_model="a100", gpu_memory_gb=40.0)) == ""
    assert await board.post("o2", echo()) == "small"
    assert await replica.next() == ("poll-of-small", "o2")
    assert await wait(board, "large") == ("given", "o1")
    await board.settle("o1", "large", "claimed")
    await board.post("o3", echo(90, gpu_model="a100"))
    await board.post("o4", echo())
    await board.settle("o2", "small", "over")
    assert await wait(board, "small") == ("given", "o4")


async def test_cheapest_of_the_waiting_workers_is_chosen(board: WorkerBoard, replica: Replica) -> None:
    for name, price in (("dear", 3.0), ("cheap", 1.0), ("middling", 2.0)):
        await come(board, name, cost_by_capability={"echo": price})
        await wait(board, name)
    assert await board.post("o1", echo(strategy=WorkerStrategy.CHEAPEST)) == "cheap"
    assert await board.post("o2", echo()) == "middling"
    assert await board.post("o3", echo(max_cost=2.5)) == ""


async def test_offer_for_a_replica_that_died_goes_to_the_next(board: WorkerBoard, replica: Replica) -> None:
    await come(board, "w1")
    await come(board, "w2")
    await wait(board, "w1", replica="dead")
    await wait(board, "w2")
    assert await board.post("o1", echo()) == "w2"


async def test_poll_that_ended_gives_its_offer_to_the_next(board: WorkerBoard, replica: Replica) -> None:
    for name in ("w1", "w2"):
        await come(board, name)
        await wait(board, name)
    first = await board.post("o1", echo())
    await board.give_back("o1", first)
    told = [await replica.next(), await replica.next()]
    assert {poll for poll, _ in told} == {"poll-of-w1", "poll-of-w2"}
    assert {offer for _, offer in told} == {"o1"}


async def test_worker_that_hung_up_is_not_waited_for(board: WorkerBoard, replica: Replica) -> None:
    await come(board, "w1")
    await wait(board, "w1", "p1")
    await wait(board, "w1", "p2")
    await board.unwait("w1", "p1")
    assert await board.post("o1", echo()) == "w1"
    assert await replica.next() == ("p2", "o1")
    await board.give_back("o1", "w1")
    await wait(board, "w1", "p3")
    assert await board.post("o2", echo()) == ""


async def test_what_nobody_claims_is_back_on_the_board(
    board: WorkerBoard, redis: Redis, replica: Replica
) -> None:
    await come(board, "w1")
    await wait(board, "w1")
    await board.post("o1", echo())
    await redis.zadd(WorkerKeys.given, {"o1": 1})
    await come(board, "w2")
    await wait(board, "w2")
    await board.sweep()
    assert (await replica.next())[0] == "poll-of-w1"
    assert await replica.next() == ("poll-of-w2", "o1")


async def test_silent_worker_is_forgotten(board: WorkerBoard, redis: Redis, replica: Replica) -> None:
    await come(board, "w1")
    await wait(board, "w1")
    await redis.zadd(WorkerKeys.seen, {"w1": 1})
    assert await board.workers() == []
    await board.sweep()
    assert await board.post("o1", echo()) == ""
    assert await redis.hlen(WorkerKeys.profiles) == await redis.zcard(WorkerKeys.waiting) == 0


async def test_another_priority_moves_an_offer(board: WorkerBoard) -> None:
    await board.post("o1", echo(50, created_at=1.0))
    await board.post("o2", echo(50, created_at=2.0))
    await board.post("o2", echo(60, created_at=2.0))
    await come(board, "w1")
    assert await wait(board, "w1") == ("given", "o2")


async def test_missing_offers_are_named_and_settled_ones_are_gone(board: WorkerBoard, redis: Redis) -> None:
    await board.post("o1", echo())
    assert await board.missing(["o1", "o2"]) == ["o2"]
    await board.settle("o1", "", "over")
    assert await board.missing(["o1"]) == ["o1"]
    assert await redis.zcard(WorkerKeys.board) == 0


@pytest.mark.parametrize("seed", range(6))
async def test_offers_and_workers_at_random_meet_and_none_goes_to_two(
    board: WorkerBoard, redis: Redis, replica: Replica, seed: int
) -> None:
    """Many workers poll, hang up and come back while offers are posted: at the end all are with somebody."""
    chance = random.Random(seed)
    names = [f"w{n}" for n in range(8)]
    polls: dict[str, str] = {}
    taken: dict[str, str] = {}
    offers = [f"o{n}" for n in range(40)]
    number = 0
    for name in names:
        await come(board, name, "echo", "other", max_running=100)

    def claim(offer_id: str, name: str) -> None:
        assert offer_id not in taken, f"{offer_id} went to {taken[offer_id]} and {name}"
        taken[offer_id] = name

    async def poll(name: str) -> None:
        nonlocal number
        number += 1
        polls[name] = poll_id = f"{name}:{number}"
        kind, offer_id = await wait(board, name, poll_id)
        if kind == "given":
            claim(offer_id, name)
            await board.settle(offer_id, name, "claimed")

    async def hang_up(name: str) -> None:
        poll_id = polls.pop(name, "")
        if poll_id:
            await board.unwait(name, poll_id)

    async def attend() -> None:
        while (told := await replica.told.get()) != ("", ""):
            poll_id, offer_id = told
            name = poll_id.partition(":")[0]
            if polls.get(name) == poll_id:
                del polls[name]
                claim(offer_id, name)
                await board.settle(offer_id, name, "claimed")
            else:
                await board.give_back(offer_id, name)

    attending = asyncio.create_task(attend())
    left = list(offers)
    while left:
        work = []
        for _ in range(4):
            kind = chance.choice(["poll", "poll", "post", "hang up"])
            if kind == "poll":
                work.append(poll(chance.choice(names)))
            elif kind == "hang up":
                work.append(hang_up(chance.choice(names)))
            elif left:
                offer = BoardOffer(
                    chance.choice(["echo", "other"]), chance.randrange(100), num_cpus=chance.choice([0, 1])
                )
                work.append(_posted(board, left.pop(), offer))
        await asyncio.gather(*work)
    async with asyncio.timeout(20):
        while len(taken) < len(offers):
            await asyncio.gather(*(poll(name) for name in names if name not in polls))
    replica.told.put_nowait(("", ""))
    await attending
    assert await redis.hlen(WorkerKeys.offers) == await redis.zcard(WorkerKeys.given) == 0


async def _posted(board: WorkerBoard, offer_id: str, offer: BoardOffer) -> None:
    await board.post(offer_id, offer)
