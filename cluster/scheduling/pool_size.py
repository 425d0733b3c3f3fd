"""How many replicas a pool should have. Pure arithmetic."""

from __future__ import annotations

import math

from cluster.scheduling.pools import PoolSpec

__all__ = ["replicas_wanted"]


def replicas_wanted(pool: PoolSpec, num_waiting: int, num_running: int) -> int:
    """Count the replicas that would hold all that runs and waits, within the pool's bounds.

    Args:
        pool: The declaration.
        num_waiting: Attempts that wait for a slot.
        num_running: Attempts that have one.

    Returns:
        min_replicas to max_replicas.
    """
    needed = math.ceil((num_waiting + num_running) / pool.concurrency)
    return max(pool.min_replicas, min(needed, pool.max_replicas))
