"""The work of the simulated cluster: who asks for what, when, and how long it takes. Deterministic by seed.

- Service times: Pareto with alpha 1.5, capped at 100 x the median, median 30 s.
- Shapes: 10 % gangs of 1 to 8 GPUs (half of them strictly on one node, half packed), 30 % fractions (1/2,
  1/3, 1/4), the rest one whole GPU.
- Load: 1.2 x what the GPUs can do, in Poisson arrivals; 5 % of the work is there when it begins.
- Tenants are equal in weight. All ask for a little more than their share; one in ten floods: its surplus,
  1.7 x its share, is of low priority.
- What the scheduler is told to expect is the service time times 0.5 to 2, log-uniformly: estimates are wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from cluster.scheduling.devices import Bundle, bundle_of
from cluster.scheduling.packing import Strategy

__all__ = ["NUM_TENANTS", "PRIORITIES", "SHAPES", "Shape", "Work", "make_trace"]

NUM_TENANTS = 100
PRIORITIES = {100: 0.05, 75: 0.15, 50: 0.4, 25: 0.4}
"""Part of each tenant's regular work, by priority."""

_ALPHA = 1.5
_MEDIAN_S = 30.0
_SCALE_S = _MEDIAN_S / 2 ** (1 / _ALPHA)
_CAP_S = 100 * _MEDIAN_S
_LOAD = 1.2
_AT_ONCE = 0.05
_FLOOD_TENANTS = 10
_REGULAR_LOAD = 1.03
_FLOOD_PRIORITY = 25
_GANG_SIZES = range(1, 9)


class Shape(NamedTuple):
    """What a kind of work needs.

    Attributes:
        weight: Its part of all work, by number.
    """

    name: str
    bundles: tuple[Bundle, ...]
    strategy: Strategy
    num_gpus: float
    weight: float


def _shapes() -> tuple[Shape, ...]:
    fractions = [Shape(f"1/{n}", (bundle_of(1 / n),), Strategy.PACK, 1 / n, 0.1) for n in (2, 3, 4)]
    gangs = [
        Shape(f"{size} {strategy}", (bundle_of(1),) * size, strategy, float(size), 0.1 / 16)
        for size in _GANG_SIZES
        for strategy in (Strategy.PACK, Strategy.STRICT_PACK)
    ]
    return (Shape("1", (bundle_of(1),), Strategy.PACK, 1.0, 0.6), *fractions, *gangs)


SHAPES = _shapes()


class Work(NamedTuple):
    """One step of the trace."""

    number: int
    at: float
    tenant: str
    priority: int
    shape: Shape
    service_s: float
    expected_s: float


def mean_service_s() -> float:
    """Compute the mean of the capped Pareto."""
    tail: float = (_SCALE_S / _CAP_S) ** _ALPHA
    return _ALPHA / (_ALPHA - 1) * (_SCALE_S - _CAP_S * tail) + _CAP_S * tail


def make_trace(num_steps: int, num_gpus: int, seed: int) -> Iterator[Work]:
    """Yield steps in the order of their arrival.

    Args:
        num_steps: How many.
        num_gpus: What the load is measured against.
        seed: Same seed, same trace.
    """
    random = Random(seed)
    gpus_per_step = sum(shape.num_gpus * shape.weight for shape in SHAPES)
    num_per_s = _LOAD * num_gpus / (gpus_per_step * mean_service_s())
    # A tenant's regular work is the same for all; the flood is what is missing to the load.
    flood = (_LOAD - _REGULAR_LOAD) / _LOAD
    weights = [shape.weight for shape in SHAPES]
    names = [f"t{number:03}" for number in range(NUM_TENANTS)]
    priorities, parts = list(PRIORITIES), list(PRIORITIES.values())
    at_once = round(num_steps * _AT_ONCE)
    now = 0.0
    for number in range(num_steps):
        if number >= at_once:
            now += random.expovariate(num_per_s)
        if random.random() < flood:
            tenant, priority = names[random.randrange(_FLOOD_TENANTS)], _FLOOD_PRIORITY
        else:
            tenant = names[random.randrange(NUM_TENANTS)]
            (priority,) = random.choices(priorities, parts)
        (shape,) = random.choices(SHAPES, weights)
        service_s = min(_SCALE_S * (1.0 - random.random()) ** (-1 / _ALPHA), _CAP_S)
        expected_s = service_s * math.exp(random.uniform(-math.log(2), math.log(2)))
        yield Work(number, now, tenant, priority, shape, service_s, expected_s)
