"""How declared rates are divided between orchestrators: nearly all goes to those whose Steps wait for it.

One Run has one owner, so that an even division would leave most of a rate unused. A share is raised only when
those who had it have confirmed less, so that together they never start more than is declared. Everybody keeps
a floor, with which a first Step begins at once. Keys that only a pattern declares are not divided here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from actors.claimants import Claimants
from actors.pool_table import Needs
from cluster.scheduling.grants import fair_targets, raise_limits
from cluster.store.capacity import LimitSpec

__all__ = ["RateDivision"]

_NUM_UNITS = 1000
_LEAST_FLOORS = 8
_KEPT_S = 5.0


class _Rate:
    """One key.

    Attributes:
        held: Units that each orchestrator may still use.
        units: How many each was told, beside its floor.
        wanted_at: When Steps of each waited for it last (monotonic seconds).
        offered_at: Table version of its units.
    """

    __slots__ = ("held", "offered_at", "units", "wanted_at")

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.units: dict[str, int] = {}
        self.wanted_at: dict[str, float] = {}
        self.offered_at = 0


class RateDivision:
    """All declared rates but those of patterns.

    Args:
        claimants: Who shares.
        num_orchestrators: How many there should be; floors are kept for twice as many.
    """

    def __init__(self, claimants: Claimants, num_orchestrators: int) -> None:
        self._claimants = claimants
        self._num_floors = max(2 * num_orchestrators, _LEAST_FLOORS)
        self._rates: dict[str, _Rate] = {}

    def declare(self, limits: Mapping[str, LimitSpec]) -> None:
        """Take the declarations over."""
        keys = [key for key, spec in limits.items() if spec.rate and "*" not in key]
        self._rates = {key: self._rates.get(key) or _Rate() for key in keys}

    def confirm(self, name: str, version: int) -> None:
        """Take note that an orchestrator obeys the table of a version."""
        for rate in self._rates.values():
            if version >= rate.offered_at and name in rate.units:
                rate.held[name] = rate.units[name]

    def note(self, name: str, needs: Needs) -> None:
        """Take note of what an orchestrator's Steps wait for."""
        now = time.monotonic()
        for key, use in needs.keys.items():
            rate = self._rates.get(key)
            if rate is not None and use.num_wanted:
                rate.wanted_at[name] = now

    def share(self, may_raise: bool) -> list[str]:
        """Divide anew; returns the keys of which shares have changed.

        Args:
            may_raise: Whether all shares that a scheduler before gave out are known to be given back.
        """
        now = time.monotonic()
        names = sorted(self._claimants.turn())
        return [key for key, rate in self._rates.items() if self._share(rate, names, may_raise, now)]

    def _share(self, rate: _Rate, names: list[str], may_raise: bool, now: float) -> bool:
        for gone in rate.held.keys() - set(names):
            del rate.held[gone]
            rate.wanted_at.pop(gone, None)
        wanting = [name for name in names if now - rate.wanted_at.get(name, -_KEPT_S) < _KEPT_S]
        targets = fair_targets(_NUM_UNITS, dict.fromkeys(wanting, _NUM_UNITS), names)
        held = {name: rate.held.get(name, 0) for name in names}
        units = raise_limits(_NUM_UNITS, held, targets) if may_raise else dict.fromkeys(names, 0)
        if units == rate.units:
            return False
        rate.held = {name: max(held[name], units[name]) for name in names}
        rate.units = units
        return True

    def offer(self, key: str, version: int) -> None:
        """Note the table version that tells a key's shares."""
        self._rates[key].offered_at = version

    def part_of(self, key: str, name: str) -> float:
        """Tell which part of a key's rate an orchestrator may use: above 0, all together at most 1."""
        rate = self._rates.get(key)
        if rate is None:
            return 1.0 / max(self._num_floors / 2, len(self._claimants))
        return (rate.units.get(name, 0) + 1) / (_NUM_UNITS + max(self._num_floors, len(self._claimants)))
