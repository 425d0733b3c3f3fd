"""Which external worker gets a Step: what it must offer, and which of those that do is best.

A worker is capacity like a replica: it serves capabilities, has resources, a load and a price. This module
knows no connection, no credential and no lease; who is listed here is alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from cluster.scheduling.reasons import NoWorker

__all__ = ["WorkerNeed", "WorkerOffer", "WorkerStrategy", "choose_worker", "unmet_by"]


class WorkerStrategy(StrEnum):
    """Which of several workers that all could."""

    DEFAULT = "default"
    """One that has the models warm, then the cheapest."""
    ROUND_ROBIN = "round_robin"
    """The one whose last Step is longest ago."""
    LEAST_CONNECTIONS = "least_connections"
    """The one with the smallest part of its slots in use."""
    CHEAPEST = "cheapest"
    """The one that asks least for the capability."""
    BEST_FIT = "best_fit"
    """The one with the least GPU memory and CPUs beyond what is needed."""


class WorkerOffer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A living worker.

    Attributes:
        worker_id: Unique.
        capabilities: What it serves.
        gpu_model: Name of its GPU, "" without one.
        gpu_memory_gb: Of its GPU.
        num_cpus: 0 where unknown.
        models: Installed models.
        warm_models: Loaded models.
        num_running: Steps it has.
        max_running: Steps it takes at a time.
        is_busy: It says itself that it takes nothing.
        cost_by_capability: Price of one Step; what is not listed is free.
        last_given_at: When it was given a Step last; minus infinity never.
    """

    worker_id: str
    capabilities: frozenset[str]
    gpu_model: str = ""
    gpu_memory_gb: float = 0.0
    num_cpus: float = 0.0
    models: frozenset[str] = frozenset()
    warm_models: frozenset[str] = frozenset()
    num_running: int = 0
    max_running: int = 1
    is_busy: bool = False
    cost_by_capability: dict[str, float] = {}
    last_given_at: float = float("-inf")


class WorkerNeed(NamedTuple):
    """What a Step needs of a worker.

    Attributes:
        capability: What must be served.
        gpu_model: A part of the GPU's name, any case; "" for any or none.
        gpu_memory_gb: At least this.
        num_cpus: At least this; a worker that does not tell its CPUs has enough.
        models: Must be installed.
        max_cost: At most this; None for any price.
    """

    capability: str
    gpu_model: str = ""
    gpu_memory_gb: float = 0.0
    num_cpus: float = 0.0
    models: frozenset[str] = frozenset()
    max_cost: float | None = None


def unmet_by(need: WorkerNeed, worker: WorkerOffer) -> str:
    """Say what a worker lacks, load apart; "" where it could do the Step."""
    if need.capability not in worker.capabilities:
        return f"the capability {need.capability!r}"
    if need.gpu_model and need.gpu_model.lower() not in worker.gpu_model.lower():
        return f"a GPU {need.gpu_model}"
    if worker.gpu_memory_gb < need.gpu_memory_gb:
        return f"{need.gpu_memory_gb:g} GiB of GPU memory"
    if worker.num_cpus and worker.num_cpus < need.num_cpus:
        return f"{need.num_cpus:g} CPUs"
    if missing := need.models - worker.models - worker.warm_models:
        return f"the model {min(missing)}"
    if need.max_cost is not None and _cost(need, worker) > need.max_cost:
        return f"a price of at most {need.max_cost:g}"
    return ""


def choose_worker(
    need: WorkerNeed, workers: Iterable[WorkerOffer], strategy: WorkerStrategy = WorkerStrategy.DEFAULT
) -> WorkerOffer | NoWorker:
    """Choose the worker of a Step.

    Equal ones are taken by turns: the one whose last Step is longest ago, then by id.

    Returns:
        The worker, or why there is none: what the last one that was closest lacks, or how many are busy.
    """
    rank = _RANKS[strategy]
    best: tuple[Any, WorkerOffer] | None = None
    num_busy, unmet = 0, ""
    for worker in workers:
        lacking = unmet_by(need, worker)
        if lacking:
            if need.capability in worker.capabilities or not unmet:
                unmet = lacking
        elif worker.is_busy or worker.num_running >= worker.max_running:
            num_busy += 1
        else:
            key = (*rank(need, worker), worker.last_given_at, worker.worker_id)
            if best is None or key < best[0]:
                best = (key, worker)
    if best is not None:
        return best[1]
    if num_busy:
        unmet = ""
    elif not unmet:
        unmet = f"the capability {need.capability!r}"
    return NoWorker(capability=need.capability, num_busy=num_busy, unmet=unmet)


def _cost(need: WorkerNeed, worker: WorkerOffer) -> float:
    return worker.cost_by_capability.get(need.capability, 0.0)


def _load(need: WorkerNeed, worker: WorkerOffer) -> float:
    return worker.num_running / worker.max_running


_RANKS: dict[WorkerStrategy, Callable[[WorkerNeed, WorkerOffer], tuple[float, ...]]] = {
    WorkerStrategy.DEFAULT: lambda need, worker: (
        len(need.models - worker.warm_models),
        _cost(need, worker),
        _load(need, worker),
    ),
    WorkerStrategy.ROUND_ROBIN: lambda need, worker: (),
    WorkerStrategy.LEAST_CONNECTIONS: lambda need, worker: (_load(need, worker),),
    WorkerStrategy.CHEAPEST: lambda need, worker: (_cost(need, worker), _load(need, worker)),
    WorkerStrategy.BEST_FIT: lambda need, worker: (
        worker.gpu_memory_gb - need.gpu_memory_gb,
        worker.num_cpus - need.num_cpus,
        _load(need, worker),
    ),
}
