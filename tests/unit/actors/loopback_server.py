"""A real HTTP/1.1 server on loopback that answers what a test tells it, byte for byte."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

__all__ = ["Received", "Server", "answer", "serve"]

LOOPBACK = ("127.0.0.0/8", "::1")


@dataclass
class Received:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """Where the server listens and what it got."""

    port: int
    received: list[Received] = field(default_factory=list)

    def url(self, path: str = "/", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


Handler = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def answer(status: int, body: bytes = b"", *lines: str) -> bytes:
    """Build a whole response."""
    head = [f"HTTP/1.1 {status} Answer", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


@asynccontextmanager
async def serve(
    handler: Handler | bytes, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Serve until the block ends: a fixed response, or whatever the handler writes."""
    server_info: Server
    handlers: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        current = asyncio.current_task()
        assert current is not None
        handlers.add(current)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            request = Received(method, path, headers, body)
            server_info.received.append(request)
            if isinstance(handler, bytes):
                writer.write(handler)
            else:
                await handler(request, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            handlers.discard(current)
            writer.close()

    server = await asyncio.start_server(connected, host, 0, ssl=tls)
    server_info = Server(server.sockets[0].getsockname()[1])
    try:
        yield server_info
    finally:
        server.close()
        for handler_task in list(handlers):
            handler_task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
