"""The agent that the figures of order are measured with: it says when it began and when it ended."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from actors.agent import agent
from cluster.model.plan import Json

__all__ = ["Stamped"]

_POLL_S = 0.002


@agent("crowded", "spare")
class Stamped:
    """Ends at once, or when the file is there that `gate` names. Both are served by a pool of their own."""

    async def execute(self, inputs: Json) -> Json:
        """Return instants on this machine's monotonic clock."""
        began_at = time.monotonic()
        gate = inputs.get("gate", "")
        while gate and not Path(gate).exists():  # noqa: ASYNC110, ASYNC240 - a file is opened by who measures
            await asyncio.sleep(_POLL_S)
        return {"began_at": began_at, "ended_at": time.monotonic()}
