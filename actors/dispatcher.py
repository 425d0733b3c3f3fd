"""From ready to running: the queues of one orchestrator and the slots it may use.

One queue a pool says who goes next (priority with ageing, fairness between tenants, deadlines, the older Run
first); keys say who may. What has begun goes on before something new begins, so that few Runs are under way
at a time and a Step that ends hands its slot to the next of its Run. A suspect (its replicas died under it
before, and once more would be once too often) runs alone on a replica, so that only the guilty one is
counted: it waits until this orchestrator was given every slot of one, where no other can have an attempt
then. That may take long and so may the suspect: after a minute of either it has company again, and if the
replica dies then, only the suspect is counted. Where slots and shares of keys come from is the scheduler's
business; this module only asks and uses.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from actors.key_shares import KeyShares
from actors.pool_line import PoolLine, Ready, Wait, num_free, warm_link
from actors.pool_table import Needs
from actors.replica_link import LinkOwner, ReplicaLink
from actors.replica_links import ReplicaLinks
from cluster.model.compiled import Wish
from cluster.scheduling.limits import Watcher, capability_key, tenant_key
from cluster.scheduling.pool_choice import choose_pool
from cluster.scheduling.queued_step import QueuedStep
from cluster.scheduling.reasons import NoPool

if TYPE_CHECKING:
    from actors.messages import AttemptKey
    from actors.pool_table import PoolEntry, PoolTable
    from cluster.engine import Run
    from cluster.scheduling.reasons import Reason

__all__ = ["Dispatcher"]

_MAX_CRASHES = 3
_NOTICEABLE_S = 1.0
_LEAST_COST_S = 0.001
_MAX_BEGUN = 256
_REFUSED_AFTER_S = 3.0  # a pool that was just declared is known here after the next table

Assign = Callable[[Ready, ReplicaLink], "AttemptKey | None"]
"""Gives the StepRun to the replica; None where it no longer waits."""
Unserve = Callable[[Ready, str], None]


class _Route(NamedTuple):
    """Where Steps with one wish wait, with the key that all of them have; or why nowhere."""

    line: PoolLine
    keys: tuple[str, ...]
    refusal: str


class Dispatcher:
    """Queues by pool and links by replica.

    Args:
        caller: This orchestrator's id.
        owner: Who hears from the links.
        assign: Called with what goes first and where.
        unserve: Called with what nobody will ever serve, and why.
        ask: Called when something waits and no slot is free.
        mean_s: Mean seconds of an attempt by capability, as known at any time.

    Attributes:
        links: By replica id.
        version: Of the scheduler's table; 0 before the first.
        lines: By pool.
        waiting: What waits, by Run.
        shares: Concurrency and rate keys.
    """

    def __init__(
        self,
        caller: str,
        owner: LinkOwner,
        assign: Assign,
        unserve: Unserve,
        ask: Callable[[], None],
        mean_s: Mapping[str, float],
    ) -> None:
        self._replicas = ReplicaLinks(caller, owner)
        self.links = self._replicas.by_id
        self.version = 0
        self.lines: dict[str, PoolLine] = {}
        self.waiting: dict[str, dict[Ready, PoolLine]] = {}
        self.shares = KeyShares()
        self._assign, self._unserve, self._ask = assign, unserve, ask
        self._mean_s = mean_s
        self._weights: dict[str, float] = {}
        self._homeless = PoolLine("", self.shares.limits, self._weight_of)
        self._unserved = PoolLine("", self.shares.limits, self._weight_of)
        self._routes: dict[Wish, _Route] = {}
        self._offers: tuple[Any, ...] | None = None
        self._to_serve: dict[PoolLine, None] = {}
        self._is_gathering = False
        self._begun: deque[tuple[str, float]] = deque(maxlen=_MAX_BEGUN)
        # Unix seconds that never go back: Runs bring the instants of other machines with them.
        self._clock_offset_s = time.time() - time.monotonic()

    def now(self) -> float:
        """Tell the time as queues and keys see it: Unix seconds that never go back."""
        return time.monotonic() + self._clock_offset_s

    # -- what waits

    def queue(self, run: Run, unit: tuple[int, int], crashes: int) -> None:
        """Let a ready StepRun wait, and start it at once where a slot is free; one that waits already gets
        its Run's present priority.
        """
        compiled = run.plan.steps[unit[0]]
        ready = Ready(run.run_id, *unit)
        before = self._take_out(ready)
        route = self._routes.get(compiled.wish) or self._find_route(compiled.wish)
        line = route.line
        record = run.record
        own = compiled.step.keys
        step = QueuedStep(
            ready,
            run.header.tenant,
            record.priority,
            record.created_at,
            lane=compiled.wish.model,
            keys=route.keys + own if own else route.keys,
            deadline_at=math.inf if record.deadline_at is None else record.deadline_at,
        )
        is_suspect = crashes > 0 and crashes >= self._crash_limit(line.entry) - 1
        if not is_suspect and not line.suspects and line.queue.may_pass(step, _NOTICEABLE_S):
            link = line.best_link(compiled.wish.model)
            if link is not None and self._start_at_once(ready, step, link, before):
                return
        ready_at = self.now() if before is None else before.item.ready_at
        self._push(line, step, Wait(ready, compiled.wish, ready_at, is_suspect))
        if self._is_gathering:
            self._to_serve[line] = None
        else:
            self._serve(line)

    def _start_at_once(
        self, ready: Ready, step: QueuedStep, link: ReplicaLink, before: QueuedStep | None
    ) -> bool:
        """Start a step past the queue: the slot that has just become free goes to the next Step of the Run
        that had it, in the same commit, and a lone Step need not wait for anybody's turn.
        """
        now = self.now()
        keys = (tenant_key(step.tenant), *step.keys)
        if self.shares.blocks(keys, now):
            return False
        attempt = self._assign(ready, link)
        if attempt is None:
            return True  # it does not wait any more
        self.shares.hold(attempt, keys, now)
        self._begun.append((keys[1], 0.0 if before is None else now - before.item.ready_at))
        if step.lane:
            link.hold_model(step.lane)
        return True

    def _push(self, line: PoolLine, step: QueuedStep, wait: Wait) -> None:
        step.item = wait
        step.cost = max(self._mean_s.get(wait.wish.capability, 0.0), _LEAST_COST_S)
        line.backlog_of(wait.wish.capability).add(step.priority, wait)
        self.waiting.setdefault(wait.ready.run_id, {})[wait.ready] = line
        self.shares.want((tenant_key(step.tenant), *step.keys), self.now())
        if wait.is_suspect:
            line.add_suspect(step)
        else:
            line.queue.push(step)

    def _leave(self, step: QueuedStep) -> None:
        """Count a step out that is in no queue any more."""
        wait: Wait = step.item
        ready = wait.ready
        units = self.waiting[ready.run_id]
        units.pop(ready).backlog_of(wait.wish.capability).take(step.priority, wait)
        if not units:
            del self.waiting[ready.run_id]
        self.shares.want_no_more((tenant_key(step.tenant), *step.keys))

    def _take_out(self, ready: Ready) -> QueuedStep | None:
        units = self.waiting.get(ready.run_id)
        line = units.get(ready) if units is not None else None
        step = line.remove(ready, self.now()) if line is not None else None
        if step is not None:
            self._leave(step)
        return step

    def forget(self, run_id: str) -> None:
        """Let a Run's Steps wait no more: it ended, is paused, or has another owner."""
        for ready in list(self.waiting.get(run_id, ())):
            self._take_out(ready)

    def forget_items(self, run_id: str, step: int) -> None:
        """Let the items of a mapped Step wait no more: it ended."""
        for ready in [each for each in self.waiting.get(run_id, ()) if each.step == step]:
            self._take_out(ready)

    # -- where it waits

    def _find_route(self, wish: Wish) -> _Route:
        keys = (capability_key(wish.capability),)
        if not self.version:
            return _Route(self._homeless, keys, "")
        entries = [line.entry for line in self.lines.values() if line.entry is not None]
        choice = choose_pool(wish, entries)
        line = self.lines.get(choice.pool, self._unserved if choice.refusal else self._homeless)
        route = self._routes[wish] = _Route(line, keys, choice.refusal)
        return route

    def pool_of(self, capability: str) -> PoolEntry | None:
        """Find the pool that serves a capability's Steps that ask for nothing else."""
        return self._find_route(Wish(capability)).line.entry

    def _weight_of(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    @staticmethod
    def _crash_limit(entry: PoolEntry | None) -> int:
        return entry.max_crashes if entry is not None else _MAX_CRASHES

    # -- who goes next

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Let what comes in the block wait for its end, so that all of it is asked who goes first."""
        self._is_gathering = True
        try:
            yield
        finally:
            self._is_gathering = False
            self.serve_woken()

    def serve_pool(self, pool: str) -> None:
        """Give free slots of a pool to what waits for it, and serve who was woken."""
        line = self.lines.get(pool)
        if line is not None:
            self._to_serve[line] = None
        self.serve_woken()

    def serve_woken(self) -> None:
        """Serve the pools for which something has changed."""
        while self._to_serve and not self._is_gathering:
            line, _ = self._to_serve.popitem()
            self._serve(line)

    def _serve(self, line: PoolLine) -> None:
        """Give free slots of a pool to what waits for it."""
        queue, entry = line.queue, line.entry
        if entry is None or not line.num_waiting:
            return
        links: Sequence[ReplicaLink] = line.links
        if not links and entry.trouble:
            self._refuse(line, f"pool {entry.name} has no healthy agent: {entry.trouble}")
            return
        now = self.now()
        if line.suspects:
            links = self._serve_suspects(line, links, now)
        while queue:
            link = max(links, key=num_free, default=None)
            if link is None or link.num_free <= 0:
                break
            step = queue.front(now, (), link.affinity)
            if step is None:
                break
            if step.lane and step.lane != link.model:
                link = warm_link(links, step.lane) or link
            queue.take(step, now, link.affinity)
            self._begin(line, step, link, now)
        if queue or line.suspects:
            wake_at = queue.next_wake_at()
            if wake_at is not None:
                line.wake_at(wake_at - now, lambda: self.serve_pool(line.name))
            self._ask()

    def _begin(self, line: PoolLine, step: QueuedStep, link: ReplicaLink, now: float) -> AttemptKey | None:
        """Start a step that has been taken out of its queue with its keys; None where it cannot."""
        self._leave(step)
        attempt = self._assign(step.item.ready, link)
        keys = (tenant_key(step.tenant), *step.keys)
        if attempt is None:
            line.queue.settle(step, 0.0)
            self._wake(self.shares.limits.release(keys, now))
            return None
        self.shares.hold_taken(attempt, keys, now, step, line.queue)
        self._begun.append((keys[1], now - step.item.ready_at))
        if step.lane:
            link.hold_model(step.lane)
        return attempt

    def _serve_suspects(
        self, line: PoolLine, links: Sequence[ReplicaLink], now: float
    ) -> Sequence[ReplicaLink]:
        """Set one replica aside while suspects of a pool wait, and start one as soon as nobody else is there.

        Returns:
            The links that are left for all others.
        """
        slots = line.entry.slots_per_replica if line.entry is not None else 0
        whole = [link for link in links if link.slots >= slots and not link.suspect and not link.was_replaced]
        if line.aside not in whole:
            line.set_aside(next(iter(whole), None))
        aside = line.aside
        if aside is None:
            return links
        while line.suspects and aside.is_free_for_suspect(time.monotonic()):
            step = line.suspects[0][3]
            keys = (tenant_key(step.tenant), *step.keys)
            if self.shares.blocks(keys, now):
                line.wake_at(_NOTICEABLE_S, lambda: self.serve_pool(line.name))
                return links
            heapq.heappop(line.suspects)
            self.shares.limits.acquire(keys, now)
            attempt = self._begin(line, step, aside, now)
            if attempt is not None:
                aside.isolate(attempt, time.monotonic())
        return [link for link in links if link is not aside]

    def _refuse(self, line: PoolLine, reason: str) -> None:
        steps = [*line.queue, *line.steps_alone()]
        for step in sorted(steps, key=lambda step: (-step.priority, step.enqueued_at, step.item.ready)):
            ready: Ready = step.item.ready
            if self._take_out(ready) is not None:
                self._unserve(ready, reason)

    # -- keys of what runs

    def hold(self, run: Run) -> None:
        """Count the attempts of a Run that was loaded: they run, although no replica was asked yet."""
        now = self.now()
        for step, item in run.running:
            compiled = run.plan.steps[step]
            keys = (tenant_key(run.header.tenant), capability_key(compiled.step.capability))
            attempt = (run.run_id, step, item, run.unit(step, item).attempt)
            self.shares.hold(attempt, keys + compiled.step.keys, now)

    def release(self, attempts: Iterable[AttemptKey]) -> None:
        """Give back the keys of attempts that have ended, stopped, or are gone. Serve afterwards."""
        now = self.now()
        for attempt in attempts:
            self._wake(self.shares.release(attempt, now))

    def hand_over(self, is_theirs: Callable[[str], bool]) -> None:
        """Leave the attempts of Runs that have another owner now; see `KeyShares.hand_over`."""
        self.shares.hand_over(is_theirs, self.now())

    def _wake(self, watchers: Iterable[Watcher]) -> None:
        for watcher in watchers:
            for line in self.lines.values():
                if line.queue is watcher:
                    self._to_serve[line] = None

    # -- who serves

    def update(self, table: PoolTable) -> None:
        """Take the scheduler's table over."""
        self.version = table.version
        self._weights = table.weights
        self._take_pools(table.pools)
        self._replicas.update(table.replicas, self.lines)
        if self.shares.declare(table.limits, self.now()):
            self._count_wants()
        self._to_serve.update(dict.fromkeys(self.lines.values()))
        self.serve_woken()

    def _entry_of(self, pool: str) -> PoolEntry | None:
        line = self.lines.get(pool)
        return line.entry if line is not None else None

    def _take_pools(self, entries: tuple[PoolEntry, ...]) -> None:
        """Take the pools over; what waits moves to another one where its own will not do any more."""
        gone = self.lines.keys() - {entry.name for entry in entries}
        for name in gone:
            self.lines[name].entry = None
        for entry in entries:
            line = self.lines.get(entry.name)
            if line is None:
                line = self.lines[entry.name] = PoolLine(entry.name, self.shares.limits, self._weight_of)
            line.entry = entry
        offers = tuple((entry.name, entry.capabilities, entry.spec, bool(entry.trouble)) for entry in entries)
        if offers != self._offers:
            self._offers = offers
            self._routes.clear()
            self._reroute()
        for name in gone:
            self.lines.pop(name).close()

    def _reroute(self) -> None:
        for line in [self._homeless, self._unserved, *self.lines.values()]:
            for step in [*line.queue, *line.steps_alone()]:
                wait: Wait = step.item
                route = self._routes.get(wait.wish) or self._find_route(wait.wish)
                if route.line is not line:
                    self._take_out(wait.ready)
                    self._push(route.line, step, Wait(wait.ready, wait.wish, wait.ready_at, wait.is_suspect))
        self._refuse_unserved()

    def _refuse_unserved(self) -> None:
        """Refuse what no pool serves once a pool that was declared before it was ready would be known."""
        since = self.now() - _REFUSED_AFTER_S
        line = self._unserved
        waits: list[Wait] = [step.item for step in [*line.queue, *line.steps_alone()]]
        for wait in waits:
            if wait.ready_at <= since and self._take_out(wait.ready) is not None:
                self._unserve(wait.ready, self._find_route(wait.wish).refusal)

    def _count_wants(self) -> None:
        self.shares.forget_wants()
        for line in self.lines.values():
            for step in [*line.queue, *line.steps_alone()]:
                self.shares.want((tenant_key(step.tenant), *step.keys), self.now())

    def drop(self, link: ReplicaLink) -> None:
        """Forget a replica that is gone, with all it held; serve afterwards."""
        self.release([*link.held, *link.stopping])
        self._replicas.drop(link, self.lines)

    def max_crashes(self, link: ReplicaLink) -> int:
        """How many crashes a step may be under before it is quarantined."""
        return self._crash_limit(self._entry_of(link.entry.pool))

    def check_links(self) -> None:
        """Look for silent and stuck replicas, and for keys whose attempts another owner counts by now."""
        for line in self.lines.values():
            if line.suspects or any(link.suspect for link in line.links):
                self._to_serve[line] = None
        self._replicas.check(self.lines)
        self._wake(self.shares.release_handed_over(self.now()))
        self._refuse_unserved()
        self.serve_woken()

    # -- what others ask

    def demand(self) -> dict[str, int]:
        """Count what waits, by capability."""
        counts: dict[str, int] = {}
        for line in (self._homeless, self._unserved, *self.lines.values()):
            for capability, backlog in line.backlogs.items():
                if backlog.num:
                    counts[capability] = counts.get(capability, 0) + backlog.num
        return counts

    def in_use(self) -> dict[str, int]:
        """Count attempts, by replica."""
        return self._replicas.in_use()

    def needs(self) -> Needs:
        """Say what the scheduler must know. What waits for keys asks for no slots."""
        now = self.now()
        replicas = self._replicas
        begun, mean_s = tuple(self._begun), dict(self._mean_s)
        self._begun.clear()
        needs = Needs({}, replicas.in_use(), {}, {}, begun, mean_s, replicas.grants(), self.shares.uses())
        for name, line in self.lines.items():
            num = len(line.suspects) + sum(link.exclusive for link in line.links)
            if num:
                needs.suspects[name] = num
            if demand := line.demand():
                needs.demand[name] = demand
                needs.oldest_s[name] = line.oldest_s(now)
        return needs

    def reasons(self, run_id: str) -> dict[Ready, Reason]:
        """Tell why each of a Run's ready Steps waits, from what the last decisions wrote down."""
        by_line: dict[PoolLine, list[Ready]] = {}
        for ready, line in self.waiting.get(run_id, {}).items():
            by_line.setdefault(line, []).append(ready)
        found: dict[Ready, Reason] = {}
        for line, asked in by_line.items():
            if line is self._unserved:
                waits = [step.item for step in [*line.queue, *line.steps_alone()]]
                found |= {
                    each.ready: NoPool(capability=each.wish.capability)
                    for each in waits
                    if each.ready in asked
                }
            else:
                found.update(line.reasons(asked, self.now(), self._mean_s))
        return found

    def waits_s(self) -> dict[str, float]:
        """Estimate how long a new StepRun would wait, by capability."""
        waits = {}
        for capability, count in self.demand().items():
            pool = self.pool_of(capability)
            slots = max(pool.total_slots, 1) if pool else 1
            waits[capability] = count * self._mean_s.get(capability, 0.0) / slots
        return waits

    def close(self) -> None:
        """Give all lines up."""
        self._replicas.close()
        for line in self.lines.values():
            line.close()
