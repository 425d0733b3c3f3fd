"""Slots of replicas: never given twice, urgent work first, and what a dead scheduler gave is known again."""

from __future__ import annotations

import pytest

from actors.claimants import Claimants
from actors.fleet import Fleet, FleetPool, FleetReplica
from actors.pool_table import Needs
from actors.slots import Slots
from cluster.scheduling.pools import PoolSpec


class Rig:
    """Slots of one replica, and orchestrators that do as they are told."""

    def __init__(self, num_slots: int, is_adopted: bool = False) -> None:
        spec = PoolSpec(name="p", agents=("a:B",), capabilities=("work",), concurrency=num_slots)
        self.fleet, self.claimants = Fleet(), Claimants()
        self.fleet.pools["p"] = FleetPool(spec, ("work",))
        self.replica = self.fleet.ready["r"] = FleetReplica("r", spec, 0.0)
        self.replica.is_adopted = is_adopted
        self.slots = Slots(self.fleet, self.claimants)
        self.versions: dict[str, int] = {}

    def attend(
        self,
        name: str,
        waiting: dict[int, int] | None = None,
        used: int = 0,
        oldest_s: float = 0.0,
        **more: int,
    ) -> int:
        needs = Needs(
            {"p": waiting} if waiting else {},
            {"r": used} if used else {},
            {},
            {"p": oldest_s},
            grants={"r": more["granted"]} if more else {},
        )
        self.claimants.note(name, needs)
        self.slots.confirm(name, self.versions.get(name, 0), needs)
        self.slots.share()
        self.versions[name] = self.fleet.version
        return self.replica.limits.get(name, 0)


def test_urgent_work_of_one_gets_what_ordinary_work_of_another_gives_back() -> None:
    rig = Rig(4)
    assert rig.attend("a", {50: 9}) == 4
    rig.attend("a", {50: 5}, used=4)
    assert rig.attend("b", {90: 3}) == 0
    assert rig.attend("a", {50: 5}, used=4) == 1
    rig.attend("a", {50: 5}, used=1)
    assert rig.attend("b", {90: 3}) == 3


def test_ordinary_work_that_waits_too_long_gets_a_slot_beside_endless_urgent_work() -> None:
    rig = Rig(2)
    rig.attend("a", {90: 99})
    rig.attend("b", {10: 1}, oldest_s=60.0)
    rig.attend("a", {90: 99}, used=2)
    rig.attend("a", {90: 99}, used=1)
    assert rig.attend("b", {10: 1}, oldest_s=61.0) == 1


def test_new_scheduler_leaves_everybody_what_the_one_before_gave_and_gives_no_slot_twice() -> None:
    rig = Rig(4, is_adopted=True)
    rig.slots.begin(["a", "b"])
    assert rig.attend("b", {50: 9}, used=1, granted=1) == 1, "a may have the other three"
    assert rig.attend("b", {50: 9}, used=1, granted=1) == 1
    rig.attend("a", granted=3)
    assert rig.replica.held["a"] + rig.replica.limits["b"] <= 4
    rig.attend("a", granted=3)
    assert rig.attend("b", {50: 9}, used=1) >= 3


@pytest.mark.parametrize("name", ["a", "b"])
def test_replica_that_the_new_scheduler_started_itself_waits_for_nobody(name: str) -> None:
    rig = Rig(4)
    rig.slots.begin(["a", "b"])
    assert rig.attend(name, {50: 4}) == 4
