"""An outside worker as a program of its own: `python -m tests.integration.worker_process URL ID`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from serve_app.worker_sdk import TaskContext, TaskFailed, Worker

TOKEN = "worker-token"


def main(url: str, worker_id: str) -> None:
    worker = Worker(url, TOKEN, worker_id=worker_id, max_concurrent=2, heartbeat_s=0.5)

    @worker.task("nap")
    async def nap(params: dict[str, Any], task: TaskContext) -> dict[str, Any]:
        await task.progress(0.5, "napping")
        await asyncio.sleep(params["seconds"])
        return {"by": worker_id, "n": params["n"]}

    @worker.task("refuse")
    async def refuse(params: dict[str, Any], task: TaskContext) -> None:
        raise TaskFailed("never", "PERMANENT_ERROR")

    asyncio.run(worker.run())


if __name__ == "__main__":
    main(*sys.argv[1:3])
