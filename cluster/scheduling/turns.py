"""Order and place together: whose turn it is, and where; what cannot go in its turn, and what may pass it.

A gang whose turn has come and that does not fit gets devices of its own (see `reservations`). A single whole
GPU needs none at first: the next one that frees is its own, because nothing that needs a whole GPU of its
kind may pass it. Fractions may pass both, on devices that are partly used; where they keep every device so
for `single_patience_s`, a single whole GPU gets a device of its own too. The caller carries out what is
answered and says what has ended.
"""

from __future__ import annotations

from typing import NamedTuple

from cluster.scheduling.limits import Watcher
from cluster.scheduling.packing import Footprint, Placement, Request
from cluster.scheduling.queued_step import QueuedStep
from cluster.scheduling.reasons import CapacityShort, Reason
from cluster.scheduling.reservations import Reservations
from cluster.scheduling.step_queue import StepQueue

__all__ = ["Start", "Turns"]


class Start(NamedTuple):
    """What starts, and where."""

    step: QueuedStep
    placement: Placement


class Turns:
    """One queue over one set of nodes.

    Steps are pushed with their `Request` as `item`, the request's id being the step's, and a `lane` that is
    the same for all steps with the same bundles and strategy.

    Args:
        queue: What waits.
        reservations: Where it can go.
        single_patience_s: How long no whole GPU may free until a device is kept for who needs one, >= 0.

    Attributes:
        num_decisions: Answers so far: what starts and where, or why it does not.
    """

    def __init__(self, queue: StepQueue, reservations: Reservations, single_patience_s: float = 60.0) -> None:
        self.queue = queue
        self.reservations = reservations
        self.num_decisions = 0
        self._single_patience_s = single_patience_s
        self._shut: dict[str, Reason] = {}
        self._shut_parts: dict[str, Reason] = {}
        self._whole_shut_at: float | None = None
        self._requests: dict[str, Request] = {}
        self._footprints: dict[str, Footprint] = {}
        self._behind: dict[str, tuple[str, ...]] = {}
        self._version = -1
        self._reserved: dict[str, QueuedStep] = {}
        self._running: dict[str, QueuedStep] = {}

    def push(self, step: QueuedStep) -> None:
        """Let a step wait.

        Raises:
            ValueError: See StepQueue.push.
        """
        self.queue.push(step)
        if step.lane not in self._requests:
            self._requests[step.lane] = step.item
            self._version = -1

    def cancel(self, step_id: str, now: float) -> bool:
        """Take a step out that has not started; False where it has, or is unknown."""
        step = self._reserved.pop(step_id, None)
        if step is None:
            return self.queue.remove(step_id, now) is not None
        self.reservations.cancel(step_id)
        self.queue.end(step, now, 0.0)
        self._open_all()
        return True

    def end(self, step_id: str, now: float, used: float | None = None) -> tuple[Watcher, ...]:
        """Free what a step has; ask `starts` then.

        Args:
            step_id: A step that started.
            now: Seconds.
            used: What it really cost; None where that is not known better than before.

        Returns:
            Queues that were woken by its keys.

        Raises:
            KeyError: It does not run.
        """
        step = self._running.pop(step_id)
        self.reservations.release(step_id)
        self._reopen()
        return self.queue.end(step, now, used)

    def starts(self, now: float) -> list[Start]:
        """Decide what starts now, in order; each has its devices and keys when this returns."""
        started: list[Start] = []
        if self._reserved:
            for late in self.reservations.expire(now):
                self._requeue(late, now)
            self._start_reserved(now, started)
        self._know_lanes()
        queue, reservations, shut = self.queue, self.reservations, self._shut
        is_patient = self._whole_shut_at is None or now - self._whole_shut_at < self._single_patience_s
        if not is_patient:
            self._open_all()
        while (step := queue.front(now, shut)) is not None:
            request: Request = step.item
            self.num_decisions += 1
            found = reservations.place(request, now)
            if isinstance(found, Placement):
                queue.take(step, now)
                self._run(step, found, started)
                self._shut_parts_again()
                continue
            needs_whole = request.bundles[0].num_whole > 0
            if len(request.bundles) > 1 or request.bundles[0].num_whole > (1 if is_patient else 0):
                reservation = reservations.reserve(request, now)
                if reservation is not None:
                    is_patient = is_patient or needs_whole
                    queue.take(step, now)
                    self._reserved[request.request_id] = step
                    self._start_reserved(now, started)
                    continue
            shut[step.lane] = found
            if needs_whole and isinstance(found, CapacityShort):
                self._shut_behind(step.lane, found)
                if self._whole_shut_at is None:
                    self._whole_shut_at = now
        return started

    def shut(self) -> dict[str, Reason]:
        """Tell which lanes nothing fits, and why."""
        return dict(self._shut)

    def _run(self, step: QueuedStep, placement: Placement, started: list[Start]) -> None:
        self._running[placement.request.request_id] = step
        started.append(Start(step, placement))

    def _start_reserved(self, now: float, started: list[Start]) -> None:
        for placement in self.reservations.start(now):
            self._run(self._reserved.pop(placement.request.request_id), placement, started)

    def _shut_behind(self, lane: str, reason: Reason) -> None:
        """Let nothing that needs whole GPUs on the same nodes pass one that waits for them."""
        for other in self._behind[lane]:
            self._shut.setdefault(other, reason)

    def _reopen(self) -> None:
        """Open the lanes that may have a place again."""
        if not self._shut:
            return
        self._know_lanes()
        packer = self.reservations.packer
        if packer.num_whole:
            # A whole GPU is free: whose turn it is must be asked anew, also of those who need more of them.
            parts = {lane: why for lane, why in self._shut.items() if self._footprints[lane].part}
            self._open_all()
            self._shut_parts = parts
            return
        for lane in tuple(self._shut):
            footprint = self._footprints[lane]
            if (footprint.part or not footprint.on_one_node) and packer.may_fit(footprint):
                del self._shut[lane]

    def _know_lanes(self) -> None:
        """Work out what depends on lanes and nodes only, where either has changed."""
        packer = self.reservations.packer
        if self._version == packer.version:
            return
        self._version = packer.version
        self._footprints = {lane: packer.footprint(request) for lane, request in self._requests.items()}
        whole = {lane: each for lane, each in self._footprints.items() if each.on_one_node}
        self._behind = {
            lane: tuple(
                other
                for other, theirs in whole.items()
                if any(shelf in mine.shelves for shelf in theirs.shelves)
            )
            for lane, mine in whole.items()
        }

    def _requeue(self, request: Request, now: float) -> None:
        step = self._reserved.pop(request.request_id)
        self.queue.end(step, now, 0.0)
        self.queue.push(step)
        self._open_all()

    def _open_all(self) -> None:
        self._shut.clear()
        self._shut_parts = {}
        self._whole_shut_at = None

    def _shut_parts_again(self) -> None:
        """Spare fractions the question where the device that freed is taken whole."""
        packer = self.reservations.packer
        if self._shut_parts and not packer.num_whole:
            for lane, reason in self._shut_parts.items():
                if not packer.may_fit(self._footprints[lane]):
                    self._shut[lane] = reason
            self._shut_parts = {}
