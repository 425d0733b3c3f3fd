"""Live events and verdicts on real servers: each once, in order, also over a broken connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis as sync_redis

from cluster.errors import Conflict, NotFound, Unavailable
from cluster.model import events as ev
from cluster.model.view import RunEvent
from cluster.store.run_store import RunStore
from serve_app.launch.redis_server import EmbeddedRedis
from tests.integration.store.conftest import OpenOwner, OpenStore
from tests.integration.store.owner import TestOwner, chain, ids_in, settings_for, submission

pytestmark = pytest.mark.integration


async def collect(store: RunStore, run_id: str, into: list[RunEvent], after_seq: int = 0) -> None:
    async for event in store.follow(run_id, None, after_seq):
        into.append(event)  # noqa: PERF401 - watched while it grows


async def until(holds: Callable[[], bool], timeout_s: float = 8.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "the condition never came"
        await asyncio.sleep(0.005)


def kill_subscribers(client: sync_redis.Redis) -> int:
    """Break the Pub/Sub connections of everybody."""
    return int(client.client_kill_filter(_type="pubsub"))


async def begin(store: RunStore, open_owner: OpenOwner, num_steps: int = 3) -> tuple[str, TestOwner]:
    (run_id,) = ids_in(0, 1)
    await store.submit(submission(run_id, plan=chain(num_steps)))
    return run_id, await open_owner()


# -- events


async def test_early_follower_sees_every_event_once_in_order_and_the_end(
    store: RunStore, open_owner: OpenOwner
) -> None:
    run_id, owner = await begin(store, open_owner)
    seen: list[RunEvent] = []
    follower = asyncio.create_task(collect(store, run_id, seen))
    await until(lambda: len(seen) == 1)
    await owner.run_all()
    await asyncio.wait_for(follower, 3.0)
    assert [event.seq for event in seen] == list(range(1, 10))
    assert [event.type for event in seen] == [
        "run.submitted",
        "run.started",
        *["step.started", "step.succeeded"] * 3,
        "run.succeeded",
    ]


async def test_late_follower_gets_the_past_and_ends(store: RunStore, open_owner: OpenOwner) -> None:
    run_id, owner = await begin(store, open_owner)
    await owner.run_all()
    seen: list[RunEvent] = []
    await asyncio.wait_for(collect(store, run_id, seen), 3.0)
    assert [event.seq for event in seen] == list(range(1, 10))


@pytest.mark.parametrize("after_seq", [4, 9, 100])
async def test_follower_that_comes_back_gets_only_what_it_has_not_seen(
    store: RunStore, open_owner: OpenOwner, after_seq: int
) -> None:
    run_id, owner = await begin(store, open_owner)
    await owner.run_all()
    seen: list[RunEvent] = []
    await asyncio.wait_for(collect(store, run_id, seen, after_seq), 3.0)
    assert [event.seq for event in seen] == list(range(after_seq + 1, 10))


async def test_follower_that_joins_in_the_middle_gets_past_and_present_exactly_once(
    store: RunStore, open_owner: OpenOwner
) -> None:
    run_id, owner = await begin(store, open_owner, 20)
    followers: list[tuple[list[RunEvent], asyncio.Task[None]]] = []
    assert owner.partition is not None
    while owner.partition.runs:
        seen: list[RunEvent] = []
        followers.append((seen, asyncio.create_task(collect(store, run_id, seen))))
        owner.assign_all()
        await owner.commit()
        for _, start in owner.started:
            owner.report(run_id, start, b"1")
        owner.started.clear()
        await owner.commit()
    await asyncio.wait_for(asyncio.gather(*(task for _, task in followers)), 8.0)
    assert len(followers) == 20
    assert all([event.seq for event in seen] == list(range(1, 44)) for seen, _ in followers)


async def test_long_past_comes_whole_over_many_pages(store: RunStore, open_owner: OpenOwner) -> None:
    run_id, owner = await begin(store, open_owner, 700)
    await owner.run_all()
    seen: list[RunEvent] = []
    await asyncio.wait_for(collect(store, run_id, seen), 8.0)
    assert [event.seq for event in seen] == list(range(1, 1404))


async def test_broken_connection_costs_no_event_and_less_than_the_recheck(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    run_id, owner = await begin(store, open_owner)
    seen: list[RunEvent] = []
    follower = asyncio.create_task(collect(store, run_id, seen))
    await until(lambda: len(seen) == 1)
    assert kill_subscribers(client) >= 1
    began = time.monotonic()
    await owner.run_all()
    await asyncio.wait_for(follower, 8.0)
    assert [event.seq for event in seen] == list(range(1, 10))
    assert time.monotonic() - began < 3.0


async def test_every_connection_broken_again_and_again_costs_no_event(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    run_id, owner = await begin(store, open_owner, 10)
    seen: list[RunEvent] = []
    follower = asyncio.create_task(collect(store, run_id, seen))
    await until(lambda: len(seen) == 1)
    assert owner.partition is not None
    while owner.partition.runs:
        owner.assign_all()
        await owner.commit()
        for _, start in owner.started:
            owner.report(run_id, start, b"1")
        owner.started.clear()
        await owner.commit()
        kill_subscribers(client)
        client.client_kill_filter(_type="normal", skipme=True)
    await asyncio.wait_for(follower, 15.0)
    assert [event.seq for event in seen] == list(range(1, 24))


async def test_follower_outlives_the_death_of_redis_and_sees_every_event_once(
    each_redis_binary: str, tmp_path: Path
) -> None:
    """A plain gRPC stream has no way to go on where it broke off: the server must not let it break."""
    server = EmbeddedRedis(tmp_path, "strict", each_redis_binary)
    store = RunStore.connect(settings_for(server.start()))
    owner = TestOwner(server.url, "owner-1")
    (run_id,) = ids_in(0, 1)
    seen: list[RunEvent] = []
    try:
        await store.submit(submission(run_id, plan=chain(3)))
        assert await owner.claim()
        follower = asyncio.create_task(collect(store, run_id, seen))
        await until(lambda: len(seen) == 1)
        server.kill()
        for _ in range(5):
            store._feed._wake_all()  # so that it reads, and finds nobody
            with pytest.raises(Unavailable):
                await anext(store.follow(run_id, None))
            assert not follower.done()
        assert server.restart_if_dead()
        await owner.run_all()
        await asyncio.wait_for(follower, 10.0)
    finally:
        await owner.close()
        await store.close()
        server.stop()
    assert [event.seq for event in seen] == list(range(1, 10))


async def test_follow_of_an_unknown_or_foreign_run_is_not_found(
    store: RunStore, open_owner: OpenOwner
) -> None:
    await store.submit(submission("r-1", tenant="t-1"))
    for run_id, tenant in (("r-2", None), ("r-1", "t-2")):
        with pytest.raises(NotFound):
            await anext(store.follow(run_id, tenant))


async def test_follow_ends_when_the_stream_expires_under_it(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    run_id, owner = await begin(store, open_owner)
    await owner.commit()
    seen: list[RunEvent] = []
    follower = asyncio.create_task(collect(store, run_id, seen))
    await until(lambda: len(seen) == 1)
    client.delete(f"tutti:{{0}}:run:{run_id}", f"tutti:{{0}}:events:{run_id}")
    client.publish("tutti:{0}:wake", run_id)
    await asyncio.wait_for(follower, 3.0)


async def test_follower_that_goes_away_leaves_nothing_behind(store: RunStore, open_owner: OpenOwner) -> None:
    run_id, _owner = await begin(store, open_owner)
    seen: list[RunEvent] = []
    follower = asyncio.create_task(collect(store, run_id, seen))
    await until(lambda: len(seen) == 1)
    follower.cancel()
    with pytest.raises(asyncio.CancelledError):
        await follower
    assert store._feed._followers == {}


# -- verdicts


async def serve_commands(owner: TestOwner, count: int) -> None:
    """Read and commit until so many inbox entries were handled."""
    while count > 0:
        count -= await owner.read()
        await owner.commit()


def calls_of_scripts(client: sync_redis.Redis) -> int:
    statistics = client.info("commandstats")
    return sum(statistics.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


async def test_command_is_answered_by_the_owners_verdict(store: RunStore, open_owner: OpenOwner) -> None:
    run_id, owner = await begin(store, open_owner)
    serving = asyncio.create_task(serve_commands(owner, 1))
    await store.command(run_id, "default", "cancel", reason="enough")
    await serving
    assert (await store.get(run_id, None)).status == "cancelled"


async def test_same_command_id_again_gets_the_same_verdict_and_acts_once(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    """A second cancel would be refused; the same one sent twice is answered as it was the first time."""
    run_id, owner = await begin(store, open_owner)
    serving = asyncio.create_task(serve_commands(owner, 1))
    await store.command(run_id, None, "cancel", command_id="c-1")
    await serving
    num_events = client.xlen(f"tutti:{{0}}:events:{run_id}")
    await store.command(run_id, None, "cancel", command_id="c-1")
    assert client.xlen("tutti:{0}:inbox") == 0
    assert client.xlen(f"tutti:{{0}}:events:{run_id}") == num_events
    assert 0 < client.ttl("tutti:{0}:verdict:c-1") <= 60


async def test_same_command_id_sent_at_once_by_many_is_carried_out_once(
    store: RunStore, open_store: OpenStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    run_id, owner = await begin(store, open_owner)
    stores = [store, open_store(), open_store()]
    num_entries = client.xlen("tutti:{0}:inbox")
    num_calls = calls_of_scripts(client)
    waiting = [
        asyncio.create_task(stores[n % 3].command(run_id, None, "cancel", command_id="c-1"))
        for n in range(12)
    ]
    await until(lambda: calls_of_scripts(client) >= num_calls + 12)
    assert client.xlen("tutti:{0}:inbox") == num_entries + 1
    await serve_commands(owner, 1)
    await asyncio.wait_for(asyncio.gather(*waiting), 5.0)
    assert await owner.read() == 0


async def test_of_two_different_commands_at_once_one_wins_and_one_is_refused(
    store: RunStore, open_owner: OpenOwner
) -> None:
    run_id, owner = await begin(store, open_owner)
    waiting = [asyncio.create_task(store.command(run_id, None, "cancel")) for _ in range(2)]
    await until(lambda: len(store._feed._verdicts) == 2)
    assert owner.partition is not None
    run = owner.partition.runs[run_id]
    handled = 0
    while handled < 2:
        handled += await owner.read()
    await owner.commit()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert sorted(type(answer) for answer in answers if answer is not None) == [Conflict]
    assert run.record.status == "cancelled"


async def test_refused_command_gets_the_same_refusal_again(store: RunStore, open_owner: OpenOwner) -> None:
    run_id, owner = await begin(store, open_owner)
    assert owner.partition is not None
    run = owner.partition.runs[run_id]
    owner.apply(run, ev.CancelRequested(""))
    refused = [asyncio.create_task(store.command(run_id, None, "cancel", command_id="c-9"))]
    await serve_commands(owner, 1)
    refused.append(asyncio.create_task(store.command(run_id, None, "cancel", command_id="c-9")))
    answers = await asyncio.gather(*refused, return_exceptions=True)
    assert [str(answer) for answer in answers] == [f"run {run_id} has already ended: cancelled"] * 2


async def test_command_without_an_owner_is_unavailable_but_kept(
    open_store: OpenStore, open_owner: OpenOwner
) -> None:
    store = open_store(command_wait_s=0.2)
    (run_id,) = ids_in(0, 1)
    await store.submit(submission(run_id))
    with pytest.raises(Unavailable):
        await store.command(run_id, None, "cancel", command_id="c-1")
    await (await open_owner()).commit()
    await store.command(run_id, None, "cancel", command_id="c-1")
    assert (await store.get(run_id, None)).status == "cancelled"


async def test_command_for_an_unknown_or_foreign_run_is_not_found_and_not_posted(
    store: RunStore, client: sync_redis.Redis
) -> None:
    (run_id,) = ids_in(0, 1)
    await store.submit(submission(run_id, tenant="t-1"))
    num_entries = client.xlen("tutti:{0}:inbox")
    for target, tenant in (("nobody", None), (run_id, "t-2")):
        with pytest.raises(NotFound):
            await store.command(target, tenant, "cancel", command_id="c-1")
    assert client.xlen("tutti:{0}:inbox") == num_entries
    assert client.keys("tutti:*:verdict:*") == []


async def test_verdict_arrives_although_the_connection_broke_meanwhile(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    run_id, owner = await begin(store, open_owner)
    waiting = asyncio.create_task(store.command(run_id, None, "cancel"))
    await until(lambda: client.xlen("tutti:{0}:inbox") == 2)
    kill_subscribers(client)
    await serve_commands(owner, 1)
    await asyncio.wait_for(waiting, 3.0)
