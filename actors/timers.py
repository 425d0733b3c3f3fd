"""Timers in an owner's memory. They are not stored: every deadline and backoff stands in a record, and a new
owner sets the timers of what it loads. They only wake; the engine compares with the record.
"""

from __future__ import annotations

import heapq

__all__ = ["TimerWheel"]

_TICK_S = 0.02

Key = tuple[str, int, int]
"""(run id, step, item); step -1 is the Run's own timer."""


class TimerWheel:
    """At most one timer a key, set and cleared in constant time.

    Due keys are found by ticks of 20 ms: a heap orders the ticks, a dict holds the keys of each.
    """

    def __init__(self) -> None:
        self._tick_by_key: dict[Key, int] = {}
        self._keys_by_tick: dict[int, set[Key]] = {}
        self._ticks: list[int] = []

    def __len__(self) -> int:
        return len(self._tick_by_key)

    def set(self, key: Key, at: float) -> None:
        """Fire `key` at `at` (Unix seconds), up to one tick late; replaces an earlier timer of it."""
        self.clear(key)
        tick = int(at / _TICK_S) + 1
        self._tick_by_key[key] = tick
        keys = self._keys_by_tick.get(tick)
        if keys is None:
            keys = self._keys_by_tick[tick] = set()
            heapq.heappush(self._ticks, tick)
        keys.add(key)

    def clear(self, key: Key) -> None:
        """Forget a timer; an unknown key is no error."""
        tick = self._tick_by_key.pop(key, None)
        if tick is not None:
            self._keys_by_tick[tick].discard(key)

    def pop_due(self, now: float) -> list[Key]:
        """Take out the keys due at `now`."""
        due: list[Key] = []
        while self._ticks and self._ticks[0] * _TICK_S <= now:
            tick = heapq.heappop(self._ticks)
            for key in self._keys_by_tick.pop(tick):
                del self._tick_by_key[key]
                due.append(key)
        return due
