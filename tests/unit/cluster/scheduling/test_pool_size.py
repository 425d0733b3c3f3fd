"""How many replicas a pool should have."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling.pool_size import replicas_wanted
from cluster.scheduling.pools import PoolSpec


def pool(concurrency: int = 4, least: int = 0, most: int = 10) -> PoolSpec:
    return PoolSpec(name="p", agents=("m:A",), concurrency=concurrency, min_replicas=least, max_replicas=most)


@pytest.mark.parametrize(
    ("num_waiting", "num_running", "wanted"),
    [(0, 0, 0), (1, 0, 1), (4, 0, 1), (5, 0, 2), (3, 2, 2), (1000, 0, 10)],
)
def test_replicas_hold_all_that_waits_and_runs(num_waiting: int, num_running: int, wanted: int) -> None:
    assert replicas_wanted(pool(), num_waiting, num_running) == wanted


def test_idle_pool_keeps_its_minimum() -> None:
    assert replicas_wanted(pool(least=2), 0, 0) == 2


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 32), st.integers(0, 5), st.integers(0, 20), st.integers(0, 500), st.integers(0, 500))
def test_size_is_within_bounds_enough_and_not_one_too_many(
    concurrency: int, least: int, more: int, num_waiting: int, num_running: int
) -> None:
    spec = pool(concurrency, least, max(least + more, 1))
    wanted = replicas_wanted(spec, num_waiting, num_running)
    work = num_waiting + num_running
    assert spec.min_replicas <= wanted <= spec.max_replicas
    assert wanted * concurrency >= work or wanted == spec.max_replicas
    assert (wanted - 1) * concurrency < work or wanted == spec.min_replicas
