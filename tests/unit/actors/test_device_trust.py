"""What NVML says of a device that Ray gave: believed where it is free, else refused with the reason."""

from __future__ import annotations

import os

import pytest

from actors.device_trust import DeviceReading, distrust_of, is_of_this_cluster, read_devices

GIB = 1 << 30
OURS = {100, 101}


def reading(number: int = 0, free_gb: float = 80.0, pids: tuple[int, ...] = ()) -> DeviceReading:
    return DeviceReading(number, f"GPU-{number}", 80 * GIB, int(free_gb * GIB), pids)


def distrust(
    *readings: DeviceReading, ids: tuple[str, ...] = ("0",), share: float = 1.0, gb: float = 0.0
) -> str:
    return distrust_of(readings, ids, share, gb, OURS.__contains__)


def test_free_device_is_trusted_and_so_is_one_that_nvml_does_not_know() -> None:
    assert distrust(reading()) == ""
    assert distrust() == ""


def test_process_that_ray_does_not_know_is_named() -> None:
    assert distrust(reading(pids=(100, 7))) == "GPU 0 is used by process 7, which Ray does not know"
    assert distrust(reading(pids=(100, 101))) == ""


@pytest.mark.parametrize(
    ("share", "gb", "free_gb", "is_trusted"),
    [(1.0, 0, 79, True), (1.0, 0, 60, False), (0.5, 0, 40, True), (0.5, 0, 30, False), (1.0, 24, 30, True)],
)
def test_memory_must_be_free_in_proportion_to_the_share_or_as_declared(
    share: float, gb: float, free_gb: float, is_trusted: bool
) -> None:
    assert (distrust(reading(free_gb=free_gb), share=share, gb=gb) == "") is is_trusted


def test_only_devices_that_were_given_are_looked_at_by_number_or_uuid() -> None:
    used = reading(1, free_gb=1.0)
    assert distrust(reading(0), used) == ""
    assert distrust(reading(0), used, ids=("GPU-1",)).startswith("GPU 1 has 1.0 GiB free, 77.6")


def test_processes_of_the_same_parent_are_of_this_cluster_and_unknown_ones_are_not_judged() -> None:
    assert is_of_this_cluster(os.getpid())
    assert is_of_this_cluster(2**22 + 1)
    if os.getppid() != 1:
        assert not is_of_this_cluster(1)


def test_machine_without_nvidia_driver_has_no_readings_or_real_ones() -> None:
    assert all(each.total_bytes > 0 for each in read_devices())
