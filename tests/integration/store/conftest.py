"""Stores and owners on an empty Redis of each kind; afterwards no key may live for ever that should not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import redis as sync_redis

from cluster.store.run_store import RunStore
from tests.integration.store.owner import TestOwner, settings_for
from tests.key_leaks import assert_no_key_leaks

OpenStore = Callable[..., RunStore]
OpenOwner = Callable[..., Awaitable[TestOwner]]


@pytest.fixture
def url(each_redis: str) -> Iterator[str]:
    """URL of an empty Redis, checked for leaked keys when the test is over."""
    yield each_redis
    assert_no_key_leaks(each_redis)


@pytest.fixture
async def open_store(url: str) -> AsyncIterator[OpenStore]:
    """Open stores with settings of the test's own."""
    opened: list[RunStore] = []

    def open_one(**fields: object) -> RunStore:
        opened.append(RunStore.connect(settings_for(url, **fields)))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
def store(open_store: OpenStore) -> RunStore:
    """A store with ordinary settings."""
    return open_store()


@pytest.fixture
async def open_owner(url: str) -> AsyncIterator[OpenOwner]:
    """Make owners of a partition, which claim it unless told not to."""
    opened: list[TestOwner] = []

    async def open_one(
        name: str = "owner-1", number: int = 0, *, claims: bool = True, lease_s: float = 30.0
    ) -> TestOwner:
        opened.append(TestOwner(url, name, number, lease_s))
        if claims:
            assert await opened[-1].claim()
        return opened[-1]

    yield open_one
    for owner in opened:
        await owner.close()


@pytest.fixture
def client(url: str) -> Iterator[sync_redis.Redis]:
    """A plain client, to look and to harm."""
    client = sync_redis.Redis.from_url(url)
    yield client
    client.close()
