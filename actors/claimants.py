"""The orchestrators as the scheduler knows them: what they need, and when they were last heard of."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator

from actors.fleet import FleetPool
from actors.pool_table import Needs

__all__ = ["SILENCE_S", "Claimant", "Claimants"]

SILENCE_S = 6.0
"""Who was not heard of for so long has lost its partitions long ago, and starts nothing."""

_MAX_BEGUN = 4096


class Claimant:
    """One orchestrator."""

    __slots__ = ("needs", "seen_at")

    def __init__(self) -> None:
        self.seen_at = time.monotonic()
        self.needs = Needs({}, {}, {})

    def waiting_by_priority(self, pool: FleetPool) -> dict[int, int]:
        """Count what waits for a pool, by priority."""
        return self.needs.demand.get(pool.spec.name, {})

    def oldest_s(self, pool: FleetPool) -> float:
        """Tell how long the one that waits longest for a pool has waited."""
        return self.needs.oldest_s.get(pool.spec.name, 0.0)

    def used(self, replica_id: str) -> int:
        """Count what runs on a replica."""
        return self.needs.in_use.get(replica_id, 0)


class Claimants:
    """All orchestrators that were heard of lately."""

    def __init__(self) -> None:
        self._by_name: dict[str, Claimant] = {}
        self._begun: deque[tuple[str, float]] = deque(maxlen=_MAX_BEGUN)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[Claimant]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def __getitem__(self, name: str) -> Claimant:
        return self._by_name[name]

    def note(self, name: str, needs: Needs) -> Claimant:
        """Take note of what one needs."""
        claimant = self._by_name.get(name)
        if claimant is None:
            claimant = self._by_name[name] = Claimant()
        claimant.seen_at = time.monotonic()
        claimant.needs = needs
        self._begun.extend(needs.begun)
        return claimant

    def take_begun(self) -> list[tuple[str, float]]:
        """Take what was told of StepRuns that got a slot: see `Needs.begun`."""
        begun = list(self._begun)
        self._begun.clear()
        return begun

    def drop_silent(self) -> None:
        """Forget those who are gone."""
        now = time.monotonic()
        for name, claimant in list(self._by_name.items()):
            if now - claimant.seen_at > SILENCE_S:
                del self._by_name[name]

    def turn(self) -> list[str]:
        """Order them for odd slots; another one is first each second, so that each has its turn."""
        turn = sorted(self._by_name)
        shift = int(time.monotonic()) % len(turn) if turn else 0
        return turn[shift:] + turn[:shift]

    # -- sums over all

    def num_waiting(self, pool: FleetPool) -> int:
        """Count what waits for a pool."""
        return sum(sum(each.waiting_by_priority(pool).values()) for each in self)

    def used(self, replica_id: str) -> int:
        """Count what runs on a replica."""
        return sum(each.used(replica_id) for each in self)

    def oldest_s(self, pool: FleetPool) -> float:
        """Tell how long the one that waits longest for a pool has waited."""
        return max((each.oldest_s(pool) for each in self), default=0.0)

    def has_suspects(self, pool: FleetPool) -> bool:
        """Whether a StepRun waits for a replica of its own, or has it."""
        return any(each.needs.suspects.get(pool.spec.name) for each in self)

    def mean_s(self, capabilities: Iterable[str]) -> float | None:
        """Average what they measured of some capabilities; None where nothing has ended yet."""
        found = [
            each.needs.mean_s[name] for name in capabilities for each in self if name in each.needs.mean_s
        ]
        return sum(found) / len(found) if found else None
