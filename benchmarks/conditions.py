"""Under what conditions was measured: hardware, versions, load, and the price of an fsync on this disk.

The last one matters most: with durability `strict` every group commit waits for one.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.work import percentile
from serve_app.launch.redis_server import binary_version, wheel_binary

__all__ = ["CpuMeter", "conditions", "loadavg"]

_NUM_SYNCS = 100
_SYNC_BYTES = 4096


def loadavg() -> str:
    """Load of the last 1, 5 and 15 minutes."""
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def conditions(rounds: int, scale: float) -> dict[str, Any]:
    """Describe this machine now."""
    binary = wheel_binary()
    return {
        "hardware": f"{os.cpu_count()} x {_cpu_model()}, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": f"ray {version('ray')}, redis server {_dotted(binary)}, redis-py {version('redis')}",
        "fsync_ms_p50": round(_fsync_ms(), 3),
        "loadavg_before": loadavg(),
        "rounds": rounds,
        "scale": scale,
        "method": "each round measures a figure and its baselines one after another on the same machine and "
        "the same Ray; ratio = value / baseline of the same round; judged by the median of the rounds",
    }


def _dotted(binary: str) -> str:
    return ".".join(map(str, binary_version(binary))) if binary else "unknown"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _fsync_ms() -> float:
    took = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(_NUM_SYNCS):
            file.write(b"\0" * _SYNC_BYTES)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return percentile(took, 50)


class CpuMeter:
    """Counts the CPU seconds that named processes use from now on."""

    def __init__(self, pid_by_name: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pid_by_name.items()}
        self._before = {name: _cpu_s(process) for name, process in self._processes.items()}
        self._began = time.perf_counter()

    def told(self) -> str:
        """Say how much of a core each used."""
        wall_s = max(time.perf_counter() - self._began, 1e-6)
        shares = {
            name: (_cpu_s(process) - self._before[name]) / wall_s for name, process in self._processes.items()
        }
        return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
