"""Follow a task while it works, in both ways: a gRPC stream, and server-sent events with a lost connection.

    tutti up                                    # in another terminal
    python examples/streaming_updates.py

Both begin with the first update, however late one attaches, and end after the last. The second part hangs up
after three events and comes back with `Last-Event-ID`: nothing is missing and nothing comes twice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import httpx

from protos.orchestrator.v1 import orchestrator_pb2 as pb
from protos.orchestrator.v1 import orchestrator_pb2_grpc

_ORDERS = [{"day": day, "units": 3 + day % 7, "revenue": 9.5 * (3 + day % 7)} for day in range(200)]
_HANG_UP_AFTER = 3


class Event(NamedTuple):
    """One server-sent event: its id, a number that grows by one, and what it says."""

    number: int
    update: dict[str, Any]


def main() -> int:
    """Run the example; 0 when both ways told the same story."""
    parser = argparse.ArgumentParser(description="Follow a task over gRPC and over server-sent events.")
    parser.add_argument("--grpc", default="127.0.0.1:50051", help="gRPC address (%(default)s)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="HTTP address (%(default)s)")
    given = parser.parse_args()
    try:
        with grpc.insecure_channel(given.grpc) as channel:
            task_id, streamed = follow_by_grpc(orchestrator_pb2_grpc.OrchestratorServiceStub(channel))
        resumed = follow_by_sse(given.url, task_id)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return _fail(f"no service answers at {given.grpc}; start one with `tutti up`")
        return _fail(f"{error.code().name}: {error.details()}")
    except httpx.TransportError:
        return _fail(f"no service answers at {given.url}; start one with `tutti up`")
    except httpx.HTTPStatusError as error:
        return _fail(f"{given.url} answered {error.response.status_code}")
    numbers = [event.number for event in resumed]
    if numbers != list(range(1, len(streamed) + 1)):
        return _fail(f"the events are {numbers}, but gRPC told {len(streamed)} updates")
    if resumed[-1].update["status"] != "completed":
        return _fail(f"the task ended {resumed[-1].update['status']}: {resumed[-1].update['message']}")
    sys.stdout.write(f"both ways told the same {len(streamed)} updates, each once and in order\n")
    return 0


def follow_by_grpc(stub: Any) -> tuple[str, list[Any]]:
    """Submit a task and print every update of it; return its id and the updates."""
    request = pb.TaskRequest(
        task_type="report_generation",
        execution_mode=pb.SEQUENTIAL,
        inputs=[pb.Input(input_id="orders", type=pb.JSON, data=json.dumps(_ORDERS).encode())],
    )
    task_id = stub.SubmitTask(request, timeout=10).task_id
    sys.stdout.write(f"task {task_id} over gRPC:\n")
    updates = []
    for update in stub.StreamTaskUpdates(pb.TaskStatusRequest(task_id=task_id), timeout=120):
        updates.append(update)
        _show(update.progress_percent, pb.TaskStatus.Name(update.status).lower(), update.message)
    return task_id, updates


def follow_by_sse(url: str, task_id: str) -> list[Event]:
    """Read a task's events, hang up after a few, and come back for the rest."""
    sys.stdout.write(f"task {task_id} over server-sent events:\n")
    first: list[Event] = []
    for event in _events(url, task_id, 0):
        first.append(event)
        _show(event.update["progress_percent"], event.update["status"], event.update["message"])
        if len(first) == _HANG_UP_AFTER:
            break
    sys.stdout.write(f"  … hung up; again with Last-Event-ID: {first[-1].number}\n")
    rest = []
    for event in _events(url, task_id, first[-1].number):
        rest.append(event)
        _show(event.update["progress_percent"], event.update["status"], event.update["message"])
    return first + rest


def _events(url: str, task_id: str, last_event_id: int) -> Iterator[Event]:
    headers = {"Last-Event-ID": str(last_event_id)} if last_event_id else {}
    address = f"{url}/api/v1/tasks/{task_id}/events"
    number = 0
    # The service sends a comment every 15 s, so half a minute of silence means that it is gone.
    with httpx.stream("GET", address, headers=headers, timeout=30.0, trust_env=False) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("id:"):
                number = int(line.removeprefix("id:"))
            elif line.startswith("data:"):
                yield Event(number, json.loads(line.removeprefix("data:")))


def _show(percent: int, status: str, message: str) -> None:
    sys.stdout.write(f"  {percent:3} %  {status:9}  {message}\n")
    sys.stdout.flush()


def _fail(reason: str) -> int:
    sys.stderr.write(f"error: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
