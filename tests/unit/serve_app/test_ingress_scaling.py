"""Ingress replicas follow the CPU that they use; without that they would follow nothing or open streams."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.settings import Settings
from serve_app.ingress_scaling import CPU_SHARE, CpuMeter, CpuSharePolicy, autoscaling_of


def context(shares: dict[Any, float], num_replicas: int = 2) -> Any:
    """What of Serve's context the policy looks at; the real one is tried with the real Serve."""
    return SimpleNamespace(
        target_num_replicas=num_replicas,
        total_num_requests=5_000,
        aggregated_metrics={CPU_SHARE: shares} if shares else {},
    )


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [
        ({1: 0.7, 2: 0.7}, 2.0),
        ({1: 0.9, 2: 0.9}, 2.571),
        ({1: 0.1, 2: 0.04}, 0.2),
        ({1: 1.05, 2: 1.05, 3: 0.0}, 3.0),
    ],
)
def test_so_many_replicas_are_wanted_that_each_has_its_share(shares: dict[Any, float], wanted: float) -> None:
    assert CpuSharePolicy(0.7)(context(shares)) == (wanted, {})


def test_without_a_report_their_number_stays_however_many_streams_are_open() -> None:
    assert CpuSharePolicy(0.7)(context({}, num_replicas=3)) == (3, {})


def test_meter_tells_the_share_of_a_core_since_it_was_asked_last() -> None:
    meter = CpuMeter()
    until = time.process_time() + 0.02
    while time.process_time() < until:
        pass
    assert meter.share() > 0


def test_deployment_scales_by_the_cpu_share_of_document_000_between_its_bounds() -> None:
    config = autoscaling_of(Settings(), num_cpus=32)
    assert (config["min_replicas"], config["max_replicas"]) == (2, 16)
    assert config["policy"] == {"policy_function": CpuSharePolicy, "policy_kwargs": {"target": 0.7}}


@pytest.mark.parametrize(
    ("least", "most", "num_cpus", "bounds"),
    [(2, 0, 2, (2, 2)), (2, 5, 2, (2, 5)), (4, 3, 64, (4, 4)), (1, 0, 0, (1, 1))],
)
def test_bounds_come_from_the_settings_and_the_cluster(
    least: int, most: int, num_cpus: float, bounds: tuple[int, int]
) -> None:
    config = autoscaling_of(Settings(num_ingress=least, max_ingress=most), num_cpus)
    assert (config["min_replicas"], config["max_replicas"]) == bounds
