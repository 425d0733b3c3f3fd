"""A first Plan from Python: two steps at the same time, one over a list, one that waits for all of them.

    tutti up                                    # in another terminal
    python examples/first_plan.py

It attaches to the Ray cluster in which the service runs. Where there are several on this machine, say which:
`--ray-address host:port`, as `tutti up` prints it and `<data dir>/runtime.json` has it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import ray

from actors import connect
from cluster.errors import RunFailed, Unavailable

PLAN = {
    "name": "first-plan",
    "steps": [
        {"name": "greet", "capability": "echo", "inputs": {"hello": {"$ref": "inputs.name"}}},
        {"name": "wait", "capability": "sleep", "inputs": {"seconds": 0.2}, "timeout_s": 5},
        {
            "name": "each",
            "capability": "echo",
            "map": {"$ref": "inputs.cities"},
            "inputs": {"city": {"$ref": "item"}, "number": {"$ref": "index"}},
        },
        {
            "name": "sum_up",
            "capability": "echo",
            "needs": ["wait"],
            "inputs": {"greeting": {"$ref": "steps.greet.output"}, "cities": {"$ref": "steps.each.output"}},
        },
    ],
}
INPUTS = {"name": "Ada", "cities": ["Lyon", "Turku", "Porto"]}
FAILING = {
    "name": "failing",
    "steps": [{"name": "work", "capability": "fail", "inputs": {"message": "on purpose"}}],
}


def main() -> int:
    """Run the example; 0 when all Runs came out as they should."""
    parser = argparse.ArgumentParser(description="Run a Plan from a Python driver.")
    parser.add_argument(
        "--ray-address", help="host:port of the Ray cluster; default: the one on this machine"
    )
    parser.add_argument("--many", type=int, default=200, help="Runs to submit at once (%(default)s)")
    given = parser.parse_args()
    try:
        orchestrator = connect(given.ray_address)
    except Unavailable as error:
        sys.stderr.write(f"error: {error.message}; start the service with `tutti up`\n")
        return 1
    return run_plans(orchestrator, given.many)


def run_plans(orchestrator: Any, num_many: int) -> int:
    """Run one Plan, many, and one that fails; return the exit status."""
    # One Run: an id as soon as it is durable, then its output.
    run_id = ray.get(orchestrator.submit.remote(PLAN, INPUTS, priority=80))
    output = ray.get(orchestrator.result.remote(run_id, timeout_s=30))
    sys.stdout.write(f"run {run_id}: {json.dumps(output)}\n")

    # Many Runs: one call to submit them, one to collect the outputs in order.
    began = time.monotonic()
    inputs = [{**INPUTS, "name": f"guest {number}"} for number in range(num_many)]
    run_ids = ray.get(orchestrator.submit_many.remote([PLAN] * num_many, inputs))
    outputs = ray.get(orchestrator.results.remote(run_ids, timeout_s=60))
    in_order = [each["greeting"]["hello"] for each in outputs] == [each["name"] for each in inputs]
    took_s = time.monotonic() - began
    sys.stdout.write(f"{num_many} runs in {took_s:.2f} s, outputs in order: {in_order}\n")

    # A Run that fails raises, with the code and the words of the step.
    run_id = ray.get(orchestrator.submit.remote(FAILING))
    try:
        ray.get(orchestrator.result.remote(run_id, timeout_s=30))
    except RunFailed as error:
        sys.stdout.write(f"run {run_id} failed as it should: {error.code}: {error.message}\n")
        return 0 if in_order else 1
    sys.stderr.write("error: the run that should fail did not\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
