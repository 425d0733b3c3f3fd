"""Submits, reads and lists on real servers: idempotent, all or nothing, bounded."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest
import redis as sync_redis

from cluster.errors import AlreadyExists, InvalidInput, InvalidPlan, LimitExceeded, NotFound
from cluster.lifecycle.run_status import RunStatus
from cluster.model.plan import Plan, Step
from cluster.store.run_reader import Totals
from cluster.store.run_store import RunStore, SubmitOutcome
from tests.integration.store.conftest import OpenOwner, OpenStore
from tests.integration.store.contents import contents_of
from tests.integration.store.owner import NUM_PARTITIONS, ids_in, submission
from tests.key_leaks import leaked_keys

pytestmark = pytest.mark.integration


async def test_submitted_run_is_read_back_as_it_was_given(store: RunStore) -> None:
    given = submission(
        "r-1", tenant="t-1", priority=70, metadata={"k": ["v"]}, inputs={"x": 1}, timeout_s=9.0
    )
    assert await store.submit(given) == SubmitOutcome("r-1", created=True)
    view = await store.get("r-1", "t-1")
    assert (view.status, view.priority, view.metadata, view.tenant) == (
        RunStatus.QUEUED,
        70,
        {"k": ["v"]},
        "t-1",
    )
    assert [(each.name, each.status) for each in view.steps] == [("s0", "ready")]


async def test_same_request_again_is_the_same_run_and_changes_nothing(
    store: RunStore, client: sync_redis.Redis
) -> None:
    await store.submit(submission("r-1"))
    before = contents_of(client)
    assert await store.submit(submission("r-1", inputs={"other": 1})) == SubmitOutcome("r-1", created=False)
    assert contents_of(client) == before


async def test_same_id_with_another_digest_is_refused_and_changes_nothing(
    store: RunStore, client: sync_redis.Redis
) -> None:
    await store.submit(submission("r-1"))
    before = contents_of(client)
    with pytest.raises(AlreadyExists):
        await store.submit(submission("r-1", digest="digest-2"))
    assert contents_of(client) == before


async def test_one_id_submitted_by_many_at_once_is_created_once(
    store: RunStore, open_store: OpenStore
) -> None:
    other = open_store()
    outcomes = await asyncio.gather(*((store, other)[n % 2].submit(submission("r-1")) for n in range(40)))
    assert sum(outcome.created for outcome in outcomes) == 1
    assert (await store.totals()).submitted == 1


async def test_submit_many_answers_each_for_itself_in_order(store: RunStore) -> None:
    await store.submit(submission("r-1"))
    await store.submit(submission("r-2"))
    outcomes = await store.submit_many(
        [submission("r-0"), submission("r-1"), submission("r-2", digest="other"), submission("r-0")]
    )
    assert outcomes[0] == SubmitOutcome("r-0", created=True)
    assert outcomes[1] == SubmitOutcome("r-1", created=False)
    assert isinstance(outcomes[2], AlreadyExists)
    assert outcomes[3] == SubmitOutcome("r-0", created=False)


async def test_invalid_plan_among_many_stores_none(store: RunStore, client: sync_redis.Redis) -> None:
    bad = Plan(name="p", steps=(Step(name="a", capability="c", needs=("nobody",)),))
    with pytest.raises(InvalidPlan):
        await store.submit_many([submission("r-1"), submission("r-2", plan=bad)])
    assert contents_of(client) == {}


async def test_tenant_at_its_limit_is_refused_and_nothing_is_stored(
    client: sync_redis.Redis, open_store: OpenStore
) -> None:
    store = open_store(max_unfinished_runs=3)
    await store.submit_many([submission(f"r-{n}") for n in range(3)])
    before = contents_of(client)
    with pytest.raises(LimitExceeded):
        await store.submit(submission("r-3"))
    with pytest.raises(LimitExceeded):
        await store.submit_many([submission("r-4"), submission("r-5")])
    assert contents_of(client) == before
    await store.submit(submission("r-6", tenant="another"))


async def test_many_that_do_not_all_fit_are_all_refused(
    client: sync_redis.Redis, open_store: OpenStore
) -> None:
    store = open_store(max_unfinished_runs=3)
    with pytest.raises(LimitExceeded):
        await store.submit_many([submission(f"r-{n}") for n in range(4)])
    assert contents_of(client) == {}


async def test_small_limit_holds_over_all_processes_that_submit_in_turn(open_store: OpenStore) -> None:
    stores = [open_store(max_unfinished_runs=5) for _ in range(3)]
    num_accepted = 0
    for number in range(12):
        with suppress(LimitExceeded):
            await stores[number % 3].submit(submission(f"r-{number}"))
            num_accepted += 1
    assert num_accepted == await stores[0].room.count_unfinished("default") == 5


async def test_limit_holds_for_those_who_submit_at_once_and_its_last_place_can_be_had(
    open_store: OpenStore,
) -> None:
    stores = [open_store(max_unfinished_runs=20) for _ in range(4)]
    names = iter(range(1000))

    async def work(store: RunStore) -> int:
        num_accepted = 0
        for _ in range(8):
            batch = [submission(f"r-{next(names)}") for _ in range(2)]
            with suppress(LimitExceeded):
                await store.submit(batch[0])
                num_accepted += 1
                num_accepted += len(await store.submit_many(batch[1:]))
        return num_accepted

    num_accepted = sum(await asyncio.gather(*(work(store) for store in stores)))
    assert num_accepted == await stores[0].room.count_unfinished("default") <= 20
    while num_accepted < 20:
        await stores[num_accepted % 4].submit(submission(f"r-{next(names)}"))
        num_accepted += 1
    with pytest.raises(LimitExceeded):
        await stores[0].submit(submission("r-more"))


async def test_submits_far_below_the_limit_neither_announce_nor_count_each_time(
    store: RunStore, client: sync_redis.Redis
) -> None:
    await store.submit(submission("r-first"))
    client.config_resetstat()
    began_at = time.monotonic()
    for number in range(50):
        await store.submit(submission(f"r-{number}"))
    num_seconds = int(time.monotonic() - began_at) + 1
    calls = {name: each["calls"] for name, each in client.info("commandstats").items()}
    num_blocks = num_seconds * 2 + 1
    assert calls.get("cmdstat_zrange", 0) <= num_blocks
    assert calls["cmdstat_hget"] - 50 <= num_blocks * 2 * NUM_PARTITIONS


async def test_limit_holds_where_one_process_has_counted_just_before_another_fills_it(
    open_store: OpenStore,
) -> None:
    first, second = (open_store(max_unfinished_runs=1000) for _ in range(2))
    await first.submit(submission("r-first"))
    await second.submit_many([submission(f"r-{number}") for number in range(999)])
    for store in (first, second):
        with pytest.raises(LimitExceeded):
            await store.submit(submission("r-more"))
    assert await first.room.count_unfinished("default") == 1000


async def test_limit_holds_while_blocks_are_used_up_by_many_at_once(open_store: OpenStore) -> None:
    stores = [open_store(max_unfinished_runs=1000) for _ in range(3)]

    async def work(store: RunStore, name: str) -> int:
        num_accepted = 0
        with suppress(LimitExceeded):
            while True:
                await store.submit(submission(f"r-{name}-{num_accepted}"))
                num_accepted += 1
        return num_accepted

    works = [work(store, f"{index}-{n}") for index, store in enumerate(stores) for n in range(20)]
    assert sum(await asyncio.gather(*works)) == await stores[0].room.count_unfinished("default") == 1000


async def test_announcement_of_a_dead_process_lapses_and_until_then_takes_room(
    open_store: OpenStore, client: sync_redis.Redis
) -> None:
    store = open_store(max_unfinished_runs=5)
    dead, lapsed = f"{'b' * 32}:3", f"{'a' * 32}:3"
    client.zadd("tutti:room:default", {lapsed: 1.0, dead: time.time() * 1000 + 60_000})
    client.expire("tutti:room:default", 60)
    with pytest.raises(LimitExceeded):
        await store.submit_many([submission(f"r-{number}") for number in range(3)])
    await store.submit_many([submission(f"r-{number}") for number in range(2)])
    with pytest.raises(LimitExceeded):
        await store.submit(submission("r-2"))
    client.zadd("tutti:room:default", {dead: 1.0})
    await store.submit_many([submission(f"r-{number}") for number in range(2, 5)])
    assert client.zcard("tutti:room:default") == 0


async def test_ended_run_makes_room_for_the_next(open_store: OpenStore, open_owner: OpenOwner) -> None:
    store = open_store(max_unfinished_runs=1)
    (run_id,) = ids_in(0, 1)
    await store.submit(submission(run_id))
    with pytest.raises(LimitExceeded):
        await store.submit(submission("r-next"))
    owner = await open_owner()
    await owner.run_all()
    await store.submit(submission("r-next"))


async def test_store_over_its_memory_limit_refuses_and_stores_nothing(
    client: sync_redis.Redis, open_store: OpenStore
) -> None:
    store = open_store(max_redis_bytes=1024)
    with pytest.raises(LimitExceeded):
        await store.submit(submission("r-1"))
    assert contents_of(client) == {}


async def test_server_over_maxmemory_refuses_and_stores_nothing(
    store: RunStore, client: sync_redis.Redis
) -> None:
    await store.ping()
    client.config_set("maxmemory", "1mb")
    client.config_set("maxmemory-policy", "noeviction")
    try:
        with pytest.raises(LimitExceeded):
            for number in range(2000):
                await store.submit(submission(f"r-{number}", inputs={"fill": "x" * 20_000}))
        stored = int(client.hget("tutti:{0}:totals", "submitted") or 0) + int(
            client.hget("tutti:{1}:totals", "submitted") or 0
        )
        assert len(client.keys("tutti:*:run:*")) == len(client.keys("tutti:*:events:*")) == stored
    finally:
        client.config_set("maxmemory", "0")


async def test_run_of_another_tenant_is_unknown(store: RunStore) -> None:
    await store.submit(submission("r-1", tenant="t-1"))
    for read in (store.get, store.summary):
        with pytest.raises(NotFound):
            await read("r-1", "t-2")
        with pytest.raises(NotFound):
            await read("r-nobody", None)
    assert (await store.get("r-1", None)).tenant == "t-1"


async def test_totals_count_what_came_and_how_it_ended(store: RunStore, open_owner: OpenOwner) -> None:
    first, second, third = ids_in(0, 3)
    await store.submit_many([submission(each) for each in (first, second, third)])
    owner = await open_owner()
    assert owner.partition is not None
    await owner.cancel_run(second)
    owner.partition.runs.pop(third)
    await owner.run_all()
    assert await store.totals() == Totals(submitted=3, succeeded=1, failed=0, cancelled=1, unfinished=1)
    assert await store.room.count_unfinished("default") == 1


# -- lists


async def test_list_is_newest_first_and_pages_by_cursor(store: RunStore) -> None:
    for number in range(7):
        await store.submit(submission(f"r-{number}"))
    seen: list[str] = []
    cursor = None
    while True:
        page, cursor = await store.list_runs("default", limit=3, cursor=cursor)
        seen += [each.run_id for each in page]
        if cursor is None:
            break
    assert seen == [f"r-{number}" for number in reversed(range(7))]


async def test_list_pages_completely_through_runs_submitted_at_one_instant(store: RunStore) -> None:
    """One call of submit_many gives all its Runs one instant; more than a chunk of them cut the list off."""
    await store.submit_many([submission(f"r-{number}") for number in range(900)])
    seen: list[str] = []
    cursor = None
    while True:
        page, cursor = await store.list_runs("default", limit=100, cursor=cursor)
        seen += [each.run_id for each in page]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 900


async def test_run_submitted_while_paging_neither_doubles_nor_hides_another(store: RunStore) -> None:
    for number in range(4):
        await store.submit(submission(f"r-{number}"))
    page, cursor = await store.list_runs("default", limit=2)
    await store.submit(submission("r-late"))
    rest, _ = await store.list_runs("default", limit=10, cursor=cursor)
    assert [each.run_id for each in page + rest] == ["r-3", "r-2", "r-1", "r-0"]


async def test_list_filters_by_status_dialect_and_tenant(store: RunStore, open_owner: OpenOwner) -> None:
    done, queued = ids_in(0, 2)
    await store.submit(submission(done))
    owner = await open_owner()
    await owner.run_all()
    await store.submit(submission(queued, dialect="tasks"))
    await store.submit(submission("r-foreign", tenant="t-2"))

    async def ids(**fields: object) -> list[str]:
        page, _ = await store.list_runs("default", **fields)  # type: ignore[arg-type]
        return [each.run_id for each in page]

    assert await ids() == [queued, done]
    assert await ids(statuses=[RunStatus.SUCCEEDED]) == [done]
    assert await ids(statuses=[RunStatus.QUEUED, RunStatus.RUNNING]) == [queued]
    assert await ids(statuses=[RunStatus.FAILED]) == []
    assert await ids(dialect="tasks") == [queued]


@pytest.mark.parametrize("cursor", ["", "x", "x:r-1", "nan:r-1", "(1:r"])
async def test_cursor_of_somebody_else_is_invalid_input(store: RunStore, cursor: str) -> None:
    with pytest.raises(InvalidInput):
        await store.list_runs("default", cursor=cursor)


# -- lifetimes


async def test_ended_run_has_a_lifetime_and_an_open_one_has_none(
    store: RunStore, client: sync_redis.Redis, open_owner: OpenOwner
) -> None:
    done, open_ = ids_in(0, 2)
    await store.submit_many([submission(done), submission(open_)])
    owner = await open_owner()
    assert owner.partition is not None
    owner.partition.runs.pop(open_)
    await owner.run_all()
    for kind in ("run", "events"):
        assert 3500 < client.ttl(f"tutti:{{0}}:{kind}:{done}") <= 3600
        assert client.ttl(f"tutti:{{0}}:{kind}:{open_}") == -1


async def test_checker_finds_a_key_that_would_live_for_ever(url: str, client: sync_redis.Redis) -> None:
    client.set("tutti:forgotten", 1)
    client.set("tutti:{0}:watchers:r", 1)
    client.set("tutti:{0}:events:of-nobody", 1)
    client.set("tutti:metrics:p", 1, ex=5)
    assert leaked_keys(url) == ["tutti:forgotten", "tutti:{0}:events:of-nobody", "tutti:{0}:watchers:r"]
    client.flushall()


async def test_index_forgets_runs_whose_record_has_expired(
    store: RunStore, client: sync_redis.Redis, open_owner: OpenOwner
) -> None:
    gone, kept = ids_in(0, 2)
    await store.submit_many([submission(gone), submission(kept)])
    client.delete(f"tutti:{{0}}:run:{gone}", f"tutti:{{0}}:events:{gone}")
    owner = await open_owner(claims=False)
    await owner.journal.age_out_indexes([0], before=float("inf"))
    assert client.zrange("tutti:{0}:index:default", 0, -1) == [kept.encode()]
    assert [each.run_id for each in (await store.list_runs("default"))[0]] == [kept]


async def test_index_forgets_all_expired_runs_behind_many_that_are_still_open(
    store: RunStore, client: sync_redis.Redis, open_owner: OpenOwner
) -> None:
    """A thousand old Runs that go on must not keep the expired ones behind them listed for ever."""
    ids = ids_in(0, 2300)
    await store.submit_many([submission(each) for each in ids])
    in_order = [each.decode() for each in client.zrange("tutti:{0}:index:default", 0, -1)]
    for run_id in in_order[1000:]:
        client.delete(f"tutti:{{0}}:run:{run_id}", f"tutti:{{0}}:events:{run_id}")
    owner = await open_owner(claims=False)
    await owner.journal.age_out_indexes([0], before=float("inf"))
    assert client.zcard("tutti:{0}:index:default") == 1000
