"""Outside workers are capacity in the same queue: who goes first is the queue's, who gets it is `matching`'s.

A lane of the queue is a shape of need. A shape that no worker can take now is shut with the reason, so that
others pass it, and `why` repeats it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cluster.scheduling.limits import Limits, tenant_key
from cluster.scheduling.matching import WorkerNeed, WorkerOffer, WorkerStrategy, choose_worker
from cluster.scheduling.pool_queue import PoolQueue
from cluster.scheduling.queued_step import QueuedStep
from cluster.scheduling.reasons import NoWorker, QuotaReached, Reason

ANY = WorkerNeed("render")
LARGE = WorkerNeed("render", gpu_model="H200", gpu_memory_gb=100)


class Workers:
    """Workers that are known, and one queue of what they may take."""

    def __init__(
        self,
        *offers: WorkerOffer,
        strategy: WorkerStrategy = WorkerStrategy.DEFAULT,
        limits: Limits | None = None,
    ) -> None:
        self.offers = {offer.worker_id: offer for offer in offers}
        self.queue = PoolQueue("workers", limits or Limits())
        self.given: list[tuple[Any, str]] = []
        self._strategy = strategy

    def push(self, step_id: Any, need: WorkerNeed = ANY, tenant: str = "t", priority: int = 50) -> None:
        step = QueuedStep(step_id, tenant, priority, 0.0, lane=str(need), item=need)
        self.queue.push(step)

    def serve(self, now: float) -> None:
        """Give out what can be given."""
        shut: dict[str, Reason] = {}
        while (step := self.queue.front(now, shut)) is not None:
            found = choose_worker(step.item, self.offers.values(), self._strategy)
            if isinstance(found, NoWorker):
                shut[step.lane] = found
                continue
            self.queue.take(step, now)
            self.offers[found.worker_id] = replace(
                found, num_running=found.num_running + 1, last_given_at=now + len(self.given) * 1e-6
            )
            self.given.append((step.step_id, found.worker_id))


def worker(worker_id: str, **fields: Any) -> WorkerOffer:
    return WorkerOffer(worker_id=worker_id, capabilities=frozenset({"render"}), **fields)


def test_urgent_step_goes_first_and_steps_are_given_by_turns() -> None:
    workers = Workers(
        worker("a", max_running=2), worker("b", max_running=2), strategy=WorkerStrategy.ROUND_ROBIN
    )
    for number in range(4):
        workers.push(number)
    workers.push("urgent", priority=90)
    workers.serve(1.0)
    assert workers.given == [("urgent", "a"), (0, "b"), (1, "a"), (2, "b")]
    assert workers.queue.reasons([3], 1.0) == {3: NoWorker(capability="render", num_busy=2)}


def test_shape_that_no_worker_offers_is_passed_by_others_and_says_what_is_lacking() -> None:
    workers = Workers(worker("small", gpu_model="L4", gpu_memory_gb=24, max_running=4))
    workers.push("large", LARGE, priority=90)
    workers.push("any")
    workers.serve(1.0)
    assert workers.given == [("any", "small")]
    told = NoWorker(capability="render", num_busy=0, unmet="a GPU H200")
    assert workers.queue.reasons(["large"], 1.0) == {"large": told}
    assert workers.queue.why("large", 1.0) == told
    assert told.sentence(1.0) == "No worker for 'render' offers a GPU H200."

    workers.offers["big"] = worker("big", gpu_model="NVIDIA H200 NVL", gpu_memory_gb=141)
    workers.serve(2.0)
    assert workers.given[-1] == ("large", "big")


def test_tenant_at_its_limit_takes_no_worker_from_others() -> None:
    limits = Limits()
    limits.set_concurrency(tenant_key("x"), 1, 0)
    workers = Workers(worker("a", max_running=3), limits=limits)
    for number in range(3):
        workers.push(f"x-{number}", tenant="x")
    workers.push("y", tenant="y")
    workers.serve(1.0)
    assert [step_id for step_id, _ in workers.given] == ["x-0", "y"]
    assert workers.queue.reasons(["x-1"], 1.0) == {"x-1": QuotaReached(key="tenant:x", num_used=1, limit=1)}


_offers = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from([0.0, 24.0, 141.0]), st.booleans()), min_size=0, max_size=6
)
_needs = st.lists(st.tuples(st.sampled_from([0.0, 16.0, 100.0]), st.sampled_from([10, 50, 90])), max_size=30)


@given(_offers, _needs, st.sampled_from(list(WorkerStrategy)))
@settings(max_examples=200, deadline=None)
def test_no_worker_gets_more_than_it_takes_and_none_idles_while_its_work_waits(
    drawn: list[tuple[int, float, bool]], needs: list[tuple[float, int]], strategy: WorkerStrategy
) -> None:
    offers = [
        worker(f"w-{number}", max_running=most, gpu_memory_gb=memory, is_busy=is_busy)
        for number, (most, memory, is_busy) in enumerate(drawn)
    ]
    workers = Workers(*offers, strategy=strategy)
    for number, (memory, priority) in enumerate(needs):
        workers.push(number, WorkerNeed("render", gpu_memory_gb=memory), priority=priority)
    workers.serve(1.0)
    counts = Counter(worker_id for _, worker_id in workers.given)
    for offer in offers:
        assert counts[offer.worker_id] <= (0 if offer.is_busy else offer.max_running)
        has_room = not offer.is_busy and counts[offer.worker_id] < offer.max_running
        waiting = [step.item for step in workers.queue]
        assert not has_room or all(need.gpu_memory_gb > offer.gpu_memory_gb for need in waiting)
    told = workers.queue.reasons([step.step_id for step in workers.queue], 1.0)
    assert all(isinstance(reason, NoWorker) for reason in told.values())
    assert len(told) == len(workers.queue)
