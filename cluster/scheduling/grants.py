"""How the slots of one replica are shared between orchestrators. Pure arithmetic; who is asked to give back
is decided here, when it has given back is the caller's to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["fair_targets", "layered_targets", "raise_limits"]


def fair_targets(num_slots: int, wanted: Mapping[str, int], turn: Sequence[str]) -> dict[str, int]:
    """Share slots by water-filling: nobody gets more than it wants before everybody has an equal share.

    Args:
        num_slots: Slots of the replica, >= 0.
        wanted: Attempts running and waiting, by claimant.
        turn: All claimants in the order in which odd slots are given out; rotate it so that with fewer slots
            than claimants each has its turn.

    Returns:
        Slots by claimant. Their sum is num_slots where there are claimants: what nobody wants is spread
        evenly, so that a lone Step needs no question.

    Source: max-min fairness, Bertsekas and Gallager, "Data Networks", 2nd ed., section 6.5.2.
    """
    targets = dict.fromkeys(turn, 0)
    left = num_slots
    hungry = [name for name in turn if wanted.get(name, 0) > 0]
    while left > 0 and hungry:
        share = max(left // len(hungry), 1)
        for name in list(hungry):
            given = min(share, wanted[name] - targets[name], left)
            targets[name] += given
            left -= given
            if targets[name] >= wanted[name]:
                hungry.remove(name)
            if not left:
                break
    if turn:
        share, num_odd = divmod(left, len(turn))
        for position, name in enumerate(turn):
            targets[name] += share + (position < num_odd)
    return targets


def raise_limits(num_slots: int, held: Mapping[str, int], targets: Mapping[str, int]) -> dict[str, int]:
    """Decide the new limits: lowered at once, raised only by what is really free.

    Args:
        num_slots: Slots of the replica.
        held: What each claimant may still be using: its limit before, until it has confirmed a lower one.
        targets: See fair_targets.

    Returns:
        The limit each is told. The sum of max(held, limit) never exceeds num_slots where held did not.
    """
    limits = {name: min(held.get(name, 0), target) for name, target in targets.items()}
    free = num_slots - sum(max(held.get(name, 0), limit) for name, limit in limits.items())
    free -= sum(count for name, count in held.items() if name not in targets)
    for name, target in targets.items():
        more = min(target - max(held.get(name, 0), limits[name]), free)
        if more > 0 and limits[name] == held.get(name, 0):
            limits[name] += more
            free -= more
    return limits


def layered_targets(
    num_slots: int, layers: Sequence[Mapping[str, int]], turn: Sequence[str]
) -> dict[str, int]:
    """Share slots in layers: what an earlier one wants is served before a later one gets anything.

    Args:
        num_slots: Slots of the replica, >= 0.
        layers: Attempts by claimant, those with the highest priority first.
        turn: See fair_targets.

    Returns:
        Slots by claimant, as fair_targets; within a layer all are equal.
    """
    targets = dict.fromkeys(turn, 0)
    left = num_slots
    for wanted in layers:
        given = min(left, sum(wanted.get(name, 0) for name in turn))
        for name, count in fair_targets(given, wanted, turn).items():
            targets[name] += count
        left -= given
    for name, count in fair_targets(left, {}, turn).items():
        targets[name] += count
    return targets
