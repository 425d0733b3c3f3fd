"""An orchestrator's shares of concurrency and rate keys: what is declared, what is held, what is wanted.

The scheduler divides limits between orchestrators; here a share is only obeyed. A key that only a pattern
declares (`user-*`) has no share until the scheduler was asked for it. What an attempt holds it holds until
it has really ended, also after it was told to stop, and after a takeover on the new owner's account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from actors.messages import AttemptKey
from actors.pool_table import KeyLimit, KeyUse
from cluster.scheduling.limits import Limits, Watcher
from cluster.scheduling.pool_queue import PoolQueue
from cluster.scheduling.queued_step import QueuedStep

__all__ = ["KeyShares"]

_WILD = frozenset("*?[")
_HANDED_OVER_S = 10.0  # until the next owner has told the scheduler what it took over
_MAX_REMEMBERED = 10_000


class _Holding(NamedTuple):
    """What one attempt holds: its keys, and where its tenant was charged."""

    keys: tuple[str, ...]
    began_at: float
    step: QueuedStep | None = None
    queue: PoolQueue | None = None


class KeyShares:
    """Keys of one orchestrator.

    Attributes:
        limits: The arithmetic; queues ask it.
    """

    def __init__(self) -> None:
        self.limits = Limits()
        self._held: dict[AttemptKey, _Holding] = {}
        self._handed_over: dict[AttemptKey, float] = {}
        self._declared: dict[str, KeyLimit] = {}
        self._patterns: list[KeyLimit] = []
        self._made: dict[str, KeyLimit] = {}
        self._unmatched: set[str] = set()
        self._wanted: dict[str, int] = {}

    # -- what is declared

    def declare(self, limits: Sequence[KeyLimit], now: float) -> bool:
        """Take the shares over; return whether any has changed: then all that waits must be counted anew."""
        concrete = {limit.key: limit for limit in limits if not _WILD & set(limit.key)}
        patterns = [limit for limit in limits if _WILD & set(limit.key)]
        if concrete == self._declared and patterns == self._patterns:
            return False
        before = {**self._made, **self._declared}
        if patterns != self._patterns:
            self._unmatched.clear()
        self._declared, self._patterns = concrete, patterns
        self._made = {}
        for key in before.keys() - concrete.keys():
            if not self._match(key, before[key], now):
                self.limits.forget(key, now)
        for key, limit in concrete.items():
            self._apply(key, limit, before.get(key), now)
        return True

    def _match(self, key: str, before: KeyLimit | None, now: float) -> bool:
        """Let the first pattern that fits limit a key that has no share of its own yet."""
        for pattern in self._patterns:
            if fnmatchcase(key, pattern.key):
                share = None if pattern.max_concurrent is None else 0
                limit = pattern._replace(key=key, max_concurrent=share)
                self._made[key] = limit
                self._apply(key, limit, before, now)
                return True
        return False

    def _apply(self, key: str, limit: KeyLimit, before: KeyLimit | None, now: float) -> None:
        if limit == before:
            return
        if before is not None and before.rate_num and not limit.rate_num:
            self.limits.forget(key, now)
        self.limits.set_concurrency(key, limit.max_concurrent, now)
        if limit.rate_num:
            self.limits.set_rate(key, limit.rate_num, limit.rate_per_s, now, limit.burst)

    def blocks(self, keys: Iterable[str], now: float) -> bool:
        """Whether one of the keys is used up. Keys that are seen for the first time are looked up."""
        if not self._declared and not self._patterns:
            return False
        if self._patterns:
            self._look_up(keys, now)
        return self.limits.blocking(keys, now) is not None

    def _look_up(self, keys: Iterable[str], now: float) -> None:
        for key in keys:
            if key in self._declared or key in self._made or key in self._unmatched:
                continue
            if not self._match(key, None, now):
                if len(self._unmatched) >= _MAX_REMEMBERED:
                    self._unmatched.clear()
                self._unmatched.add(key)

    # -- who wants

    def want(self, keys: Iterable[str], now: float) -> None:
        """Count a step that begins to wait."""
        if not self._declared and not self._patterns:
            return
        if self._patterns:
            self._look_up(keys, now)
        for key in keys:
            if key in self._declared or key in self._made:
                self._wanted[key] = self._wanted.get(key, 0) + 1

    def want_no_more(self, keys: Iterable[str]) -> None:
        """Count a step that waits no more."""
        if not self._wanted:
            return
        for key in keys:
            count = self._wanted.get(key, 0)
            if count > 1:
                self._wanted[key] = count - 1
            elif count:
                del self._wanted[key]

    def forget_wants(self) -> None:
        """Begin to count what waits anew."""
        self._wanted.clear()

    def uses(self) -> dict[str, KeyUse]:
        """Tell the scheduler how declared keys are used; of rates that only a pattern declares, nothing."""
        uses: dict[str, KeyUse] = {}
        for declared in (self._declared, self._made):
            for key, limit in declared.items():
                if limit.max_concurrent is not None or (limit.rate_num and declared is self._declared):
                    use = KeyUse(self.limits.num_used(key), self._wanted.get(key, 0))
                    if use.num_used or use.num_wanted:
                        uses[key] = use
        if len(self._made) > _MAX_REMEMBERED:
            self._forget_idle(uses)
        return uses

    def _forget_idle(self, uses: dict[str, KeyUse]) -> None:
        for key in [key for key in self._made if key not in uses and key not in self._wanted]:
            del self._made[key]
            self.limits.forget(key, 0.0)

    # -- who holds

    def hold(self, attempt: AttemptKey, keys: tuple[str, ...], now: float) -> None:
        """Take the keys of an attempt that begins, or was found running; a second time changes nothing."""
        self._handed_over.pop(attempt, None)
        if attempt not in self._held:
            self.limits.acquire(keys, now)
            self._held[attempt] = _Holding(keys, now)

    def hold_taken(
        self, attempt: AttemptKey, keys: tuple[str, ...], now: float, step: QueuedStep, queue: PoolQueue
    ) -> None:
        """Note whose keys a queue has just taken, and whom it charged."""
        self._held[attempt] = _Holding(keys, now, step, queue)

    def release(self, attempt: AttemptKey, now: float) -> tuple[Watcher, ...]:
        """Give back what an attempt holds that has ended; one that holds nothing is no error.

        Returns:
            Queues that were woken: serve them.
        """
        holding = self._held.pop(attempt, None)
        if holding is None:
            return ()
        if self._handed_over:
            self._handed_over.pop(attempt, None)
        if holding.queue is not None and holding.step is not None:
            holding.queue.settle(holding.step, max(now - holding.began_at, 0.0))
        return self.limits.release(holding.keys, now)

    def hand_over(self, is_theirs: Callable[[str], bool], now: float) -> None:
        """Count the attempts of Runs that have another owner for a while longer: it counts them too, but
        the scheduler may not have heard of it yet.
        """
        for attempt in self._held:
            if is_theirs(attempt[0]):
                self._handed_over.setdefault(attempt, now + _HANDED_OVER_S)

    def release_handed_over(self, now: float) -> tuple[Watcher, ...]:
        """Give back what others count by now; returns as `release`."""
        woken: dict[Watcher, None] = {}
        for attempt in [each for each, until_at in self._handed_over.items() if until_at <= now]:
            woken.update(dict.fromkeys(self.release(attempt, now)))
        return tuple(woken)

    @property
    def num_held(self) -> int:
        """Attempts that hold keys."""
        return len(self._held)
