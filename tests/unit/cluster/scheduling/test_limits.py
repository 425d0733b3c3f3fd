"""Keys: never more than declared, never forgotten, exact about when the next one may go."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling.limits import Limits
from cluster.scheduling.reasons import QuotaReached, RateReached

quick = settings(max_examples=100, deadline=None)


@quick
@given(
    num=st.sampled_from((0.5, 1.0, 3.0, 10.0)),
    per_s=st.sampled_from((0.5, 1.0, 60.0)),
    burst=st.sampled_from((1.0, 2.0, 5.0)),
    pauses=st.lists(st.floats(0, 3), max_size=80),
)
def test_no_span_has_more_than_the_burst_and_the_rate(
    num: float, per_s: float, burst: float, pauses: list[float]
) -> None:
    limits = Limits()
    limits.set_rate("k", num, per_s, 0, burst)
    now, began = 0.0, []
    for pause in pauses:
        now += pause
        if limits.blocking(("k",), now) is None:
            limits.acquire(("k",), now)
            began.append(now)
    for first in range(len(began)):
        for last in range(first, len(began)):
            assert last - first + 1 <= burst + (began[last] - began[first]) * num / per_s + 1e-6


@quick
@given(num=st.sampled_from((0.3, 1.0, 7.0)), per_s=st.sampled_from((1.0, 10.0)), count=st.integers(1, 30))
def test_who_comes_when_it_was_told_to_may_go(num: float, per_s: float, count: int) -> None:
    limits = Limits()
    limits.set_rate("k", num, per_s, 0)
    now = 0.0
    for _ in range(count):
        reason = limits.blocking(("k",), now)
        if reason is not None:
            assert isinstance(reason, RateReached)
            assert reason.until_at is not None
            now = reason.until_at
            assert limits.blocking(("k",), now) is None
        limits.acquire(("k",), now)
    assert now == pytest.approx((count - 1) * per_s / num)


def test_rate_that_is_raised_lets_the_next_one_go_earlier() -> None:
    limits = Limits()
    limits.set_rate("k", 1, 3600, 0)
    limits.acquire(("k",), 0)
    limits.set_rate("k", 1, 10, 0)
    reason = limits.blocking(("k",), 1)
    assert reason is not None
    assert reason.until_at == 10


def test_what_runs_counts_also_when_the_limit_comes_later() -> None:
    limits = Limits()
    limits.acquire(("k", "other"), 0)
    limits.acquire(("k",), 0)
    limits.set_concurrency("k", 2, 0)
    assert limits.blocking(("other", "k"), 0) == QuotaReached(key="k", num_used=2, limit=2)
    limits.release(("k",), 0)
    assert limits.blocking(("k",), 0) is None


def test_lowered_limit_takes_nothing_away_but_lets_nobody_in() -> None:
    limits = Limits()
    limits.set_concurrency("k", 3, 0)
    for _ in range(3):
        limits.acquire(("k",), 0)
    limits.set_concurrency("k", 1, 0)
    limits.release(("k",), 0)
    limits.release(("k",), 0)
    assert limits.blocking(("k",), 0) is not None
    limits.release(("k",), 0)
    assert limits.blocking(("k",), 0) is None


def test_key_that_is_given_back_twice_is_an_error_of_the_caller() -> None:
    limits = Limits()
    limits.acquire(("k",), 0)
    limits.release(("k",), 0)
    with pytest.raises(ValueError, match="more often than taken"):
        limits.release(("k",), 0)
    assert limits.num_used("k") == 0


def test_forgotten_key_limits_nothing() -> None:
    limits = Limits()
    limits.set_concurrency("k", 0, 0)
    limits.set_rate("k", 1, 60, 0)
    limits.forget("k", 0)
    assert limits.limit("k") is None
    for _ in range(3):
        assert limits.blocking(("k",), 0) is None
        limits.acquire(("k",), 0)


@pytest.mark.parametrize(("num", "per_s", "burst"), [(0, 1, 1), (1, 0, 1), (1, 1, 0.5)])
def test_impossible_rate_is_refused(num: float, per_s: float, burst: float) -> None:
    with pytest.raises(ValueError, match="rate of k"):
        Limits().set_rate("k", num, per_s, 0, burst)
    with pytest.raises(ValueError, match="negative"):
        Limits().set_concurrency("k", -1, 0)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.01, 0.5, 0.99]), st.floats(0.0, 3.0), st.integers(0, 5)), max_size=40
    )
)
def test_rate_whose_shares_move_between_holders_never_lets_more_begin_than_was_declared(
    moves: list[tuple[float, float, int]],
) -> None:
    num_per_s, burst, now, begun = 2.0, 4.0, 0.0, 0
    holders = (Limits(), Limits())
    for part, pause_s, num_wanted in moves:
        for holder, share in zip(holders, (part, 1.0 - part), strict=True):
            holder.set_rate("k", num_per_s * share, 1.0, now, max(burst * share, 1.0))
        for holder in holders:
            for _ in range(num_wanted):
                if holder.blocking(("k",), now) is None:
                    holder.acquire(("k",), now)
                    begun += 1
        assert begun <= burst + len(holders) + num_per_s * now + 1e-6
        now += pause_s
