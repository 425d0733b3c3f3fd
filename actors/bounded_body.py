"""A response body that never grows past its limit, not even while it is being decompressed.

The usual decoders turn one chunk from the network into as many bytes as it holds: 64 KiB can become 64 MiB
before anyone looks. Here zlib is told how much room is left. Codings other than gzip and deflate are refused,
since we never ask for them.
"""

from __future__ import annotations

import zlib

from cluster.errors import StepError

__all__ = ["BoundedBody"]

_MAX_GZIP_MEMBERS = 64
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class BoundedBody:
    """Collects chunks, decoded, up to a limit.

    Args:
        content_encoding: The header's value, "" for none.
        limit_bytes: Of the decoded body, and of the body as sent.
        origin: Who sent it, for messages.
    """

    def __init__(self, content_encoding: str, limit_bytes: int, origin: str) -> None:
        self._coding = content_encoding.strip().lower()
        self._limit_bytes = limit_bytes
        self._origin = origin
        self._content = bytearray()
        self._num_raw_bytes = 0
        self._num_members = 0
        self._inflater: zlib._Decompress | None = None
        if self._coding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
            raise StepError(f"{origin} answered in a content coding that was not asked for")

    def feed(self, chunk: bytes) -> None:
        """Take one chunk as it came from the network.

        Raises:
            StepError: The limit is passed, or the compressed data is damaged.
        """
        self._num_raw_bytes += len(chunk)
        if self._num_raw_bytes > self._limit_bytes:
            raise self.too_large()
        if self._coding in {"", "identity"}:
            self._content += chunk
            return
        try:
            self._inflate(chunk)
        except zlib.error:
            raise StepError(f"{self._origin} answered with damaged {self._coding} data") from None

    def finish(self) -> bytes:
        """Return the whole body.

        Raises:
            StepError: The compressed data ended too early; retryable, since the connection may be to blame.
        """
        if self._inflater is not None and not self._inflater.eof:
            raise StepError(f"{self._origin} broke off in the middle of its answer", retryable=True)
        return bytes(self._content)

    def too_large(self) -> StepError:
        """The error for a body over the limit; not retryable, it would be as large again."""
        return StepError(
            f"{self._origin} answered with more than {self._limit_bytes} bytes", limit_bytes=self._limit_bytes
        )

    def _inflate(self, data: bytes) -> None:
        while data:
            if self._inflater is None or self._inflater.eof:
                if self._inflater is not None and self._coding == "deflate":
                    raise zlib.error("data after the end")
                self._inflater = self._start(data)
            room_bytes = self._limit_bytes - len(self._content)
            # One byte more than there is room for: that it comes out is the proof of too much.
            self._content += self._inflater.decompress(data, room_bytes + 1)
            if len(self._content) > self._limit_bytes:
                raise self.too_large()
            # With room left nothing stays unconsumed, so the rest can only be the next gzip member.
            data = self._inflater.unused_data

    def _start(self, data: bytes) -> zlib._Decompress:
        self._num_members += 1
        if self._num_members > _MAX_GZIP_MEMBERS:
            # Each member costs a copy of the rest of its chunk: thousands of tiny ones would hold the loop.
            raise zlib.error("too many members")
        if self._coding != "deflate":
            return zlib.decompressobj(_GZIP_WINDOW)
        # "deflate" means the zlib format, yet some servers send the bare stream. Source: RFC 9110, 8.4.1.2.
        is_zlib = data[0] & 0x0F == 8 and data[0] >> 4 <= 7
        return zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
