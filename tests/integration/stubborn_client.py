"""HTTP clients that do what the documentation asks of them: the same id again until there is an answer.

They run in threads and go on through the death of whatever answers them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import httpx
import msgspec

from cluster.model.plan import Submission

__all__ = ["Answer", "StubbornClient", "answers"]

_PAUSE_S = 0.1
_AGAIN = frozenset({429, 502, 503, 504})


class Answer(NamedTuple):
    """The final answer to a request, and what went before it.

    Attributes:
        broken: Errors of connections that broke under the request, in order.
        put_off: Statuses that asked to come again, or were not the service's own.
    """

    status: int
    body: dict[str, Any]
    broken: list[str]
    put_off: list[int]


class StubbornClient:
    """A pool of clients, each with connections of its own.

    Args:
        url: Of the service.
        num_threads: Requests at a time.
        give_up_s: How long a request is repeated.
    """

    def __init__(self, url: str, num_threads: int, give_up_s: float = 120.0) -> None:
        self.num_answered = 0
        self._url = url
        self._give_up_s = give_up_s
        self._own = threading.local()
        self._opened: list[httpx.Client] = []
        self._threads = ThreadPoolExecutor(num_threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for client in self._opened:
            client.close()

    def submit(self, submission: Submission) -> Future[Answer]:
        body = {
            "plan": msgspec.to_builtins(submission.plan),
            "inputs": submission.inputs,
            "run_id": submission.run_id,
        }
        return self._threads.submit(self._ask, "/api/v1/runs", body, {})

    def cancel(self, run_id: str, reason: str) -> Future[Answer]:
        path, headers = f"/api/v1/runs/{run_id}/cancel", {"Idempotency-Key": f"cancel-{run_id}"}
        return self._threads.submit(self._ask, path, {"reason": reason}, headers)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run something else in one of the threads."""
        return self._threads.submit(function, *arguments)

    def _ask(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        broken: list[str] = []
        put_off: list[int] = []
        deadline = time.monotonic() + self._give_up_s
        while True:
            try:
                response = self._client().post(path, json=body, headers=headers)
            except httpx.TransportError as error:
                broken.append(repr(error))
                if time.monotonic() > deadline:
                    raise
            else:
                if not _asks_again(response) or time.monotonic() > deadline:
                    self.num_answered += 1
                    return Answer(response.status_code, response.json(), broken, put_off)
                put_off.append(response.status_code)
            time.sleep(_PAUSE_S)

    def _client(self) -> httpx.Client:
        client: httpx.Client | None = getattr(self._own, "client", None)
        if client is None:
            client = self._own.client = httpx.Client(base_url=self._url, timeout=10.0, trust_env=False)
            self._opened.append(client)
        return client


def _asks_again(response: httpx.Response) -> bool:
    """Whether it is no final answer; the proxy of a service that starts has a 404 of its own, as plain text."""
    is_ours = response.headers.get("content-type", "").startswith("application/json")
    return response.status_code in _AGAIN or not is_ours


def answers(futures: Sequence[Future[Answer]], within_s: float) -> list[Answer]:
    """Wait for all."""
    deadline = time.monotonic() + within_s
    return [future.result(max(deadline - time.monotonic(), 0.0)) for future in futures]
