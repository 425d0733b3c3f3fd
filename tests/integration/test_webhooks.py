"""A webhook is delivered once for each Run, whatever dies between the Run's end and the receiver's answer."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest

from cluster.store.keys import PartitionKeys
from tests.integration.plans import one_step
from tests.integration.running_service import RunningService, eventually

_SECRET = "a secret of at least some length"
SETTINGS: dict[str, Any] = {"egress_allow": ("127.0.0.0/8",), "webhook_secret": _SECRET}


class Receiver:
    """A real HTTP server that remembers what it was sent.

    Attributes:
        bodies: Decoded bodies of what it took, in order.
        refusing: Whether it answers 503 for now.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.num_forged = 0
        self.num_refused = 0
        self.refusing = False
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        signed = handler.headers["X-Tutti-Timestamp"].encode() + b"." + body
        expected = hmac.new(_SECRET.encode(), signed, hashlib.sha256).hexdigest()
        self.num_forged += handler.headers["X-Tutti-Signature"].removeprefix("sha256=") != expected
        if self.refusing:
            self.num_refused += 1
        else:
            self.ids.append(handler.headers["X-Tutti-Webhook-Id"])
            self.bodies.append(orjson.loads(body))
        handler.send_response(503 if self.refusing else 204)
        handler.end_headers()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()
    assert not receiver.num_forged


def test_webhook_is_delivered_once_for_each_run_with_its_end(
    service: RunningService, receiver: Receiver
) -> None:
    good = [service.submit(one_step("noop", {"n": n}), webhook_url=receiver.url) for n in range(20)]
    bad = service.submit(one_step("fail", {"message": "no"}), webhook_url=receiver.url)

    service.await_ended([*good, bad])
    eventually(lambda: len(receiver.bodies) >= 21, "all are delivered")
    service.await_nothing_left()

    assert Counter(body["run_id"] for body in receiver.bodies) == Counter([*good, bad])
    assert len(set(receiver.ids)) == 21
    by_run = {body["run_id"]: body for body in receiver.bodies}
    assert by_run[good[7]]["status"] == "succeeded"
    assert by_run[good[7]]["output"] == {"n": 7}
    assert by_run[bad]["status"] == "failed"
    assert by_run[bad]["error"]["message"] == "no"


def test_webhook_of_a_run_that_ends_while_the_scheduler_is_dead_is_delivered_by_the_next_one(
    service: RunningService, receiver: Receiver
) -> None:
    warm = service.submit(one_step("noop"))
    service.await_ended([warm])
    old_pid = service.actor_pid("Scheduler")

    service.kill(old_pid)
    run_id = service.submit(one_step("noop"), webhook_url=receiver.url)
    service.await_ended([run_id])

    eventually(lambda: receiver.bodies, "it is delivered")
    service.await_nothing_left()
    assert [body["run_id"] for body in receiver.bodies] == [run_id]
    assert service.actor_pid("Scheduler") != old_pid


def test_refused_webhook_stays_in_the_outbox_and_is_delivered_later(
    service: RunningService, receiver: Receiver
) -> None:
    receiver.refusing = True
    run_id = service.submit(one_step("noop"), webhook_url=receiver.url)
    service.await_ended([run_id])
    names: PartitionKeys = service.names_of(run_id)
    eventually(lambda: receiver.num_refused, "it was tried")

    def failures() -> int:
        raw = service.redis.hget(names.webhooks, run_id)
        return int(orjson.loads(raw)["failures"]) if isinstance(raw, bytes) else 0

    eventually(lambda: failures() == 1, "the failure is noted")
    receiver.refusing = False

    eventually(lambda: receiver.bodies, "it is delivered")
    assert [body["run_id"] for body in receiver.bodies] == [run_id]
