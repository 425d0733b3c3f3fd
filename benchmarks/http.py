"""Figures over HTTP: durable submits, and chain3 from submission to the terminal status on its event stream.

Everything goes through `tutti up` as a user starts it. The pool is paused for real: its one slot is taken by
a Run that sleeps, so that every submitted Run is accepted, stored, and waits.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import orjson
import uvloop

from benchmarks.http_load import Load, follow_runs, has_wrk, post_for, post_runs
from benchmarks.report import Bar, Baseline, Figure, Sense
from benchmarks.served import ServedProcess, served, tutti_up
from benchmarks.work import CHAIN3, INPUT, NOOP, Effort, MeasurementFailed, sleep_plan
from cluster.model.plan import Plan
from serve_app.launch.ray_environment import free_ports

__all__ = ["FIGURES", "measure"]

FIGURES = ("http.submit_paused", "http.submit_running", "http.chain3")

_SECONDS = 5.0
_CONNECTIONS = 32
_CLIENTS = 64
_NUM_CHAINS = 3000
_NUM_PLAIN_CHAINS = 1500
_VARIABLES = {
    "TUTTI_MAX_UNFINISHED_RUNS": "10000000",
    "TUTTI_MAX_INGRESS": "1",  # as many as at least, on any machine: those of plain Serve do not grow either
}


def _request(plan: Plan, inputs: object = INPUT) -> bytes:
    return orjson.dumps({"plan": msgspec.to_builtins(plan), "inputs": inputs})


def measure(effort: Effort, wanted: Callable[[str], bool]) -> Iterator[Figure]:
    """Start the service and the baseline, measure what is wanted, end both.

    Args:
        effort: How much.
        wanted: Says of a name of FIGURES whether to measure it.
    """
    if not any(wanted(name) for name in FIGURES):
        return
    with _plain_serve() as plain:
        if wanted("http.submit_paused"):
            yield from _paused(plain, effort)
        if wanted("http.submit_running") or wanted("http.chain3"):
            with tutti_up(_VARIABLES) as service:
                uvloop.run(follow_runs(service.url, _request(NOOP), 4, 50))
                if wanted("http.submit_running"):
                    yield from _running(service, plain, effort)
                if wanted("http.chain3"):
                    yield from _chains(service, plain, effort)


@contextmanager
def _plain_serve() -> Iterator[ServedProcess]:
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="tb") as folder:
        command = [sys.executable, "-m", "benchmarks.plain_serve", str(port), folder]
        with served(command, f"http://127.0.0.1:{port}", {}) as plain:
            uvloop.run(post_runs(f"{plain.url}/chain3", orjson.dumps(INPUT), 4, 1.0))
            yield plain


class _Rounds:
    """Submits beside the baseline, round by round."""

    def __init__(self, service: ServedProcess, plain: ServedProcess, effort: Effort) -> None:
        submit, noop = f"{service.url}/api/v1/runs", f"{plain.url}/noop"
        seconds = max(_SECONDS * effort.scale, 1.0)
        self.tutti: list[Load] = []
        self.plain: list[Load] = []
        self.tutti_lone: list[Load] = []
        self.plain_lone: list[Load] = []
        self._service = service
        before = self._num_stored()
        for _ in range(effort.rounds):
            self.tutti.append(post_for(submit, _request(NOOP), _CONNECTIONS, seconds))
            self.plain.append(post_for(noop, orjson.dumps(INPUT), _CONNECTIONS, seconds))
            self.tutti_lone.append(post_for(submit, _request(NOOP), 1, seconds))
            self.plain_lone.append(post_for(noop, orjson.dumps(INPUT), 1, seconds))
        self.num_stored = self._num_stored() - before

    def _num_stored(self) -> int:
        with self._service.client() as client:
            return int(client.get("/health").json()["queue_stats"]["total_tasks"])

    def figures(self, name: str, told: str, at_least_per_s: float) -> Iterator[Figure]:
        """Make the figures of one state of the pool."""
        loads = self.tutti + self.tutti_lone
        num_done = sum(load.num_done for load in loads)
        tool = "wrk" if has_wrk() else "the bundled client (wrk is not installed)"
        yield Figure(
            name,
            f"submits over HTTP, {_CONNECTIONS} connections, {told}",
            "1/s",
            tuple(load.per_s for load in self.tutti),
            Bar(Sense.AT_LEAST, at_least_per_s),
            (Baseline("plain Serve, one actor call", tuple(load.per_s for load in self.plain)),),
            (f"by {tool}; answered {num_done}, stored {self.num_stored} Runs",),
        )
        yield Figure(
            f"{name}_errors",
            f"errors of these in all rounds, {told}",
            "",
            (float(sum(load.num_errors for load in loads)),),
            Bar(Sense.AT_MOST, 0.0),
        )
        yield Figure(
            f"{name}_p50",
            f"submit over HTTP, one connection, p50, {told}",
            "ms",
            tuple(load.p50_ms for load in self.tutti_lone),
            Bar(Sense.AT_MOST, 3.0),
            (Baseline("plain Serve, one actor call", tuple(load.p50_ms for load in self.plain_lone)),),
        )


def _paused(plain: ServedProcess, effort: Effort) -> Iterator[Figure]:
    pools = [
        {
            "name": "basic",
            "agents": [f"actors.agents.basic:{agent}" for agent in ("Noop", "Sleep", "Fail")],
            "concurrency": 1,
        }
    ]
    with tempfile.TemporaryDirectory(prefix="tb") as folder:
        file = Path(folder) / "pools.yaml"
        file.write_bytes(orjson.dumps({"pools": pools}))  # JSON is YAML
        variables = {"TUTTI_POOLS_FILE": str(file), **_VARIABLES}
        with tutti_up(variables) as service:
            _take_the_slot(service)
            yield from _Rounds(service, plain, effort).figures("http.submit_paused", "pool paused", 1000.0)


def _take_the_slot(service: ServedProcess) -> None:
    """Let a Run sleep in the pool's one slot; return when it runs."""
    with service.client() as client:
        answer = client.post("/api/v1/runs", content=_request(sleep_plan(3600.0), {}))
        run_id = answer.raise_for_status().json()["run_id"]
        with client.stream("GET", f"/api/v1/runs/{run_id}/events") as stream:
            for line in stream.iter_lines():
                if '"status":"running"' in line:
                    return
    raise MeasurementFailed("the Run that pauses the pool did not start")


def _running(service: ServedProcess, plain: ServedProcess, effort: Effort) -> Iterator[Figure]:
    told = "Runs of one no-op executing meanwhile"
    yield from _Rounds(service, plain, effort).figures("http.submit_running", told, 500.0)


def _chains(service: ServedProcess, plain: ServedProcess, effort: Effort) -> Iterator[Figure]:
    count, body = effort.count(_NUM_CHAINS), _request(CHAIN3)
    plain_s = max(_SECONDS * effort.scale, 1.0)
    tutti: list[Load] = []
    others: list[Load] = []
    uvloop.run(follow_runs(service.url, body, _CLIENTS, max(count // 4, 10)))
    for _ in range(effort.rounds):
        tutti.append(uvloop.run(follow_runs(service.url, body, _CLIENTS, count)))
        others.append(uvloop.run(post_runs(f"{plain.url}/chain3", orjson.dumps(INPUT), _CLIENTS, plain_s)))
    cpu = max(load.client_cpu for load in tutti)
    baseline = "plain Serve, three actor calls"
    yield Figure(
        "http.chain3",
        f"chain3 over HTTP, {_CLIENTS} clients, submit to terminal status by SSE",
        "Runs/s",
        tuple(load.per_s for load in tutti),
        Bar(Sense.AT_LEAST, 300.0),
        (Baseline(baseline, tuple(load.per_s for load in others)),),
        (f"{count} Runs a round; the client used up to {cpu:.0%} of a core",),
    )
    yield Figure(
        "http.chain3_p95",
        "the same, p95",
        "ms",
        tuple(load.p95_ms for load in tutti),
        Bar(Sense.BELOW, 500.0),
        (Baseline(baseline, tuple(load.p95_ms for load in others)),),
    )
    yield Figure(
        "http.chain3_errors",
        "errors of these in all rounds",
        "",
        (float(sum(load.num_errors for load in tutti)),),
        Bar(Sense.AT_MOST, 0.0),
    )
