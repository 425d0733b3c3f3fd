"""The orchestrator actor: a Driver with leases on partitions, and the door for Python drivers.

Any orchestrator takes any Run. Ownership is a lease in Redis, never a matter of Ray's actor state; a stopped
process that wakes up after its lease finds its commits refused and lets go.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson
import structlog

from actors import handles
from actors.driver import Driver
from actors.partition import Partition
from actors.waiters import Waiters
from cluster.errors import TuttiError, Unavailable
from cluster.model.compiled import compile_plan
from cluster.model.plan import Json, Plan, Submission
from cluster.store import keys
from cluster.store.blobs import BlobStore
from cluster.store.connection import redis_errors_as_ours
from cluster.store.journal import Journal
from cluster.store.run_store import RunStore

if TYPE_CHECKING:
    from actors.messages import AttemptKey
    from actors.replica_link import ReplicaLink
    from cluster.settings import Settings
    from cluster.store.journal import InboxEntry

__all__ = ["Orchestrator"]

_log = structlog.get_logger("tutti.orchestrator")
_PAUSE_S = 0.2
_ASK_EVERY_S = 0.05
_FIGURES_EVERY_S = 2.0
_HOUSEKEEPING_EVERY_S = 3600.0
_ADOPTED_KEPT_S = 60.0


class Orchestrator:
    """A Ray actor with async methods; `start` begins its loops."""

    def __init__(self, number: int, settings: Settings) -> None:
        # Runs in memory live long and hold no cycles: looking through them often costs and finds nothing.
        gc.set_threshold(50_000, 20, 100)
        self._number = number
        self._name = handles.orchestrator_name(number)
        self._settings = settings
        self._id = f"{number}-{uuid4().hex[:8]}"
        self._journal = Journal(settings.redis_url, settings.num_partitions, self._id, settings.retention_s)
        self._store = RunStore.connect(settings)
        self._driver = Driver(
            settings,
            self._journal,
            self._id,
            find_attempts=self._find_attempts,
            ask_for_slots=self._ask_for_slots,
            replace_replica=self._replace_replica,
        )
        self._waiters = Waiters(self._store, self._driver)
        self._driver.on_end = self._waiters.on_end
        self._blobs = BlobStore(settings.blobs_dir)
        self._loops: list[asyncio.Task[None]] = []
        self._published_at = 0.0
        self._told_at = 0.0
        self._asking: asyncio.TimerHandle | None = None
        self._is_draining = False
        self._server_run_id = ""
        # Ray calls __init__ again when it restarts the actor, and nothing else: so it begins by itself.
        self._beginning = asyncio.get_running_loop().create_task(self.start())

    # -- life

    async def start(self) -> str:
        """Begin the loops; a second call changes nothing. Returns this incarnation's id."""
        if not self._loops:
            loop = asyncio.get_running_loop()
            for body in (
                self._lease_loop,
                self._inbox_loop,
                self._driver.commit_loop,
                self._driver.timer_loop,
                self._attend_loop,
                self._upkeep_loop,
            ):
                self._loops.append(loop.create_task(self._guard(body)))
        return self._id

    async def _guard(self, body: Any) -> None:
        """Keep a loop alive: what it meets unexpectedly is logged and it begins again."""
        while True:
            try:
                await body()
            except TuttiError as error:
                _log.warning("loop waits", loop=body.__name__, reason=error.message)
            except Exception:  # noqa: BLE001 - the outer loop of an actor: a bug in one round must not end all rounds
                _log.exception("loop failed, begins again", loop=body.__name__)
            await asyncio.sleep(_PAUSE_S)

    async def drain(self) -> None:
        """Hand the partitions over in order: what is written stays, what runs is adopted by the next
        owner.
        """
        self._is_draining = True
        owned = list(self._driver.partitions.values())
        for partition in owned:
            await self._release(partition)
        for task in self._loops:
            task.cancel()
        await self._driver.close()
        with suppress(TuttiError):
            await self._journal.leave()

    def status(self) -> dict[str, Any]:
        """Tell what it owns, for operators and tests."""
        partitions = self._driver.partitions
        return {
            "id": self._id,
            "pid": os.getpid(),
            "partitions": sorted(partitions),
            "runs": sum(len(p.runs) for p in partitions.values()),
            "parked": sum(len(p.parked_ids) for p in partitions.values()),
            "waiting": self._driver.dispatcher.demand(),
            "held": self._driver.dispatcher.in_use(),
            "timers": len(self._driver.timers),
        }

    # -- ownership

    async def _lease_loop(self) -> None:
        await self._journal.check_format()
        every_s = self._settings.owner_lease_s / 3
        while not self._is_draining:
            began = time.monotonic()
            await self._hold_leases()
            await asyncio.sleep(max(every_s - (time.monotonic() - began), 0.05))

    async def _hold_leases(self) -> None:
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
        backlog = await self._journal.read_backlog(number)
        active = await self._journal.active_ids(number)
        partition.adopted = {run_id for run_id, _ in active}
        partition.adopted.update(e.fields[b"r"].decode() for e in backlog if e.fields[b"k"] == b"submit")
        self._driver.partitions[number] = partition
        try:
            async for run in self._journal.load(number, [run_id for run_id, _ in active]):
                self._driver.take_in(partition, run)
            for entry in backlog:
                await self._driver.take_entry(entry)
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

    # -- inbox

    async def _inbox_loop(self) -> None:
        while True:
            partitions = [p for p in self._driver.partitions.values() if p.is_open]
            if not partitions:
                await asyncio.sleep(0.02)
                continue
            entries = await self._journal.read_inbox({p.number: p.cursor for p in partitions})
            await self._take(entries)

    async def _take(self, entries: Sequence[InboxEntry]) -> None:
        for position, entry in enumerate(entries):
            partition = self._driver.partitions.get(entry.partition)
            if partition is not None and partition.is_open:
                await self._driver.take_entry(entry)
            if position % 200 == 199:
                await asyncio.sleep(0)

    # -- the scheduler

    async def _attend_loop(self) -> None:
        while True:
            scheduler = handles.find_actor(handles.SCHEDULER)
            if scheduler is None:
                await asyncio.sleep(_PAUSE_S)
                continue
            dispatcher = self._driver.dispatcher
            try:
                while True:
                    table = await handles.attend_scheduler(
                        scheduler, self._id, dispatcher.version, dispatcher.needs()
                    )
                    if table.version != dispatcher.version:
                        dispatcher.update(table)
            except handles.SchedulerAway:
                await asyncio.sleep(_PAUSE_S)

    def _ask_for_slots(self) -> None:
        """Tell the scheduler what waits: at once, then at most every 50 ms."""
        if self._asking is None:
            loop = asyncio.get_running_loop()
            self._asking = loop.call_at(max(self._told_at + _ASK_EVERY_S, loop.time()), self._tell_demand)

    def _tell_demand(self) -> None:
        self._asking = None
        self._told_at = asyncio.get_running_loop().time()
        scheduler = handles.find_actor(handles.SCHEDULER)
        if scheduler is not None:
            handles.report_demand(scheduler, self._id, self._driver.dispatcher.needs())

    def _replace_replica(self, replica_id: str, reason: str) -> None:
        scheduler = handles.find_actor(handles.SCHEDULER)
        if scheduler is not None:
            handles.replace_replica(scheduler, replica_id, reason)

    async def _find_attempts(self, link: ReplicaLink, wanted: list[AttemptKey]) -> None:
        try:
            held = {
                tuple(key) for key in await handles.adopt_from(link.entry.handle, self._id, link.seen, wanted)
            }
        except (handles.ReplicaGone, handles.ReplicaUnreachable):
            held = set()
        if link.lost:
            held = set()
        for key in wanted:
            if key in held and self._driver.owns(key[0]):
                link.adopt(key)
                if not self._driver.is_running(key):
                    link.stop(key)  # it was reported, or given up, while we asked
        self._driver.lose_attempts([key for key in wanted if key not in held], "its replica does not know it")

    # -- upkeep

    async def _upkeep_loop(self) -> None:
        swept_at = time.monotonic()
        while True:
            await asyncio.sleep(_FIGURES_EVERY_S / 4)
            self._driver.dispatcher.check_links()
            await self._driver.unpark()
            await self._publish_figures()
            if time.monotonic() - swept_at > _HOUSEKEEPING_EVERY_S:
                swept_at = time.monotonic()
                before = time.time() - self._settings.retention_s
                await self._journal.age_out_indexes(set(self._driver.partitions), before)

    async def _publish_figures(self) -> None:
        now = time.monotonic()
        if now - self._published_at < _FIGURES_EVERY_S:
            return
        self._published_at = now
        driver = self._driver
        status = self.status()
        gauges = {
            "runs_loaded": status["runs"],
            "runs_parked": status["parked"],
            "steps_waiting": sum(status["waiting"].values()),
            "steps_running": sum(status["held"].values()),
            "partitions_owned": len(status["partitions"]),
        }
        snapshot = orjson.dumps(driver.figures.snapshot(self._name, gauges))
        waits = driver.dispatcher.waits_s(driver.figures.mean_s)
        with redis_errors_as_ours():
            pipe = self._journal.redis.pipeline(transaction=False)
            pipe.set(keys.metrics_key(str(self._number)), snapshot, ex=keys.METRICS_TTL_S)
            for capability, mean_s in driver.figures.mean_s.items():
                pipe.hset(keys.DURATIONS, capability, f"{mean_s:.6f} {waits.get(capability, 0.0):.6f}")
            await pipe.execute()

    # -- for Python drivers

    async def submit(self, plan: Plan | Json, inputs: Json = None, **options: Any) -> str:
        """Submit one Run and return its id once it is durable.

        Args:
            plan: A Plan, its JSON, or a Submission.
            inputs: The Run's inputs, JSON.
            options: Fields of Submission (run_id, priority, timeout_s, after, tenant, metadata, webhook_url).

        Raises:
            InvalidPlan, AlreadyExists, LimitExceeded, Unavailable: See there.
        """
        outcome = await self._store.submit(self._submission(plan, inputs, options))
        return outcome.run_id

    async def submit_many(
        self, plans: Sequence[Any], inputs: Sequence[Json] | None = None, **options: Any
    ) -> list[str]:
        """Submit many Runs at once; `inputs` goes with `plans` one by one. Raises as `submit`, for the
        first refused.
        """
        each_inputs = inputs if inputs is not None else [None] * len(plans)
        pairs = zip(plans, each_inputs, strict=True)
        outcomes = await self._store.submit_many([self._submission(p, i, options) for p, i in pairs])
        for outcome in outcomes:
            if isinstance(outcome, TuttiError):
                raise outcome
        return [outcome.run_id for outcome in outcomes if not isinstance(outcome, TuttiError)]

    def _submission(self, plan: Any, inputs: Json, options: dict[str, Any]) -> Submission:
        if isinstance(plan, Submission):
            return plan
        checked = plan if isinstance(plan, Plan) else compile_plan(plan).plan
        fields = {"submitted_by": "driver", **options}
        fields.setdefault("run_id", self._new_run_id())
        return Submission(plan=checked, inputs={} if inputs is None else inputs, **fields)

    def _new_run_id(self) -> str:
        """Make an id whose partition is owned here, so that the Run needs no hop."""
        own = self._driver.partitions
        run_id = uuid4().hex
        for _ in range(16):
            if not own or keys.partition_of(run_id, self._settings.num_partitions) in own:
                break
            run_id = uuid4().hex
        return run_id

    async def result(self, run_id: str, timeout_s: float | None = None) -> Json:
        """Wait for a Run's output.

        Raises:
            RunFailed: It failed or was cancelled; `code` says why.
            NotFound: Unknown.
            Unavailable: Not ended within `timeout_s`.
        """
        return (await self.results([run_id], timeout_s))[0]

    async def results(self, run_ids: Sequence[str], timeout_s: float | None = None) -> list[Json]:
        """Wait for the outputs of many Runs, in order; raises as `result`, for the first that failed."""
        try:
            async with asyncio.timeout(timeout_s):
                ends = await self._waiters.wait(run_ids)
        except TimeoutError:
            raise Unavailable(f"not ended within {timeout_s:g} s") from None
        return [await self._waiters.output_of(end, self._blobs) for end in ends]

    async def get(self, run_id: str) -> Any:
        """Read a Run as a RunView."""
        return await self._store.get(run_id, None)

    async def cancel(self, run_id: str, reason: str = "") -> None:
        """Cancel a Run; raises Conflict where it has ended."""
        await self._store.command(run_id, None, "cancel", reason=reason)
