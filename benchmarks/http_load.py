"""Load over HTTP: wrk where it is installed, and a light asynchronous client that follows Runs to their end.

The client speaks just enough HTTP/1.1 for this: one connection a worker, kept alive, chunked streams scanned
for the terminal status. A client library would cost more than the service.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson
import uvloop

from benchmarks.work import MeasurementFailed, percentile

__all__ = ["Load", "follow_runs", "has_wrk", "post_for", "post_runs"]

_TERMINAL = re.compile(rb'"status":"(succeeded|failed|cancelled)"')
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"transfer-encoding: *chunked", re.IGNORECASE)
_SILENCE_S = 60.0
_END_OF_CHUNKS = b"0\r\n\r\n"
_UNIT_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


class Load(NamedTuple):
    """What a load gave.

    Attributes:
        per_s: Answers (or ended Runs) a second.
        num_done: How many.
        num_errors: Answers other than 2xx, broken connections, Runs that did not succeed.
        p50_ms: Median latency.
        p95_ms: 95th percentile; NaN where wrk did not tell.
        client_cpu: Share of a core the client used; NaN where it was wrk.
    """

    per_s: float
    num_done: int
    num_errors: int
    p50_ms: float
    p95_ms: float
    client_cpu: float


def has_wrk() -> bool:
    """Whether wrk is installed."""
    return shutil.which("wrk") is not None


def post_for(url: str, body: bytes, connections: int, seconds: float) -> Load:
    """POST the same body for a while, with wrk or, where it is not installed, with our own client."""
    if not has_wrk():
        return uvloop.run(post_runs(url, body, connections, seconds))
    script = (
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f"wrk.body = [==[{body.decode()}]==]\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--latency"]
        answer = subprocess.run(
            [*command, "-s", file.name, url], capture_output=True, text=True, check=True, timeout=seconds + 60
        )
    return _parse_wrk(answer.stdout)


def _parse_wrk(text: str) -> Load:
    """Read wrk's report."""
    requests = re.search(r"(\d+) requests in", text)
    per_s = re.search(r"Requests/sec:\s*([\d.]+)", text)
    half = re.search(r"50%\s*([\d.]+)(us|ms|s|m)\b", text)
    if requests is None or per_s is None or half is None:
        raise MeasurementFailed(f"wrk said something else: {text}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    errors = int(refused[1]) if refused else 0
    errors += sum(int(count) for count in broken.groups()) if broken else 0
    nan = float("nan")
    return Load(float(per_s[1]), int(requests[1]), errors, float(half[1]) * _UNIT_MS[half[2]], nan, nan)


class _Connection:
    """One kept-alive HTTP/1.1 connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._head = f" HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n".encode()

    async def _send(self, method: bytes, path: bytes, body: bytes) -> asyncio.StreamReader:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        rest = b"\r\n"
        if body:
            rest = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        self._writer.write(method + b" " + path + self._head + rest)
        return self._reader

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """POST and return status and body; status 0 where the connection broke."""
        try:
            reader = await self._send(b"POST", path.encode(), body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            return int(head[9:12]), await reader.readexactly(int(length[1])) if length else b""
        except (asyncio.IncompleteReadError, OSError):
            self.close()
            return 0, b""

    async def follow(self, path: str) -> tuple[bytes, float]:
        """GET a stream of events to its end.

        Returns:
            The status it ended with (b"" for none), and the instant that was read (perf_counter).
        """
        seen = b""
        status, ended_at = b"", 0.0
        try:
            reader = await self._send(b"GET", path.encode(), b"")
            head = await reader.readuntil(b"\r\n\r\n")
            if int(head[9:12]) != 200 or not _CHUNKED.search(head):
                self.close()
                return b"", time.perf_counter()
            while not seen.endswith(_END_OF_CHUNKS):
                data = await asyncio.wait_for(reader.read(65536), _SILENCE_S)
                seen += data
                found = None if status else _TERMINAL.search(seen)
                if found is not None:
                    status, ended_at = found[1], time.perf_counter()
                if not data:
                    self.close()
                    break
        except (asyncio.IncompleteReadError, OSError):  # TimeoutError among them
            self.close()
        return status, ended_at or time.perf_counter()

    def close(self) -> None:
        """Close; the next request opens another."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


_Work = Callable[[_Connection, list[float]], Awaitable[int]]


async def post_runs(url: str, body: bytes, connections: int, seconds: float) -> Load:
    """POST the same body for a while."""
    path = urlsplit(url).path
    deadline = time.perf_counter() + seconds

    async def work(connection: _Connection, took_ms: list[float]) -> int:
        errors = 0
        while (began := time.perf_counter()) < deadline:
            status, _ = await connection.post(path, body)
            took_ms.append((time.perf_counter() - began) * 1000)
            errors += not 200 <= status < 300
        return errors

    return await _with_workers(url, connections, work)


async def follow_runs(base_url: str, body: bytes, clients: int, count: int) -> Load:
    """Submit Runs and follow each by its event stream to its terminal status.

    Args:
        base_url: Of the service.
        body: A request for `/api/v1/runs`.
        clients: How many at a time, each with one connection.
        count: Runs in all.
    """
    numbers = iter(range(count))

    async def work(connection: _Connection, took_ms: list[float]) -> int:
        errors = 0
        for _ in numbers:
            began = time.perf_counter()
            status, answer = await connection.post("/api/v1/runs", body)
            if not 200 <= status < 300:
                errors += 1
                continue
            run_id = orjson.loads(answer)["run_id"]
            ended, ended_at = await connection.follow(f"/api/v1/runs/{run_id}/events")
            took_ms.append((ended_at - began) * 1000)
            errors += ended != b"succeeded"
        return errors

    return await _with_workers(base_url, clients, work)


async def _with_workers(url: str, count: int, work: _Work) -> Load:
    """Let workers share the load, each on its own connection."""
    connections = [_Connection(url) for _ in range(count)]
    took_ms: list[float] = []
    began, cpu_before_s = time.perf_counter(), time.process_time()
    results: list[int] = await asyncio.gather(*[work(each, took_ms) for each in connections])
    wall_s = time.perf_counter() - began
    cpu = (time.process_time() - cpu_before_s) / wall_s
    for connection in connections:
        connection.close()
    return Load(
        len(took_ms) / wall_s,
        len(took_ms),
        sum(results),
        percentile(took_ms, 50),
        percentile(took_ms, 95),
        cpu,
    )
