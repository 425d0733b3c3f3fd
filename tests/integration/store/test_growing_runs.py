"""Runs of Blueprints on real servers: what they grew by survives their owners."""

from __future__ import annotations

import orjson
import pytest
import redis as sync_redis

from cluster.lifecycle.run_status import RunStatus
from cluster.model import events as ev
from cluster.model.plan import Plan
from cluster.model.view import Failure
from cluster.store.run_store import RunStore
from tests.integration.store.conftest import OpenOwner
from tests.integration.store.owner import ids_in, submission
from tests.unit.cluster.engine.blueprints import blueprint, end, wait, work

pytestmark = pytest.mark.integration

LOOP = Plan(
    name="loop",
    blueprint=blueprint(work("check", again="check", success="ask"), wait("ask", yes="end"), end()),
)


async def test_next_owner_goes_on_in_a_circle_and_a_stale_one_adds_nothing(
    open_owner: OpenOwner, store: RunStore, client: sync_redis.Redis
) -> None:
    (run_id,) = ids_in(0, 1)
    await store.submit(submission(run_id, plan=LOOP))
    first = await open_owner("owner-1")
    await first.read()
    first.assign_all()
    await first.commit()
    name, start = first.started.pop()
    assert first.report(name, start, b'{"status":"again","data":{"n":1}}')
    held = first.take()  # the growth is in this batch, and its owner has stopped
    client.hset("tutti:{0}:owner", "until_ms", 1)
    second = await open_owner("owner-2")
    assert await first.commit(held) == -1
    assert second.partition is not None
    run = second.partition.runs[run_id]
    assert [each.step.name for each in run.plan.steps] == ["check:0"], "what was not written did not happen"
    assert second.report(name, start, b'{"status":"again","data":{"n":2}}')
    second.assign_all()
    await second.commit()
    _, again = second.started.pop()
    assert orjson.loads(again.inputs) == {"data": {"n": 2}}
    assert not second.report(name, start, b'{"status":"success"}'), "the first visit is over"
    assert second.report(name, again, b'{"status":"success","data":{"m":3}}')
    await second.commit()
    client.hset("tutti:{0}:owner", "until_ms", 1)
    third = await open_owner("owner-3")
    assert third.partition is not None
    view = await store.get(run_id, None)
    assert (view.status, view.state, view.phase) == (RunStatus.WAITING, "ask", "person")
    assert view.data == {"n": 2, "m": 3}
    third.apply(third.partition.runs[run_id], ev.AnswerGiven("", "yes", b"null", "ann"))
    await third.commit()
    view = await store.get(run_id, None)
    assert (view.status, view.output["n"], view.output["ask"]["answer"]) == (RunStatus.SUCCEEDED, 2, "yes")
    assert [step.name for step in view.steps] == ["check:0", "check:1", "ask:2"]


async def test_webhook_tells_of_quarantine_and_of_the_end_in_the_dialects_words(
    open_owner: OpenOwner, store: RunStore, client: sync_redis.Redis
) -> None:
    (run_id,) = ids_in(0, 1)
    words = {"run_id": "job", "run_quarantined": "job_stuck", "run_failed": "job_broke"}
    await store.submit(
        submission(run_id, plan=LOOP, webhook_url="http://127.0.0.1/hook", webhook_words=words)
    )
    owner = await open_owner("owner-1")
    await owner.read()
    owner.assign_all()
    assert owner.partition is not None
    run = owner.partition.runs[run_id]
    failure = Failure("PERMANENT_ERROR", "no such codec")
    owner.apply(run, ev.StepFailed(0, -1, 1, failure, 0.5))
    await owner.commit()
    assert client.zcard("tutti:{0}:webhooks_due") == 1
    told = orjson.loads(client.hget("tutti:{0}:webhooks", f"{run_id}!1") or b"")
    error = {"code": "PERMANENT_ERROR", "message": "no such codec"}
    assert orjson.loads(told["payload"]) == {
        "event": "job_stuck",
        "job": run_id,
        "status": "quarantined",
        "error": error,
        "output": None,
    }
    owner.apply(run, ev.AnswerGiven("", "discard", b"null", "ann"))
    await owner.commit()
    told = orjson.loads(client.hget("tutti:{0}:webhooks", run_id) or b"")
    assert orjson.loads(told["payload"])["event"] == "job_broke"
    client.delete("tutti:{0}:webhooks", "tutti:{0}:webhooks_due")
