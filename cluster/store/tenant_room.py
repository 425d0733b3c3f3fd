"""Whether there is room for more Runs: below the tenant's limit, and below the store's memory.

Who wants to submit first announces for how many Runs, then counts the tenant's: of two who come at once the
later sees the earlier, so that the limit holds. Far below the limit a process announces a block, a small
share of the room, and lets Runs in from it without asking anybody, for half a second at most.

An announcement is taken back when its Runs are in the store, which counts them from then on: for a moment
they count twice. So who is kept out by announcements alone looks again, until they must have lapsed. Where
the store did not answer nobody knows whether the Runs are there: that announcement stands until it lapses.
Only what takes longer to be stored than its announcement stands can pass the limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING
from uuid import uuid4

from cluster.errors import LimitExceeded, Unavailable
from cluster.store import keys, scripts
from cluster.store.connection import redis_errors_as_ours

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from cluster.settings import Settings

__all__ = ["TenantRoom"]

_CACHE_S = 1.0
_BLOCK_SHARE = 64
_MIN_BLOCK = 8  # less is not worth it: so near the limit all announce each time
_BLOCK_USE_S = 0.5
_BLOCK_LEASE_MS = 1_500
_LEASE_MS = 30_000  # longer than any submit takes, from the announcement to the last retry
_NEAR_S = 0.1
_PAUSES_S = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.6, 0.0)
"""Between looks while only what others have announced is in the way; together longer than a block stands."""
_MAX_TENANTS = 10_000
_OWN_SHARE = 0.95  # of the server's maxmemory


class _Block:
    """An announcement.

    Attributes:
        left: Runs that may still be let in.
        use_until: Monotonic seconds until which they may.
        num_pending: Runs let in that are not known to be in the store.
        is_closed: Nobody is let in any more: it goes with the last that is pending.
        is_doubtful: The store did not answer for one of them: it stands until it lapses.
    """

    __slots__ = ("is_closed", "is_doubtful", "left", "num_pending", "size", "tenant", "token", "use_until")

    def __init__(self, tenant: str, size: int) -> None:
        self.tenant, self.size, self.token = tenant, size, uuid4().hex
        self.left = self.num_pending = 0
        self.use_until = 0.0
        self.is_closed = self.is_doubtful = False


class _Tenant:
    """What this process knows of a tenant: the block it uses, and until when it need not try to get one."""

    __slots__ = ("block", "lock", "near_until")

    def __init__(self) -> None:
        self.block: _Block | None = None
        self.lock = asyncio.Lock()
        self.near_until = 0.0

    def take(self, num_runs: int, now: float) -> _Block | None:
        """Let Runs in from the block, if it has as many left."""
        block = self.block
        if block is None or block.left < num_runs or now > block.use_until:
            return None
        block.left -= num_runs
        block.num_pending += num_runs
        return block


class _Place:
    """Room for some Runs while they are being submitted."""

    __slots__ = ("_block", "_num_runs", "_room", "_tenant")

    def __init__(self, room: TenantRoom, tenant: str, num_runs: int) -> None:
        self._room, self._tenant, self._num_runs = room, tenant, num_runs
        self._block: _Block | None = None

    async def __aenter__(self) -> None:
        self._block = await self._room.enter(self._tenant, self._num_runs)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._block is not None:
            self._block.is_doubtful |= isinstance(error, Unavailable | asyncio.CancelledError)
            await self._room.leave(self._block, self._num_runs)


class TenantRoom:
    """One per process.

    Args:
        redis: The store.
        partitions: All of them.
        settings: The limits.
    """

    def __init__(self, redis: Redis, partitions: Sequence[keys.PartitionKeys], settings: Settings) -> None:
        self._redis = redis
        self._partitions = partitions
        self._limit = settings.max_unfinished_runs
        self._max_redis_bytes = settings.max_redis_bytes
        self._tenants: dict[str, _Tenant] = {}
        self._memory: tuple[float, int, int] = (float("-inf"), 0, 0)

    def of(self, tenant: str, num_runs: int) -> _Place:
        """Take room for Runs of a tenant: `async with room.of(tenant, 1): submit`.

        Raises:
            LimitExceeded: On entering: there is no room for all of them.
            Unavailable: On entering: Redis is away.
        """
        return _Place(self, tenant, num_runs)

    async def enter(self, tenant: str, num_runs: int) -> _Block:
        """Let Runs in, as `of` does; `leave` with what this returns."""
        now = time.monotonic()
        await self._check_memory(now)
        known = self._tenants.get(tenant)
        if known is None:
            if len(self._tenants) >= _MAX_TENANTS:
                self._tenants.clear()  # blocks lapse, and are got anew
            known = self._tenants[tenant] = _Tenant()
        block = known.take(num_runs, now)
        if block is None and now > known.near_until:
            async with known.lock:
                block = known.take(num_runs, now) or await self._renew(known, tenant, num_runs)
        return block or await self._announce_alone(tenant, num_runs)

    async def leave(self, block: _Block, num_runs: int) -> None:
        """Note that Runs are in the store now, or never will be."""
        block.num_pending -= num_runs
        await self._drop_if_done(block)

    async def _renew(self, known: _Tenant, tenant: str, num_runs: int) -> _Block | None:
        """Get a block and let Runs in from it; None where the limit is too near, or they are too many."""
        old, known.block = known.block, None
        if old is not None:
            old.is_closed = True
            await self._drop_if_done(old)
        now = time.monotonic()
        count = await self.count_unfinished(tenant)
        if count + num_runs > self._limit:
            raise self._refusal(tenant, count)
        size = (self._limit - count) // _BLOCK_SHARE
        if size < _MIN_BLOCK:
            known.near_until = now + _NEAR_S
        if size < max(num_runs, _MIN_BLOCK):
            return None
        block = _Block(tenant, size)
        before, count = await self._announce(block, _BLOCK_LEASE_MS)
        if count + before + size > self._limit:
            known.near_until = now + _NEAR_S
            await self._take_back(block)
            return None
        block.left, block.use_until = size, now + _BLOCK_USE_S
        known.block = block
        return known.take(num_runs, now)

    async def _announce_alone(self, tenant: str, num_runs: int) -> _Block:
        """Announce just these Runs, and let them in once there is room beside what was announced before."""
        count = await self.count_unfinished(tenant)
        before = 0
        for pause_s in _PAUSES_S:
            if count + num_runs > self._limit:
                break
            block = _Block(tenant, num_runs)
            before, count = await self._announce(block, _LEASE_MS)
            if count + before + num_runs <= self._limit:
                block.num_pending, block.is_closed = num_runs, True
                return block
            await self._take_back(block)
            await asyncio.sleep(pause_s)
        raise self._refusal(tenant, count + before)

    async def _announce(self, block: _Block, lease_ms: int) -> tuple[int, int]:
        """Announce, and return for how many Runs others had announced, and how many are in the store."""
        arguments = (block.token, block.size, lease_ms)
        with redis_errors_as_ours():
            before = await scripts.call(self._redis, scripts.RESERVE, [keys.room(block.tenant)], arguments)
        # Only now: whoever has taken back since what was seen before is in this count.
        return int(before), await self.count_unfinished(block.tenant)

    async def _drop_if_done(self, block: _Block) -> None:
        if block.is_closed and not block.num_pending and not block.is_doubtful:
            await self._take_back(block)

    async def _take_back(self, block: _Block) -> None:
        try:
            with redis_errors_as_ours():
                await self._redis.zrem(keys.room(block.tenant), f"{block.token}:{block.size}")
        except Unavailable:
            return  # it lapses by itself

    def _refusal(self, tenant: str, count: int) -> LimitExceeded:
        return LimitExceeded(
            f"tenant {tenant} has {count} unfinished runs; the limit is {self._limit}",
            retry_after_s=1.0,
            limit=self._limit,
        )

    async def count_unfinished(self, tenant: str) -> int:
        """Count the tenant's Runs that have not ended.

        Raises:
            Unavailable: Redis is away.
        """
        with redis_errors_as_ours():
            pipe = self._redis.pipeline(transaction=False)
            for partition in self._partitions:
                pipe.hget(partition.tenants, tenant)
            return sum(int(count or 0) for count in await pipe.execute())

    async def _check_memory(self, now: float) -> None:
        """Redis's own limit counts as well, a twentieth before it: what was accepted needs room to go on."""
        if now - self._memory[0] > _CACHE_S:
            with redis_errors_as_ours():
                info = await self._redis.info("memory")
            limits = (self._max_redis_bytes, int(info.get("maxmemory", 0) * _OWN_SHARE))
            limit = min((each for each in limits if each), default=0)
            self._memory = (now, int(info["used_memory"]), limit)
        _, used, limit = self._memory
        if limit and used > limit:
            raise LimitExceeded("the store is at its memory limit", retry_after_s=5.0, limit=limit)
