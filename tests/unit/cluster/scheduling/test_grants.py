"""How slots are shared: never too many, fairly, none idle while somebody waits."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling.grants import fair_targets, layered_targets, raise_limits

NAMES = ("a", "b", "c", "d", "e")
slots = st.integers(0, 60)
turns = st.lists(st.sampled_from(NAMES), unique=True)
counts = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 40))
quick = settings(max_examples=100, deadline=None)


def test_equal_wishes_get_equal_shares_and_the_odd_slot_goes_by_turn() -> None:
    assert fair_targets(7, {"a": 9, "b": 9}, ["a", "b"]) == {"a": 4, "b": 3}
    assert fair_targets(7, {"a": 9, "b": 9}, ["b", "a"]) == {"a": 3, "b": 4}


def test_small_wish_is_met_and_the_large_one_gets_the_rest() -> None:
    assert fair_targets(10, {"a": 1, "b": 50}, ["a", "b"]) == {"a": 1, "b": 9}


def test_slots_that_nobody_wants_are_spread_evenly_so_that_a_lone_step_needs_no_question() -> None:
    assert fair_targets(4, {}, ["a", "b"]) == {"a": 2, "b": 2}
    assert fair_targets(16, {"c": 4}, ["a", "b", "c", "d"]) == {"a": 3, "b": 3, "c": 7, "d": 3}
    assert fair_targets(7, {}, ["b", "a", "c"]) == {"b": 3, "a": 2, "c": 2}


def test_without_claimants_nobody_gets_anything() -> None:
    assert fair_targets(4, {"a": 1}, []) == {}


@quick
@given(slots, counts, turns)
def test_all_slots_are_given_and_none_twice(num_slots: int, wanted: dict[str, int], turn: list[str]) -> None:
    targets = fair_targets(num_slots, wanted, turn)
    assert set(targets) == set(turn)
    assert all(target >= 0 for target in targets.values())
    assert sum(targets.values()) == (num_slots if turn else 0)


@quick
@given(slots, counts, turns)
def test_nobody_waits_while_another_has_more_than_one_slot_more_and_wants_less(
    num_slots: int, wanted: dict[str, int], turn: list[str]
) -> None:
    """Max-min fairness, up to the one odd slot: who gets less than it wants has no less than anybody else."""
    targets = fair_targets(num_slots, wanted, turn)
    for name in turn:
        if targets[name] < wanted.get(name, 0):
            assert all(targets[other] <= targets[name] + 1 for other in turn)


@quick
@given(slots, counts, turns)
def test_no_slot_is_beyond_a_wish_while_another_wish_is_open(
    num_slots: int, wanted: dict[str, int], turn: list[str]
) -> None:
    targets = fair_targets(num_slots, wanted, turn)
    if any(targets[name] < wanted.get(name, 0) for name in turn):
        assert all(targets[name] <= wanted.get(name, 0) for name in turn)


@quick
@given(slots, counts, turns)
def test_everybody_has_its_turn_for_the_odd_slot(
    num_slots: int, wanted: dict[str, int], turn: list[str]
) -> None:
    """With fewer slots than claimants, rotating the turn gives each hungry one a slot sooner or later."""
    hungry = [name for name in turn if wanted.get(name, 0) > 0]
    if not num_slots:
        return
    for name in hungry:
        rotations = [turn[shift:] + turn[:shift] for shift in range(len(turn))]
        assert any(fair_targets(num_slots, wanted, rotation)[name] > 0 for rotation in rotations)


# -- limits


@quick
@given(slots, counts, counts, turns)
def test_limits_never_commit_more_slots_than_there_are(
    num_slots: int, held: dict[str, int], wanted: dict[str, int], turn: list[str]
) -> None:
    targets = fair_targets(num_slots, wanted, turn)
    limits = raise_limits(num_slots, held, targets)
    assert set(limits) == set(targets)
    committed = sum(max(held.get(name, 0), limits.get(name, 0)) for name in {*held, *limits})
    assert committed <= max(num_slots, sum(held.values()))
    assert all(0 <= limits[name] <= max(targets[name], held.get(name, 0)) for name in limits)


@quick
@given(slots, counts, counts, turns)
def test_who_holds_more_than_its_target_is_lowered_at_once(
    num_slots: int, held: dict[str, int], wanted: dict[str, int], turn: list[str]
) -> None:
    targets = fair_targets(num_slots, wanted, turn)
    limits = raise_limits(num_slots, held, targets)
    assert all(limits[name] <= targets[name] for name in targets)


@quick
@given(slots, counts, counts, turns)
def test_limits_reach_the_targets_when_everybody_has_confirmed(
    num_slots: int, held: dict[str, int], wanted: dict[str, int], turn: list[str]
) -> None:
    """One round to give back, one to hand out; what is given back by those who are gone is free too."""
    targets = fair_targets(num_slots, wanted, turn)
    limits = raise_limits(num_slots, held, targets)
    assert raise_limits(num_slots, limits, targets) == targets


@quick
@given(slots, counts, counts, turns, st.data())
def test_limits_stay_safe_while_confirmations_arrive_one_by_one(
    num_slots: int, first: dict[str, int], second: dict[str, int], turn: list[str], data: st.DataObject
) -> None:
    held = dict.fromkeys(turn, 0)
    for wanted in (first, second, first):
        limits = raise_limits(num_slots, held, fair_targets(num_slots, wanted, turn))
        for name in turn:
            is_confirmed = limits[name] >= held[name] or data.draw(st.booleans())
            held[name] = limits[name] if is_confirmed else held[name]
        assert sum(held.values()) <= num_slots


def test_earlier_layer_is_served_before_a_later_one_gets_anything() -> None:
    turn = ["a", "b", "c"]
    assert layered_targets(5, [{"c": 3}, {"a": 9, "b": 9}], turn) == {"a": 1, "b": 1, "c": 3}
    assert layered_targets(2, [{"c": 3}, {"a": 9}], turn) == {"a": 0, "b": 0, "c": 2}
    assert layered_targets(6, [{"c": 1}], turn) == {"a": 2, "b": 2, "c": 2}


@given(
    num_slots=st.integers(0, 40),
    layers=st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 20)), max_size=4),
)
def test_layers_never_share_more_than_there_is_and_leave_nothing_over(
    num_slots: int, layers: list[dict[str, int]]
) -> None:
    targets = layered_targets(num_slots, layers, list("abcd"))
    assert sum(targets.values()) == num_slots
    assert all(count >= 0 for count in targets.values())
