"""One webhook delivery against a real receiver."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time

import pytest

from actors.webhooks import Delivery, deliver, signature_of
from tests.unit.actors.loopback_server import LOOPBACK, Received, answer, serve

PAYLOAD = b'{"event":"run.succeeded","run_id":"r1"}'


async def test_a_delivery_is_signed_so_that_its_receiver_can_check_it() -> None:
    async with serve(answer(204)) as receiver:
        delivery = await deliver(
            receiver.url("/hook"), PAYLOAD, webhook_id="r1:end", secret="shared", allow=LOOPBACK
        )
    assert delivery == Delivery(True, 204, "")
    [request] = receiver.received
    assert (request.method, request.path, request.body) == ("POST", "/hook", PAYLOAD)
    assert request.headers["content-type"] == "application/json"
    assert request.headers["x-tutti-webhook-id"] == "r1:end"
    timestamp = request.headers["x-tutti-timestamp"]
    assert abs(int(timestamp) - time.time()) < 60
    expected = hmac.new(b"shared", f"{timestamp}.{PAYLOAD.decode()}".encode(), hashlib.sha256).hexdigest()
    assert request.headers["x-tutti-signature"] == expected == signature_of("shared", timestamp, PAYLOAD)


@pytest.mark.parametrize("secret", [None, ""])
async def test_without_a_secret_nothing_is_signed(secret: str | None) -> None:
    async with serve(answer(200)) as receiver:
        await deliver(receiver.url(), PAYLOAD, webhook_id="w", secret=secret, allow=LOOPBACK)
    assert "x-tutti-signature" not in receiver.received[0].headers


@pytest.mark.parametrize(
    ("status", "retryable"), [(400, True), (404, True), (410, False), (429, True), (503, True)]
)
async def test_any_status_but_2xx_is_a_failure(status: int, retryable: bool) -> None:
    async with serve(answer(status)) as receiver:
        delivery = await deliver(receiver.url(), PAYLOAD, webhook_id="w", secret=None, allow=LOOPBACK)
    assert delivery == Delivery(False, status, f"the receiver answered {status}", retryable)


async def test_a_redirect_is_not_followed() -> None:
    async with serve(answer(200)) as other, serve(answer(307, b"", f"Location: {other.url()}")) as receiver:
        delivery = await deliver(receiver.url(), PAYLOAD, webhook_id="w", secret="s", allow=LOOPBACK)
    assert (delivery.ok, delivery.status) == (False, 307)
    assert other.received == []


async def test_a_private_address_is_refused_for_good() -> None:
    async with serve(answer(200)) as receiver:
        delivery = await deliver(receiver.url(), PAYLOAD, webhook_id="w", secret=None)
    assert (delivery.ok, delivery.status, delivery.retryable) == (False, 0, False)
    assert receiver.received == []


async def test_nobody_there_is_worth_another_try() -> None:
    async with serve(answer(200)) as receiver:
        pass
    delivery = await deliver(receiver.url(), PAYLOAD, webhook_id="w", secret=None, allow=LOOPBACK)
    assert (delivery.ok, delivery.status, delivery.retryable) == (False, 0, True)
    assert delivery.error


async def test_a_receiver_that_says_yes_and_talks_on_for_ever_has_received() -> None:
    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
        await writer.drain()
        await asyncio.Event().wait()

    async with serve(handler) as receiver:
        delivery = await deliver(receiver.url(), PAYLOAD, webhook_id="w", secret=None, allow=LOOPBACK)
    assert delivery.ok


async def test_a_receiver_that_never_answers_is_given_up() -> None:
    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with serve(handler) as receiver:
        delivery = await deliver(
            receiver.url(), PAYLOAD, webhook_id="w", secret=None, allow=LOOPBACK, timeout_s=0.1
        )
    assert (delivery.ok, delivery.retryable) == (False, True)
    assert "did not answer" in delivery.error
