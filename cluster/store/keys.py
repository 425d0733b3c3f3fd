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
| tutti:{p}:offer:<offer_id> | hash | 7 days, renewed; a day after its end | offer.lua, lease_*.lua |
| tutti:{p}:leases | zset offer_id by end of its lease, ms | permanent, emptied by ends | lease_*.lua |
| tutti:{workers}:profiles | hash worker to WorkerOffer | permanent, swept | worker_seen.lua |
| tutti:{workers}:documents | hash worker to what it told of itself | permanent, swept | worker_seen.lua |
| tutti:{workers}:seen | zset worker by end of its stay, ms | permanent, swept | worker_seen.lua |
| tutti:{workers}:polls | hash worker to its waiting poll | permanent, swept | worker_wait.lua |
| tutti:{workers}:waiting | zset `type NUL last given NUL worker` | permanent, swept | worker_wait.lua |
| tutti:{workers}:offers | hash offer_id to type, order and need | permanent, emptied | board_*.lua |
| tutti:{workers}:board | zset `type NUL order NUL offer_id` | permanent, emptied | board_*.lua |
| tutti:{workers}:given | zset offer_id by when it must be claimed, ms | permanent, emptied | board_*.lua |
| tutti:{workers}:paused | set `type:<type>`, `worker:<id>`, `drain:<id>` | permanent | ingress |
| tutti:{workers}:held:<worker> | zset offer_id by end of lease, ms | an hour after the last | board_*.lua |
| tutti:{workers}:cancels:<worker> | set of offer ids it is to stop | an hour | owners |
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

Channels: tutti:{p}:wake carries run ids with new events, tutti:{p}:verdicts carries `command_id verdict`,
tutti:{workers}:replica:<replica> `poll_id offer_id`, tutti:{workers}:news what workers that listen are told.
The keys of outside workers share a tag of their own: what they hold there is an index that can be rebuilt,
while leases and their ends stand with the Runs in {p}.
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
    "OFFER_TTL_S",
    "ORCHESTRATORS",
    "OVER_OFFER_TTL_S",
    "PERMANENT",
    "POOLS",
    "RUN_HASHES",
    "VERDICT_TTL_S",
    "WATCHERS_TTL_S",
    "PartitionKeys",
    "WorkerKeys",
    "metrics_key",
    "partition_of",
    "room",
]

FORMAT_VERSION = "2"
VERDICT_TTL_S = 60
WATCHERS_TTL_S = 30 * 86_400
METRICS_TTL_S = 15
OFFER_TTL_S = 7 * 86_400
OVER_OFFER_TTL_S = 86_400
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
    r"tutti:\{\d+\}:(owner|inbox|outbox|active|totals|tenants|index:.*|webhooks|webhooks_due|webhooks_dead|leases)",
    r"tutti:\{workers\}:(profiles|documents|seen|polls|waiting|offers|board|given|paused)",
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
        "leases",
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
        self.leases = prefix + "leases"
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

    def offer(self, offer_id: str) -> str:
        """A StepRun that an outside worker may take, has or had."""
        return f"{self._prefix}offer:{offer_id}"

    def verdict(self, command_id: str) -> str:
        """Verdict on a command."""
        return f"{self._prefix}verdict:{command_id}"


class WorkerKeys:
    """The keys of outside workers."""

    profiles = "tutti:{workers}:profiles"
    documents = "tutti:{workers}:documents"
    seen = "tutti:{workers}:seen"
    polls = "tutti:{workers}:polls"
    waiting = "tutti:{workers}:waiting"
    offers = "tutti:{workers}:offers"
    board = "tutti:{workers}:board"
    given = "tutti:{workers}:given"
    paused = "tutti:{workers}:paused"
    news = "tutti:{workers}:news"

    @staticmethod
    def held(worker_id: str) -> str:
        """Offers that a worker was given or has."""
        return f"tutti:{{workers}}:held:{worker_id}"

    @staticmethod
    def cancels(worker_id: str) -> str:
        """Offers that a worker is to stop."""
        return f"tutti:{{workers}}:cancels:{worker_id}"

    @staticmethod
    def replica(replica_id: str) -> str:
        """Channel of an ingress replica that holds polls."""
        return f"tutti:{{workers}}:replica:{replica_id}"
