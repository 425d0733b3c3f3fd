"""Finds keys that would live for ever although nobody meant them to."""

from __future__ import annotations

import re

import redis

from cluster.lifecycle.run_status import RunStatus
from cluster.store.keys import PERMANENT
from cluster.store.run_codec import decode_record

__all__ = ["assert_no_key_leaks", "leaked_keys"]

_OF_A_RUN = re.compile(r"(tutti:\{\d+\}:)(?:run|events):(.+)")


def leaked_keys(url: str) -> list[str]:
    """List keys without a TTL that are neither permanent by design nor of a Run that has not ended."""
    client = redis.Redis.from_url(url)
    try:
        names = sorted(key.decode() for key in client.scan_iter(count=1000))
        return [name for name in names if client.ttl(name) == -1 and not _may_stay(client, name)]
    finally:
        client.close()


def assert_no_key_leaks(url: str) -> None:
    """Fail when a key has no TTL and no right to live without one."""
    leaked = leaked_keys(url)
    assert not leaked, f"keys without a TTL that nobody will ever delete: {leaked}"


def _may_stay(client: redis.Redis, name: str) -> bool:
    if any(re.fullmatch(pattern, name) for pattern in PERMANENT):
        return True
    match = _OF_A_RUN.fullmatch(name)
    if match is None:
        return False
    record, header = client.hmget(f"{match[1]}run:{match[2]}", "record", "header")
    return bool(record and header) and decode_record(record).status not in _ENDED


_ENDED = frozenset(status for status in RunStatus if status.is_terminal)
