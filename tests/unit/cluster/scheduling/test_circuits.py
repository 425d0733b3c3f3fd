"""Circuits: closed, open, half open."""

from __future__ import annotations

from cluster.scheduling import circuits
from cluster.scheduling.circuits import Circuits


def fail(circuit: Circuits, times: int, key: str = "h", now: float = 0.0) -> None:
    for _ in range(times):
        circuit.record(key, succeeded=False, now=now)


def test_five_failures_in_a_row_open_a_circuit_for_a_minute() -> None:
    circuit = Circuits()
    fail(circuit, 4)
    assert circuit.admit("h", 0.0) == 0.0
    fail(circuit, 1)
    assert circuit.admit("h", 1.0) == 59.0
    assert circuit.admit("other", 1.0) == 0.0


def test_a_success_starts_the_count_again() -> None:
    circuit = Circuits()
    fail(circuit, 4)
    circuit.record("h", succeeded=True, now=0.0)
    fail(circuit, 4)
    assert circuit.admit("h", 0.0) == 0.0


def test_after_the_pause_one_probe_goes_and_others_wait_for_its_end() -> None:
    circuit = Circuits()
    fail(circuit, 5)
    assert circuit.admit("h", 60.0) == 0.0
    assert circuit.admit("h", 60.0) > 0
    circuit.record("h", succeeded=True, now=61.0)
    assert circuit.admit("h", 61.0) == 0.0
    assert circuit.admit("h", 61.0) == 0.0


def test_a_failed_probe_opens_the_circuit_again() -> None:
    circuit = Circuits()
    fail(circuit, 5)
    assert circuit.admit("h", 60.0) == 0.0
    fail(circuit, 1, now=61.0)
    assert circuit.admit("h", 62.0) == 59.0


def test_a_probe_whose_end_is_never_told_does_not_keep_the_circuit_shut() -> None:
    """The attempt that probed was cancelled."""
    circuit = Circuits()
    fail(circuit, 5)
    assert circuit.admit("h", 60.0) == 0.0
    assert circuit.admit("h", 119.0) > 0
    assert circuit.admit("h", 120.0) == 0.0


def test_the_circuits_used_longest_ago_are_forgotten() -> None:
    circuit = Circuits(max_failures=1)
    for number in range(circuits._MAX_KEYS + 1):
        fail(circuit, 1, key=str(number))
    assert circuit.admit("0", 0.0) == 0.0
    assert circuit.admit("1", 0.0) > 0
