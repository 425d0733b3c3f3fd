"""The orchestrator actor: a Driver with leases on partitions, and the door for Python drivers.

Any orchestrator takes any Run. Ownership is a lease in Redis, never a matter of Ray's actor state; a stopped
process that wakes up after its lease finds its commits refused and lets go.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson
import structlog

from actors import handles
from actors.call_checks import check_priority_number, check_reason, check_run_id, check_run_ids, wait_limit
from actors.driver import Driver
from actors.leases import Leases
from actors.submitter import Submitter
from actors.waiters import Waiters
from cluster.errors import InvalidInput, TuttiError, Unavailable
from cluster.model.plan import Json, Plan
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
        self._leases = Leases(self._driver)
        self._blobs = BlobStore(settings.blobs_dir)
        self._submitter = Submitter(self._store, self._driver, self._blobs)
        self._loops: list[asyncio.Task[None]] = []
        self._published_at = 0.0
        self._told_at = 0.0
        self._asking: asyncio.TimerHandle | None = None
        # Ray calls __init__ again when it restarts the actor, and nothing else: so it begins by itself.
        self._beginning = asyncio.get_running_loop().create_task(self.start())

    # -- life

    async def start(self) -> str:
        """Begin the loops; a second call changes nothing. Returns this incarnation's id."""
        if not self._loops:
            loop = asyncio.get_running_loop()
            for body in (
                self._leases.hold_loop,
                self._inbox_loop,
                self._driver.commit_loop,
                self._driver.timer_loop,
                self._driver.desk.upkeep_loop,
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
                _log.warning(
                    "loop waits", loop=body.__name__, reason=error.message, cause=str(error.__cause__ or "")
                )
            except Exception:  # noqa: BLE001 - the outer loop of an actor: a bug in one round must not end all rounds
                _log.exception("loop failed, begins again", loop=body.__name__)
            await asyncio.sleep(_PAUSE_S)

    async def drain(self) -> None:
        """Hand the partitions over in order: what is written stays, what runs is adopted by the next
        owner.
        """
        await self._leases.drain()
        for task in self._loops:
            task.cancel()
        await self._driver.close()

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
                await self._driver.intake.take_entry(entry)
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
            await self._driver.intake.unpark()
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
            "runs_running": driver.num_running,
            "runs_parked": status["parked"],
            "steps_waiting": sum(status["waiting"].values()),
            "steps_running": sum(status["held"].values()),
            "partitions_owned": len(status["partitions"]),
        }
        snapshot = orjson.dumps(driver.figures.snapshot(self._name, gauges, status["waiting"]))
        waits = driver.dispatcher.waits_s()
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
            InvalidPlan, InvalidInput, AlreadyExists, LimitExceeded, Unavailable: See there.
        """
        return await self._submitter.submit(plan, inputs, options)

    async def submit_many(
        self, plans: Sequence[Any], inputs: Sequence[Json] | None = None, **options: Any
    ) -> list[str]:
        """Submit many Runs at once; `inputs` goes with `plans` one by one. Raises as `submit`, for the
        first refused.
        """
        each_inputs = inputs if inputs is not None else [None] * len(plans)
        if len(each_inputs) != len(plans):
            raise InvalidInput(f"{len(plans)} plans need as many inputs, not {len(each_inputs)}")
        return await self._submitter.submit_many(plans, each_inputs, options)

    async def result(self, run_id: str, timeout_s: float | None = None) -> Json:
        """Wait for a Run's output.

        Raises:
            RunFailed: It failed or was cancelled; `code` says why.
            NotFound: Unknown.
            Unavailable: Not ended within `timeout_s`.
            InvalidInput: `run_id` is no text, or `timeout_s` no number from 0 on.
        """
        return (await self.results([run_id], timeout_s))[0]

    async def results(self, run_ids: Sequence[str], timeout_s: float | None = None) -> list[Json]:
        """Wait for the outputs of many Runs, in order; raises as `result`, for the first that failed."""
        run_ids, limit_s = check_run_ids(run_ids), wait_limit(timeout_s)
        waiting = asyncio.ensure_future(self._waiters.wait(run_ids))
        try:
            # Not by cancelling what asks Redis and then waiting for it: the limit holds whatever that does.
            await asyncio.wait([waiting], timeout=limit_s)
            if not waiting.done():
                raise Unavailable(f"not ended within {limit_s:g} s")
        finally:
            waiting.cancel()
        ends = waiting.result()
        return [await self._waiters.output_of(end, self._blobs) for end in ends]

    async def get(self, run_id: str) -> Any:
        """Read a Run as a RunView."""
        return await self._store.get(check_run_id(run_id), None)

    async def cancel(self, run_id: str, reason: str = "") -> None:
        """Cancel a Run; raises Conflict where it has ended."""
        await self._store.command(check_run_id(run_id), None, "cancel", reason=check_reason(reason))

    async def pause(self, run_id: str) -> None:
        """Let the Steps in flight finish and start no other; raises Conflict where the status forbids it."""
        await self._store.command(check_run_id(run_id), None, "pause")

    async def resume(self, run_id: str) -> None:
        """Go on after `pause`; raises Conflict where it is not paused."""
        await self._store.command(check_run_id(run_id), None, "resume")

    async def set_priority(self, run_id: str, priority: int) -> None:
        """Change the priority, 0 to 100, of what waits as well; raises Conflict where it has ended."""
        await self._store.command(
            check_run_id(run_id), None, "priority", priority=check_priority_number(priority)
        )
