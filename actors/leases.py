"""Which partitions an orchestrator holds: it claims its share, renews, takes over what is free, hands over.

Ownership is a lease in Redis, never a matter of Ray's actor state: a stopped process that wakes up after its
lease finds its commits refused and lets go.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from actors.partition import Partition
from cluster.errors import TuttiError

if TYPE_CHECKING:
    from actors.driver import Driver

__all__ = ["Leases"]

_log = structlog.get_logger("tutti.leases")
_ADOPTED_KEPT_S = 60.0


class Leases:
    """The leases of one Driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._settings = driver.settings
        self._journal = driver.journal
        self._is_draining = False
        self._server_run_id = ""

    async def hold_loop(self) -> None:
        """Renew and claim, three times a lease, until drained."""
        await self._journal.check_format()
        every_s = self._settings.owner_lease_s / 3
        while not self._is_draining:
            began = time.monotonic()
            await self._hold()
            await asyncio.sleep(max(every_s - (time.monotonic() - began), 0.05))

    async def drain(self) -> None:
        """Hand all partitions over in order, and be no longer among the living."""
        self._is_draining = True
        for partition in list(self._driver.partitions.values()):
            await self._release(partition)
        with suppress(TuttiError):
            await self._journal.leave()

    async def _hold(self) -> None:
        living = await self._journal.announce(self._settings.owner_lease_s)
        await self._notice_restart()
        share = math.ceil(self._settings.num_partitions / max(len(living), 1))
        owned = self._driver.partitions
        renewed = await self._journal.own(list(owned), self._settings.owner_lease_s)
        for number, ownership in renewed.items():
            partition = owned.get(number)
            if partition is not None and (not ownership.owned or ownership.epoch != partition.epoch):
                self._driver.lose(partition, "its lease ran out")
                if ownership.owned:
                    await self._take_over(number, ownership.epoch)
        for partition in list(owned.values())[share:]:
            await self._release(partition)
        if len(owned) < share and self._driver.dispatcher.version:
            await self._claim(share - len(owned))

    async def _notice_restart(self) -> None:
        """With `everysec` a restarted server may have lost a second: what memory knows beyond it must go."""
        run_id = await self._journal.server_run_id()
        if self._server_run_id and run_id != self._server_run_id and self._settings.durability != "strict":
            for partition in list(self._driver.partitions.values()):
                self._driver.lose(partition, "the store was restarted")
                await self._journal.own([partition.number], 0.0)
        self._server_run_id = run_id

    async def _claim(self, most: int) -> None:
        began, lease_s = time.monotonic(), self._settings.owner_lease_s
        others = [p for p in range(self._settings.num_partitions) if p not in self._driver.partitions]
        for number in others:
            if most <= 0 or self._is_draining:
                return
            claimed = (await self._journal.own([number], lease_s))[number]
            if claimed.owned and not claimed.is_new:
                # We hold a lease on what we gave up: only a new epoch is sure to start from what is written.
                await self._journal.own([number], 0.0)
                claimed = (await self._journal.own([number], lease_s))[number]
            if claimed.owned:
                most -= 1
                await self._take_over(number, claimed.epoch)
            if time.monotonic() - began > lease_s / 3:
                return  # the leases we have must be renewed first

    async def _take_over(self, number: int, epoch: int) -> None:
        """Load a partition: first the inbox as it stands, then the Runs, then what the inbox asks of them."""
        began = time.monotonic()
        partition = Partition(number, epoch)
        intake = self._driver.intake
        backlog = await self._journal.read_backlog(number)
        active = await self._journal.active_ids(number)
        partition.adopted = {run_id for run_id, _ in active}
        partition.adopted.update(e.fields[b"r"].decode() for e in backlog if e.fields[b"k"] == b"submit")
        self._driver.partitions[number] = partition
        try:
            async for run in self._journal.load(number, [run_id for run_id, _ in active]):
                intake.take_in(partition, run)
            for entry in backlog:
                await intake.take_entry(entry)
            while await self._journal.relay_outbox(number):
                continue
            partition.is_open = not partition.is_lost
        finally:
            if not partition.is_open:
                self._driver.lose(partition, "it could not be loaded")
        asyncio.get_running_loop().call_later(_ADOPTED_KEPT_S, partition.adopted.clear)
        if active:
            took_s = round(time.monotonic() - began, 3)
            _log.info("partition taken over", partition=number, runs=len(active), took_s=took_s)

    async def _release(self, partition: Partition) -> None:
        """Give a partition to whoever has too few: commit what there is, then let go."""
        partition.is_open = False
        deadline = time.monotonic() + self._settings.owner_lease_s
        while partition.is_dirty and not partition.is_lost and time.monotonic() < deadline:
            self._driver.mark_dirty()
            await asyncio.sleep(0.01)
        self._driver.lose(partition, "handed over")
        with suppress(TuttiError):
            await self._journal.own([partition.number], 0.0)
