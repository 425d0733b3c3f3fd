"""The work that is measured: Plans of no-op steps, and how a round is timed.

chain3 is three steps in a row that hand 200 bytes of JSON on; fan16 is 16 steps side by side and a join. They
do nothing, so that what is measured is the price of durability and of every hop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cluster.model.plan import Json, Plan, Step

__all__ = [
    "CHAIN3",
    "FAN16",
    "INPUT",
    "NOOP",
    "Effort",
    "MeasurementFailed",
    "fan_out",
    "percentile",
    "seconds_of",
    "sleep_plan",
]

INPUT: Json = {"name": "chain3", "payload": "x" * 160}
"""200 bytes as JSON."""


class MeasurementFailed(Exception):
    """What was measured did not do its work: a wrong output, a server that ended, no end in sight."""


class Effort(NamedTuple):
    """How much is measured.

    Attributes:
        rounds: Repetitions of each figure; ratios are taken within a round.
        scale: Factor on the number of Runs of a round, above 0 to 1; 1 is what the figures are defined for.
    """

    rounds: int
    scale: float

    def count(self, number: int) -> int:
        """Scale a number of Runs; at least 10."""
        return max(10, round(number * self.scale))


def _noop(name: str, inputs: Json, needs: tuple[str, ...] = ()) -> Step:
    return Step(name=name, capability="noop", inputs=inputs, needs=needs)


NOOP = Plan(name="noop", steps=(_noop("a", {"$ref": "inputs"}),))
CHAIN3 = Plan(
    name="chain3",
    steps=(
        _noop("a", {"$ref": "inputs"}),
        _noop("b", {"$ref": "steps.a.output"}),
        _noop("c", {"$ref": "steps.b.output"}),
    ),
)


def fan_out(width: int, *, hand_on: bool) -> Plan:
    """Build `width` steps side by side and a join.

    Args:
        width: 1 or more.
        hand_on: Whether the join is handed what the others gave.
    """
    wide = tuple(_noop(f"s{number}", {"$ref": "inputs"}) for number in range(width))
    outputs = {f"k{number}": {"$ref": f"steps.s{number}.output.name"} for number in range(width)}
    join = _noop("join", outputs if hand_on else {}, tuple(step.name for step in wide))
    return Plan(name=f"fan{width}", steps=(*wide, join))


FAN16 = fan_out(16, hand_on=True)


def sleep_plan(seconds: float, timeout_s: float = 86_400.0) -> Plan:
    """Build one step that waits."""
    step = Step(name="wait", capability="sleep", inputs={"seconds": seconds}, timeout_s=timeout_s)
    return Plan(name="sleep", steps=(step,))


def seconds_of(action: Callable[[], object]) -> float:
    """Time an action."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def percentile(values: Sequence[float], percent: float) -> float:
    """Take a percentile by nearest rank.

    Args:
        values: At least one, in any order.
        percent: Above 0, to 100.
    """
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]
