"""Make a report of a table, a text and a picture over gRPC: submit, ask until done, print what was found.

tutti up                                    # in another terminal
python examples/report_generation.py        # the sample data beside this file
python examples/report_generation.py my.csv notes.txt --title "My report" --out report.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from protos.orchestrator.v1 import orchestrator_pb2 as pb
from protos.orchestrator.v1 import orchestrator_pb2_grpc

_SAMPLES = Path(__file__).parent / "data"
_TYPES = {".json": pb.JSON, ".csv": pb.TEXT, ".txt": pb.TEXT, ".md": pb.TEXT}
_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
_ENDED = {pb.COMPLETED, pb.FAILED, pb.CANCELLED}
_POLL_S = 0.3


def main() -> int:
    """Run the example; 0 when there is a report."""
    parser = argparse.ArgumentParser(description="Make a report over gRPC.")
    parser.add_argument("files", nargs="*", type=Path, help="inputs; default: the samples in examples/data")
    parser.add_argument("--grpc", default="127.0.0.1:50051", help="where the service answers (%(default)s)")
    parser.add_argument("--api-key", default="", help="for a service with TUTTI_AUTH=required")
    parser.add_argument("--title", default="A look at the sample data")
    parser.add_argument("--out", type=Path, help="write the whole report there, as JSON")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds (%(default)s)")
    given = parser.parse_args()
    files = given.files or [_SAMPLES / name for name in ("sales.json", "notes.txt", "photo.jpg")]
    try:
        report = make_report(given.grpc, files, given.title, given.timeout, given.api_key)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return _fail(f"no service answers at {given.grpc}; start one with `tutti up`")
        return _fail(f"{error.code().name}: {error.details()}")
    except (OSError, RuntimeError) as error:
        return _fail(str(error))
    show(report)
    if given.out is not None:
        given.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def make_report(
    address: str, files: Sequence[Path], title: str, timeout_s: float, api_key: str = ""
) -> dict[str, Any]:
    """Submit the task and wait for its report.

    Raises:
        OSError: A file cannot be read.
        RuntimeError: The task did not complete.
        grpc.RpcError: The service refused, or is away.
    """
    request = pb.TaskRequest(
        task_type="report_generation",
        execution_mode=pb.SEQUENTIAL,
        priority=5,
        timeout_ms=round(timeout_s * 1000),
        metadata={"report_title": title},
        inputs=[_input_of(path) for path in files],
    )
    metadata = [("x-api-key", api_key)] if api_key else []
    with grpc.insecure_channel(address) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        accepted = stub.SubmitTask(request, metadata=metadata, timeout=10)
        sys.stdout.write(
            f"task {accepted.task_id}: {pb.TaskStatus.Name(accepted.status).lower()}, "
            f"about {accepted.estimated_completion_ms} ms\n"
        )
        asked = pb.TaskStatusRequest(task_id=accepted.task_id)
        deadline = time.monotonic() + timeout_s + 10
        while (state := stub.GetTaskStatus(asked, metadata=metadata, timeout=10)).status not in _ENDED:
            if time.monotonic() > deadline:
                raise RuntimeError(f"task {accepted.task_id} has not ended in time")
            time.sleep(_POLL_S)
    for each in state.agent_executions:
        took_ms = each.end_time_ms - each.start_time_ms
        sys.stdout.write(
            f"  {each.agent_type:14} {pb.TaskStatus.Name(each.status).lower():10} {took_ms} ms\n"
        )
    if state.status != pb.COMPLETED:
        raise RuntimeError(f"the task failed: {state.error.error_code}: {state.error.message}")
    report: dict[str, Any] = json.loads(state.output.json_data)
    return report


def show(report: dict[str, Any]) -> None:
    """Print the part of a report that people read first."""
    lines = ["", report["title"], "=" * len(report["title"]), report["executive_summary"], ""]
    lines += [f"* {_text_of(each)}" for each in report["recommendations"]]
    sys.stdout.write("\n".join(lines) + "\n")


def _text_of(recommendation: Any) -> str:
    return recommendation if isinstance(recommendation, str) else json.dumps(recommendation)


def _input_of(path: Path) -> Any:
    kind = pb.IMAGE if path.suffix.lower() in _IMAGES else _TYPES.get(path.suffix.lower(), pb.BINARY)
    return pb.Input(input_id=path.stem, type=kind, data=path.read_bytes(), metadata={"filename": path.name})


def _fail(reason: str) -> int:
    sys.stderr.write(f"error: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
