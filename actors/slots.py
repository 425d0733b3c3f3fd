"""Who may use which slots: each replica's are shared between orchestrators, and never twice.

Higher priorities' demand is served before that of lower ones, then all are equal. What one may still be using
is held until it has confirmed a lower limit; only what is really free raises another's. A scheduler that was
restarted learns from the orchestrators what the one before it gave them; what those may have that it has not
heard of yet is given to nobody.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from actors.claimants import SILENCE_S, Claimants
from actors.fleet import Fleet, FleetPool, FleetReplica
from actors.pool_table import Needs
from cluster.scheduling.grants import layered_targets, raise_limits

__all__ = ["Slots"]

_PATIENCE_S = 20.0


class Slots:
    """The slots of all replicas of a fleet."""

    def __init__(self, fleet: Fleet, claimants: Claimants) -> None:
        self._fleet, self._claimants = fleet, claimants
        self._unheard: set[str] = set()
        self._unheard_until = 0.0

    def begin(self, names: Iterable[str]) -> None:
        """Begin anew while orchestrators may have slots that a scheduler before gave them."""
        self._unheard = set(names)
        self._unheard_until = time.monotonic() + SILENCE_S

    def confirm(self, name: str, version: int, needs: Needs) -> None:
        """Take note that an orchestrator has the table of a version, and uses no more than it says."""
        if name in self._unheard:
            self._unheard.discard(name)
            for replica in self._fleet.ready.values():
                if replica.is_adopted:
                    replica.limits[name] = needs.grants.get(replica.replica_id, 0)
        for replica in self._fleet.ready.values():
            if version >= replica.offered_at:
                limit = replica.limits.get(name, 0)
                replica.held[name] = max(limit, needs.in_use.get(replica.replica_id, 0))

    def share(self) -> None:
        """Share slots anew where somebody waits in vain, or a limit was never told."""
        if self._unheard and time.monotonic() > self._unheard_until:
            self._unheard.clear()
        turn = self._claimants.turn()
        changed = [each for each in self._fleet.ready.values() if self._share_replica(each, turn)]
        if changed:
            self._fleet.bump()
            for replica in changed:
                replica.offered_at = self._fleet.version

    def _share_replica(self, replica: FleetReplica, turn: Sequence[str]) -> bool:
        pool = self._fleet.pools[replica.pool]
        num_slots = replica.spec.concurrency
        for gone in [name for name in replica.held if name not in self._claimants]:
            replica.held.pop(gone)
            replica.limits.pop(gone, None)
        targets = dict.fromkeys(turn, 0)
        if not replica.is_retiring:
            alone = self._alone_on(replica, pool, turn)
            if alone:
                targets[alone] = num_slots
            else:
                found = self._targets(replica, pool, turn)
                if found is None:
                    return False
                targets = found
        if self._unheard and replica.is_adopted:
            limits = {name: min(replica.held.get(name, 0), target) for name, target in targets.items()}
        else:
            limits = raise_limits(num_slots, replica.held, targets)
        if limits == replica.limits:
            return False
        for name, limit in limits.items():
            replica.held[name] = max(replica.held.get(name, 0), limit)
        replica.limits = limits
        return True

    def _targets(self, replica: FleetReplica, pool: FleetPool, turn: Sequence[str]) -> dict[str, int] | None:
        """Work out whom the slots should go to; None where all have what they need."""
        # One slot each stays with those who have nothing to do, where there are enough: a lone Step need not
        # ask.
        least = 1 if replica.spec.concurrency >= 2 * len(turn) else 0
        starving = sum(replica.limits.values()) != replica.spec.concurrency
        urgent: dict[str, int] = {}
        levels: dict[int, dict[str, int]] = {}
        idle_used: dict[str, int] = {}
        for name in turn:
            claimant = self._claimants[name]
            waiting, used = claimant.waiting_by_priority(pool), claimant.used(replica.replica_id)
            limit = replica.limits.get(name, 0)
            starving |= limit < least or (bool(waiting) and used >= limit)
            if waiting and claimant.oldest_s(pool) > _PATIENCE_S:
                urgent[name] = 1  # so that no priority, however high and long, starves another for ever
            for priority, count in waiting.items():
                levels.setdefault(priority, {})[name] = count
            if waiting:
                # What it has goes on counting as what it would do next with it.
                levels[max(waiting)][name] += used
            elif used or least:
                idle_used[name] = max(used, least)
        if not starving:
            return None
        order = sorted(levels, reverse=True)
        layers = [levels[priority] for priority in order]
        if layers:
            layers[0].update(idle_used)
        else:
            layers = [idle_used]
        return layered_targets(replica.spec.concurrency, [urgent, *layers], turn)

    def _alone_on(self, replica: FleetReplica, pool: FleetPool, turn: Sequence[str]) -> str:
        """Name who must have this replica for itself: one who has suspects, on the pool's first replica."""
        if pool.spec.concurrency == 1 or replica is not next(self._fleet.serving(replica.pool), None):
            return ""
        suspecting = [name for name in turn if self._claimants[name].needs.suspects.get(replica.pool)]
        if pool.alone not in suspecting:
            pool.alone = suspecting[0] if suspecting else ""
        return pool.alone
