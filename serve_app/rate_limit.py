"""How many requests a principal may make, counted in the process: a sliding window of one second.

It refuses to count across replicas; limits that must hold for the whole service need a store and belong to
the dialect that promises them.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from cluster.errors import LimitExceeded

__all__ = ["Allowance", "RateLimiter"]


class Allowance(NamedTuple):
    """What is left of a window: `limit` and `remaining` requests, `reset_at` in Unix seconds."""

    limit: int
    remaining: int
    reset_at: int

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The response headers that tell it."""
        return (
            (b"x-ratelimit-limit", str(self.limit).encode()),
            (b"x-ratelimit-remaining", str(self.remaining).encode()),
            (b"x-ratelimit-reset", str(self.reset_at).encode()),
        )


class RateLimiter:
    """Counts requests by key.

    Args:
        requests_per_s: Requests a second per key, > 0; fractions are rounded up.
    """

    def __init__(self, requests_per_s: float) -> None:
        self._item = RateLimitItemPerSecond(max(1, math.ceil(requests_per_s)))
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def spend(self, key: str) -> Allowance:
        """Count one request.

        Raises:
            LimitExceeded: The key's window is full; `details["allowance"]` has what the headers tell.
        """
        allowed = await self._limiter.hit(self._item, key)
        window = await self._limiter.get_window_stats(self._item, key)
        allowance = Allowance(self._item.amount, max(0, window.remaining), math.ceil(window.reset_time))
        if not allowed:
            wait_s = max(0.0, window.reset_time - time.time())
            raise LimitExceeded(
                f"more than {self._item.amount} requests per second",
                retry_after_s=wait_s,
                allowance=allowance,
            )
        return allowance
