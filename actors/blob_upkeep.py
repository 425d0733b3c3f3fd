"""Removes the blobs that nobody names any more: those of Runs that expired, and those never accepted.

Why a blob that is needed is never removed. One that is named by a Run, or inside a blob that is, is kept
whatever its age. One that is not named yet is young: a submission puts its blobs moments before it is
accepted, an agent puts its own within its attempt. So what was put less than an hour before the search began,
or before the oldest running attempt did, is kept too; and putting a blob again makes it young.

A process that was stopped in between (a suspended machine, a store that was away for hours) may name an old
blob yet, as soon as it goes on. So one search only notes what is old and unnamed; what the next finds in
the same state, a minute of everybody's work later, goes.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from cluster.errors import TuttiError
from cluster.store.blobs import BlobStore, Swept
from cluster.store.named_blobs import NamedBlobsFinder

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from cluster.settings import Settings

__all__ = ["BlobUpkeep"]

_log = structlog.get_logger("tutti.blobs")
_GRACE_S = 3600.0
_SETTLE_S = 60.0
"""From one search to the next where there is something to remove; the interval where that is shorter."""
_FIRST_SHARE = 0.1
"""Part of the interval before the first sweep: a service that often restarts sweeps too."""


class BlobUpkeep:
    """Sweeps the blob store, for ever.

    Args:
        settings: The folder and the interval.
        redis: Where the Runs are.
        grace_s: Age below which a blob is kept although nobody names it, in seconds; longer than any
            submission takes from putting a blob to being accepted.
    """

    def __init__(self, settings: Settings, redis: Redis, grace_s: float = _GRACE_S) -> None:
        self._settings = settings
        self._redis = redis
        self._grace_s = grace_s
        self._parts: tuple[BlobStore, NamedBlobsFinder] | None = None
        self._unnamed: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Search at every interval, and soon again where a search noted something; what goes wrong is tried
        again at the next.
        """
        interval_s = self._settings.blob_sweep_interval_s
        await asyncio.sleep(interval_s * _FIRST_SHARE)
        while True:
            noted = self._unnamed
            try:
                swept = await self.collect()
                if swept.num_blobs or swept.num_leftovers:
                    _log.info(
                        "blobs removed",
                        blobs=swept.num_blobs,
                        bytes=swept.num_bytes,
                        leftovers=swept.num_leftovers,
                    )
            except TuttiError as error:
                _log.warning("blobs stay", reason=error.message)
            # What was noted before and stays has its reason: an attempt that runs.
            await asyncio.sleep(min(_SETTLE_S, interval_s) if self._unnamed - noted else interval_s)

    async def collect(self) -> Swept:
        """Search: remove what nobody names now and nobody named at the search before, and note the rest.

        Raises:
            Unavailable: Redis or the disk is away; what was not removed stays for the next time.
        """
        if self._parts is None:
            blobs = await asyncio.to_thread(BlobStore, self._settings.blobs_dir)
            self._parts = (blobs, NamedBlobsFinder(self._redis, blobs))
        blobs, finder = self._parts
        begun_at = time.time()
        old = await asyncio.to_thread(blobs.older_than, self._grace_s)
        if not old:
            # Nothing can go, so no Run need be read; half-written files of dead writers are looked at anyway.
            self._unnamed = frozenset()
            return await asyncio.to_thread(blobs.sweep, lambda _digest: True, self._grace_s)
        named = await finder.find()
        unnamed = old - named.digests
        unwanted = unnamed & self._unnamed
        oldest_kept = min(begun_at, named.oldest_attempt_at or begun_at) - self._grace_s
        older_than_s = time.time() - oldest_kept
        swept = await asyncio.to_thread(blobs.sweep, lambda digest: digest not in unwanted, older_than_s)
        self._unnamed = unnamed
        return swept
