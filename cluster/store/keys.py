"""Every Redis key: name, type, owner, lifetime. No other module spells a key.

`{p}` is the hash tag of partition p; a Run's partition is `crc32(run_id) % P`. All keys of a partition share
the tag, and scripts declare all their keys, so that Redis Cluster stays possible. A `run_id` here begins with
the tenant, unless that is the default one (`model/run_id.py`).

| key | type | lifetime | written by |
| --- | --- | --- | --- |
| tutti:{p}:owner | hash epoch, owner, until_ms, commit | permanent | own.lua, commit.lua |
| tutti:{p}:inbox | stream | permanent, trimmed by commits | submit.lua, post.lua |
| tutti:{p}:outbox | stream | permanent, emptied by the relay | commit.lua |
| tutti:{p}:active | zset run_id by created_at | permanent | submit.lua, commit.lua |
| tutti:{p}:totals | hash counters | permanent | submit.lua, commit.lua |
| tutti:{p}:tenants | hash unfinished Runs by tenant | permanent | submit.lua, commit.lua |
| tutti:{p}:index:<tenant> | zset run_id by created_at | permanent, aged out by the owner | submit.lua |
| tutti:{p}:run:<run_id> | hash | retention after the end | submit.lua, commit.lua |
| tutti:{p}:events:<run_id> | stream | retention after the end | submit.lua, commit.lua |
| tutti:{p}:watchers:<run_id> | set of run ids | 30 days | watch.lua |
| tutti:{p}:verdict:<command_id> | string | 60 s | commit.lua |
| tutti:{p}:webhooks | hash id to delivery | permanent, emptied by deliveries | commit.lua, sender |
| tutti:{p}:webhooks_due | zset id by due time | permanent, emptied by deliveries | commit.lua, sender |
| tutti:{p}:webhooks_dead | hash id to delivery | permanent, bounded | sender |
| tutti:orchestrators | zset id by last sign of life | permanent | orchestrators |
| tutti:metrics:<n> | string | 15 s | orchestrator n |
| tutti:metrics:ingress | hash replica to counts | 15 s | ingress replicas |
| tutti:room:<tenant> | zset of Runs about to be submitted, by end of lease | 30 s | reserve.lua |
| tutti:durations | hash capability to mean seconds | permanent | orchestrators |
| tutti:ledger | hash replica id to entry | permanent | scheduler |
| tutti:pools | hash pool to declaration, "" where removed | permanent | ingress |
| tutti:limits | hash key to declaration, "" where removed | permanent | ingress |
| tutti:capacity | string, what there is and who has it | 15 s | scheduler |
| tutti:format | string, version of this layout | permanent | whoever is first |

Channels: tutti:{p}:wake carries run ids with new events, tutti:{p}:verdicts carries `command_id verdict`.
"""

from __future__ import annotations

from binascii import crc32

__all__ = [
    "CAPACITY",
    "CAPACITY_TTL_S",
    "DURATIONS",
    "FORMAT",
    "FORMAT_VERSION",
    "INGRESS_METRICS",
    "LEDGER",
    "LIMITS",
    "METRICS_TTL_S",
    "ORCHESTRATORS",
    "PERMANENT",
    "POOLS",
    "RUN_HASHES",
    "VERDICT_TTL_S",
    "WATCHERS_TTL_S",
    "PartitionKeys",
    "metrics_key",
    "partition_of",
    "room",
]

FORMAT_VERSION = "2"
VERDICT_TTL_S = 60
WATCHERS_TTL_S = 30 * 86_400
METRICS_TTL_S = 15
CAPACITY_TTL_S = 15

ORCHESTRATORS = "tutti:orchestrators"
DURATIONS = "tutti:durations"
INGRESS_METRICS = "tutti:metrics:ingress"
LEDGER = "tutti:ledger"
POOLS = "tutti:pools"
LIMITS = "tutti:limits"
CAPACITY = "tutti:capacity"
FORMAT = "tutti:format"

PERMANENT = (
    r"tutti:\{\d+\}:(owner|inbox|outbox|active|totals|tenants|index:.*|webhooks|webhooks_due|webhooks_dead)",
    r"tutti:(orchestrators|durations|ledger|pools|limits|format)",
)
"""Patterns of keys that may live without a TTL; `run` and `events` keys may too while their Run has not
ended.
"""

RUN_HASHES = "tutti:{*}:run:*"
"""Matches the hashes of all Runs; with SCAN's TYPE hash it matches nothing else."""


def metrics_key(number: str) -> str:
    """Key of an orchestrator's metrics snapshot."""
    return f"tutti:metrics:{number}"


def room(tenant: str) -> str:
    """Key of what is about to be submitted near a tenant's limit."""
    return f"tutti:room:{tenant}"


def partition_of(run_id: str, num_partitions: int) -> int:
    """Return the partition of a Run, 0 to num_partitions - 1."""
    return crc32(run_id.encode()) % num_partitions


class PartitionKeys:
    """The keys of one partition."""

    __slots__ = (
        "_prefix",
        "active",
        "inbox",
        "outbox",
        "owner",
        "partition",
        "tenants",
        "totals",
        "verdicts",
        "wake",
        "webhooks",
        "webhooks_dead",
        "webhooks_due",
    )

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self._prefix = prefix = f"tutti:{{{partition}}}:"
        self.owner = prefix + "owner"
        self.inbox = prefix + "inbox"
        self.outbox = prefix + "outbox"
        self.active = prefix + "active"
        self.totals = prefix + "totals"
        self.tenants = prefix + "tenants"
        self.webhooks = prefix + "webhooks"
        self.webhooks_due = prefix + "webhooks_due"
        self.webhooks_dead = prefix + "webhooks_dead"
        self.wake = prefix + "wake"
        self.verdicts = prefix + "verdicts"

    def run(self, run_id: str) -> str:
        """Hash of a Run."""
        return f"{self._prefix}run:{run_id}"

    def events(self, run_id: str) -> str:
        """Event stream of a Run."""
        return f"{self._prefix}events:{run_id}"

    def watchers(self, run_id: str) -> str:
        """Set of Runs that wait for this one's end."""
        return f"{self._prefix}watchers:{run_id}"

    def index(self, tenant: str) -> str:
        """A tenant's Runs by time of creation."""
        return f"{self._prefix}index:{tenant}"

    def verdict(self, command_id: str) -> str:
        """Verdict on a command."""
        return f"{self._prefix}verdict:{command_id}"
