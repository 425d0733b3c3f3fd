"""The Lua scripts, loaded from their files and called through one typed wrapper."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

__all__ = [
    "BOARD_GIVE",
    "BOARD_POST",
    "BOARD_SETTLE",
    "BOARD_SWEEP",
    "COMMIT",
    "LEASE_CLAIM",
    "LEASE_COMPLETE",
    "LEASE_END",
    "LEASE_RENEW",
    "OFFER",
    "OWN",
    "POST",
    "RESERVE",
    "SUBMIT",
    "WATCH",
    "WORKER_SEEN",
    "WORKER_UNWAIT",
    "WORKER_WAIT",
    "Argument",
    "Call",
    "Script",
    "call",
    "call_many",
]

Argument = str | bytes | int | float


class Script:
    """A script and its digest, as the server knows it."""

    __slots__ = ("sha", "source")

    def __init__(self, name: str) -> None:
        self.source = (Path(__file__).parent / "lua" / f"{name}.lua").read_text()
        self.sha = sha1(self.source.encode(), usedforsecurity=False).hexdigest()


SUBMIT = Script("submit")
POST = Script("post")
RESERVE = Script("reserve")
OWN = Script("own")
COMMIT = Script("commit")
WATCH = Script("watch")
OFFER = Script("offer")
LEASE_CLAIM = Script("lease_claim")
LEASE_RENEW = Script("lease_renew")
LEASE_COMPLETE = Script("lease_complete")
LEASE_END = Script("lease_end")
WORKER_SEEN = Script("worker_seen")
WORKER_WAIT = Script("worker_wait")
WORKER_UNWAIT = Script("worker_unwait")
BOARD_POST = Script("board_post")
BOARD_GIVE = Script("board_give")
BOARD_SETTLE = Script("board_settle")
BOARD_SWEEP = Script("board_sweep")

Call = tuple[Script, Sequence[str], Sequence[Argument]]
"""Script, keys, arguments."""


async def call(redis: Redis, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
    """Call one script; a server that does not know it yet (restarted, failed over) is told and asked
    again.
    """
    try:
        return await redis.evalsha(script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return await redis.eval(script.source, len(keys), *keys, *arguments)


async def call_many(redis: Redis, calls: Sequence[Call]) -> list[Any]:
    """Call scripts in one round trip.

    Returns:
        A reply or an exception for each call, in order.
    """
    if len(calls) == 1:
        return [await call(redis, *calls[0])]
    pipe = redis.pipeline(transaction=False)
    for script, keys, arguments in calls:
        pipe.evalsha(script.sha, len(keys), *keys, *arguments)
    replies = await pipe.execute(raise_on_error=False)
    for position, reply in enumerate(replies):
        if isinstance(reply, NoScriptError):
            replies[position] = await call(redis, *calls[position])
    return list(replies)
