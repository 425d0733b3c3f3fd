"""Submit `plan.json` beside this file over HTTP and print what the two agents found.

See README.md beside it for how to start a service that knows the agents.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx

_POLL_S = 0.1
_ENDED = {"succeeded", "failed", "cancelled"}


def main() -> int:
    """Run the example; 0 when the agents did their work."""
    parser = argparse.ArgumentParser(description="Run a Plan on agents of one's own.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="HTTP address (%(default)s)")
    given = parser.parse_args()
    body = json.loads((Path(__file__).parent / "plan.json").read_text(encoding="utf-8"))
    try:
        with httpx.Client(base_url=given.url, timeout=10.0, trust_env=False) as http:
            run = run_plan(http, body)
    except httpx.TransportError:
        return _fail(f"no service answers at {given.url}; start one with `tutti up`")
    except httpx.HTTPStatusError as error:
        return _fail(f"{given.url} answered {error.response.status_code}: {error.response.text[:300]}")
    except TimeoutError as error:
        return _fail(str(error))
    if run["status"] != "succeeded":
        return _fail(f"the run {run['status']}: {run['error']['code']}: {run['error']['message']}")
    sys.stdout.write(json.dumps(run["output"], indent=2) + "\n")
    return 0


def run_plan(http: httpx.Client, body: dict[str, Any], limit_s: float = 60.0) -> dict[str, Any]:
    """Submit a Run and ask until it has ended.

    Raises:
        TimeoutError: It has not within the limit.
    """
    run_id = http.post("/api/v1/runs", json=body).raise_for_status().json()["run_id"]
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        run: dict[str, Any] = http.get(f"/api/v1/runs/{run_id}").raise_for_status().json()
        if run["status"] in _ENDED:
            return run
        time.sleep(_POLL_S)
    raise TimeoutError(f"run {run_id} has not ended within {limit_s:g} s")


def _fail(reason: str) -> int:
    sys.stderr.write(f"error: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
