"""Circuits: after some failures in a row a host is left in peace for a while. Arithmetic only: the caller has
the clock.

A circuit is closed (calls go), open (none goes) or half open (one goes, and its end decides). One `Circuits`
holds many, by key, and forgets those used longest ago.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["Circuits"]

_MAX_KEYS = 10_000
_PROBE_PAUSE_S = 5.0


@dataclass(slots=True)
class _Circuit:
    num_failures: int = 0
    open_until: float = 0.0
    probe_until: float = 0.0


class Circuits:
    """The circuits of one holder.

    Args:
        max_failures: Failures in a row that open a circuit, >= 1.
        open_s: How long an open one stays open, and how long a probe may be out before another may go, > 0.
    """

    def __init__(self, max_failures: int = 5, open_s: float = 60.0) -> None:
        self._max_failures = max_failures
        self._open_s = open_s
        self._circuits: OrderedDict[str, _Circuit] = OrderedDict()

    def admit(self, key: str, now: float) -> float:
        """Ask whether a call may go.

        Args:
            key: What the circuit protects.
            now: Seconds on any clock that never goes back.

        Returns:
            0 when it may; else the seconds after which to ask again.
        """
        circuit = self._circuits.get(key)
        if circuit is None or circuit.num_failures < self._max_failures:
            return 0.0
        if now < circuit.open_until:
            return circuit.open_until - now
        if now < circuit.probe_until:
            return min(circuit.probe_until - now, _PROBE_PAUSE_S)
        circuit.probe_until = now + self._open_s
        return 0.0

    def record(self, key: str, succeeded: bool, now: float) -> None:
        """Tell how a call ended. One never told holds back the next probe for `open_s` only."""
        if succeeded:
            self._circuits.pop(key, None)
            return
        circuit = self._circuits.setdefault(key, _Circuit())
        self._circuits.move_to_end(key)
        circuit.num_failures += 1
        if circuit.num_failures >= self._max_failures:
            circuit.open_until = now + self._open_s
            circuit.probe_until = 0.0
        if len(self._circuits) > _MAX_KEYS:
            self._circuits.popitem(last=False)
