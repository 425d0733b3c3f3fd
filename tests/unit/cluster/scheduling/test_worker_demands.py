"""What Steps demand of workers is read wherever it may stand, and refused where it is unknown."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import InvalidInput
from cluster.model.plan import ResourceRequest, Step
from cluster.scheduling.matching import WorkerStrategy
from cluster.scheduling.worker_demands import board_offer_fields


def step(**fields: Any) -> Step:
    return Step(name="s", capability="worker:echo", **fields)


def test_step_without_demands_is_for_any_worker() -> None:
    assert board_offer_fields(step()) == {
        "strategy": WorkerStrategy.DEFAULT,
        "gpu_model": "",
        "gpu_memory_gb": 0.0,
        "num_cpus": 0.0,
        "models": frozenset(),
        "max_cost": None,
    }


@pytest.mark.parametrize("is_nested", [False, True])
def test_demands_are_read_flat_and_below_requirements(is_nested: bool) -> None:
    needs = {"gpu_info": {"model": "A100", "vram_gb": 40}, "installed_models": ["a", {"name": "b"}]}
    demands: dict[str, Any] = {"strategy": "best_value", "max_cost": 2.5}
    demands |= {"requirements": needs} if is_nested else needs
    fields = board_offer_fields(step(demands=demands, model="c", resources=ResourceRequest(num_cpus=2)))
    assert fields == {
        "strategy": WorkerStrategy.BEST_FIT,
        "gpu_model": "A100",
        "gpu_memory_gb": 40.0,
        "num_cpus": 2,
        "models": frozenset("abc"),
        "max_cost": 2.5,
    }


@pytest.mark.parametrize(
    "demands", [{"strategy": "fastest"}, {"colour": "red"}, {"gpu_info": 3}, {"requirements": [1]}]
)
def test_unknown_demands_are_refused(demands: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="demands"):
        board_offer_fields(step(demands=demands))
