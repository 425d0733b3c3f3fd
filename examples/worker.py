"""A worker outside the cluster, complete, over plain HTTP: it registers, polls, beats, tells progress, obeys.

    GLOBAL_WORKER_TOKEN=secret tutti up
    python examples/worker.py http://localhost:8000 secret

Then give it something to do:

    curl -s localhost:8000/api/v1/runs -d '{"plan": {"name": "hello", "steps": [
      {"name": "hello", "capability": "worker:echo", "inputs": {"text": "hello"}}]}}'
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any
from uuid import uuid4

import httpx

WORKER_ID = f"example-{uuid4().hex[:8]}"
BEAT_S = 10.0
running: dict[str, asyncio.Task[None]] = {}


async def echo(params: dict[str, Any], tell: Any) -> dict[str, Any]:
    """The work: a slow echo that says how far it is."""
    for done in range(1, 5):
        await asyncio.sleep(float(params.get("seconds", 0.4)) / 4)
        await tell(done / 4, f"{done} of 4")
    return {"echo": params}


async def work(client: httpx.AsyncClient, task: dict[str, Any]) -> None:
    """Do one task and hand its result in, whatever it is."""
    ids = {"job_id": task["job_id"], "task_id": task["task_id"], "worker_id": WORKER_ID}
    ids["lease_token"] = task["lease_token"]

    async def tell(progress: float, message: str) -> None:
        body = {**ids, "progress": progress, "message": message}
        obey((await client.post("/_worker/tasks/progress", json=body)).json())

    try:
        result = {"status": "success", "data": await echo(task["params"], tell)}
    except asyncio.CancelledError:
        result = {"status": "cancelled"}
    except Exception as error:  # noqa: BLE001 - whatever the work raises is its result
        result = {"status": "failure", "error": {"code": "TRANSIENT_ERROR", "message": str(error)}}
    finally:
        running.pop(task["task_id"], None)
    answer = await client.post("/_worker/tasks/result", json={**ids, "result": result})
    print(task["task_id"], answer.json())


def obey(answer: dict[str, Any]) -> None:
    """Stop what the service does not want any more."""
    for task_id in answer.get("cancel_task_ids", ()):
        if task_id in running:
            running[task_id].cancel()


async def beat(client: httpx.AsyncClient) -> None:
    """Say that we live, and on what we work: only that keeps its lease."""
    while True:
        await asyncio.sleep(BEAT_S)
        body = {"status": "idle", "current_tasks": list(running)}
        obey((await client.patch(f"/_worker/workers/{WORKER_ID}", json=body)).json())


async def serve(client: httpx.AsyncClient) -> None:
    """Register, and take tasks for ever."""
    about = {"worker_id": WORKER_ID, "supported_tasks": ["echo"], "max_concurrent_tasks": 4}
    (await client.post("/_worker/workers/register", json=about)).raise_for_status()
    print("registered", WORKER_ID)
    async with asyncio.TaskGroup() as group:
        group.create_task(beat(client))
        while True:
            answer = await client.get(f"/_worker/workers/{WORKER_ID}/tasks/next")
            answer.raise_for_status()
            if answer.status_code == 200:
                task = answer.json()
                running[task["task_id"]] = group.create_task(work(client, task))


async def main(url: str, token: str) -> None:
    """Serve; after trouble begin anew, after a pause that differs from worker to worker."""
    async with httpx.AsyncClient(base_url=url, headers={"X-Worker-Token": token}, timeout=40.0) as client:
        while True:
            try:
                await serve(client)
            except* (httpx.HTTPError, ValueError) as group:
                print("trouble:", group.exceptions[0])
                await asyncio.sleep(random.uniform(0.5, 3.0))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
