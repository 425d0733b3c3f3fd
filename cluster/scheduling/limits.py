"""How many at a time and how many in a while: concurrency keys and rate keys.

A key is any text: a tenant's quota (`tenant_key`), a capability (`capability_key`), or what a user names. One
`Limits` is shared by all queues of its holder; who waits for a key is woken when it frees. An orchestrator's
limits are its shares of the cluster's: concurrency is shared with `grants.fair_targets`, a rate by dividing
`num` and `burst`. Arithmetic on given instants; there is no clock here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from cluster.scheduling.reasons import QuotaReached, RateReached

__all__ = ["Limits", "Watcher", "capability_key", "tenant_key"]

_FLOAT_SLACK = 1e-9


def tenant_key(tenant: str) -> str:
    """Name the key that every Step of a tenant has."""
    return f"tenant:{tenant}"


def capability_key(capability: str) -> str:
    """Name the key that every Step of a capability has."""
    return f"capability:{capability}"


class Watcher(Protocol):
    """Who has work that waits for keys."""

    def wake(self, key: str, now: float) -> bool:
        """Look at a key again; return whether something still waits for it."""


class _Concurrency:
    __slots__ = ("limit", "num_used")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.num_used = 0


class _Rate:
    """GCRA: `due_at` is the theoretical arrival time of the next one."""

    __slots__ = ("due_at", "interval_s", "num", "per_s", "tolerance_s")

    def __init__(self) -> None:
        self.due_at = float("-inf")
        self.num = self.per_s = self.interval_s = self.tolerance_s = 0.0


class Limits:
    """All keys of one holder. A key that nobody declared limits nothing.

    Source of the rate arithmetic: the generic cell rate algorithm, ITU-T I.371 annex A (virtual scheduling).
    """

    def __init__(self) -> None:
        self._concurrencies: dict[str, _Concurrency] = {}
        self._rates: dict[str, _Rate] = {}
        self._watchers: dict[str, dict[Watcher, None]] = {}

    # -- declarations

    def set_concurrency(self, key: str, limit: int | None, now: float) -> tuple[Watcher, ...]:
        """Let at most `limit` hold a key at a time.

        Args:
            key: The key.
            limit: >= 0; None lifts the limit. Those who hold more than a lowered limit keep what they have.
            now: Seconds.

        Returns:
            Whose work was woken: serve them.

        Raises:
            ValueError: `limit` is negative.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"the limit of {key} must not be negative")
        found = self._concurrencies.get(key)
        if found is None:
            found = self._concurrencies[key] = _Concurrency(limit)
        found.limit = limit
        return self._wake(key, now) if key in self._watchers else ()

    def set_rate(
        self, key: str, num: float, per_s: float, now: float, burst: float = 1.0
    ) -> tuple[Watcher, ...]:
        """Let at most `num` begin in `per_s` seconds.

        Args:
            key: The key.
            num: > 0 on average; fractions are fine (a share of a rate).
            per_s: > 0.
            now: Seconds.
            burst: How many may begin at one instant after a pause, >= 1: in any span of w seconds at most
                burst + w * num / per_s begin.

        Returns:
            Whose work was woken: serve them.

        Raises:
            ValueError: A number is out of its range.
        """
        if num <= 0 or per_s <= 0 or burst < 1:
            raise ValueError(f"the rate of {key} must be above 0 and its burst at least 1")
        rate = self._rates.setdefault(key, _Rate())
        num_left = burst
        if rate.interval_s:
            # A share that is raised brings nothing to spend at once: that was another's, and may be spent.
            owed = max(rate.due_at - now, 0.0) / rate.interval_s
            num_left = min(max(rate.tolerance_s / rate.interval_s + 1.0 - owed, 0.0), burst)
        rate.num, rate.per_s = num, per_s
        rate.interval_s = per_s / num
        rate.tolerance_s = (burst - 1.0) * rate.interval_s
        rate.due_at = now + (burst - num_left) * rate.interval_s
        return self._wake(key, now) if key in self._watchers else ()

    def forget(self, key: str, now: float) -> tuple[Watcher, ...]:
        """Drop a declaration; those who waited for it are woken and returned."""
        self._rates.pop(key, None)
        found = self._concurrencies.get(key)
        if found is not None:
            found.limit = None
            if not found.num_used:
                del self._concurrencies[key]
        return self._wake(key, now) if key in self._watchers else ()

    # -- use

    def blocking(self, keys: Iterable[str], now: float) -> QuotaReached | RateReached | None:
        """Find the first key that is used up; None where all have room.

        Returns:
            The reason; a rate's says when it ends.
        """
        for key in keys:
            count = self._concurrencies.get(key)
            if count is not None and count.limit is not None and count.num_used >= count.limit:
                return QuotaReached(key=key, num_used=count.num_used, limit=count.limit)
            rate = self._rates.get(key)
            if rate is not None and now < rate.due_at - rate.tolerance_s - _FLOAT_SLACK:
                return RateReached(
                    key=key, num=rate.num, per_s=rate.per_s, until_at=rate.due_at - rate.tolerance_s
                )
        return None

    def acquire(self, keys: Sequence[str], now: float) -> None:
        """Take one of each key, asked or not: what already runs (adopted after a restart) counts too."""
        for key in keys:
            count = self._concurrencies.get(key)
            if count is None:
                # Counted before anybody limits it, so that a limit that comes later is true from the start.
                count = self._concurrencies[key] = _Concurrency(None)
            count.num_used += 1
            rate = self._rates.get(key)
            if rate is not None:
                rate.due_at = max(rate.due_at, now) + rate.interval_s

    def release(self, keys: Sequence[str], now: float) -> tuple[Watcher, ...]:
        """Give one of each key back.

        Returns:
            Whose work was woken: serve them.

        Raises:
            ValueError: A key was given back more often than taken.
        """
        woken: dict[Watcher, None] = {}
        for key in keys:
            count = self._concurrencies.get(key)
            if count is None or not count.num_used:
                raise ValueError(f"{key} was given back more often than taken")
            count.num_used -= 1
            if not count.num_used and count.limit is None:
                del self._concurrencies[key]
            if key in self._watchers and (count.limit is None or count.num_used < count.limit):
                woken.update(dict.fromkeys(self._wake(key, now)))
        return tuple(woken)

    def num_used(self, key: str) -> int:
        """Count who holds a key."""
        count = self._concurrencies.get(key)
        return count.num_used if count is not None else 0

    def limit(self, key: str) -> int | None:
        """Tell the concurrency limit of a key, None where there is none."""
        count = self._concurrencies.get(key)
        return count.limit if count is not None else None

    # -- waiting

    def watch(self, key: str, watcher: Watcher) -> None:
        """Wake `watcher` when a key frees, until it says that nothing waits any more."""
        self._watchers.setdefault(key, {})[watcher] = None

    def _wake(self, key: str, now: float) -> tuple[Watcher, ...]:
        watchers = self._watchers.pop(key)
        still = {watcher: None for watcher in watchers if watcher.wake(key, now)}
        if still:
            self._watchers.setdefault(key, {}).update(still)
        return tuple(watchers)
