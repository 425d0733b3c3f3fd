"""All that a Redis holds, as values that compare."""

from __future__ import annotations

from collections.abc import Callable

import redis as sync_redis

__all__ = ["contents_of"]


def contents_of(client: sync_redis.Redis) -> dict[bytes, object]:
    """Read every key; equal contents give equal values, whatever the encoding inside the server."""
    read: dict[bytes, Callable[[bytes], object]] = {
        b"hash": client.hgetall,
        b"stream": client.xrange,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"set": client.smembers,
        b"string": client.get,
    }
    return {key: read[client.type(key)](key) for key in client.scan_iter(count=1000)}  # type: ignore[index]
