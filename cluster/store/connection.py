"""How a process reaches Redis, and how Redis's absence reads to callers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import hiredis
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, RedisError
from redis.exceptions import ConnectionError as BrokenConnection
from redis.exceptions import TimeoutError as NoAnswer

from cluster.errors import LimitExceeded, Unavailable

__all__ = ["connect_redis", "redis_errors_as_ours"]

_MAX_CONNECTIONS = 32
_CONNECT_TIMEOUT_S = 2.0


class _PackedInC:
    """Packs commands with hiredis: a commit has thousands of arguments, and redis-py's loop over them is a
    tenth of an orchestrator's time.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        """Pack one command; its name may have two words."""
        name, *rest = args
        words = name.split(" ") if isinstance(name, str) else [name]
        return [hiredis.pack_command((*words, *rest))]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """Pack a pipeline."""
        return [b"".join([self.pack_command(*command)[0] for command in commands])]


class _TcpConnection(_PackedInC, Connection):
    pass


class _TlsConnection(_PackedInC, SSLConnection):
    pass


class _UnixConnection(_PackedInC, UnixDomainSocketConnection):
    pass


_PACKED: dict[type, type[AbstractConnection]] = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


def connect_redis(url: str, socket_timeout_s: float | None = 10.0, *, is_shared: bool = False) -> Redis:
    """Make a client with its own small pool.

    Args:
        url: redis://, rediss:// or unix://.
        socket_timeout_s: Limit of one command; None for connections that block on purpose.
        is_shared: Many callers at a time: they wait for one of a few connections. It costs each command a
            lock, so that who has few callers does without.

    A command is tried twice: every script may be repeated (ids, digests and commit numbers make it safe), so
    a broken connection is replaced without the caller noticing; a server that is away is reported at once.
    """
    options: dict[str, Any] = {
        "socket_timeout": socket_timeout_s,
        "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        "retry": Retry(ConstantBackoff(0.05), 1),
        "retry_on_error": [BrokenConnection, NoAnswer],
    }
    if is_shared:
        waiting = BlockingConnectionPool.from_url(
            url, max_connections=_MAX_CONNECTIONS, timeout=5.0, **options
        )
        return Redis.from_pool(_packed(waiting))  # unlike a pool handed to Redis(), closed with its client
    return Redis.from_pool(_packed(ConnectionPool.from_url(url, **options)))


def _packed(pool: ConnectionPool) -> ConnectionPool:
    """Let a pool make connections that pack in C."""
    pool.connection_class = _PACKED[pool.connection_class]
    return pool


@contextmanager
def redis_errors_as_ours() -> Iterator[None]:
    """Turn what redis-py raises into the errors of this project.

    Raises:
        LimitExceeded: Redis is at its memory limit.
        Unavailable: Redis cannot be reached, is loading, or does not answer.
    """
    try:
        yield
    except OutOfMemoryError as error:
        raise LimitExceeded("the store is full", retry_after_s=5.0) from error
    except BusyLoadingError as error:
        raise Unavailable("the store is loading its data", retry_after_s=2.0) from error
    except (RedisError, OSError) as error:
        if "OOM command not allowed" in str(error):  # Redis 6.2 wraps what a script meets in its own words
            raise LimitExceeded("the store is full", retry_after_s=5.0) from error
        if "MISCONF" in str(error) or "No space left" in str(error):
            raise Unavailable("the store cannot write to its disk", retry_after_s=5.0) from error
        raise Unavailable("the store cannot be reached", retry_after_s=1.0) from error
