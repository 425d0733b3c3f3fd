"""Shares of limited keys: together never above the limit, whoever wants, vanishes, or restarts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.claimants import Claimants
from actors.fleet import Fleet
from actors.key_division import KeyDivision
from actors.pool_table import KeyUse, Needs
from cluster.store.capacity import LimitSpec


class Rig:
    """A division and orchestrators that do as they are told.

    Attributes:
        versions: Of the table that each has.
        shares: What each was told of each key.
    """

    def __init__(self, **limits: LimitSpec) -> None:
        self.fleet, self.claimants = Fleet(), Claimants()
        self.division = KeyDivision(self.fleet, self.claimants, 2)
        self.division.declare({key.replace("_", "*"): limit for key, limit in limits.items()})
        self.versions: dict[str, int] = {}
        self.shares: dict[str, dict[str, int | None]] = {}
        self.uses: dict[str, dict[str, int]] = {}

    def attend(self, name: str, wanted: dict[str, int] | None = None) -> dict[str, int | None]:
        used = self.uses.setdefault(name, {})
        keys = {key: KeyUse(used.get(key, 0), (wanted or {}).get(key, 0)) for key in {*used, *(wanted or {})}}
        needs = Needs({}, {}, {}, keys=keys)
        self.claimants.note(name, needs)
        self.division.confirm(name, self.versions.get(name, 0), needs)
        self.division.share()
        self.versions[name] = self.fleet.version
        self.shares[name] = {limit.key: limit.max_concurrent for limit in self.division.limits_for(name)}
        return self.shares[name]

    def use(self, name: str, key: str, num: int) -> None:
        assert num <= (self.shares[name].get(key) or 0), "nobody uses more than it was told"
        self.uses[name][key] = num


def test_lone_orchestrator_has_the_whole_limit() -> None:
    rig = Rig(k=LimitSpec(max_concurrent=4))
    assert rig.attend("a") == {"k": 4}


def test_what_is_in_use_is_given_to_another_only_when_it_is_given_back() -> None:
    rig = Rig(k=LimitSpec(max_concurrent=4))
    rig.attend("a")
    rig.use("a", "k", 4)
    assert rig.attend("b", {"k": 4}) == {"k": 0}
    assert rig.attend("a") == {"k": 2}
    assert rig.attend("b", {"k": 4}) == {"k": 0}, "a still has four"
    rig.use("a", "k", 1)
    rig.attend("a")
    assert rig.attend("b", {"k": 4}) == {"k": 2}


def test_key_under_a_pattern_is_told_only_to_those_who_use_it() -> None:
    rig = Rig(**{"user-_": LimitSpec(max_concurrent=3)})
    assert rig.attend("a") == {"user-*": 0}
    assert rig.attend("b", {"user-7": 1}) == {"user-*": 0, "user-7": 3}
    assert rig.attend("a") == {"user-*": 0}
    assert set(rig.division.uses()) == {"user-*", "user-7"}


def test_new_scheduler_gives_nothing_more_until_all_have_told_what_they_use() -> None:
    rig = Rig(k=LimitSpec(max_concurrent=4))
    rig.division.begin(["a", "b"])
    rig.uses["a"] = {"k": 3}
    assert rig.attend("b", {"k": 4}) == {"k": 0}
    assert rig.attend("b", {"k": 4}) == {"k": 0}, "a has not been heard of"
    rig.attend("a")
    rig.attend("a")
    assert rig.attend("b", {"k": 4}) == {"k": 1}


def test_lowered_limit_is_lowered_at_once() -> None:
    rig = Rig(k=LimitSpec(max_concurrent=8))
    rig.attend("a")
    rig.division.declare({"k": LimitSpec(max_concurrent=2)})
    assert rig.attend("a") == {"k": 2}
    rig.division.declare({})
    assert rig.attend("a") == {}


def told_rate(rig: Rig, name: str) -> float:
    (limit,) = rig.division.limits_for(name)
    return limit.rate_num


def test_rate_goes_to_those_whose_steps_wait_once_the_others_have_confirmed_less() -> None:
    rig = Rig(k=LimitSpec(rate="10/m", burst=6))
    for name in "ababab":
        rig.attend(name)
    (limit,) = rig.division.limits_for("a")
    assert (limit.max_concurrent, limit.rate_per_s) == (None, 60.0)
    assert limit.rate_num == pytest.approx(5.0, rel=0.01)
    assert limit.burst == pytest.approx(3.0, rel=0.01)
    rig.attend("a", {"k": 3})
    assert told_rate(rig, "a") == pytest.approx(5.0, rel=0.01), "b may still use its half"
    rig.attend("b")
    rig.attend("b")
    rig.attend("a", {"k": 3})
    assert told_rate(rig, "a") == pytest.approx(10.0, rel=0.01)
    assert 0 < told_rate(rig, "b") < 0.1


def test_new_scheduler_tells_only_floors_of_rates_until_all_have_its_table() -> None:
    rig = Rig(k=LimitSpec(rate="10/m"))
    rig.division.begin(["a", "b"])
    rig.attend("a", {"k": 1})
    rig.attend("a", {"k": 1})
    assert told_rate(rig, "a") < 0.1, "b may still use what it was told before"
    for name in "bba":
        rig.attend(name, {"k": 1} if name == "a" else None)
    assert told_rate(rig, "a") > 5


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.booleans()), max_size=40))
def test_rates_that_orchestrators_obey_never_exceed_the_declared_one_together(
    moves: list[tuple[str, bool, bool]],
) -> None:
    rig = Rig(k=LimitSpec(rate="10/m"))
    obeyed: dict[str, float] = {}
    for name, wants, is_delivered in moves:
        version = rig.versions.get(name, 0)
        with pytest.MonkeyPatch.context() as patch:
            # Who has wanted wants for long, or nobody does any more.
            patch.setattr("actors.rate_division._KEPT_S", 60.0 if wants else 0.0)
            rig.attend(name, {"k": 1} if wants else None)
        if is_delivered:
            obeyed[name] = told_rate(rig, name)
        else:
            rig.versions[name] = version
        assert sum(obeyed.values()) <= 10.0 + 1e-9


@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from(["k", "user-1"]), st.integers(0, 6), st.integers(0, 6)
        ),
        max_size=40,
    )
)
def test_all_together_never_use_more_than_the_limit(moves: list[tuple[str, str, int, int]]) -> None:
    rig = Rig(k=LimitSpec(max_concurrent=5), **{"user-_": LimitSpec(max_concurrent=3)})
    for name, key, num_wanted, num_used in moves:
        rig.attend(name, {key: num_wanted})
        rig.use(name, key, min(num_used, rig.shares[name].get(key) or 0))
        for each, most in (("k", 5), ("user-1", 3)):
            assert sum(used.get(each, 0) for used in rig.uses.values()) <= most
