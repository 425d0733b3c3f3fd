"""The footprint of one whole service: seconds from `tutti up` to ready, memory idle and with warm pools."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from actors.pools import declared_pools
from benchmarks.report import Bar, Figure, Sense
from benchmarks.served import ServedProcess, process_tree, pss_bytes, tutti_up
from benchmarks.work import INPUT, NOOP, Effort, MeasurementFailed
from cluster.settings import Settings

__all__ = ["FIGURES", "measure"]

FIGURES = ("footprint.ready", "footprint.memory")

_SETTLE_S = 5.0
_WARM_S = 120.0
_POLL_S = 0.2
_DATA = Path(__file__).resolve().parent.parent / "examples" / "data"
_ENDED = ("completed", "failed", "cancelled")


def measure(effort: Effort, wanted: Callable[[str], bool]) -> Iterator[Figure]:
    """Start the service again and again, and weigh it.

    Args:
        effort: How much.
        wanted: Says of a name of FIGURES whether to measure it.
    """
    if not any(wanted(name) for name in FIGURES):
        return
    ready_s, idle_gib, warm_gib = [], [], []
    notes: tuple[str, ...] = ()
    for _ in range(min(effort.rounds, 3)):
        with tutti_up() as service:
            ready_s.append(service.ready_s)
            if not wanted("footprint.memory"):
                continue
            time.sleep(_SETTLE_S)
            idle_gib.append(_gib(service))
            pools = _warm_up(service)
            time.sleep(_SETTLE_S)
            warm_gib.append(_gib(service))
            num_processes = len(process_tree(service.pid))
            notes = (f"{num_processes} processes with one replica of each pool: {', '.join(pools)}",)
    if wanted("footprint.ready"):
        yield Figure(
            "footprint.ready",
            "from `tutti up` to ready",
            "s",
            tuple(ready_s),
            Bar(Sense.BELOW, 25.0),
            (),
            ("to the printed line; Python's files are in the page cache",),
        )
    if wanted("footprint.memory"):
        title = "memory (PSS) of all processes"
        yield Figure(
            "footprint.idle",
            f"{title}, idle, agent pools at zero",
            "GiB",
            tuple(idle_gib),
            Bar(Sense.BELOW, 1.5),
        )
        yield Figure(
            "footprint.warm",
            f"{title}, one replica of each pool",
            "GiB",
            tuple(warm_gib),
            Bar(Sense.BELOW, 2.0),
            (),
            notes,
        )


def _gib(service: ServedProcess) -> float:
    return pss_bytes(process_tree(service.pid)) / 2**30


def _warm_up(service: ServedProcess) -> list[str]:
    """Give every pool real work and wait until it has ended, so that what is imported late is there too.

    The API call goes to an address that the egress guard refuses: its replica is warm all the same.
    """
    inputs = [
        {"type": "json", "data": (_DATA / "sales.json").read_text()},
        {"type": "text", "data": (_DATA / "notes.txt").read_text()},
        {"type": "image", "data": base64.b64encode((_DATA / "photo.jpg").read_bytes()).decode()},
    ]
    report = {"task_type": "report_generation", "inputs": inputs}
    call = {"task_type": "api_call", "metadata": {"endpoint": "https://127.0.0.1:9/"}}
    with service.client() as client:
        plan = {"plan": msgspec.to_builtins(NOOP), "inputs": INPUT}
        client.post("/api/v1/runs", json=plan).raise_for_status()
        ids = [
            client.post("/api/v1/tasks", json=body).raise_for_status().json()["task_id"]
            for body in (report, call)
        ]
        deadline = time.monotonic() + _WARM_S
        while time.monotonic() < deadline:
            told = [client.get(f"/api/v1/tasks/{task_id}").json() for task_id in ids]
            if all(each["status"] in _ENDED for each in told):
                if told[0]["status"] != "completed":
                    raise MeasurementFailed(f"the report that warms the pools failed: {told[0]['error']}")
                return [pool.name for pool in declared_pools(Settings.from_environment({}))]
            time.sleep(_POLL_S)
    raise MeasurementFailed("the pools were not warm in time")
