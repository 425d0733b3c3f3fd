"""HTTP clients that do what the documentation asks of them: the same id again until there is an answer.

They run in threads and go on through the death of whatever answers them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import httpx
import msgspec

from cluster.model.plan import Submission
from serve_app.launch.haproxy_start import MESSAGE

__all__ = ["Answer", "Story", "StubbornClient", "answers"]

_PAUSE_S = 0.1
_ENDS = frozenset({"run.succeeded", "run.failed", "run.cancelled"})
_AGAIN = frozenset({429, 503})


class Answer(NamedTuple):
    """The final answer to a request, and what went before it.

    Attributes:
        broken: When it was sent (monotonic) to nobody: the connection broke, or the proxy answered for a
            service that is not there. With the error.
        put_off: Statuses by which the service asked to come again.
    """

    status: int
    body: dict[str, Any]
    broken: list[tuple[float, str]]
    put_off: list[int]


class Story:
    """What a follower of a Run has seen, while it sees it.

    Attributes:
        seqs: Numbers of the events, in the order they came.
        types: Their types.
        num_connections: How often it had to begin, the first time included.
    """

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.types: list[str] = []
        self.num_connections = 0

    @property
    def is_over(self) -> bool:
        return bool(self.types) and self.types[-1] in _ENDS


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

    def follow(self, run_id: str) -> tuple[Story, Future[None]]:
        """Follow a Run to its end; a broken stream is taken up after the last event that came."""
        story = Story()
        return story, self._threads.submit(self._follow, run_id, story)

    def _follow(self, run_id: str, story: Story) -> None:
        deadline = time.monotonic() + self._give_up_s
        path = f"/api/v1/runs/{run_id}/events"
        while not story.is_over:
            story.num_connections += 1
            headers = {"Last-Event-ID": str(story.seqs[-1])} if story.seqs else {}
            try:
                with self._client().stream("GET", path, headers=headers) as response:
                    if response.status_code in _AGAIN and time.monotonic() < deadline:
                        time.sleep(_PAUSE_S)
                        continue
                    response.raise_for_status()
                    for line in response.iter_lines():
                        if line.startswith("data: "):
                            event = msgspec.json.decode(line.removeprefix("data: "))
                            story.seqs.append(event["seq"])
                            story.types.append(event["type"])
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)

    def _ask(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        broken: list[tuple[float, str]] = []
        put_off: list[int] = []
        deadline = time.monotonic() + self._give_up_s
        while True:
            sent_at = time.monotonic()
            try:
                response = self._client().post(path, json=body, headers=headers)
            except httpx.TransportError as error:
                broken.append((sent_at, repr(error)))
                if time.monotonic() > deadline:
                    raise
            else:
                is_ours = MESSAGE not in response.text
                if is_ours and (response.status_code not in _AGAIN or time.monotonic() > deadline):
                    self.num_answered += 1
                    return Answer(response.status_code, response.json(), broken, put_off)
                if is_ours:
                    put_off.append(response.status_code)
                else:
                    broken.append((sent_at, f"{response.status_code} {response.text[:80]}"))
            time.sleep(_PAUSE_S)

    def _client(self) -> httpx.Client:
        client: httpx.Client | None = getattr(self._own, "client", None)
        if client is None:
            client = self._own.client = httpx.Client(base_url=self._url, timeout=10.0, trust_env=False)
            self._opened.append(client)
        return client


def answers(futures: Sequence[Future[Answer]], within_s: float) -> list[Answer]:
    """Wait for all."""
    deadline = time.monotonic() + within_s
    return [future.result(max(deadline - time.monotonic(), 0.0)) for future in futures]
