"""A suspect on a replica of its own, and how long the others put up with it. Links here carry no calls."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from actors.dispatcher import Dispatcher
from actors.messages import AttemptKey, Report
from actors.pool_line import Ready
from actors.pool_table import PoolEntry, PoolTable, ReplicaEntry
from actors.replica_link import ALONE_S, ReplicaLink
from cluster.engine import Run, initial_record
from cluster.engine.records import header_of
from cluster.model.compiled import compile_plan
from cluster.model.plan import Plan, Submission
from cluster.scheduling.pools import PoolSpec
from tests.unit.cluster.engine.stage import T0, step

SPEC = PoolSpec(name="p", agents=("nowhere:agent",), capabilities=("work",), concurrency=4)
ENTRY = PoolEntry("p", ("work",), 3, 5.0, 4, 4, "", SPEC)
TABLE = PoolTable(1, (ENTRY,), (ReplicaEntry("agent-p-1", "p", None, 4),))


class Owner:
    """Starts whatever it is told to start, and remembers it."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def assign(self, ready: Ready, link: ReplicaLink) -> AttemptKey:
        key = (*ready, 1)
        link.reserve(key)
        self.started.append(ready.run_id)
        return key

    def on_reports(self, link: ReplicaLink, reports: list[Report]) -> None: ...

    def on_replica_lost(self, link: ReplicaLink, reason: str) -> None: ...

    def on_replica_stuck(self, link: ReplicaLink, reason: str) -> None: ...


@pytest.fixture
async def owner() -> Owner:
    return Owner()


@pytest.fixture
async def dispatcher(owner: Owner) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher("a", owner, owner.assign, lambda *_: None, lambda: None, {})
    dispatcher.update(TABLE)
    yield dispatcher
    dispatcher.close()


def a_run(run_id: str) -> Run:
    submission = Submission(run_id=run_id, plan=Plan(name="plan", steps=(step("only"),)))
    return Run(
        header_of(submission, T0), initial_record(submission, T0), compile_plan(submission.plan), b"{}"
    )


def queue(dispatcher: Dispatcher, *run_ids: str, crashes: int = 0) -> None:
    for run_id in run_ids:
        dispatcher.queue(a_run(run_id), (0, -1), crashes)


def end(dispatcher: Dispatcher, link: ReplicaLink, run_id: str) -> None:
    del link.held[run_id, 0, -1, 1]
    dispatcher.check_links()


async def test_suspect_waits_until_a_replica_is_empty_and_has_it_for_itself_then(
    dispatcher: Dispatcher, owner: Owner
) -> None:
    (link,) = dispatcher.links.values()
    queue(dispatcher, "early")
    queue(dispatcher, "suspect", crashes=2)
    queue(dispatcher, "late")
    assert owner.started == ["early"]

    end(dispatcher, link, "early")
    assert owner.started == ["early", "suspect"]
    dispatcher.check_links()
    assert owner.started == ["early", "suspect"], "nobody joins it"

    end(dispatcher, link, "suspect")
    assert owner.started == ["early", "suspect", "late"]


async def test_suspect_that_takes_long_has_company_after_a_minute_and_alone_is_to_blame(
    dispatcher: Dispatcher, owner: Owner
) -> None:
    (link,) = dispatcher.links.values()
    queue(dispatcher, "suspect", crashes=2)
    queue(dispatcher, "late")
    queue(dispatcher, "second", crashes=2)
    assert owner.started == ["suspect"]

    link.alone_since -= 2 * ALONE_S
    dispatcher.check_links()

    assert owner.started == ["suspect", "late"], "two suspects are never together"
    assert [link.is_to_blame(key) for key in link.held] == [True, False]

    end(dispatcher, link, "suspect")
    end(dispatcher, link, "late")
    assert owner.started == ["suspect", "late", "second"]


async def test_suspect_that_waits_for_a_long_step_to_end_joins_it_after_a_minute(
    dispatcher: Dispatcher, owner: Owner
) -> None:
    (link,) = dispatcher.links.values()
    queue(dispatcher, "long")
    queue(dispatcher, "suspect", crashes=2)
    queue(dispatcher, "late")
    assert owner.started == ["long"]

    link.alone_since -= 2 * ALONE_S
    dispatcher.check_links()

    assert owner.started == ["long", "suspect"]
    assert [link.is_to_blame(key) for key in link.held] == [False, True]


async def test_replica_killed_for_silence_blames_what_it_held_and_one_that_did_not_stop_does_not(
    dispatcher: Dispatcher,
) -> None:
    (link,) = dispatcher.links.values()
    queue(dispatcher, "early")
    (key,) = link.held
    link.was_replaced = True
    assert not link.is_to_blame(key)
    link.is_silent = True
    assert link.is_to_blame(key)


async def test_report_on_a_run_of_another_owner_is_not_acknowledged_before_that_one_can_have_asked_for_it(
    dispatcher: Dispatcher,
) -> None:
    (link,) = dispatcher.links.values()
    assert all(link._is_new(seq) for seq in (1, 2, 3))
    link.keep(2)
    link.acknowledge(3)
    assert link._ack_now() == 1
    link._kept[2] = 0.0
    assert link._ack_now() == 3
