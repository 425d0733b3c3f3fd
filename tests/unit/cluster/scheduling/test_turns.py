"""Order and place together: gangs have their turn, small ones pass only where they take nothing away."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling.devices import NodeSpec, bundle_of
from cluster.scheduling.limits import Limits
from cluster.scheduling.packing import Packer, Request, Strategy
from cluster.scheduling.queued_step import QueuedStep
from cluster.scheduling.reasons import CapacityShort, QuotaReached
from cluster.scheduling.reservations import Reservations
from cluster.scheduling.step_queue import StepQueue
from cluster.scheduling.turns import Turns

quick = settings(max_examples=60, deadline=None)


def turns(*sizes: int, limits: Limits | None = None, timeout_s: float = 3600.0) -> Turns:
    packer = Packer()
    for number, size in enumerate(sizes):
        packer.add_node(NodeSpec(name=str(number), gpu_memory_gb=(0.0,) * size))
    queue = StepQueue("gpu", limits or Limits())
    return Turns(queue, Reservations(packer, timeout_s, max_reserved=1.0))


def step(
    step_id: str,
    num_gpus: float,
    num: int = 1,
    at: float = 0.0,
    expected_s: float | None = 1.0,
    tenant: str = "t",
    priority: int = 50,
) -> QueuedStep:
    request = Request(step_id, (bundle_of(num_gpus),) * num, Strategy.PACK, expected_s)
    return QueuedStep(step_id, tenant, priority, at, lane=f"{num} x {num_gpus}", item=request)


def started(found: Turns, now: float) -> list[str]:
    return [start.placement.request.request_id for start in found.starts(now)]


def test_gang_whose_turn_has_come_gets_the_next_devices_and_later_ones_wait() -> None:
    found = turns(2)
    for each in (step("a", 1), step("b", 1), step("gang", 1, 2), step("late", 1, at=0.5, expected_s=None)):
        found.push(each)
    assert started(found, 0) == ["a", "b"]
    found.end("a", 5)
    assert started(found, 5) == []
    assert isinstance(found.queue.why("late", 5), CapacityShort)
    found.end("b", 6)
    assert started(found, 6) == ["gang"]
    found.end("gang", 7)
    assert started(found, 7) == ["late"]


def test_gang_does_not_jump_the_queue_by_being_large() -> None:
    found = turns(2)
    for each in (step("a", 1), step("b", 1), step("first", 1), step("gang", 1, 2)):
        found.push(each)
    assert started(found, 0) == ["a", "b"]
    found.end("a", 1)
    assert started(found, 1) == ["first"]


def test_fraction_passes_on_a_device_that_is_partly_used() -> None:
    found = turns(1)
    for each in (step("a", 0.5), step("whole", 1), step("b", 0.5), step("c", 0.5)):
        found.push(each)
    assert started(found, 0) == ["a", "b"]


def test_whole_gpu_is_not_starved_by_fractions_that_refill_every_device() -> None:
    found = turns(2)
    for number in range(4):
        found.push(step(f"0-{number}", 0.5))
    found.push(step("whole", 1))
    running = started(found, 0)
    for moment in range(1, 200):
        now = float(moment)
        for number in range(2):
            found.push(step(f"{moment}-{number}", 0.5, at=now))
        found.end(running.pop(moment % 3), now)
        running += started(found, now)
        if "whole" in running:
            assert moment >= 60
            return
    raise AssertionError("it never started")


def test_cancelled_gang_gives_its_devices_back() -> None:
    found = turns(2)
    for each in (step("a", 1), step("gang", 1, 2), step("late", 1, at=0.5, expected_s=None)):
        found.push(each)
    assert started(found, 0) == ["a"]
    assert found.cancel("gang", 1)
    assert not found.cancel("gang", 1)
    assert started(found, 1) == ["late"]


def test_reservation_that_expires_puts_the_gang_back_with_its_waiting_time() -> None:
    found = turns(2, timeout_s=10)
    for each in (step("a", 1), step("gang", 1, 2), step("late", 1, at=1, expected_s=None)):
        found.push(each)
    assert started(found, 0) == ["a"]
    assert started(found, 10) == []
    assert len(found.reservations) == 1, "its turn again, and its patience is longer"
    found.end("a", 11)
    assert started(found, 11) == ["gang"]


def test_quota_counts_what_is_placed_and_frees_with_it() -> None:
    limits = Limits()
    limits.set_concurrency("tenant:t", 1, 0)
    found = turns(4, limits=limits)
    for each in (step("a", 1), step("b", 1), step("c", 1, tenant="u")):
        found.push(each)
    assert started(found, 0) == ["a", "c"]
    assert isinstance(found.queue.why("b", 0), QuotaReached)
    assert found.end("a", 1, used=3.0) == (found.queue,)
    assert started(found, 1) == ["b"]


sizes = st.sampled_from(((0.5, 1), (0.25, 1), (1, 1), (1, 2), (1, 3), (2, 1)))
offers = st.lists(
    st.tuples(
        sizes, st.sampled_from("abc"), st.sampled_from((25, 50)), st.sampled_from((0.5, 1.0, 9.0, None))
    ),
    min_size=1,
    max_size=50,
)


@quick
@given(offers, st.randoms(use_true_random=False))
def test_everything_starts_whatever_the_estimates_say_and_nothing_is_left(
    offered: list[tuple[tuple[float, int], str, int, float | None]], random: object
) -> None:
    """Ends come in any order, unrelated to what was expected: nobody starves, no device stays taken."""
    found = turns(4, 2)
    running: list[str] = []
    done: set[str] = set()
    now = 0.0
    for number, ((size, num), tenant, priority, expected_s) in enumerate(offered):
        found.push(step(str(number), size, num, now, expected_s, tenant, priority))
        running += started(found, now)
    while len(done) < len(offered):
        assert running, "nothing runs, and yet something waits"
        now += 1.0
        ended = running.pop(random.randrange(len(running)))  # type: ignore[attr-defined]
        done.add(ended)
        found.end(ended, now, used=now)
        running += started(found, now)
    assert found.reservations.packer.utilisation == 0.0
    assert len(found.reservations) == 0
    assert len(found.queue) == 0


@quick
@given(offers)
def test_device_is_idle_only_if_nothing_that_waits_may_use_it(
    offered: list[tuple[tuple[float, int], str, int, float | None]],
) -> None:
    """Work conservation where nothing is reserved: single devices and fractions only."""
    found = turns(3, 2)
    for number, ((size, _), tenant, priority, expected_s) in enumerate(offered):
        found.push(step(str(number), min(size, 1), 1, 0.0, expected_s, tenant, priority))
    found.starts(0.0)
    most = max(device.free for node in found.reservations.packer.nodes.values() for device in node.devices)
    for waiting in found.queue:
        assert waiting.item.bundles[0].shares > most
