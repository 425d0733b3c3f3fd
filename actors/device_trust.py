"""Whether a GPU that Ray gave is really free: a look at what NVML says of it before an agent is loaded.

Ray counts what it gives out; a process outside Ray that uses a device is unknown to it. Without NVML (no
NVIDIA driver, or `nvidia-ml-py` not installed) every device is trusted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import psutil

__all__ = ["DeviceReading", "distrust_of", "is_of_this_cluster", "read_devices"]

_BYTES_PER_GIB = 1 << 30
_ROOM_FOR_CONTEXTS = 0.97


class DeviceReading(NamedTuple):
    """What NVML says of one device.

    Attributes:
        number: NVML's, on this node.
        uuid: As in CUDA_VISIBLE_DEVICES, where that names uuids.
        total_bytes: Its memory.
        free_bytes: What is left of it.
        pids: Processes that compute on it.
    """

    number: int
    uuid: str
    total_bytes: int
    free_bytes: int
    pids: tuple[int, ...]


def read_devices() -> list[DeviceReading]:
    """Read all devices of this node; empty where there is no NVML."""
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return []
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        return [_read(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def _read(nvml: Any, index: int) -> DeviceReading:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(device)
    uuid = nvml.nvmlDeviceGetUUID(device)
    pids = tuple(int(each.pid) for each in nvml.nvmlDeviceGetComputeRunningProcesses(device))
    text = uuid.decode() if isinstance(uuid, bytes) else str(uuid)
    return DeviceReading(index, text, int(memory.total), int(memory.free), pids)


def is_of_this_cluster(pid: int) -> bool:
    """Whether a process belongs to the raylet that started this worker: Ray has counted it.

    One that cannot be looked at is taken for one that does: in a container NVML may tell process ids that
    mean nothing there, and the memory that is free tells enough.
    """
    try:
        return os.getppid() in {pid, *(each.pid for each in psutil.Process(pid).parents())}
    except psutil.Error:
        return True


def distrust_of(
    readings: Iterable[DeviceReading],
    gpu_ids: Iterable[str],
    share: float,
    memory_gb: float,
    is_ours: Callable[[int], bool] = is_of_this_cluster,
) -> str:
    """Say why devices cannot be used as they were given; "" where they can.

    Args:
        readings: All devices of the node.
        gpu_ids: Those that were given: indices or uuids.
        share: Of each, above 0 to 1.
        memory_gb: Memory that is needed on each, GiB; 0: in proportion to the share.
        is_ours: Whether Ray knows of a process.
    """
    wanted = frozenset(gpu_ids)
    for reading in readings:
        if str(reading.number) not in wanted and reading.uuid not in wanted:
            continue
        foreign = [pid for pid in reading.pids if not is_ours(pid)]
        if foreign:
            return f"GPU {reading.number} is used by process {foreign[0]}, which Ray does not know"
        needed = memory_gb * _BYTES_PER_GIB
        if not needed:
            needed = reading.total_bytes * min(share, 1.0) * _ROOM_FOR_CONTEXTS
        if reading.free_bytes < needed:
            free_gb = reading.free_bytes / _BYTES_PER_GIB
            return (
                f"GPU {reading.number} has {free_gb:.1f} GiB free, {needed / _BYTES_PER_GIB:.1f} are needed"
            )
    return ""
