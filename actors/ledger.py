"""The scheduler's ledger in Redis: what was reserved and started, for whom, and where.

An entry is written before what it names exists, and removed after it is gone: what Ray knows and the ledger
does not belongs to nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from redis.asyncio import Redis

from cluster.errors import TuttiError
from cluster.scheduling.pools import PoolSpec
from cluster.store import keys
from cluster.store.connection import redis_errors_as_ours

__all__ = ["DemandEntry", "DeviceEntry", "Ledger", "ReplicaRecord"]

_PAUSE_S = 0.2


class ReplicaRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="replica"):
    """A replica with its placement group of the same name.

    Attributes:
        pool: Its owner.
        number: The n of `agent-<pool>-<n>`.
        created_at: Unix seconds.
        spec: The declaration it was started under.
        where: Node and device indices of each bundle.
        device_group: Name of the group whose device it has a part of, "" where it has whole ones or none.
        distrusted: Why its devices are kept out of use; "" where they are not, and the replica runs.
    """

    pool: str
    number: int
    created_at: float
    spec: PoolSpec
    where: tuple[tuple[str, tuple[int, ...]], ...]
    device_group: str = ""
    distrusted: str = ""


class DeviceEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="device"):
    """A placement group around one device that replicas share."""

    node: str
    index: int
    created_at: float


class DemandEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="demand"):
    """A placement group in which nobody lives: it tells Ray's autoscaler what a pool is short of."""

    pool: str
    created_at: float


_Entry = ReplicaRecord | DeviceEntry | DemandEntry
_decoder = msgspec.json.Decoder(_Entry)


class Ledger:
    """Reads and writes the entries."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def read(self) -> tuple[dict[str, ReplicaRecord], dict[str, DeviceEntry], set[str]]:
        """Return replicas, devices, and the names of all other entries.

        Raises:
            Unavailable: Redis is away.
        """
        with redis_errors_as_ours():
            rows: Any = await self._redis.hgetall(keys.LEDGER)
        replicas: dict[str, ReplicaRecord] = {}
        devices: dict[str, DeviceEntry] = {}
        others: set[str] = set()
        for raw_name, raw in rows.items():
            name = raw_name.decode()
            try:
                entry = _decoder.decode(raw)
            except msgspec.DecodeError:
                others.add(name)
                continue
            if isinstance(entry, ReplicaRecord):
                replicas[name] = entry
            elif isinstance(entry, DeviceEntry):
                devices[name] = entry
            else:
                others.add(name)
        return replicas, devices, others

    async def write(self, name: str, entry: _Entry) -> None:
        """Write an entry, however long the store is away: that is no fault of a replica's."""
        raw = msgspec.json.encode(entry)
        await self._insist(lambda: self._redis.hset(keys.LEDGER, name, raw))

    async def remove(self, name: str) -> None:
        """Remove an entry, however long the store is away; an unknown one is no error."""
        await self._insist(lambda: self._redis.hdel(keys.LEDGER, name))

    async def clear(self) -> None:
        """Remove all entries.

        Raises:
            Unavailable: Redis is away.
        """
        with redis_errors_as_ours():
            await self._redis.delete(keys.LEDGER)

    async def _insist(self, write: Callable[[], Awaitable[Any]]) -> None:
        while True:
            try:
                with redis_errors_as_ours():
                    await write()
                return
            except TuttiError:
                await asyncio.sleep(_PAUSE_S)
