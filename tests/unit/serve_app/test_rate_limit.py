import pytest

from cluster.errors import LimitExceeded
from serve_app.rate_limit import RateLimiter


async def test_full_window_is_refused_with_the_time_to_wait():
    limiter = RateLimiter(3)
    remaining = [(await limiter.spend("ann")).remaining for _ in range(3)]
    assert remaining == [2, 1, 0]
    with pytest.raises(LimitExceeded) as caught:
        await limiter.spend("ann")
    assert 0 <= caught.value.retry_after_s <= 2
    names = [name for name, _ in caught.value.details["allowance"].headers]
    assert names == [b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"]


async def test_one_principal_does_not_spend_for_another():
    limiter = RateLimiter(1)
    await limiter.spend("ann")
    assert (await limiter.spend("bob")).remaining == 0
