"""Commits and ownership on real servers: fenced, repeatable, all or nothing."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest
import redis as sync_redis

from cluster.errors import InvalidInput, StaleOwner
from cluster.lifecycle.run_status import RunStatus
from cluster.model import events as ev
from cluster.model.plan import Plan, Step
from cluster.store.journal import Journal
from cluster.store.run_codec import decode_events
from cluster.store.run_store import RunStore
from tests.integration.store.conftest import OpenOwner
from tests.integration.store.contents import contents_of
from tests.integration.store.owner import NUM_PARTITIONS, chain, ids_in, submission

pytestmark = pytest.mark.integration

OWNER_KEY = "tutti:{0}:owner"


def expire_lease(client: sync_redis.Redis, number: int = 0) -> None:
    """Let the lease be over, as if its owner had been silent for long."""
    client.hset(f"tutti:{{{number}}}:owner", "until_ms", 1)


# -- leases


async def test_first_claim_begins_epoch_1_and_another_owner_must_wait(
    open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    owner = await open_owner("owner-1")
    other = await open_owner("owner-2", claims=False)
    assert owner.partition is not None
    assert owner.partition.epoch == 1
    found = (await other.journal.own([0], 30.0))[0]
    assert (found.owned, found.epoch) == (False, 1)
    assert 25.0 < found.others_left_s <= 30.0
    assert client.hget(OWNER_KEY, "owner") == b"owner-1"


async def test_renewal_keeps_the_epoch_and_prolongs_the_lease(
    open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    owner = await open_owner("owner-1", lease_s=5.0)
    renewed = (await owner.journal.own([0], 60.0))[0]
    assert (renewed.owned, renewed.is_new, renewed.epoch) == (True, False, 1)
    until_ms = int(client.hget(OWNER_KEY, "until_ms") or 0)
    assert until_ms / 1000 - time.time() > 50


async def test_expired_lease_is_taken_over_under_the_next_epoch(
    open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    await open_owner("owner-1")
    expire_lease(client)
    other = await open_owner("owner-2")
    assert other.partition is not None
    assert other.partition.epoch == 2


async def test_late_owner_that_nobody_replaced_renews_under_its_own_epoch(
    open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    owner = await open_owner("owner-1")
    expire_lease(client)
    renewed = (await owner.journal.own([0], 30.0))[0]
    assert (renewed.owned, renewed.is_new, renewed.epoch) == (True, False, 1)


async def test_late_owner_that_was_replaced_gets_nothing_back(
    open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    owner = await open_owner("owner-1")
    expire_lease(client)
    await open_owner("owner-2")
    assert not (await owner.journal.own([0], 30.0))[0].owned
    assert client.hget(OWNER_KEY, "owner") == b"owner-2"


async def test_released_partition_is_free_at_once_and_returns_under_a_new_epoch(
    open_owner: OpenOwner,
) -> None:
    owner = await open_owner("owner-1")
    await owner.journal.own([0], 0.0)
    again = (await owner.journal.own([0], 30.0))[0]
    assert (again.owned, again.is_new, again.epoch) == (True, True, 2)


async def test_release_by_somebody_else_changes_nothing(
    open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    await open_owner("owner-1")
    other = await open_owner("owner-2", claims=False)
    before = client.hgetall(OWNER_KEY)
    assert not (await other.journal.own([0], 0.0))[0].owned
    assert client.hgetall(OWNER_KEY) == before


# -- fencing


async def test_commit_under_a_stale_epoch_changes_nothing(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    (run_id,) = ids_in(0, 1)
    await store.submit(submission(run_id, webhook_url="http://127.0.0.1/"))
    owner = await open_owner("owner-1")
    owner.assign_all()
    await owner.commit()
    assert owner.partition is not None
    zombie = owner.partition
    owner.report(run_id, owner.started[0][1], b'"zombie"')
    zombie.answer("command-1", "{}")
    expire_lease(client)
    await open_owner("owner-2")
    before = contents_of(client)
    assert await owner.commit(zombie.take()) == -1
    assert contents_of(client) == before


async def test_repeated_commit_is_written_once(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    """A reply lost on its way makes the owner send the very same batch again."""
    (run_id,) = ids_in(0, 1)
    await store.submit(submission(run_id, webhook_url="http://127.0.0.1/"))
    owner = await open_owner()
    owner.assign_all()
    assert owner.partition is not None
    await owner.commit()
    owner.report(run_id, owner.started[0][1], b'"done"')
    taken = owner.take()
    assert await owner.commit(taken) == 0
    before = contents_of(client)
    assert await owner.commit(taken) == 0
    assert contents_of(client) == before


async def test_repeated_commit_still_tells_of_messages_that_wait_in_the_outbox(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    """The first reply, which told of it, was lost: without this the message lay there until the next one."""
    first, second = ids_in(0, 2)
    await store.submit_many([submission(first), submission(second, after=(first,))])
    owner = await open_owner()
    await owner.commit()
    await owner.watch_all()
    owner.assign_all()
    await owner.commit()
    owner.report(first, owner.started[0][1], b"1")
    taken = owner.take()
    assert await owner.commit(taken) == 1
    assert await owner.commit(taken) == 1
    await owner.journal.relay_outbox(0)
    assert await owner.commit(taken) == 0


async def test_older_commit_number_changes_nothing(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    (run_id,) = ids_in(0, 1)
    await store.submit(submission(run_id, plan=chain(2)))
    owner = await open_owner()
    owner.assign_all()
    late = owner.take()
    assert owner.partition is not None
    call = owner.journal.encode(late.batch)
    await owner.commit(late)
    owner.report(run_id, owner.started[0][1], b"1")
    await owner.commit()
    before = contents_of(client)
    assert await owner.journal.send([call]) == [0]
    assert contents_of(client) == before


async def test_new_epoch_begins_its_commit_numbers_anew(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    (run_id,) = ids_in(0, 1)
    await store.submit(submission(run_id))
    owner = await open_owner("owner-1")
    for _ in range(5):
        await owner.commit()
    expire_lease(client)
    other = await open_owner("owner-2")
    await other.run_all()
    assert (await store.get(run_id, None)).status is RunStatus.SUCCEEDED


async def test_batches_of_several_partitions_are_judged_each_for_itself(
    store: RunStore, open_owner: OpenOwner, url: str, client: sync_redis.Redis
) -> None:
    ids = [ids_in(number, 1)[0] for number in range(NUM_PARTITIONS)]
    await store.submit_many([submission(each) for each in ids])
    owners = [await open_owner("owner-1", number) for number in range(NUM_PARTITIONS)]
    expire_lease(client, 0)
    await open_owner("owner-2", 0)
    for owner in owners:
        owner.assign_all()
    replies = await owners[0].journal.commit([owner.take().batch for owner in owners])
    assert replies == [-1, 0]
    assert (await store.get(ids[0], None)).status is RunStatus.QUEUED
    assert (await store.get(ids[1], None)).status is RunStatus.RUNNING


# -- what a commit writes


async def test_record_result_events_and_counters_of_an_ended_run_are_one_write(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    (run_id,) = ids_in(0, 1)
    await store.submit(submission(run_id, tenant="t-1", webhook_url="http://127.0.0.1/hook"))
    owner = await open_owner()
    await owner.run_all(b'{"answer":42}')
    view = await store.get(run_id, "t-1")
    assert (view.status, view.output, view.progress) == (RunStatus.SUCCEEDED, {"answer": 42}, 1.0)
    assert client.zcard("tutti:{0}:active") == 0
    assert client.hgetall("tutti:{0}:tenants") == {}
    assert client.hgetall("tutti:{0}:totals") == {b"submitted": b"1", b"succeeded": b"1"}
    delivery = orjson.loads(client.hget("tutti:{0}:webhooks", run_id) or b"")
    assert delivery["url"] == "http://127.0.0.1/hook"
    assert orjson.loads(delivery["payload"])["output"] == {"answer": 42}
    assert client.zscore("tutti:{0}:webhooks_due", run_id) == view.ended_at
    entries: list[Any] = client.xrange(f"tutti:{{0}}:events:{run_id}")  # type: ignore[assignment]
    events = [decode_events(fields[b"e"]) for _, fields in entries]
    seqs = [event.seq for entry in events for event in entry]
    assert seqs == list(range(1, len(seqs) + 1))
    assert [name for name, _ in entries] == [f"{entry[-1].seq}-0".encode() for entry in events]


async def test_run_with_more_fields_and_events_than_lua_can_unpack_is_written_whole(
    store: RunStore, open_owner: OpenOwner
) -> None:
    (run_id,) = ids_in(0, 1)
    wide = Plan(name="wide", steps=(Step(name="each", capability="work", map=list(range(6000))),))
    await store.submit(submission(run_id, plan=wide))
    owner = await open_owner()
    await owner.run_all(b"7")
    view = await store.get(run_id, None)
    assert view.status is RunStatus.SUCCEEDED
    assert view.output == [7] * 6000


async def test_inbox_is_trimmed_only_up_to_what_was_handled(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    first, second = ids_in(0, 2)
    owner = await open_owner()
    await store.submit(submission(first))
    await owner.read()
    await store.submit(submission(second))
    await owner.commit()
    left = [fields[b"r"] for _, fields in client.xrange("tutti:{0}:inbox")]
    assert left == [second.encode()]
    await owner.read()
    await owner.commit()
    assert client.xlen("tutti:{0}:inbox") == 0


async def test_submit_handled_but_not_committed_is_taken_up_by_the_next_owner(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    (run_id,) = ids_in(0, 1)
    owner = await open_owner("owner-1")
    await store.submit(submission(run_id))
    await owner.read()
    expire_lease(client)
    other = await open_owner("owner-2")
    await other.run_all()
    assert (await store.get(run_id, None)).status is RunStatus.SUCCEEDED
    assert client.xlen("tutti:{0}:inbox") == 0


# -- messages between Runs


async def test_run_after_another_partitions_run_starts_when_that_one_has_succeeded(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    (first,), (second,) = ids_in(1, 1), ids_in(0, 1)
    await store.submit(submission(first))
    await store.submit(submission(second, after=(first,)))
    waiting = await open_owner("owner-1", 0)
    await waiting.commit()
    assert await waiting.watch_all() == [""], "the run it waits for has not ended yet"
    other = await open_owner("owner-2", 1)
    await other.run_all()
    assert other.num_messages == 1
    assert await other.journal.relay_outbox(1) == 1
    assert await other.journal.relay_outbox(1) == 0
    await waiting.read()
    await waiting.run_all()
    assert (await store.get(second, None)).status is RunStatus.SUCCEEDED
    assert client.xlen("tutti:{1}:outbox") == 0
    assert not client.exists(f"tutti:{{1}}:watchers:{first}")


@pytest.mark.parametrize("tenant", ["default", "another"])
async def test_run_after_an_unknown_run_or_another_tenants_is_refused_and_not_stored(
    store: RunStore, client: sync_redis.Redis, tenant: str
) -> None:
    first, second = ids_in(0, 2)
    if tenant == "another":
        await store.submit(submission(first, tenant=tenant))
    with pytest.raises(InvalidInput, match=f"no run {first}"):
        await store.submit(submission(second, after=(first,)))
    assert not client.exists(f"tutti:{{0}}:run:{second}")


async def test_watch_on_an_ended_run_answers_with_its_status(store: RunStore, open_owner: OpenOwner) -> None:
    first, second = ids_in(0, 2)
    await store.submit(submission(first))
    owner = await open_owner()
    await owner.run_all()
    assert await owner.journal.watch([(first, second)]) == ["succeeded"]


async def test_watch_has_a_lifetime(open_owner: OpenOwner, client: sync_redis.Redis) -> None:
    owner = await open_owner()
    (run_id,) = ids_in(0, 1)
    assert await owner.journal.watch([(run_id, "another")]) == [""]
    assert client.ttl(f"tutti:{{0}}:watchers:{run_id}") > 29 * 86_400


async def test_message_relayed_twice_moves_the_waiting_run_once(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    first, other, second = ids_in(0, 3)
    await store.submit_many([submission(first), submission(other), submission(second, after=(first, other))])
    owner = await open_owner()
    await owner.commit()
    assert owner.partition is not None
    for _ in range(2):
        message = {"k": "ended", "r": second, "run": first, "status": "succeeded"}
        client.xadd("tutti:{0}:inbox", message)  # type: ignore[arg-type]
    await owner.read()
    assert owner.partition.runs[second].record.waiting_for == (other,)


async def test_failed_predecessor_fails_the_waiting_run_with_the_reason(
    store: RunStore, open_owner: OpenOwner
) -> None:
    first, second = ids_in(0, 2)
    await store.submit_many([submission(first), submission(second, after=(first,))])
    owner = await open_owner()
    await owner.commit()
    await owner.watch_all()
    await owner.cancel_run(first)
    await owner.journal.relay_outbox(0)
    await owner.read()
    await owner.commit()
    view = await store.get(second, None)
    assert view.status is RunStatus.FAILED
    assert view.error is not None
    assert view.error.message == f"run {first}, which this one comes after, ended cancelled"


async def test_store_of_another_format_is_refused(open_owner: OpenOwner, client: sync_redis.Redis) -> None:
    journal: Journal = (await open_owner()).journal
    await journal.check_format()
    await journal.check_format()
    client.set("tutti:format", "0")
    with pytest.raises(StaleOwner):
        await journal.check_format()


async def test_pause_survives_a_takeover(
    store: RunStore, open_owner: OpenOwner, client: sync_redis.Redis
) -> None:
    (run_id,) = ids_in(0, 1)
    await store.submit(submission(run_id))
    owner = await open_owner("owner-1")
    assert owner.partition is not None
    owner.apply(owner.partition.runs[run_id], ev.PauseRequested())
    await owner.commit()
    expire_lease(client)
    other = await open_owner("owner-2")
    other.assign_all()
    assert other.partition is not None
    assert not other.partition.runs[run_id].running
    assert (await store.get(run_id, None)).status is RunStatus.PAUSED
