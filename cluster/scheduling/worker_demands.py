"""What a Step demands of an outside worker, read from the Step: resources, model, and `demands`.

`demands` is what only outside workers know: `gpu_info` (`model`, a part of the name; `vram_gb` at least),
`installed_models`, `max_cost`, `strategy`; the first two may stand below `requirements`. What it does not
know it refuses.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.errors import InvalidInput
from cluster.model.plan import Step
from cluster.scheduling.matching import WorkerStrategy

__all__ = ["GpuDemand", "WorkerDemands", "board_offer_fields"]


class GpuDemand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a GPU: a part of its name in any case, and memory in GiB at least."""

    model: str = ""
    vram_gb: float = 0.0


class WorkerDemands(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `demands` of a Step.

    Attributes:
        gpu_info: None for any worker.
        installed_models: Names, or objects with `name`.
        max_cost: None for any price.
        strategy: A WorkerStrategy; `best_value` is `best_fit`.
    """

    gpu_info: GpuDemand | None = None
    installed_models: tuple[str | dict[str, Any], ...] = ()
    max_cost: float | None = None
    strategy: str = WorkerStrategy.DEFAULT


def board_offer_fields(step: Step) -> dict[str, Any]:
    """Return the fields of a board's offer that say which worker will do.

    Raises:
        InvalidInput: The demands cannot be read.
    """
    where = f"step {step.name}: demands"
    given = dict(step.demands)
    requirements = given.pop("requirements", None) or {}
    try:
        demands = msgspec.convert({**given, **requirements}, WorkerDemands)
        word = "best_fit" if demands.strategy == "best_value" else demands.strategy
        strategy = WorkerStrategy(word)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise InvalidInput(f"{where}: {error}", field=step.name) from None
    names = {
        each if isinstance(each, str) else str(each.get("name", "")) for each in demands.installed_models
    }
    gpu = demands.gpu_info or GpuDemand()
    if step.model:
        names.add(step.model)
    return {
        "strategy": strategy,
        "gpu_model": gpu.model,
        "gpu_memory_gb": gpu.vram_gb,
        "num_cpus": step.resources.num_cpus or 0.0,
        "models": frozenset(names - {""}),
        "max_cost": demands.max_cost,
    }
