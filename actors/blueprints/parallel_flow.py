"""Several pieces of work at the same time, and a handler that makes one result of theirs."""

from __future__ import annotations

from typing import Any

from actors.blueprint import Blueprint, agent_work, ref

__all__ = ["flow", "gather"]

flow = Blueprint(
    "parallel_flow", description="Three agents at the same time; their results are put together."
)

flow.parallel(
    "spread",
    [
        agent_work("echo", {"part": part, "given": ref("inputs")}, name=part)
        for part in ("first", "second", "third")
    ],
    to={"success": "gather", "failure": "failed"},
    into="parts",
    start=True,
)


@flow.handler("gather", to={"success": "finished"})
def gather(parts: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """List what came back, in order of names."""
    return {"gathered": sorted(each["data"]["part"] for each in parts.values())}


flow.end("finished")
flow.end("failed", failure=True, message="one of the parts could not be done")
