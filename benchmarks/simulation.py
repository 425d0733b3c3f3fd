"""The simulated cluster: 1,000 GPUs, 100 tenants and 1,000,000 steps through the scheduler's own arithmetic.

No Ray, no clock and no waiting: a discrete-event simulation, deterministic by its seed. What is measured in
real time is only how many decisions a process makes in a second, and how long the whole simulation takes.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from itertools import islice

from benchmarks.cluster_model import POLICIES, Ours, Outcome, make_packer, simulate
from benchmarks.cluster_trace import Work, make_trace
from benchmarks.report import Bar, Baseline, Figure, Sense
from benchmarks.work import Effort

__all__ = ["FIGURES", "measure"]

FIGURES = ("simulation.decisions", "simulation.cluster")

NUM_GPUS = 1_000
_NUM_STEPS = 1_000_000
_NUM_WAITING = 100_000
_NUM_DECISIONS = 100_000
_SEED = 20_260_101
_GC_THRESHOLDS = (50_000, 20, 100)
"""As an orchestrator sets them: many objects live long."""


def measure(effort: Effort, wanted: Callable[[str], bool]) -> Iterator[Figure]:
    """Simulate.

    Args:
        effort: How much: the scale is that of the numbers of steps; rounds are of decisions only.
        wanted: Says of a name of FIGURES whether to measure it.
    """
    if wanted("simulation.decisions"):
        num_waiting, num_decisions = effort.count(_NUM_WAITING), effort.count(_NUM_DECISIONS)
        rates = [measure_decisions(num_waiting, num_decisions) for _ in range(effort.rounds)]
        title = f"with {num_waiting:,} steps waiting, {NUM_GPUS:,} GPUs"
        yield Figure(
            "simulation.decisions",
            f"decisions {title}",
            "/s",
            tuple(decided for decided, _ in rates),
            Bar(Sense.AT_LEAST, 20_000.0),
            (),
            (
                "a decision is an answer for one step: what starts and on which devices, or why it does not; "
                "the time is all that is done meanwhile, also for steps that end and come, in CPU seconds of "
                "the process, so that others on the machine count less",
            ),
        )
        yield Figure("simulation.starts", f"steps started {title}", "/s", tuple(each for _, each in rates))
    if wanted("simulation.cluster"):
        yield from _cluster(effort.count(_NUM_STEPS))


def measure_decisions(num_waiting: int, num_decisions: int) -> tuple[float, float]:
    """Measure decisions, and steps started, in a CPU second while as many come as go.

    Args:
        num_waiting: Steps that wait all the time.
        num_decisions: Steps to start.
    """
    # Nothing ends by itself here: whoever began first ends first, as soon as the next one is to start.
    trace = make_trace(num_waiting + num_decisions * 2 + 50 * NUM_GPUS, NUM_GPUS, _SEED)
    policy = Ours(make_packer(NUM_GPUS))
    for work in islice(trace, num_waiting):
        policy.push(work, 0.0)
    coming = list(trace)
    running: list[Work] = policy.starts(0.0)
    num_started, number, now = 0, 0, 0.0
    num_before = policy.turns.num_decisions
    thresholds = gc.get_threshold()
    gc.set_threshold(*_GC_THRESHOLDS)
    began = time.process_time()
    while num_started < num_decisions:
        now += 0.05
        policy.end(running[number], now)
        number += 1
        started = policy.starts(now)
        running += started
        for _ in started:
            policy.push(coming[num_started], now)
            num_started += 1
    took_s = time.process_time() - began
    gc.set_threshold(*thresholds)
    return (policy.turns.num_decisions - num_before) / took_s, num_started / took_s


def _cluster(num_steps: int) -> Iterator[Figure]:
    began = time.perf_counter()
    outcomes: dict[str, Outcome] = {}
    took_s = []
    for name, policy in POLICIES.items():
        outcomes[name] = simulate(
            make_trace(num_steps, NUM_GPUS, _SEED), policy(make_packer(NUM_GPUS)), NUM_GPUS
        )
        took_s.append(time.perf_counter() - began)
        began = time.perf_counter()
    ours, *others = outcomes.items()
    title = f"{num_steps:,} steps on {NUM_GPUS:,} GPUs"
    yield Figure("simulation.time", f"{title}: simulated in", "s", (took_s[0],), Bar(Sense.BELOW, 600.0))
    yield Figure(
        "simulation.utilisation",
        f"{title}: GPU utilisation while all tenants are backlogged",
        "",
        (ours[1].utilisation,),
        Bar(Sense.AT_LEAST, 0.95),
        tuple(Baseline(name, (outcome.utilisation,)) for name, outcome in others),
    )
    yield Figure(
        "simulation.jain",
        "Jain index of the tenants' GPU-seconds in that time",
        "",
        (ours[1].jain,),
        Bar(Sense.AT_LEAST, 0.98),
        tuple(Baseline(name, (outcome.jain,)) for name, outcome in others),
        tuple(_told(name, outcome) for name, outcome in outcomes.items()),
    )


def _told(name: str, outcome: Outcome) -> str:
    waits = ", ".join(
        f"priority {priority}: {p50:,.3g} s (p95 {p95:,.4g})"
        for priority, (p50, p95) in outcome.waits_by_priority.items()
    )
    low, high = outcome.waits_by_tenant
    most, least = outcome.shares
    return (
        f"{name}: waits p50 {waits}; by tenant p50 {low:,.3g} to {high:,.4g} s; "
        f"gangs of 8 above low priority p95 {outcome.gang_wait_s:,.4g} s; "
        f"largest and smallest tenant {most:.3f} and {least:.3f} of the mean; "
        f"fragmentation {outcome.fragmentation:.2f}; all backlogged for {outcome.backlogged_s:,.0f} of "
        f"{outcome.simulated_s:,.0f} s; trail {outcome.trail:x}"
    )
