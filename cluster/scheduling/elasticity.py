"""How many replicas a pool should have, and which idle ones make room for others. Pure arithmetic.

Replicas follow what runs, what waits and how long it waits, within the pool's bounds. An idle replica ends
after its time, the last one too where the pool's minimum is zero. A replica of a lower-priority pool that
does nothing may be evicted for one that is needed; a replica that works never is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from cluster.scheduling.packing import Packer, Request
from cluster.scheduling.pools import PoolSpec

__all__ = ["IdleReplica", "PoolLoad", "choose_evictions", "choose_retirements", "replicas_for"]


class PoolLoad(NamedTuple):
    """What a pool has to do.

    Attributes:
        num_waiting: Attempts that wait for a slot.
        num_running: Attempts that have one.
        oldest_s: How long the one that waits longest has waited while it could use the slots of all replicas
            that there are; 0 while one is being started.
        mean_s: Mean time of an attempt; None where nothing has ended yet.
        has_suspects: Whether somebody needs a replica of his own.
    """

    num_waiting: int
    num_running: int
    oldest_s: float = 0.0
    mean_s: float | None = None
    has_suspects: bool = False


class IdleReplica(NamedTuple):
    """A replica without work.

    Attributes:
        placement_id: Its placement in the packer.
        priority: Of its pool.
        idle_s: How long it has been idle.
        pool: Whose it is.
    """

    placement_id: str
    pool: str
    priority: int
    idle_s: float


def replicas_for(pool: PoolSpec, load: PoolLoad, num_now: int) -> int:
    """Count the replicas that work off what waits within the pool's target wait.

    Without a mean, everything that waits is given a slot. With one, a slot works off several attempts within
    the target, so that a thousand attempts of 10 ms do not start a hundred replicas. When somebody has waited
    longer than the target all the same, the estimate is wrong and there is at least one more than now, but
    never more than have a use: a slot for each that waits or runs, and one replica for who must be alone.

    Args:
        pool: The declaration.
        load: What it has to do.
        num_now: Replicas there are or start.

    Returns:
        min_replicas to max_replicas.
    """
    per_slot = 1.0
    if load.mean_s is not None and load.mean_s > 0:
        per_slot = max(pool.target_wait_s / load.mean_s, 1.0)
    needed = math.ceil((load.num_running + load.num_waiting / per_slot) / pool.concurrency)
    if load.num_waiting and load.oldest_s > pool.target_wait_s:
        of_use = math.ceil((load.num_running + load.num_waiting) / pool.concurrency) + load.has_suspects
        needed = max(needed, min(num_now + 1, of_use))
    if load.num_waiting:
        needed = max(needed, 1)
    return max(pool.min_replicas, min(needed, pool.max_replicas))


def choose_retirements(pool: PoolSpec, idle: Sequence[IdleReplica], num_now: int, wanted: int) -> list[str]:
    """Choose replicas that end because nobody needs them.

    Args:
        pool: The declaration.
        idle: Its idle replicas.
        num_now: All its replicas.
        wanted: See replicas_for.

    Returns:
        Placement ids, those idle longest first; none that was idle for less than the pool's timeout.
    """
    most = num_now - max(wanted, pool.min_replicas)
    late = sorted((each for each in idle if each.idle_s >= pool.idle_timeout_s), key=lambda r: -r.idle_s)
    return [each.placement_id for each in late[: max(most, 0)]]


def choose_evictions(
    packer: Packer, request: Request, priority: int, idle: Collection[IdleReplica], now: float
) -> list[str] | None:
    """Choose idle replicas whose end makes room for a request.

    Args:
        packer: The nodes; unchanged when this returns.
        request: What is needed, and not placed.
        priority: Of the pool that needs it.
        idle: All idle replicas, of any pool.
        now: Seconds.

    Returns:
        Placement ids, none of which could be spared: of the lowest priority and longest idle first. Empty
        where it fits already; None where even all of them together do not make room.
    """
    ranked = sorted(
        (each for each in idle if each.priority < priority), key=lambda each: (each.priority, -each.idle_s)
    )
    names = [each.placement_id for each in ranked]
    if packer.would_fit(request, (), now):
        return []
    for name in names:
        if packer.would_fit(request, (name,), now):
            return [name]
    if not packer.would_fit(request, names, now):
        return None
    # All of them do; spare what can be spared, beginning with those that are worth most.
    chosen = list(names)
    for name in reversed(names):
        fewer = [each for each in chosen if each != name]
        if packer.would_fit(request, fewer, now):
            chosen = fewer
    return chosen
