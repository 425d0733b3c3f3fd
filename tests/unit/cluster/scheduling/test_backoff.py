"""Retry delays: bounds, growth and the end of patience."""

from __future__ import annotations

import pytest

from cluster.model.plan import RetryPolicy
from cluster.scheduling.backoff import MAX_WEBHOOK_RETRIES, full_jitter_delay_s, webhook_delay_s

POLICY = RetryPolicy(initial_delay_s=0.5, max_delay_s=30.0, multiplier=2.0)


@pytest.mark.parametrize(("retry", "ceiling_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (5000, 30.0)])
def test_delay_is_a_share_of_the_capped_exponential_ceiling(retry: int, ceiling_s: float) -> None:
    assert full_jitter_delay_s(POLICY, retry, 0.0) == 0.0
    assert full_jitter_delay_s(POLICY, retry, 0.5) == ceiling_s / 2
    assert full_jitter_delay_s(POLICY, retry, 1.0) == ceiling_s


def test_negative_delays_in_a_policy_mean_no_wait() -> None:
    assert full_jitter_delay_s(RetryPolicy(initial_delay_s=-1.0), 1, 0.9) == 0.0


@pytest.mark.parametrize(("retry", "jitter"), [(0, 0.5), (-1, 0.5), (1, -0.1), (1, 1.1)])
def test_nonsense_arguments_are_refused(retry: int, jitter: float) -> None:
    with pytest.raises(ValueError, match="not"):
        full_jitter_delay_s(POLICY, retry, jitter)
    with pytest.raises(ValueError, match="not"):
        webhook_delay_s(retry, jitter)


def test_webhook_waits_grow_and_end_within_a_day() -> None:
    longest = [webhook_delay_s(n, 0.0) for n in range(1, MAX_WEBHOOK_RETRIES + 1)]
    waits = [wait for wait in longest if wait is not None]
    assert len(waits) == MAX_WEBHOOK_RETRIES
    assert waits == sorted(waits)
    assert 20 * 3600 < sum(waits) <= 24 * 3600


def test_webhook_jitter_only_shortens_a_wait() -> None:
    assert webhook_delay_s(1, 0.0) == 5.0
    assert webhook_delay_s(1, 1.0) == 4.0


def test_webhook_is_given_up_after_the_last_rung() -> None:
    assert webhook_delay_s(MAX_WEBHOOK_RETRIES + 1, 0.5) is None
