"""Which blobs are named: by the Runs that Redis keeps, and by what those blobs hold in turn.

A digest counts wherever it stands in a Run's hash or in a JSON blob, so too many are found rather than one
too few. Nothing is removed here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from cluster.engine import StepRecord
from cluster.lifecycle.step_status import StepStatus
from cluster.store import keys
from cluster.store.blobs import digests_in
from cluster.store.connection import redis_errors_as_ours
from cluster.store.run_codec import decode_record

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from cluster.store.blobs import BlobStore

__all__ = ["NamedBlobs", "NamedBlobsFinder"]

_SCAN_COUNT = 200
_RUNS_AT_ONCE = 25
_BLOBS_AT_ONCE = 100
_PAUSE_S = 0.002
"""Between two batches: this work is never urgent, and Redis has others to serve."""

_log = structlog.get_logger("tutti.blobs")
_steps = msgspec.json.Decoder(StepRecord)


@dataclass(frozen=True, slots=True)
class NamedBlobs:
    """What was found.

    Attributes:
        digests: All that are named.
        oldest_attempt_at: Unix seconds: when the oldest attempt began that may still name a blob it has
            written; None where none is under way.
    """

    digests: frozenset[str]
    oldest_attempt_at: float | None


class NamedBlobsFinder:
    """Looks through Redis and the blobs; remembers what a blob names, because its content never changes."""

    def __init__(self, redis: Redis, blobs: BlobStore) -> None:
        self._redis = redis
        self._blobs = blobs
        self._inner: dict[str, frozenset[str]] = {}

    async def find(self) -> NamedBlobs:
        """Find what is named now.

        A Run that is accepted while this goes on may be overlooked: what was put shortly before must be kept
        anyway.

        Raises:
            Unavailable: Redis or the disk is away.
        """
        found: set[str] = set()
        started: list[float] = []
        cursor = 0
        while True:
            with redis_errors_as_ours():
                cursor, names = await self._redis.scan(
                    cursor, match=keys.RUN_HASHES, count=_SCAN_COUNT, _type="hash"
                )
            for begin in range(0, len(names), _RUNS_AT_ONCE):
                with redis_errors_as_ours():
                    pipe = self._redis.pipeline(transaction=False)
                    for name in names[begin : begin + _RUNS_AT_ONCE]:
                        pipe.hgetall(name)
                    rows: list[Any] = await pipe.execute()
                await asyncio.to_thread(_read_runs, rows, found, started)
                await asyncio.sleep(_PAUSE_S)
            if not cursor:
                break
        await self._follow(found)
        return NamedBlobs(frozenset(found), min(started, default=None))

    async def _follow(self, found: set[str]) -> None:
        """Add what the found blobs name, and what those name."""
        pending = list(found)
        while pending:
            batch, pending = pending[:_BLOBS_AT_ONCE], pending[_BLOBS_AT_ONCE:]
            unread = [digest for digest in batch if digest not in self._inner]
            if unread:
                self._inner.update(await asyncio.to_thread(self._read_blobs, unread))
            new = frozenset().union(*(self._inner[digest] for digest in batch)) - found
            found |= new
            pending += new
        for gone in self._inner.keys() - found:
            del self._inner[gone]

    def _read_blobs(self, digests: Sequence[str]) -> dict[str, frozenset[str]]:
        return {digest: self._blobs.digests_in(digest) for digest in digests}


def _read_runs(rows: Sequence[Mapping[bytes, bytes]], found: set[str], started: list[float]) -> None:
    """Note the digests in some Runs' hashes, and when their running attempts began."""
    for fields in rows:
        for value in fields.values():
            if b'"sha256:' in value:
                found |= digests_in(value)
        if b"record" not in fields:
            continue  # it expired between the listing and the reading
        try:
            record = decode_record(fields[b"record"])
            steps = [] if record.status.is_terminal else _steps_in(fields)
        except msgspec.MsgspecError as error:
            # Whoever cannot read it runs nothing of it; what it names was noted above.
            _log.warning("run cannot be read", reason=str(error))
            continue
        started += [
            record.created_at if step.started_at is None else step.started_at
            for step in steps
            if step.status is StepStatus.RUNNING
        ]


def _steps_in(fields: Mapping[bytes, bytes]) -> list[StepRecord]:
    return [_steps.decode(value) for name, value in fields.items() if name.startswith(b"s:")]
