"""One delivery of one webhook: signed, under the egress guard, told honestly how it ended.

It refuses to retry, to remember and to read what the receiver says beyond the status: the outbox does the
first two, and the third would let a receiver hold us.

A receiver checks a delivery so: take `X-Tutti-Timestamp` and the body as received, compute HMAC-SHA256 of
`<timestamp>.<body>` with the shared secret, compare its hex in constant time with `X-Tutti-Signature`, refuse
timestamps older than a few minutes, and drop a `X-Tutti-Webhook-Id` it has seen: delivery is at least once.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass

from actors.egress import EgressRefused, Resolver, check_url, fetch, resolve_by_system
from cluster.errors import InvalidInput, StepError

__all__ = ["Delivery", "check_webhook", "deliver", "signature_of"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a delivery ended.

    Attributes:
        ok: The receiver answered 2xx.
        status: Its status, 0 where it did not answer.
        error: One line, "" when ok.
        retryable: Whether another try may help; false when the address may not be called, or answers 410
            (gone).
    """

    ok: bool
    status: int
    error: str
    retryable: bool = True


async def check_webhook(url: str, allow: tuple[str, ...]) -> None:
    """Check the address of a webhook before the Run that names it is accepted.

    Args:
        url: What the client gave.
        allow: CIDR blocks that may be called although they are not public.

    Raises:
        InvalidInput: It may not be called.
    """
    try:
        await check_url(url, allow)
    except EgressRefused as error:
        raise InvalidInput(f"webhook_url: {error.message}", field="webhook_url") from error


def signature_of(secret: str, timestamp: str, payload: bytes) -> str:
    """Compute the hex HMAC-SHA256 of `<timestamp>.<payload>`."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + payload, hashlib.sha256).hexdigest()


async def deliver(
    url: str,
    payload: bytes,
    *,
    webhook_id: str,
    secret: str | None,
    allow: tuple[str, ...] = (),
    timeout_s: float = 10.0,
    resolve: Resolver = resolve_by_system,
) -> Delivery:
    """POST a payload once. Redirects are not followed: who moved must register anew.

    Args:
        url: Where to.
        payload: JSON, sent as it is.
        webhook_id: The same for every try of this webhook, so that the receiver can drop doubles. Visible
            ASCII.
        secret: Key of the signature; None or "" sends none.
        allow: CIDR blocks that may be called although they are not public.
        timeout_s: Limit from the lookup to the receiver's status line, > 0.
        resolve: The resolver.
    """
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "X-Tutti-Webhook-Id": webhook_id,
        "X-Tutti-Timestamp": timestamp,
    }
    if secret:
        headers["X-Tutti-Signature"] = signature_of(secret, timestamp, payload)
    try:
        response = await fetch(
            url,
            method="POST",
            headers=headers,
            content=payload,
            allow=allow,
            timeout_s=timeout_s,
            max_redirects=0,
            read_body=False,
            resolve=resolve,
        )
    except EgressRefused as error:
        return Delivery(False, 0, error.message, retryable=False)
    except StepError as error:
        return Delivery(False, 0, error.message, error.retryable)
    if 200 <= response.status < 300:
        return Delivery(True, response.status, "")
    return Delivery(
        False, response.status, f"the receiver answered {response.status}", retryable=response.status != 410
    )
