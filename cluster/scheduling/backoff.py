"""How long to wait before trying again. Arithmetic only: the caller draws the jitter and keeps the timer."""

from __future__ import annotations

from cluster.model.plan import RetryPolicy

__all__ = ["MAX_WEBHOOK_RETRIES", "full_jitter_delay_s", "webhook_delay_s"]

_WEBHOOK_LADDER_S = (5.0, 15.0, 45.0, 135.0, 405.0, 1215.0, 3645.0, 10935.0, 21600.0, 21600.0, 21600.0)
"""Nominal waits in seconds after the 1st, 2nd, … failed delivery: threefold up to 6 h, together 22.6 h."""

MAX_WEBHOOK_RETRIES = len(_WEBHOOK_LADDER_S)
"""Deliveries tried again after the first one failed; one more failure and the webhook is a dead letter."""

_WEBHOOK_SPREAD_FRACTION = 0.2


def full_jitter_delay_s(policy: RetryPolicy, retry: int, jitter: float) -> float:
    """Compute the wait before a retry: `jitter` times the capped exponential ceiling.

    Args:
        policy: The Step's policy.
        retry: Which retry, 1-based.
        jitter: A draw from [0, 1).

    Returns:
        Seconds, in [0, min(max_delay_s, initial_delay_s * multiplier**(retry - 1))], never negative.

    Raises:
        ValueError: `retry` is below 1 or `jitter` outside [0, 1].

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    if retry < 1:
        raise ValueError(f"retry is counted from 1, not {retry}")
    _check_jitter(jitter)
    try:
        ceiling_s = policy.initial_delay_s * policy.multiplier ** (retry - 1)
    except OverflowError:
        ceiling_s = policy.max_delay_s
    return max(0.0, min(policy.max_delay_s, ceiling_s)) * jitter


def webhook_delay_s(failures: int, jitter: float) -> float | None:
    """Compute the wait before a webhook is delivered again.

    The waits grow threefold from 5 s to 6 h and end within a day of the first failure. The jitter only
    shortens them, by up to a fifth: a receiver that was down should not be met by everyone at once, but must
    have its time to come back.

    Args:
        failures: Deliveries that failed so far, 1-based.
        jitter: A draw from [0, 1).

    Returns:
        Seconds, or None to give up: the webhook is a dead letter.

    Raises:
        ValueError: `failures` is below 1 or `jitter` outside [0, 1].
    """
    if failures < 1:
        raise ValueError(f"failures are counted from 1, not {failures}")
    _check_jitter(jitter)
    if failures > MAX_WEBHOOK_RETRIES:
        return None
    return _WEBHOOK_LADDER_S[failures - 1] * (1.0 - _WEBHOOK_SPREAD_FRACTION * jitter)


def _check_jitter(jitter: float) -> None:
    if not 0.0 <= jitter <= 1.0:
        raise ValueError(f"jitter must lie in [0, 1), not {jitter}")
