"""What the partitions may still hold when every Run has ended: as good as nothing."""

from __future__ import annotations

from typing import Any

import redis

from cluster.store import keys

__all__ = ["unfinished_business"]


def unfinished_business(client: redis.Redis, num_partitions: int) -> dict[str, Any]:
    """Count what the partitions still hold: messages, active Runs, deliveries, tenants with open Runs."""
    found: dict[str, Any] = {}
    for number in range(num_partitions):
        names = keys.PartitionKeys(number)
        counts = {
            names.inbox: client.xlen(names.inbox),
            names.outbox: client.xlen(names.outbox),
            names.active: client.zcard(names.active),
            names.tenants: client.hlen(names.tenants),
            names.webhooks: client.hlen(names.webhooks),
            names.webhooks_due: client.zcard(names.webhooks_due),
        }
        found.update({name: count for name, count in counts.items() if count})
    return found
