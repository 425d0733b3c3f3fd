"""The service as a client sees it: a thin HTTP client for the command line and the demo.

It speaks the documented API only, so that what it can do any client can. It turns answers into the core's
errors and refuses to know how anything looks.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import orjson

from cluster.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    LimitExceeded,
    NotFound,
    TuttiError,
    Unauthenticated,
    Unavailable,
)
from cluster.lifecycle.run_status import RunStatus

__all__ = ["ApiClient", "is_over", "read_task_input"]

_ERROR_BY_STATUS: dict[int, type[TuttiError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: InvalidInput,
    422: InvalidInput,
    429: LimitExceeded,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
_STATUSES_OF_PROXIES = (404, 500, 502, 503, 504)
"""What a proxy before us answers while there is no service behind it."""
_TYPE_BY_SUFFIX = {
    ".json": "json",
    ".txt": "text",
    ".md": "text",
    ".csv": "text",
    ".tsv": "text",
    ".png": "image",
    ".jpg": "image",
    ".jpeg": "image",
    ".webp": "image",
    ".bmp": "image",
    ".gif": "image",
    ".mp4": "video",
    ".avi": "video",
    ".mov": "video",
    ".wav": "audio",
    ".mp3": "audio",
}
_KEEPALIVE_LIMIT_S = 45.0
"""The service sends a sign of life every 15 s."""
_RECONNECT_S = 0.5
_GIVE_UP_S = 60.0


class ApiClient:
    """One service.

    Args:
        url: `http://host:port`.
        token: For `Authorization: Bearer`; "" for none.
        api_key: For `X-API-Key`; "" for none.
    """

    def __init__(self, url: str, token: str = "", api_key: str = "") -> None:
        self._url = url.rstrip("/")
        headers = {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if api_key:
            headers["X-API-Key"] = api_key
        try:
            self._http = httpx.Client(base_url=self._url, headers=headers, timeout=30.0, trust_env=False)
        except httpx.InvalidURL as error:
            raise InvalidInput(f"{url} is not a URL: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def submit_task(self, body: dict[str, Any]) -> str:
        """Submit a task of document 000; return its id."""
        return str(self._ask("POST", "/api/v1/tasks", body)["task_id"])

    def get_task(self, run_id: str) -> dict[str, Any]:
        """Read a Run in the words of document 000."""
        return self._ask("GET", f"/api/v1/tasks/{run_id}")

    def submit_run(self, body: dict[str, Any]) -> str:
        """Submit a Plan (`{"plan": …}`); return the Run's id."""
        return str(self._ask("POST", "/api/v1/runs", body)["run_id"])

    def get_run(self, run_id: str) -> dict[str, Any]:
        """Read a Run of any dialect, with its Steps."""
        return self._ask("GET", f"/api/v1/runs/{run_id}")

    def cancel_run(self, run_id: str, reason: str = "") -> dict[str, Any]:
        """Cancel a Run."""
        return self._ask("POST", f"/api/v1/runs/{run_id}/cancel", {"reason": reason})

    def list_runs(self, statuses: Sequence[str], limit: int, cursor: str | None = None) -> dict[str, Any]:
        """List Runs, newest first: `{"runs": […], "next_cursor": …}`."""
        query: list[tuple[str, str | int | float | bool | None]] = [("limit", limit)]
        query += [("status", status) for status in statuses]
        if cursor:
            query.append(("cursor", cursor))
        return self._ask("GET", "/api/v1/runs", query=query)

    def why(self, run_id: str) -> dict[str, Any]:
        """Ask why Steps of a Run wait: `{"run_id", "status", "waits": […]}`."""
        return self._ask("GET", f"/api/v1/runs/{run_id}/why")

    def list_pools(self) -> dict[str, Any]:
        """List pools: `{"pools": […], "at": …}`."""
        return self._ask("GET", "/api/v1/pools")

    def put_pool(self, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        """Declare a pool, or change one."""
        return self._ask("PUT", f"/api/v1/pools/{quote(name, safe='')}", spec)

    def remove_pool(self, name: str) -> None:
        """Remove a pool."""
        self._ask("DELETE", f"/api/v1/pools/{quote(name, safe='')}")

    def list_limits(self) -> dict[str, Any]:
        """List limited keys: `{"limits": […]}`."""
        return self._ask("GET", "/api/v1/limits")

    def put_limit(self, key: str, spec: dict[str, Any]) -> dict[str, Any]:
        """Limit a key, or change its limit."""
        return self._ask("PUT", f"/api/v1/limits/{quote(key, safe='')}", spec)

    def remove_limit(self, key: str) -> None:
        """Free a key."""
        self._ask("DELETE", f"/api/v1/limits/{quote(key, safe='')}")

    def capacity(self) -> dict[str, Any]:
        """Read nodes, devices, who holds them, and what waits."""
        return self._ask("GET", "/api/v1/capacity")

    def follow(self, run_id: str, last_seq: int = 0) -> Iterator[dict[str, Any]]:
        """Yield what happens to a Run, each event once and in order, until it has ended.

        A lost connection is taken up again after the last event that was seen.

        Raises:
            Unavailable: The service stayed away for a minute.
        """
        heard_at = time.monotonic()
        while True:
            try:
                for event in self._events(run_id, last_seq):
                    heard_at = time.monotonic()
                    last_seq = int(event["seq"])
                    yield event
                    if is_over(event["status"]) and event["type"] == f"run.{event['status']}":
                        return
                if is_over(self.get_run(run_id)["status"]):
                    return
            except (Unavailable, httpx.TransportError) as error:
                if time.monotonic() - heard_at > _GIVE_UP_S:
                    raise Unavailable(f"{self._url} does not answer any more") from error
            time.sleep(_RECONNECT_S)

    def _events(self, run_id: str, last_seq: int) -> Iterator[dict[str, Any]]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last_seq)}
        limits = httpx.Timeout(10.0, read=_KEEPALIVE_LIMIT_S)
        path = f"/api/v1/runs/{run_id}/events"
        with self._http.stream("GET", path, headers=headers, timeout=limits) as response:
            if response.status_code >= 400:
                response.read()
                raise _error_of(response)
            for line in response.iter_lines():
                if line.startswith("data:"):
                    yield orjson.loads(line.removeprefix("data:"))

    def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        query: list[tuple[str, str | int | float | bool | None]] | None = None,
    ) -> dict[str, Any]:
        content = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": "application/json"} if content is not None else {}
        try:
            response = self._http.request(method, path, content=content, headers=headers, params=query)
        except httpx.ConnectError:
            raise Unavailable(f"no service answers at {self._url}; start one with `tutti up`") from None
        except httpx.UnsupportedProtocol:
            raise InvalidInput(f"{self._url} is not a URL: it must begin with http:// or https://") from None
        except httpx.TimeoutException:
            raise Unavailable(f"{self._url} does not answer in time") from None
        except httpx.TransportError as error:
            raise Unavailable(f"{self._url} broke the connection: {error}") from None
        if response.status_code >= 400:
            raise _error_of(response)
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise Unavailable(f"{self._url} is not this service: its answer is no JSON") from None
        if not isinstance(answer, dict):
            raise Unavailable(f"{self._url} is not this service: its answer is no JSON object")
        return answer


def is_over(status: str) -> bool:
    """Whether nothing more happens to a Run of this status; a word that is new to us counts as going on."""
    return status in {known.value for known in RunStatus if known.is_terminal}


def read_task_input(path: Path, input_id: str) -> dict[str, Any]:
    """Read a file as an input of document 000; its type follows from the name's ending.

    Raises:
        InvalidInput: The file cannot be read, or is not what its ending says.
    """
    kind = _TYPE_BY_SUFFIX.get(path.suffix.lower(), "binary")
    try:
        content = path.read_bytes()
        data: Any
        if kind == "json":
            data = orjson.loads(content)
        elif kind == "text":
            data = content.decode("utf-8")
        else:
            data = base64.b64encode(content).decode("ascii")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"{path} is not JSON: {error}") from None
    except UnicodeDecodeError:
        # Other encodings are the service's business: it looks for the one the bytes are in.
        kind, data = "binary", base64.b64encode(content).decode("ascii")
    return {"input_id": input_id, "type": kind, "data": data, "metadata": {"filename": path.name}}


def _error_of(response: httpx.Response) -> TuttiError:
    kind = _ERROR_BY_STATUS.get(response.status_code, TuttiError)
    message = _message_of(response)
    if message is None:
        message = response.reason_phrase or "no reason given"
        if response.status_code in _STATUSES_OF_PROXIES:
            return Unavailable(
                f"the service is not there at the moment (HTTP {response.status_code}: {message})"
            )
    if kind is TuttiError:
        message = f"HTTP {response.status_code}: {message}"
    return kind(message)


def _message_of(response: httpx.Response) -> str | None:
    """Read what the service says is wrong; None where it is not the service that speaks."""
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return None
    for candidate in (body.get("error"), body.get("detail")) if isinstance(body, dict) else ():
        if isinstance(candidate, dict):
            candidate = candidate.get("message") or candidate.get("error")  # noqa: PLW2901 - a form of the same
        if isinstance(candidate, str) and candidate:
            return candidate.splitlines()[0]
    return None
