"""How the limits of concurrency and rate keys are divided between orchestrators, never beyond the limit.

Concurrency is shared as slots are: held until confirmed, raised only by what is really free. A rate is
divided evenly. A declared key with `*` stands for one limit for each key that matches it. A scheduler that
was restarted does not know what the one before it gave out; until all who may have something of it have
told what they use, nobody gets more.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from actors.claimants import SILENCE_S, Claimants
from actors.fleet import Fleet
from actors.pool_table import KeyLimit, Needs
from cluster.scheduling.grants import fair_targets, raise_limits
from cluster.store.capacity import LimitSpec, parse_rate

__all__ = ["KeyDivision"]

_KEPT_S = 60.0


class _Key:
    """One concrete key with a limit on concurrency."""

    __slots__ = ("held", "is_declared", "limits", "offered_at", "used_at")

    def __init__(self, is_declared: bool) -> None:
        self.is_declared = is_declared
        self.held: dict[str, int] = {}
        self.limits: dict[str, int] = {}
        self.offered_at = 0
        self.used_at = time.monotonic()


class KeyDivision:
    """All declared keys.

    Args:
        fleet: Its version is raised when shares change.
        claimants: Who shares.
        num_orchestrators: How many there should be: rates are divided by it.
    """

    def __init__(self, fleet: Fleet, claimants: Claimants, num_orchestrators: int) -> None:
        self._fleet, self._claimants = fleet, claimants
        self._num_orchestrators = num_orchestrators
        self._declared: dict[str, LimitSpec] = {}
        self._keys: dict[str, _Key] = {}
        self._unconfirmed: dict[str, int] = {}
        self._unconfirmed_until = 0.0

    def begin(self, names: Iterable[str]) -> None:
        """Begin anew while orchestrators may have shares of a scheduler before."""
        self._unconfirmed = dict.fromkeys(names, 0)
        self._unconfirmed_until = time.monotonic() + SILENCE_S

    def declare(self, limits: Mapping[str, LimitSpec]) -> None:
        """Take the declarations over; what is lowered is lowered at once, and free when it is given back."""
        if limits == self._declared:
            return
        self._declared = dict(limits)
        for key, state in list(self._keys.items()):
            if self._max_of(key) is None:
                del self._keys[key]
            else:
                state.is_declared = key in limits
        for key in limits:
            if "*" not in key and limits[key].max_concurrent is not None and key not in self._keys:
                self._keys[key] = _Key(is_declared=True)
        self._fleet.bump()

    def _spec_of(self, key: str) -> LimitSpec | None:
        found = self._declared.get(key)
        if found is None:
            found = next(
                (s for each, s in self._declared.items() if "*" in each and fnmatchcase(key, each)), None
            )
        return found

    def _max_of(self, key: str) -> int | None:
        spec = self._spec_of(key)
        return None if spec is None else spec.max_concurrent

    # -- sharing

    def confirm(self, name: str, version: int, needs: Needs) -> None:
        """Take note of what an orchestrator uses and wants, and that it has the table of a version."""
        now = time.monotonic()
        for key, use in needs.keys.items():
            state = self._keys.get(key)
            if state is None and self._max_of(key) is not None:
                state = self._keys[key] = _Key(is_declared=False)
            if state is not None and (use.num_used or use.num_wanted):
                state.used_at = now
        first_told = self._unconfirmed.get(name)
        if first_told and version >= first_told:
            del self._unconfirmed[name]
        for key, state in self._keys.items():
            num_used = needs.keys[key].num_used if key in needs.keys else 0
            if version >= state.offered_at:
                state.held[name] = max(state.limits.get(name, 0), num_used)
            else:
                state.held[name] = max(state.held.get(name, 0), num_used)

    def share(self) -> None:
        """Share keys anew where somebody waits in vain, or a share was never told."""
        now = time.monotonic()
        if self._unconfirmed and now > self._unconfirmed_until:
            self._unconfirmed.clear()
        turn = self._claimants.turn()
        changed = [each for each in list(self._keys) if self._share_key(each, turn, now)]
        is_new = [name for name in turn if self._unconfirmed.get(name) == 0]
        if changed or is_new:
            self._fleet.bump()
        for key in changed:
            self._keys[key].offered_at = self._fleet.version
        for name in is_new:
            self._unconfirmed[name] = self._fleet.version

    def _share_key(self, key: str, turn: Sequence[str], now: float) -> bool:
        state, most = self._keys[key], self._max_of(key)
        if most is None:
            del self._keys[key]
            return False
        for gone in [name for name in state.held if name not in self._claimants]:
            state.held.pop(gone)
            state.limits.pop(gone, None)
        if not state.is_declared and now - state.used_at > _KEPT_S and not any(state.held.values()):
            del self._keys[key]
            self._fleet.bump()
            return False
        starving = state.limits.keys() != set(turn) or sum(state.limits.values()) != most
        wanted: dict[str, int] = {}
        for name in turn:
            use = self._claimants[name].needs.keys.get(key)
            num_used, num_wanted = use if use is not None else (0, 0)
            wanted[name] = num_used + num_wanted
            starving |= num_wanted > 0 and num_used >= state.limits.get(name, 0)
        if not starving:
            return False
        targets = fair_targets(most, wanted, turn)
        if self._unconfirmed:
            limits = {name: min(state.held.get(name, 0), target) for name, target in targets.items()}
        else:
            limits = raise_limits(most, state.held, targets)
        if limits == state.limits:
            return False
        for name, limit in limits.items():
            state.held[name] = max(state.held.get(name, 0), limit)
        state.limits = limits
        return True

    # -- what is told

    def limits_for(self, name: str) -> tuple[KeyLimit, ...]:
        """Tell an orchestrator its shares: of declared keys and patterns, and of keys that it has used."""
        told = [self._told(key, spec, name) for key, spec in self._declared.items()]
        for key, state in self._keys.items():
            spec = None if state.is_declared else self._spec_of(key)
            if spec is not None:
                told.append(self._told(key, spec, name))
        return tuple(told)

    def _told(self, key: str, spec: LimitSpec, name: str) -> KeyLimit:
        state = self._keys.get(key)
        share = None if spec.max_concurrent is None else (state.limits.get(name, 0) if state else 0)
        if not spec.rate:
            return KeyLimit(key, share)
        num, per_s = parse_rate(spec.rate)
        parts = max(self._num_orchestrators, len(self._claimants))
        return KeyLimit(key, share, num / parts, per_s, max(spec.burst / parts, 1.0))

    def uses(self) -> dict[str, tuple[LimitSpec, int]]:
        """Tell for each key that is declared or in use its limit and how many StepRuns hold it."""
        counts: dict[str, int] = {}
        for claimant in self._claimants:
            for key, use in claimant.needs.keys.items():
                counts[key] = counts.get(key, 0) + use.num_used
        found: dict[str, tuple[LimitSpec, int]] = {}
        for key in _ordered(self._declared, self._keys):
            spec = self._spec_of(key)
            if spec is not None:
                found[key] = (spec, counts.get(key, 0))
        return found


def _ordered(*parts: Collection[str]) -> list[str]:
    return list(dict.fromkeys(key for part in parts for key in part))
