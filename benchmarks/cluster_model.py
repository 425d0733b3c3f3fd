"""A cluster that exists only as numbers: events in order, three ways to decide, and what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

from benchmarks.cluster_trace import NUM_TENANTS, PRIORITIES, SHAPES, Work
from benchmarks.work import percentile
from cluster.scheduling.devices import NodeSpec
from cluster.scheduling.limits import Limits
from cluster.scheduling.packing import Packer, Placement, Request
from cluster.scheduling.queued_step import QueuedStep
from cluster.scheduling.reservations import Reservations
from cluster.scheduling.step_queue import StepQueue
from cluster.scheduling.turns import Turns

__all__ = ["POLICIES", "Fifo", "Ours", "Outcome", "Policy", "RayOrder", "make_packer", "simulate"]

GPUS_PER_NODE = 8
_SAMPLE_EVERY = 2_000


class Policy(Protocol):
    """A way to decide."""

    packer: Packer

    def push(self, work: Work, now: float) -> None:
        """Let work wait."""

    def end(self, work: Work, now: float) -> None:
        """Free what work had."""

    def starts(self, now: float) -> list[Work]:
        """Decide what starts now."""


def make_packer(num_gpus: int) -> Packer:
    """Make nodes of eight GPUs."""
    packer = Packer()
    for number in range(num_gpus // GPUS_PER_NODE):
        packer.add_node(NodeSpec(name=f"n{number:04}", gpu_memory_gb=(0.0,) * GPUS_PER_NODE))
    return packer


def _request(work: Work) -> Request:
    return Request(str(work.number), work.shape.bundles, work.shape.strategy, work.expected_s, work.tenant)


class Ours:
    """The project's own code: Turns over a StepQueue and Reservations."""

    def __init__(self, packer: Packer) -> None:
        self.packer = packer
        self.turns = Turns(StepQueue("gpu", Limits(), ageing_s=600.0), Reservations(packer))
        self._works: dict[str, Work] = {}

    def push(self, work: Work, now: float) -> None:
        request = _request(work)
        self._works[request.request_id] = work
        self.turns.push(
            QueuedStep(
                request.request_id,
                work.tenant,
                work.priority,
                now,
                cost=work.shape.num_gpus * work.expected_s,
                lane=work.shape.name,
                item=request,
            )
        )

    def end(self, work: Work, now: float) -> None:
        self.turns.end(str(work.number), now, work.shape.num_gpus * work.service_s)

    def starts(self, now: float) -> list[Work]:
        return [self._works.pop(start.placement.request.request_id) for start in self.turns.starts(now)]


class Fifo:
    """First come, first served, and nobody passes anybody."""

    def __init__(self, packer: Packer) -> None:
        self.packer = packer
        self._waiting: deque[Work] = deque()

    def push(self, work: Work, now: float) -> None:
        self._waiting.append(work)

    def end(self, work: Work, now: float) -> None:
        self.packer.release(str(work.number))

    def starts(self, now: float) -> list[Work]:
        started = []
        while self._waiting and isinstance(self.packer.place(_request(self._waiting[0]), now), Placement):
            started.append(self._waiting.popleft())
        return started


class RayOrder:
    """Plain Ray's order: first come, first served within a shape; shapes pass each other, and nothing
    is kept for a gang. The places are found by the same packer, so that only the order differs.
    """

    def __init__(self, packer: Packer) -> None:
        self.packer = packer
        self._waiting: dict[str, deque[Work]] = {shape.name: deque() for shape in SHAPES}

    def push(self, work: Work, now: float) -> None:
        self._waiting[work.shape.name].append(work)

    def end(self, work: Work, now: float) -> None:
        self.packer.release(str(work.number))

    def starts(self, now: float) -> list[Work]:
        started = []
        queues = sorted((q for q in self._waiting.values() if q), key=lambda queue: queue[0].at)
        for queue in queues:
            while queue:
                request = _request(queue[0])
                if not self.packer.may_fit(self.packer.footprint(request)):
                    break
                if not isinstance(self.packer.place(request, now), Placement):
                    break
                started.append(queue.popleft())
        return started


POLICIES: dict[str, Callable[[Packer], Policy]] = {"tutti": Ours, "first come": Fifo, "Ray's order": RayOrder}


class Outcome(NamedTuple):
    """What came of a simulation.

    Attributes:
        num_steps: Steps that ran.
        simulated_s: From the first arrival to the last end.
        backlogged_s: Time during which every tenant had something waiting.
        utilisation: GPU-seconds used of those there were while all tenants were backlogged.
        jain: Of the tenants' GPU-seconds in that time.
        shares: Largest and smallest tenant's GPU-seconds in that time, as a part of the mean.
        fragmentation: Mean, sampled, over that time.
        waits_by_priority: (p50, p95) of waits in seconds.
        waits_by_tenant: Smallest and largest of the tenants' p50.
        gang_wait_s: p95 of gangs of 8 above the lowest priority.
        trail: A number that differs where any decision differs.
    """

    num_steps: int
    simulated_s: float
    backlogged_s: float
    utilisation: float
    jain: float
    shares: tuple[float, float]
    fragmentation: float
    waits_by_priority: dict[int, tuple[float, float]]
    waits_by_tenant: tuple[float, float]
    gang_wait_s: float
    trail: int


class _Meter:
    """Who uses what, counted only while all tenants are backlogged."""

    def __init__(self) -> None:
        self.num_waiting: dict[str, int] = {}
        self.num_backlogged = 0
        self.on_s = 0.0
        self._last = 0.0
        self._rate: dict[str, float] = {}
        self._since: dict[str, float] = {}
        self.used: dict[str, float] = {}

    def pass_to(self, now: float) -> None:
        if self.num_backlogged == NUM_TENANTS:
            self.on_s += now - self._last
        self._last = now

    def wait(self, tenant: str, step: int) -> None:
        before = self.num_waiting.get(tenant, 0)
        self.num_waiting[tenant] = before + step
        self.num_backlogged += (before + step > 0) - (before > 0)

    def use(self, tenant: str, num_gpus: float) -> None:
        self.settle(tenant)
        self._rate[tenant] = self._rate.get(tenant, 0.0) + num_gpus

    def settle(self, tenant: str) -> None:
        on_s = self.on_s - self._since.get(tenant, 0.0)
        self.used[tenant] = self.used.get(tenant, 0.0) + self._rate.get(tenant, 0.0) * on_s
        self._since[tenant] = self.on_s


def simulate(trace: Iterable[Work], policy: Policy, num_gpus: int) -> Outcome:
    """Run a trace to its end.

    Args:
        trace: In the order of arrival.
        policy: Who decides, on a fresh packer.
        num_gpus: GPUs of the packer.
    """
    meter = _Meter()
    ends: list[tuple[float, int, Work]] = []
    waits: dict[tuple[str, int], list[float]] = {}
    gang_waits: list[float] = []
    samples: list[float] = []
    arrivals = iter(trace)
    coming = next(arrivals, None)
    now, trail, num_done, num_events = 0.0, 0, 0, 0
    while coming is not None or ends:
        if coming is not None and (not ends or coming.at <= ends[0][0]):
            now = coming.at
            meter.pass_to(now)
            policy.push(coming, now)
            meter.wait(coming.tenant, 1)
            coming = next(arrivals, None)
        else:
            now, _, work = heappop(ends)
            meter.pass_to(now)
            policy.end(work, now)
            meter.use(work.tenant, -work.shape.num_gpus)
            num_done += 1
        for work in policy.starts(now):
            meter.wait(work.tenant, -1)
            meter.use(work.tenant, work.shape.num_gpus)
            heappush(ends, (now + work.service_s, work.number, work))
            waits.setdefault((work.tenant, work.priority), []).append(now - work.at)
            if work.shape.num_gpus == GPUS_PER_NODE and work.priority > min(PRIORITIES):
                gang_waits.append(now - work.at)
            trail = (trail * 1_000_003 + work.number + round(now * 1000)) & (2**61 - 1)
        num_events += 1
        if num_events % _SAMPLE_EVERY == 0 and meter.num_backlogged == NUM_TENANTS:
            samples.append(policy.packer.fragmentation)
    for tenant in list(meter.used):
        meter.settle(tenant)
    return _outcome(meter, waits, gang_waits, samples, num_gpus, num_done, now, trail)


def _outcome(
    meter: _Meter,
    waits: dict[tuple[str, int], list[float]],
    gang_waits: list[float],
    samples: list[float],
    num_gpus: int,
    num_done: int,
    now: float,
    trail: int,
) -> Outcome:
    used = list(meter.used.values())
    total, squares = sum(used), sum(each * each for each in used)
    mean = total / NUM_TENANTS
    by_priority: dict[int, list[float]] = {}
    by_tenant: dict[str, list[float]] = {}
    for (tenant, priority), waited in waits.items():
        by_priority.setdefault(priority, []).extend(waited)
        by_tenant.setdefault(tenant, []).extend(waited)
    medians = [percentile(waited, 50) for waited in by_tenant.values()]
    return Outcome(
        num_done,
        now,
        meter.on_s,
        total / (num_gpus * meter.on_s) if meter.on_s else 0.0,
        total * total / (NUM_TENANTS * squares) if squares else 0.0,
        (max(used) / mean, min(used) / mean) if mean else (0.0, 0.0),
        sum(samples) / len(samples) if samples else 0.0,
        {p: (percentile(w, 50), percentile(w, 95)) for p, w in sorted(by_priority.items(), reverse=True)},
        (min(medians), max(medians)),
        percentile(gang_waits, 95) if gang_waits else 0.0,
        trail,
    )
