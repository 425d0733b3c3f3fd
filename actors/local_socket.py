"""Exchange between an orchestrator and a replica on the same node, without Ray in between.

A Ray actor call costs about a millisecond of CPU; a frame on a unix socket a twentieth of that. The messages
are those of
`Replica.exchange`; only the way is shorter, and where it breaks the Ray call remains. The socket has an
abstract name
(Linux: no file, gone with its process) and opens to nobody without the key, which travels through Ray.

Frame: 4 bytes length of the body, 4 bytes number of the request, body. The first body of a connection is the
key.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import cast

__all__ = ["SocketAddress", "SocketClient", "SocketServer"]

_HEADER = struct.Struct("!II")
_MAX_BODY_BYTES = 1 << 30

SocketAddress = tuple[str, str]
"""(abstract name without its leading zero byte, key)."""


class _Framed(asyncio.Protocol):
    """Cuts a stream into frames."""

    def __init__(
        self, on_frame: Callable[[_Framed, int, bytes], None], on_close: Callable[[_Framed], None]
    ) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_admitted = False
        self._on_frame = on_frame
        self._on_close = on_close
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport. uvloop's is no asyncio.Transport by class, only by what it does."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand out every whole frame."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _HEADER.size:
            length, number = _HEADER.unpack_from(buffer, start)
            if length > _MAX_BODY_BYTES:
                self.close()
                return
            end = start + _HEADER.size + length
            if len(buffer) < end:
                break
            body = bytes(buffer[start + _HEADER.size : end])
            start = end
            self._on_frame(self, number, body)
        del buffer[:start]

    def connection_lost(self, _exc: Exception | None) -> None:
        """Tell the owner."""
        self._on_close(self)

    def send(self, number: int, body: bytes) -> None:
        """Write a frame; on a closed connection nothing happens."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(_HEADER.pack(len(body), number) + body)

    def close(self) -> None:
        """Close the connection."""
        if self.transport is not None:
            self.transport.close()


class SocketServer:
    """The replica's end."""

    def __init__(self, exchange: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._exchange = exchange
        self._key = secrets.token_hex(32)
        self._name = f"tutti-{secrets.token_hex(12)}"
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> SocketAddress | None:
        """Listen; None where the system has no abstract sockets."""
        if sys.platform != "linux":
            return None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"\0{self._name}")
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Framed(self._take, lambda _protocol: None), sock=listener
        )
        return (self._name, self._key)

    def _take(self, connection: _Framed, number: int, body: bytes) -> None:
        if not connection.is_admitted:
            connection.is_admitted = hmac.compare_digest(body, self._key.encode())
            if not connection.is_admitted:
                connection.close()
            return
        task = asyncio.get_running_loop().create_task(self._answer(connection, number, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, connection: _Framed, number: int, body: bytes) -> None:
        connection.send(number, await self._exchange(body))


class SocketClient:
    """The orchestrator's end. One connection, any number of exchanges at a time."""

    def __init__(self, address: SocketAddress) -> None:
        self._address = address
        self._connection: _Framed | None = None
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._number = 0

    async def exchange(self, message: bytes) -> bytes:
        """Send a message and wait for the answer.

        Raises:
            ConnectionError: The connection broke; the message may or may not have arrived.
        """
        connection = self._connection or await self._connect()
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        connection.send(number, message)
        try:
            return await answer
        finally:
            self._answers.pop(number, None)

    async def _connect(self) -> _Framed:
        name, key = self._address
        loop = asyncio.get_running_loop()
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line.setblocking(False)
        await loop.sock_connect(line, f"\0{name}")
        _, connection = await loop.create_unix_connection(lambda: _Framed(self._take, self._lose), sock=line)
        connection.send(0, key.encode())
        self._connection = connection
        return connection

    def _take(self, _connection: _Framed, number: int, body: bytes) -> None:
        answer = self._answers.get(number)
        if answer is not None and not answer.done():
            answer.set_result(body)

    def _lose(self, _connection: _Framed) -> None:
        self._connection = None
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError("the replica closed the connection"))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
