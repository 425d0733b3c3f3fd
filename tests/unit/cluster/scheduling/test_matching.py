"""Which worker gets a step: only one that can do it and has room, and the best by the strategy asked for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling.matching import WorkerNeed, WorkerOffer, WorkerStrategy, choose_worker, unmet_by
from cluster.scheduling.reasons import NoWorker


def worker(worker_id: str, **fields: Any) -> WorkerOffer:
    return WorkerOffer(worker_id=worker_id, capabilities=frozenset({"render"}), **fields)


NEED = WorkerNeed("render")


def chosen(strategy: WorkerStrategy, *workers: WorkerOffer, need: WorkerNeed = NEED) -> str:
    found = choose_worker(need, workers, strategy)
    assert isinstance(found, WorkerOffer), found
    return found.worker_id


def test_round_robin_takes_the_one_whose_last_step_is_longest_ago() -> None:
    workers = (worker("a", last_given_at=5.0), worker("b", last_given_at=3.0), worker("c"))
    assert chosen(WorkerStrategy.ROUND_ROBIN, *workers) == "c"
    assert chosen(WorkerStrategy.ROUND_ROBIN, *workers[:2]) == "b"


def test_least_connections_compares_parts_not_numbers() -> None:
    assert (
        chosen(
            WorkerStrategy.LEAST_CONNECTIONS,
            worker("a", num_running=1, max_running=2),
            worker("b", num_running=2, max_running=8),
        )
        == "b"
    )


def test_cheapest_takes_the_price_of_the_capability() -> None:
    assert (
        chosen(
            WorkerStrategy.CHEAPEST,
            worker("a", cost_by_capability={"render": 3.0}),
            worker("b", cost_by_capability={"render": 2.0, "other": 9.0}),
        )
        == "b"
    )


def test_best_fit_leaves_the_large_gpu_to_those_who_need_it() -> None:
    workers = (worker("large", gpu_memory_gb=80), worker("fits", gpu_memory_gb=24))
    assert chosen(WorkerStrategy.BEST_FIT, *workers, need=WorkerNeed("render", gpu_memory_gb=16)) == "fits"


def test_warm_model_goes_before_price_by_default() -> None:
    model = frozenset({"sdxl"})
    workers = (
        worker("cold", models=model),
        worker("warm", models=model, warm_models=model, cost_by_capability={"render": 9.0}),
    )
    assert chosen(WorkerStrategy.DEFAULT, *workers, need=WorkerNeed("render", models=model)) == "warm"


@pytest.mark.parametrize(
    ("need", "lacks"),
    [
        (WorkerNeed("sing"), "the capability 'sing'"),
        (WorkerNeed("render", gpu_model="h200"), "a GPU h200"),
        (WorkerNeed("render", gpu_model="rtx 4090", gpu_memory_gb=40), "40 GiB of GPU memory"),
        (WorkerNeed("render", num_cpus=16), "16 CPUs"),
        (WorkerNeed("render", models=frozenset({"sdxl"})), "the model sdxl"),
        (WorkerNeed("render", max_cost=0.5), "a price of at most 0.5"),
        (WorkerNeed("render", gpu_model="RTX"), ""),
    ],
)
def test_what_a_worker_lacks_is_the_reason(need: WorkerNeed, lacks: str) -> None:
    only = worker(
        "a", gpu_model="NVIDIA RTX 4090", gpu_memory_gb=24, num_cpus=8, cost_by_capability={"render": 1.0}
    )
    assert unmet_by(need, only) == lacks
    found = choose_worker(need, [only])
    if lacks:
        assert found == NoWorker(capability=need.capability, num_busy=0, unmet=lacks)
        assert isinstance(found, NoWorker)
        assert found.sentence(0).endswith(f"offers {lacks}.")


def test_busy_workers_are_counted_and_no_workers_is_said() -> None:
    busy = choose_worker(NEED, [worker("a", num_running=1), worker("b", is_busy=True)])
    assert busy == NoWorker(capability="render", num_busy=2)
    assert isinstance(busy, NoWorker)
    assert busy.sentence(0) == "All 2 workers for 'render' are busy."
    assert choose_worker(NEED, []) == NoWorker(
        capability="render", num_busy=0, unmet="the capability 'render'"
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.booleans(), st.floats(0, 5)), max_size=8),
    st.sampled_from(WorkerStrategy),
)
def test_somebody_is_chosen_exactly_if_somebody_has_room(
    rows: list[tuple[int, int, bool, float]], strategy: WorkerStrategy
) -> None:
    workers = [
        worker(str(n), num_running=used, max_running=most, is_busy=busy, cost_by_capability={"render": cost})
        for n, (used, most, busy, cost) in enumerate(rows)
    ]
    free = [each.worker_id for each in workers if not each.is_busy and each.num_running < each.max_running]
    found = choose_worker(NEED, workers, strategy)
    if isinstance(found, WorkerOffer):
        assert found.worker_id in free
    else:
        assert not free
