"""How the limits of concurrency and rate keys are divided between orchestrators, never beyond the limit.

Concurrency is shared as slots are: held until confirmed, raised only by what is really free. Rates
are `rate_division`'s. A declared key with `*` stands for one limit for each key that matches it; such a key
is shared between those who have used it lately, and only they are told of it, since there may be very many. A
scheduler that was restarted does not know what the one before it gave out; until all who may have something
of it have told what they use, nobody gets more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from actors.claimants import SILENCE_S, Claimants
from actors.fleet import Fleet
from actors.pool_table import KeyLimit, KeyUse, Needs
from actors.rate_division import RateDivision
from cluster.scheduling.grants import fair_targets, raise_limits
from cluster.store.capacity import LimitSpec, parse_rate

__all__ = ["KeyDivision"]

_KEPT_S = 30.0
_NO_USE = KeyUse(0, 0)


class _Key:
    """One concrete key with a limit on concurrency.

    Attributes:
        pattern: The declared key that it matches; "" where it is declared itself.
        held: StepRuns each orchestrator may still have under it.
        limits: How many each was told.
        used_at: When each used or wanted it last.
        offered_at: Table version of its limits.
    """

    __slots__ = ("held", "limits", "offered_at", "pattern", "spec", "used_at")

    def __init__(self, spec: LimitSpec, pattern: str) -> None:
        self.spec, self.pattern = spec, pattern
        self.held: dict[str, int] = {}
        self.limits: dict[str, int] = {}
        self.used_at: dict[str, float] = {}
        self.offered_at = 0


class KeyDivision:
    """All declared keys.

    Args:
        fleet: Its version is raised when shares change.
        claimants: Who shares.
        num_orchestrators: How many there should be; see `RateDivision`.
    """

    def __init__(self, fleet: Fleet, claimants: Claimants, num_orchestrators: int) -> None:
        self._fleet, self._claimants = fleet, claimants
        self._rates = RateDivision(claimants, num_orchestrators)
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
        self._rates.declare(limits)
        for key, state in list(self._keys.items()):
            found = self._find(key)
            if found is None:
                del self._keys[key]
            else:
                state.spec, state.pattern = found
        for key, spec in limits.items():
            if "*" not in key and spec.max_concurrent is not None and key not in self._keys:
                self._keys[key] = _Key(spec, "")
        self._fleet.bump()

    def _find(self, key: str) -> tuple[LimitSpec, str] | None:
        """Find what limits a key's concurrency, and the pattern that it matches; None where nothing does."""
        spec, pattern = self._declared.get(key), ""
        if spec is None:
            pattern = next((each for each in self._declared if "*" in each and fnmatchcase(key, each)), "")
            spec = self._declared.get(pattern)
        return None if spec is None or spec.max_concurrent is None else (spec, pattern)

    # -- sharing

    def confirm(self, name: str, version: int, needs: Needs) -> None:
        """Take note of what an orchestrator uses and wants, and that it has the table of a version."""
        first_told = self._unconfirmed.get(name)
        if first_told and version >= first_told:
            del self._unconfirmed[name]
        self.note(name, needs)
        self._rates.confirm(name, version)
        for key, state in self._keys.items():
            limit = state.limits.get(name, 0)
            if version >= state.offered_at and (limit or name in state.held):
                state.held[name] = max(limit, needs.keys.get(key, _NO_USE).num_used)

    def note(self, name: str, needs: Needs) -> None:
        """Take note of what an orchestrator uses and wants, whatever table it has."""
        now = time.monotonic()
        self._rates.note(name, needs)
        for key, use in needs.keys.items():
            state = self._keys.get(key)
            if state is None:
                found = self._find(key)
                if found is None:
                    continue
                state = self._keys[key] = _Key(*found)
            if use.num_used or use.num_wanted:
                state.used_at[name] = now
            state.held[name] = max(state.held.get(name, 0), use.num_used)

    def share(self) -> None:
        """Share keys anew where somebody waits in vain, or a share was never told."""
        now = time.monotonic()
        if self._unconfirmed and now > self._unconfirmed_until:
            self._unconfirmed.clear()
        turn = self._claimants.turn()
        changed = [each for each in list(self._keys) if self._share_key(each, turn, now)]
        is_new = [name for name in turn if self._unconfirmed.get(name) == 0]
        changed_rates = self._rates.share(may_raise=not self._unconfirmed)
        if changed or changed_rates or is_new:
            self._fleet.bump()
        for key in changed_rates:
            self._rates.offer(key, self._fleet.version)
        for key in changed:
            self._keys[key].offered_at = self._fleet.version
        for name in is_new:
            self._unconfirmed[name] = self._fleet.version

    def _share_key(self, key: str, turn: Sequence[str], now: float) -> bool:
        state = self._keys[key]
        for gone in [name for name in state.held if name not in self._claimants]:
            del state.held[gone]
            state.limits.pop(gone, None)
            state.used_at.pop(gone, None)
        if state.pattern:
            turn = [name for name in turn if now - state.used_at.get(name, -_KEPT_S) < _KEPT_S]
            if not turn and not any(state.held.values()):
                del self._keys[key]
                return False
        most = state.spec.max_concurrent or 0
        is_starving = sum(state.limits.values()) != most or any(name not in turn for name in state.limits)
        wanted: dict[str, int] = {}
        for name in turn:
            num_used, num_wanted = self._claimants[name].needs.keys.get(key, _NO_USE)
            wanted[name] = num_used + num_wanted
            is_starving |= num_wanted > 0 and num_used >= state.limits.get(name, 0)
        if not is_starving:
            return False
        targets = fair_targets(most, wanted, turn)
        targets.update({name: 0 for name in state.held if name not in targets})
        if self._unconfirmed:
            limits = {name: min(state.held.get(name, 0), target) for name, target in targets.items()}
        else:
            limits = raise_limits(most, state.held, targets)
        if limits == state.limits:
            return False
        for name, limit in limits.items():
            state.held[name] = max(state.held.get(name, 0), limit)
        state.limits = limits
        if state.pattern:
            for name in [each for each, held in state.held.items() if not held and each not in turn]:
                del state.held[name], state.limits[name]
        return True

    # -- what is told

    def limits_for(self, name: str) -> tuple[KeyLimit, ...]:
        """Tell an orchestrator its shares: of declared keys and patterns, and of keys that it has used."""
        told = [self._told(key, spec, name) for key, spec in self._declared.items()]
        for key, state in self._keys.items():
            if state.pattern and (name in state.held or name in state.used_at):
                told.append(self._told(key, state.spec, name))
        return tuple(told)

    def _told(self, key: str, spec: LimitSpec, name: str) -> KeyLimit:
        state = self._keys.get(key)
        share = None if spec.max_concurrent is None else (state.limits.get(name, 0) if state else 0)
        if not spec.rate:
            return KeyLimit(key, share)
        num, per_s = parse_rate(spec.rate)
        part = self._rates.part_of(key, name)
        return KeyLimit(key, share, num * part, per_s, max(spec.burst * part, 1.0))

    def uses(self) -> dict[str, tuple[LimitSpec, int, str]]:
        """Tell for each key that is declared or in use its limit, how many StepRuns hold it, and the pattern
        that limits it ("" where it is declared itself).
        """
        found = {key: (spec, 0, "") for key, spec in self._declared.items()}
        found |= {key: (state.spec, 0, state.pattern) for key, state in self._keys.items()}
        for claimant in self._claimants:
            for key, use in claimant.needs.keys.items():
                if key in found:
                    spec, num_used, pattern = found[key]
                    found[key] = (spec, num_used + use.num_used, pattern)
        return found
