"""The simulation is what it says: same seed, same decisions; and the trace has the shape it promises."""

from __future__ import annotations

from collections import Counter
from statistics import median

from benchmarks.cluster_model import POLICIES, Outcome, make_packer, simulate
from benchmarks.cluster_trace import NUM_TENANTS, make_trace, mean_service_s

NUM_GPUS = 80


def outcome(policy: str, seed: int = 1) -> Outcome:
    return simulate(make_trace(2_000, NUM_GPUS, seed), POLICIES[policy](make_packer(NUM_GPUS)), NUM_GPUS)


def test_same_seed_makes_the_same_decisions_and_another_one_does_not() -> None:
    assert outcome("tutti") == outcome("tutti")
    assert outcome("tutti", 2).trail != outcome("tutti").trail


def test_every_policy_runs_everything() -> None:
    assert {outcome(policy).num_steps for policy in POLICIES} == {2_000}


def test_urgent_work_waits_less_than_under_first_come() -> None:
    ours, first_come = outcome("tutti"), outcome("first come")
    assert ours.waits_by_priority[100][0] < first_come.waits_by_priority[100][0]


def test_trace_has_the_load_and_the_tails_it_promises() -> None:
    works = list(make_trace(50_000, 1_000, 3))
    times = [work.service_s for work in works]
    assert abs(median(times) - 30) < 1
    assert max(times) <= 3_000
    assert abs(sum(times) / len(times) / mean_service_s() - 1) < 0.1
    gpu_seconds = sum(work.shape.num_gpus * work.service_s for work in works)
    assert 1.0 < gpu_seconds * 0.95 / (works[-1].at * 1_000) < 1.4
    assert len(Counter(work.tenant for work in works)) == NUM_TENANTS
    gangs = sum(len(work.shape.bundles) > 1 or " " in work.shape.name for work in works)
    assert abs(gangs / len(works) - 0.1) < 0.01
