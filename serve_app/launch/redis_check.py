"""What a Redis that somebody else runs must be like before Runs are entrusted to it.

It looks and refuses; it never changes a setting of a server that is not ours.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.errors import LaunchFailed
from cluster.settings import REDIS_MIN_VERSION, mask_url

__all__ = ["RedisFacts", "check_redis", "read_version"]


class RedisFacts(msgspec.Struct, frozen=True):
    """What was found.

    Attributes:
        version: The server's, as numbers.
        warnings: One line each: what will work but is not wise.
    """

    version: tuple[int, ...]
    warnings: tuple[str, ...] = ()


def check_redis(
    url: str, durability: str, timeout_s: float = 5.0, loading_wait_s: float = 60.0
) -> RedisFacts:
    """Check the server behind a URL.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        durability: `strict` or `everysec`; what the server's own settings fall short of becomes a warning.
        timeout_s: Limit for connecting and for each answer.
        loading_wait_s: How long a server may go on reading its data.

    Raises:
        LaunchFailed: It cannot be reached, is too old, is a replica or a cluster, or may throw keys away.
    """
    shown = mask_url(url)
    client = redis.Redis.from_url(
        url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
    )
    try:
        info = _info_when_loaded(client, loading_wait_s)
        fsync = _config(client, "appendfsync")
    except redis.AuthenticationError as error:
        raise LaunchFailed(f"Redis at {shown} refuses the credential: {error}") from None
    except redis.BusyLoadingError:
        raise LaunchFailed(f"Redis at {shown} is still loading its data after {loading_wait_s:g} s") from None
    except redis.RedisError as error:
        raise LaunchFailed(f"Redis at {shown} cannot be used: {_one_line(error)}") from None
    finally:
        client.close()
    return _judge(info, fsync, durability, shown)


def read_version(text: str) -> tuple[int, ...]:
    """Read "7.0.15" as (7, 0, 15); what is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))


def _judge(info: dict[str, Any], fsync: str, durability: str, shown: str) -> RedisFacts:
    version = read_version(str(info.get("redis_version", "0")))
    if version[:2] < REDIS_MIN_VERSION:
        needed = ".".join(map(str, REDIS_MIN_VERSION))
        raise LaunchFailed(f"Redis at {shown} is {info.get('redis_version')}, needed is {needed} or newer")
    if info.get("role") != "master":
        raise LaunchFailed(f"Redis at {shown} is a replica; name its primary")
    if info.get("redis_mode") == "cluster" or info.get("cluster_enabled"):
        raise LaunchFailed(f"Redis at {shown} is a cluster; one primary is needed")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction" and info.get("maxmemory"):
        raise LaunchFailed(
            f"Redis at {shown} may evict accepted Runs ({policy}); set maxmemory-policy noeviction"
        )
    warnings = []
    if policy != "noeviction":
        warnings.append(f"Redis at {shown}: maxmemory-policy is {policy}; noeviction is safe")
    if not info.get("aof_enabled"):
        warnings.append(f"Redis at {shown}: no append-only file, a restart loses Runs (set appendonly yes)")
    elif durability == "strict" and fsync not in ("", "always"):
        warnings.append(f"Redis at {shown}: appendfsync is {fsync}; durability strict needs always")
    return RedisFacts(version, tuple(warnings))


def _info_when_loaded(client: redis.Redis, wait_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            client.ping()
            return dict(client.info("all"))
        except redis.BusyLoadingError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _config(client: redis.Redis, name: str) -> str:
    """Read one server setting; "" where a hosted server forbids CONFIG."""
    try:
        answer: Any = client.config_get(name)
    except redis.ResponseError:
        return ""
    return str(answer.get(name, ""))


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
