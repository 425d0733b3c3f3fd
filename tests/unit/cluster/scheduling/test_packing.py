"""Where bundles go: never over-committed, gangs whole or not at all, nobody starved by those who slip in."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.errors import InvalidSetting
from cluster.scheduling.devices import SHARES_PER_GPU, Bundle, NodeSpec, bundle_of, gpus_of, shares_of
from cluster.scheduling.packing import Packer, Placement, Request, Strategy
from cluster.scheduling.reasons import CapacityShort, LabelMissing, NodeTooSmall
from cluster.scheduling.reservations import Reservations

quick = settings(max_examples=100, deadline=None)


def node(name: str, num_gpus: int = 8, gib: float = 80, **fields: object) -> NodeSpec:
    return NodeSpec(name=name, gpu_memory_gb=(gib,) * num_gpus, num_cpus=64, memory_bytes=2**40, **fields)  # type: ignore[arg-type]


def packer(*nodes: NodeSpec) -> Packer:
    found = Packer()
    for each in nodes:
        found.add_node(each)
    return found


def gpus(request_id: str, num_gpus: float, expected_s: float | None = None, gib: float = 0) -> Request:
    return Request(request_id, (bundle_of(num_gpus, gib),), expected_s=expected_s)


def gang(
    request_id: str, num: int, strategy: Strategy = Strategy.PACK, expected_s: float | None = None
) -> Request:
    return Request(request_id, (bundle_of(1),) * num, strategy, expected_s)


def spots(placement: object) -> list[tuple[str, int]]:
    assert isinstance(placement, Placement), placement
    return [(held.node.name, device.index) for held in placement.held for device in held.devices]


# -- shares


@quick
@given(st.integers(1, 32))
def test_n_parts_are_exactly_one_gpu(parts: int) -> None:
    assert shares_of(1 / parts) * parts == SHARES_PER_GPU
    assert Fraction(shares_of(1 / parts), SHARES_PER_GPU) == Fraction(1, parts)


@quick
@given(st.integers(33, 500))
def test_n_small_parts_fill_one_gpu_and_leave_less_than_one(parts: int) -> None:
    assert 0 <= SHARES_PER_GPU - shares_of(1 / parts) * parts < parts


@pytest.mark.parametrize("num", [0.7, 0.4, 1.5, 2.25, -1.0])
def test_what_is_neither_whole_nor_one_nth_is_refused(num: float) -> None:
    with pytest.raises(ValueError, match="GPUs"):
        shares_of(num)


def test_ray_s_rounded_thirds_are_thirds() -> None:
    assert shares_of(0.3333) == shares_of(1 / 3)
    assert gpus_of(shares_of(0.25)) == 0.25


# -- fractions


def test_four_quarters_land_on_one_device_and_a_whole_gpu_still_fits() -> None:
    nodes = packer(node("a", 2))
    placed = [spots(nodes.place(gpus(str(number), 0.25), 0)) for number in range(4)]
    assert placed == [[("a", 0)]] * 4
    assert spots(nodes.place(gpus("whole", 1), 0)) == [("a", 1)]
    assert nodes.utilisation == 1.0


def test_fraction_fills_a_device_exactly_before_it_leaves_what_nobody_can_use() -> None:
    nodes = packer(node("a", 2))
    for each, size in (("half", 1 / 2), ("gone", 1 / 2), ("third", 1 / 3)):
        nodes.place(gpus(each, size), 0)
    nodes.release("gone")
    assert spots(nodes.place(gpus("another third", 1 / 3), 0)) == [("a", 1)]
    assert spots(nodes.place(gpus("another half", 1 / 2), 0)) == [("a", 0)]
    assert nodes.fragmentation == 1.0


def test_memory_of_a_device_is_respected_and_undeclared_memory_is_proportional() -> None:
    nodes = packer(node("a", 2, gib=80))
    assert spots(nodes.place(gpus("one", 0.25, gib=60), 0)) == [("a", 0)]
    assert spots(nodes.place(gpus("two", 0.25, gib=20), 0)) == [("a", 0)]
    assert spots(nodes.place(gpus("three", 0.25), 0)) == [("a", 1)]
    reason = nodes.place(gpus("large", 0.5, gib=81), 0)
    assert isinstance(reason, NodeTooSmall)


def test_new_device_is_opened_on_the_node_with_fewest_free_ones() -> None:
    nodes = packer(node("big", 8), node("small", 2))
    assert spots(nodes.place(gpus("f", 0.5), 0)) == [("small", 0)]
    assert spots(nodes.place(gpus("g", 8), 0)) == [("big", index) for index in range(8)]


def test_labels_cpus_and_custom_resources_must_be_there() -> None:
    nodes = packer(node("a", 1, labels={"gpu": "H200"}, resources={"lora": 1.0}), node("b", 1))
    wanted = Request("x", (bundle_of(1, labels={"gpu": "A100"}),))
    reason = nodes.place(wanted, 0)
    assert reason == LabelMissing(labels=(("gpu", "A100"),))
    assert reason.sentence(0) == "No node is labelled gpu=A100."
    assert spots(nodes.place(Request("y", (bundle_of(0.5, resources={"lora": 1}),)), 0)) == [("a", 0)]
    assert isinstance(nodes.place(Request("z", (bundle_of(0.5, resources={"lora": 1}),)), 0), CapacityShort)
    assert isinstance(nodes.place(Request("w", (bundle_of(0.5, num_cpus=65),)), 0), NodeTooSmall)


@pytest.mark.parametrize(
    ("bundle", "reason"),
    [
        (bundle_of(9), NodeTooSmall(missing="GPU", asked=9, largest=2)),
        (bundle_of(1, 100), NodeTooSmall(missing="GiB of GPU memory", asked=100, largest=80)),
        (bundle_of(0, num_cpus=1000), NodeTooSmall(missing="CPU", asked=1000, largest=64)),
        (
            bundle_of(0, memory_bytes=1 << 50),
            NodeTooSmall(missing="GiB of memory", asked=1 << 20, largest=1024),
        ),
        (bundle_of(0, resources={"lora": 3}), NodeTooSmall(missing="lora", asked=3, largest=1)),
        (
            bundle_of(2, resources={"lora": 1}),
            NodeTooSmall(missing="node with all of it at once", asked=1, largest=0),
        ),
    ],
    ids=lambda each: each.missing if isinstance(each, NodeTooSmall) else "",
)
def test_what_no_node_has_enough_of_is_named_with_what_the_largest_has(
    bundle: Bundle, reason: NodeTooSmall
) -> None:
    nodes = packer(node("a", 2, gib=80), node("b", 1, gib=80, resources={"lora": 1.0}))
    assert nodes.place(Request("x", (bundle,)), 0) == reason


def test_bundle_without_gpus_keeps_away_from_nodes_with_gpus() -> None:
    nodes = packer(node("gpu", 8), node("cpu", 0))
    placed = nodes.place(Request("x", (bundle_of(num_cpus=4),)), 0)
    assert isinstance(placed, Placement)
    assert placed.held[0].node.name == "cpu"


# -- gangs


def test_gang_on_one_node_takes_the_smallest_that_is_large_enough() -> None:
    nodes = packer(node("large", 8), node("small", 4))
    assert {name for name, _ in spots(nodes.place(gang("g", 3, Strategy.STRICT_PACK), 0))} == {"small"}
    reason = nodes.place(gang("h", 9, Strategy.STRICT_PACK), 0)
    assert reason == CapacityShort(num_bundles=9, missing="GPU", num_missing=1, strategy="STRICT_PACK")


def test_spread_gang_lies_on_different_nodes_and_strictly_so_where_asked() -> None:
    nodes = packer(*(node(name, 4) for name in "abc"))
    assert {name for name, _ in spots(nodes.place(gang("g", 3, Strategy.STRICT_SPREAD), 0))} == set("abc")
    assert isinstance(nodes.place(gang("h", 4, Strategy.STRICT_SPREAD), 0), CapacityShort)
    assert len(spots(nodes.place(gang("i", 4, Strategy.SPREAD), 0))) == 4


def test_gang_that_does_not_fit_leaves_nothing_behind() -> None:
    nodes = packer(node("a", 4), node("b", 4))
    before = nodes.free_shares
    reason = nodes.place(gang("g", 9), 0)
    assert reason == CapacityShort(num_bundles=9, missing="GPU", num_missing=1)
    assert reason.sentence(0) == "A gang of 9 (PACK) is short by 1 GPU."
    assert nodes.free_shares == before
    assert nodes.placements == {}


def test_packed_gang_spans_as_few_nodes_as_it_can() -> None:
    nodes = packer(node("a", 4), node("b", 3), node("c", 2))
    assert {name for name, _ in spots(nodes.place(gang("g", 6), 0))} == {"a", "c"}


# -- what is short


def said(nodes: Packer, request: Request) -> str:
    short = nodes.place(request, 0)
    assert isinstance(short, CapacityShort)
    return short.sentence(0)


def test_reason_names_the_resource_that_is_short_beside_the_devices() -> None:
    nodes = Packer()
    spec = {"num_cpus": 4, "memory_bytes": 8 << 30, "resources": {"lora": 2}}
    nodes.add_node(NodeSpec(name="a", gpu_memory_gb=(80.0,), **spec))
    taken = bundle_of(0.25, 60, num_cpus=3, memory_bytes=5 << 30, resources={"lora": 1})
    assert isinstance(nodes.place(Request("first", (taken,)), 0), Placement)
    for short, bundle in {
        "1 CPU": bundle_of(num_cpus=2),
        "1 GiB of memory": bundle_of(memory_bytes=4 << 30),
        "0.5 lora": bundle_of(0.25, 1, resources={"lora": 1.5}),
        "20 GiB of GPU memory": bundle_of(0.25, 40),
    }.items():
        assert said(nodes, Request("next", (bundle,))) == f"A replica is short by {short}."


def test_reason_of_a_gang_counts_what_all_its_bundles_lack_together() -> None:
    nodes = Packer()
    for name in "ab":
        nodes.add_node(NodeSpec(name=name, num_cpus=3))
    two = (bundle_of(num_cpus=2),)
    assert said(nodes, Request("g", two * 3)) == "A gang of 3 (PACK) is short by 2 CPU."
    spread = said(nodes, Request("g", two * 3, Strategy.STRICT_SPREAD))
    assert spread == "A gang of 3 (STRICT_SPREAD) is short by 1 node with room for one of them."
    together = said(nodes, Request("g", two * 2, Strategy.STRICT_PACK))
    assert together == "A gang of 2 (STRICT_PACK) is short by 1 CPU."


def test_reason_says_so_where_there_is_enough_of_everything_but_on_different_nodes() -> None:
    nodes = Packer()
    for name, memory_bytes in (("a", 1), ("b", 8)):
        nodes.add_node(NodeSpec(name=name, num_cpus=4, memory_bytes=memory_bytes, resources={"lora": 1}))
    on_b, on_a = bundle_of(num_cpus=4, memory_bytes=8), bundle_of(num_cpus=1, resources={"lora": 1})
    for number, taken in enumerate((on_b, on_a)):
        assert isinstance(nodes.place(Request(str(number), (taken,)), 0), Placement)
    both = Request("3", (bundle_of(num_cpus=2, resources={"lora": 1}),))
    assert said(nodes, both) == "A replica is short by 1 node with room for all of it at once."


# -- nodes and ledgers


def test_lost_node_takes_whole_gangs_along() -> None:
    nodes = packer(node("a", 4), node("b", 4))
    nodes.place(gang("g", 6), 0)
    nodes.place(gpus("f", 0.5), 0)
    with pytest.raises(InvalidSetting):
        nodes.add_node(node("a"))
    lost = nodes.remove_node("a")
    assert [each.request.request_id for each in lost] == ["g"]
    assert nodes.total_shares == 4 * SHARES_PER_GPU
    assert len(spots(nodes.place(gpus("whole", 3), 0))) == 3


def test_ledger_restores_the_same_devices_or_says_that_it_cannot() -> None:
    nodes = packer(node("a", 4))
    request = Request("r", (bundle_of(0.5), bundle_of(2)), Strategy.STRICT_PACK)
    restored = nodes.restore(request, [("a", [3]), ("a", [0, 1])], 0)
    assert spots(restored) == [("a", 3), ("a", 0), ("a", 1)]
    free = nodes.free_shares
    assert nodes.restore(request._replace(request_id="s"), [("a", [3]), ("a", [0, 2])], 0) is None
    assert nodes.restore(request._replace(request_id="t"), [("gone", [3]), ("a", [0, 2])], 0) is None
    assert nodes.free_shares == free


def test_would_fit_looks_and_touches_nothing() -> None:
    nodes = packer(node("a", 1))
    nodes.place(gpus("x", 0.5), 0)
    nodes.place(gpus("y", 0.5), 0)
    assert nodes.would_fit(gpus("z", 1), ["x", "y"], 1)
    assert not nodes.would_fit(gpus("z", 1), ["x"], 1)
    assert set(nodes.placements) == {"x", "y"}
    assert nodes.free_shares == 0


# -- reservations


def test_gang_gets_what_frees_and_small_ones_slip_in_only_if_they_are_gone_in_time() -> None:
    kept = Reservations(packer(node("a", 4)), max_reserved=1.0)
    for number, ends in enumerate((10, 20, 30, 40)):
        kept.place(gpus(str(number), 1, expected_s=ends), 0)
    waiting = gang("g", 3, Strategy.STRICT_PACK, 5)
    assert isinstance(kept.place(waiting, 0), CapacityShort)
    reservation = kept.reserve(waiting, 0)
    assert reservation is not None
    assert reservation.starts_at == 30
    kept.release("0")
    assert kept.start(10) == []
    assert isinstance(kept.place(gpus("long", 1, expected_s=21), 10), CapacityShort)
    assert isinstance(kept.place(gpus("unknown", 1), 10), CapacityShort)
    assert isinstance(kept.place(gpus("short", 1, expected_s=20), 10), Placement)
    kept.release("1")
    kept.release("2")
    assert kept.start(30) == []
    kept.release("short")
    (started,) = kept.start(31)
    assert started.request.request_id == "g"
    assert len(kept) == 0


@pytest.mark.parametrize(
    "waiting", [gang("g", 2, Strategy.STRICT_PACK), gpus("g", 2)], ids=["gang", "one bundle"]
)
def test_device_that_frees_on_the_node_of_the_targets_serves_as_well_as_they(waiting: Request) -> None:
    kept = Reservations(packer(node("a", 4)), max_reserved=1.0)
    for number in range(3):
        kept.place(gpus(str(number), 1), 0)
    assert kept.reserve(waiting, 0) is not None
    kept.release("2")
    (started,) = kept.start(1)
    assert started.request == waiting
    assert len(kept) == 0


def test_nothing_slips_in_where_nobody_knows_when_the_gang_starts() -> None:
    kept = Reservations(packer(node("a", 2)), max_reserved=1.0)
    kept.place(gpus("unknown", 1), 0)
    assert kept.reserve(gang("g", 2), 0) is not None
    assert isinstance(kept.place(gpus("short", 1, expected_s=0.1), 0), CapacityShort)


def test_whole_gpu_is_not_starved_by_fractions_that_refill_every_device() -> None:
    kept = Reservations(packer(node("a", 2)), max_reserved=1.0)
    for number in range(4):
        kept.place(gpus(f"0-{number}", 0.5, expected_s=1), 0)
    assert kept.reserve(gpus("whole", 1), 0) is not None
    for moment in range(1, 5):
        for number in range(4):
            if f"{moment - 1}-{number}" in kept.packer.placements:
                kept.release(f"{moment - 1}-{number}")
            if kept.start(moment):
                return
            kept.place(gpus(f"{moment}-{number}", 0.5, expected_s=1), moment)
    pytest.fail("it never started")


def test_reservation_expires_and_the_next_one_has_more_patience() -> None:
    kept = Reservations(packer(node("a", 2)), timeout_s=10, max_reserved=1.0)
    kept.place(gpus("x", 1), 0)
    waiting = gang("g", 2)
    first = kept.reserve(waiting, 0)
    assert first is not None
    assert kept.expire(9.9) == []
    assert kept.expire(10) == [waiting]
    assert spots(kept.place(gpus("y", 1), 10)) == [("a", 1)]
    second = kept.reserve(waiting, 10)
    assert second is not None
    assert second.expires_at == 30


def test_only_so_many_devices_are_kept_at_a_time() -> None:
    kept = Reservations(packer(node("a", 8)), max_reserved=0.5)
    kept.place(gpus("x", 8), 0)
    assert kept.reserve(gang("g", 3), 0) is not None
    assert kept.reserve(gang("h", 2), 0) is None
    assert kept.reserve(gang("i", 1), 0) is not None


# -- everything at once

SIZES = (1 / 2, 1 / 3, 1 / 4, 1, 2, 0)


class AnyOrderOfRequests(RuleBasedStateMachine):
    """Requests, ends, reservations and node losses in any order; sums are done again from the placements."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.number = 0
        self.kept = Reservations(Packer(), timeout_s=50, max_reserved=0.6)
        self.waiting: dict[str, Request] = {}

    @initialize(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4))
    def nodes(self, sizes: list[int]) -> None:
        for number, size in enumerate(sizes):
            labels = {"kind": "odd"} if number % 2 else {}
            self.kept.packer.add_node(
                NodeSpec(
                    name=str(number),
                    gpu_memory_gb=(16.0,) * size,
                    num_cpus=6,
                    memory_bytes=10,
                    labels=labels,
                )
            )

    @rule(
        sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=4),
        strategy=st.sampled_from(Strategy),
        gib=st.sampled_from((0, 0, 6)),
        labelled=st.booleans(),
        expected_s=st.sampled_from((None, 1.0, 5.0)),
    )
    def ask(
        self,
        sizes: list[float],
        strategy: Strategy,
        gib: float,
        labelled: bool,
        expected_s: float | None,
    ) -> None:
        self.number += 1
        bundles = tuple(
            bundle_of(size, gib, num_cpus=1, labels={"kind": "odd"} if labelled else None) for size in sizes
        )
        request = Request(str(self.number), bundles, strategy, expected_s)
        free = self.kept.packer.free_shares
        placed = self.kept.place(request, self.now)
        if isinstance(placed, Placement):
            self.check_strategy(placed)
            return
        assert self.kept.packer.free_shares == free
        assert placed.sentence(self.now)
        if self.kept.reserve(request, self.now) is not None:
            self.waiting[request.request_id] = request

    def check_strategy(self, placed: Placement) -> None:
        names = [held.node.name for held in placed.held]
        assert len(names) == len(placed.request.bundles)
        if placed.request.strategy is Strategy.STRICT_PACK:
            assert len(set(names)) == 1
        if placed.request.strategy is Strategy.STRICT_SPREAD:
            assert len(set(names)) == len(names)
        for held, bundle in zip(placed.held, placed.request.bundles, strict=True):
            assert held.bundle == bundle
            assert len(held.devices) == bundle.num_devices
            assert frozenset(bundle.labels) <= held.node.labels

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.kept.packer.placements:
            self.kept.release(data.draw(st.sampled_from(sorted(self.kept.packer.placements))))
        self.start()

    def start(self) -> None:
        for placed in self.kept.start(self.now):
            del self.waiting[placed.request.request_id]
            self.check_strategy(placed)

    @rule(seconds=st.sampled_from((1.0, 20.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for request in self.kept.expire(self.now):
            del self.waiting[request.request_id]

    @rule(data=st.data())
    def lose_a_node(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.kept.packer.nodes)))
        if len(self.kept.packer.nodes) > 1:
            self.kept.drop_node(name)
            self.waiting = {name: each for name, each in self.waiting.items() if name in self.kept}

    @invariant()
    def sums_are_true(self) -> None:
        packer_ = self.kept.packer
        free = 0
        for each in packer_.nodes.values():
            held = [h for p in packer_.placements.values() for h in p.held if h.node is each]
            assert each.free_cpu_parts == each.cpu_parts - sum(h.bundle.cpu_parts for h in held) >= 0
            for device in each.devices:
                on = [h for h in held if device in h.devices]
                assert device.free == SHARES_PER_GPU - sum(h.shares for h in on)
                assert 0 <= device.free <= SHARES_PER_GPU
                mib = sum(h.mib[h.devices.index(device)] for h in on)
                assert device.free_mib == device.total_mib - mib >= 0
                assert (device in each.whole) == (
                    device.free == SHARES_PER_GPU and device.reserved_for is None
                )
                free += device.free
        assert packer_.free_shares == free
        assert set(self.waiting) <= {name for name in self.waiting if name in self.kept}
        for name in self.waiting:
            reservation = self.kept.get(name)
            assert reservation is not None
            assert reservation.num_busy == sum(d.free < SHARES_PER_GPU for d in reservation.targets)
            assert all(d.reserved_for is reservation for d in reservation.targets)

    def teardown(self) -> None:
        """What is reserved starts once all others have ended, whatever slipped in before."""
        for name in list(self.kept.packer.placements):
            self.kept.release(name)
        self.start()
        for name in list(self.kept.packer.placements):
            self.kept.release(name)
        while self.waiting:
            num_waiting = len(self.waiting)
            self.start()
            assert len(self.waiting) < num_waiting, "nothing runs, and yet somebody waits"
            for name in list(self.kept.packer.placements):
                self.kept.release(name)


AnyOrderOfRequests.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestAnyOrderOfRequests = AnyOrderOfRequests.TestCase


@quick
@given(st.lists(st.sampled_from((1.0, 1 / 2, 1 / 3, 1 / 4)), min_size=1, max_size=60))
def test_packer_conserves_work(sizes: list[float]) -> None:
    """What is refused would fit on no device."""
    nodes = packer(node("a", 3), node("b", 5))
    for number, size in enumerate(sizes):
        placed = nodes.place(gpus(str(number), size), 0)
        if not isinstance(placed, Placement):
            most = max(device.free for each in nodes.nodes.values() for device in each.devices)
            assert most < shares_of(size)


def test_bundle_is_made_of_what_people_write() -> None:
    assert bundle_of(0.5, 1.5, 0.1, 7, {"lora": 0.5}, {"a": "b"}) == Bundle(
        SHARES_PER_GPU // 2, 1536, 1000, 7, (("lora", 5000),), (("a", "b"),)
    )
    assert math.isclose(gpus_of(Bundle(SHARES_PER_GPU * 3).shares), 3.0)
