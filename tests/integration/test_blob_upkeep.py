"""Blobs go when nobody names them any more, and never before: with real Runs, agents and a real Redis."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.blob_upkeep import BlobUpkeep
from cluster.errors import Unavailable
from cluster.model.plan import Plan, Step
from cluster.store.blobs import BlobStore, Swept
from cluster.store.connection import connect_redis
from cluster.store.named_blobs import NamedBlobs, NamedBlobsFinder
from tests.integration.plans import one_step
from tests.integration.running_service import RunningService, eventually

SETTINGS: dict[str, Any] = {"blob_sweep_interval_s": 86_400.0}
POOLS = [
    {
        "name": "hoard",
        "agents": ["tests.integration.agents_for_tests:hoard"],
        "capabilities": ["hoard"],
        "concurrency": 4,
        "num_cpus": 0.1,
    }
]
_LARGE = 300 * 1024


def store_of(service: RunningService) -> BlobStore:
    return BlobStore(service.settings.blobs_dir)


def age_all(service: RunningService, seconds: float = 7200.0) -> None:
    """Make every blob look as if it had last been put this long ago."""
    for path in (service.settings.blobs_dir / "blobs").glob("*/*"):
        then = time.time() - seconds
        os.utime(path, (then, then))


def collect(service: RunningService, **options: float) -> Swept:
    async def work() -> Swept:
        redis = connect_redis(service.settings.redis_url)
        try:
            upkeep = BlobUpkeep(service.settings, redis, **options)
            await upkeep.collect()  # what it notes goes with the next
            return await upkeep.collect()
        finally:
            await redis.aclose()

    return asyncio.run(work())


def named(service: RunningService) -> NamedBlobs:
    async def work() -> NamedBlobs:
        redis = connect_redis(service.settings.redis_url)
        try:
            return await NamedBlobsFinder(redis, store_of(service)).find()
        finally:
            await redis.aclose()

    return asyncio.run(work())


def forget(service: RunningService, run_id: str) -> None:
    """Let a Run expire now."""
    names = service.names_of(run_id)
    service.redis.delete(names.run(run_id), names.events(run_id))


def output_of(service: RunningService, run_id: str) -> Any:
    return ray.get(service.orchestrator().result.remote(run_id, timeout_s=30), timeout=40)


def hoarding(log: Path, text: str) -> Plan:
    inputs = {"until": str(log), "text": text, "padding": _LARGE}
    hoard = Step(name="hoard", capability="hoard", inputs=inputs)
    return Plan(
        name="p",
        steps=(hoard, Step(name="echo", capability="echo", inputs={"$ref": "steps.hoard.output"})),
        output={"$ref": "steps.hoard.output"},
    )


def test_blobs_go_with_the_last_run_that_names_them(service: RunningService) -> None:
    large = "x" * _LARGE
    first = service.submit(one_step("echo", {"text": large}))
    second = service.submit(one_step("echo", {"text": large}))
    service.await_ended([first, second])
    orphan = store_of(service).put(b"nobody's", "text/plain")
    age_all(service)
    assert collect(service).num_blobs == 1
    assert not store_of(service).exists(orphan)
    assert output_of(service, first) == {"text": large}

    forget(service, first)
    assert collect(service).num_blobs == 0
    assert output_of(service, second) == {"text": large}

    forget(service, second)
    assert collect(service).num_blobs > 0
    assert not store_of(service).older_than(3600.0)


def test_blob_inside_a_blob_is_kept_with_it(service: RunningService, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.touch()
    run_id = service.submit(hoarding(go, "inner"))
    service.await_ended([run_id])
    output = output_of(service, run_id)
    age_all(service)
    assert collect(service).num_blobs == 0
    assert store_of(service).read(output["kept"]) == b"inner"
    forget(service, run_id)
    assert collect(service).num_blobs >= 2
    assert not store_of(service).exists(output["kept"])


def test_blob_of_a_running_attempt_is_kept_although_nothing_names_it_yet(
    service: RunningService, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    run_id = service.submit(hoarding(go, "not named yet"))
    written = eventually(lambda: sorted(tmp_path.glob("go.*")), "the agent has written its blob")
    digest = written[0].read_text()
    assert digest not in named(service).digests
    # No grace at all: only the attempt protects what it wrote.
    assert collect(service, grace_s=0.0).num_blobs == 0
    assert store_of(service).exists(digest)
    go.touch()
    service.await_ended([run_id])
    assert store_of(service).read(output_of(service, run_id)["kept"]) == b"not named yet"
    forget(service, run_id)


def test_old_blob_that_is_submitted_again_while_sweeping_is_never_lost(service: RunningService) -> None:
    """The same file is sent again an hour after its Run expired, in the moment of the sweep."""
    stopped = threading.Event()
    swept: list[int] = []

    def sweep_on() -> None:
        while not stopped.is_set():
            swept.append(collect(service).num_blobs)

    contents = [f"{number} " * (_LARGE // 2) for number in range(20)]
    sweeper = threading.Thread(target=sweep_on)
    sweeper.start()
    try:
        run_ids = []
        old = time.time() - 7200.0
        for content in contents:
            digest = store_of(service).put(f'"{content}"'.encode(), "application/json")["$blob"]
            os.utime(service.settings.blobs_dir / "blobs" / digest[7:9] / digest[9:], (old, old))
            run_ids.append(service.submit(one_step("noop", {"n": 1}), {"text": content}))
        service.await_ended(run_ids)
    finally:
        stopped.set()
        sweeper.join()
    # Only now: in the middle of a sweep nothing in real life makes a blob older.
    age_all(service)
    swept.append(collect(service).num_blobs)
    store = store_of(service)
    digests = named(service).digests
    assert len(digests) >= len(contents)
    assert all(store.exists(digest) for digest in digests)
    for run_id in run_ids:
        forget(service, run_id)
    age_all(service)
    assert collect(service).num_blobs == len(digests)
    assert len(swept) > 1


def test_old_blob_that_is_named_only_after_a_search_is_kept(service: RunningService) -> None:
    """A submitter was stopped for hours (a suspended machine) after it had put the blob, and goes on now."""
    content = "late" * _LARGE
    digest = store_of(service).put(f'"{content}"'.encode(), "application/json")["$blob"]
    age_all(service)

    async def work() -> tuple[int, int, str]:
        redis = connect_redis(service.settings.redis_url)
        try:
            upkeep = BlobUpkeep(service.settings, redis)
            before = await upkeep.collect()
            run_id = await asyncio.to_thread(service.submit, one_step("noop"), {"text": content})
            age_all(service)
            return before.num_blobs, (await upkeep.collect()).num_blobs, run_id
        finally:
            await redis.aclose()

    num_before, num_after, run_id = asyncio.run(work())
    assert (num_before, num_after) == (0, 0)
    assert store_of(service).exists(digest)
    service.await_ended([run_id])
    forget(service, run_id)
    age_all(service)
    assert collect(service).num_blobs >= 1
    assert not store_of(service).exists(digest)


def test_failing_redis_removes_nothing(service: RunningService) -> None:
    orphan = store_of(service).put(b"still here", "text/plain")
    age_all(service)

    async def work() -> None:
        redis = connect_redis("unix:///nowhere/redis.sock")
        try:
            await BlobUpkeep(service.settings, redis).collect()
        finally:
            await redis.aclose()

    with pytest.raises(Unavailable):
        asyncio.run(work())
    assert store_of(service).exists(orphan)
    assert collect(service).num_blobs == 1
