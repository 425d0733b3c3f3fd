"""A Run in its owner's memory: the state that `advance` changes, and how it is made from what the store
keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import orjson

from cluster.engine.records import RunHeader, RunRecord, StepRecord
from cluster.lifecycle.step_status import StepStatus
from cluster.model.compiled import CompiledPlan
from cluster.model.references import Lookup, Reference, resolve_path
from cluster.model.run_id import client_id
from cluster.model.view import Failure

__all__ = ["Run", "StepRun", "Unit", "join_outputs"]

Unit = tuple[int, int]
"""(step index, item index or -1)."""


class StepRun:
    """A Step, or one item of a mapped Step, inside a Run. See StepRecord for the fields they share.

    Attributes:
        remaining: Needed Steps that have not ended.
        output: Raw JSON, or None.
        items: StepRuns of a mapped Step, or None.
        open_items: Items that have not ended.
        raw_items: The list mapped over, each as raw JSON.
    """

    __slots__ = (
        "agent_id",
        "attempt",
        "crashes",
        "deadline_at",
        "ended_at",
        "error",
        "failures",
        "items",
        "not_before_at",
        "open_items",
        "output",
        "progress",
        "raw_items",
        "remaining",
        "started_at",
        "status",
        "story",
    )

    def __init__(self, status: StepStatus, remaining: int = 0) -> None:
        self.status = status
        self.remaining = remaining
        self.attempt = self.failures = self.crashes = self.open_items = 0
        self.agent_id = ""
        self.progress = 0.0
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.deadline_at: float | None = None
        self.not_before_at: float | None = None
        self.error: Failure | None = None
        self.story: tuple[str, ...] = ()
        self.output: bytes | None = None
        self.items: list[StepRun] | None = None
        self.raw_items: list[bytes] = []

    @property
    def share_done(self) -> float:
        """Progress of the Step itself, or the mean of its items', 0 to 1."""
        if not self.items:
            return self.progress
        return sum(item.progress for item in self.items) / len(self.items)

    def to_record(self) -> StepRecord:
        """Make what the store keeps."""
        return StepRecord(
            self.status,
            self.attempt,
            self.failures,
            self.crashes,
            self.agent_id,
            self.progress,
            self.started_at,
            self.ended_at,
            self.deadline_at,
            self.not_before_at,
            self.error,
            self.story,
            -1 if self.items is None else len(self.items),
        )

    def restore(self, record: StepRecord, output: bytes | None) -> None:
        """Take over what the store kept."""
        self.status, self.attempt, self.failures = record.status, record.attempt, record.failures
        self.crashes, self.agent_id, self.progress = record.crashes, record.agent_id, record.progress
        self.started_at, self.ended_at = record.started_at, record.ended_at
        self.deadline_at, self.not_before_at = record.deadline_at, record.not_before_at
        self.error, self.story, self.output = record.error, record.story, output


class Run:
    """One execution of a Plan, held by its partition's owner.

    Attributes:
        header: What never changes.
        record: What changes, as the store keeps it.
        plan: The compiled Plan.
        inputs: The Run's inputs, raw JSON.
        steps: StepRuns in Plan order.
        ready, running, backoff: Units in those statuses.
        num_succeeded: Steps that succeeded.
        num_waiting: Steps that wait for an answer.
        progress_sum: Sum of the Steps' progress, 0 to len(steps).
    """

    __slots__ = (
        "backoff",
        "header",
        "inputs",
        "num_succeeded",
        "num_waiting",
        "plan",
        "progress_sum",
        "ready",
        "record",
        "running",
        "steps",
    )

    def __init__(self, header: RunHeader, record: RunRecord, plan: CompiledPlan, inputs: bytes) -> None:
        self.header, self.record, self.plan, self.inputs = header, record, plan, inputs
        self.steps = [StepRun(StepStatus.BLOCKED, len(step.needs)) for step in plan.steps]
        self.ready: set[Unit] = set()
        self.running: set[Unit] = set()
        self.backoff: set[Unit] = set()
        self.num_succeeded = self.num_waiting = 0
        self.progress_sum = 0.0

    def restore(self, step_records: Mapping[Unit, StepRecord], results: Mapping[Unit, bytes]) -> None:
        """Take over what the store kept of the Steps. What has no record is blocked; RunAdopted makes it
        ready where it may start.
        """
        run, plan = self, self.plan
        run.record.num_open = len(run.steps)
        mapping: list[int] = []
        for index, compiled in enumerate(plan.steps):
            stored = step_records.get((index, -1))
            if stored is None:
                continue
            step_run = run.steps[index]
            step_run.restore(stored, results.get((index, -1)))
            if stored.num_items >= 0:
                run._restore_items(index, step_run, stored.num_items, step_records, results)
            if step_run.status is StepStatus.MAPPING:
                mapping.append(index)
            run._count(index, step_run)
            if step_run.status.is_terminal:
                for dependent in compiled.dependents:
                    run.steps[dependent].remaining -= 1
        for index in mapping:  # only now: the list's Step may stand behind it in the Plan
            items = plan.steps[index].items
            if items is not None:
                run.steps[index].raw_items = [
                    orjson.dumps(value) for value in orjson.loads(items.render(run.lookup))
                ]

    def _restore_items(
        self,
        index: int,
        step_run: StepRun,
        num_items: int,
        step_records: Mapping[Unit, StepRecord],
        results: Mapping[Unit, bytes],
    ) -> None:
        step_run.items = [StepRun(StepStatus.BLOCKED) for _ in range(num_items)]
        for position, item in enumerate(step_run.items):
            unit = (index, position)
            if unit in step_records:
                item.restore(step_records[unit], results.get(unit))
            elif step_run.status.is_terminal:
                item.status = StepStatus.CANCELLED  # it never started, so its end was not written
            self._enlist(unit, item.status)
        step_run.open_items = sum(not item.status.is_terminal for item in step_run.items)
        if step_run.status is StepStatus.SUCCEEDED:
            step_run.output = join_outputs(step_run.items)

    def _enlist(self, unit: Unit, status: StepStatus) -> None:
        if status is StepStatus.RUNNING:
            self.running.add(unit)
        elif status is StepStatus.BACKOFF:
            self.backoff.add(unit)
        elif status is StepStatus.READY:
            self.ready.add(unit)
        elif status is StepStatus.WAITING:
            self.num_waiting += 1

    def _count(self, index: int, step_run: StepRun) -> None:
        status = step_run.status
        self.progress_sum += 1.0 if status.is_terminal else step_run.share_done
        self._enlist((index, -1), status)
        if status.is_terminal:
            self.record.num_open -= 1
            self.num_succeeded += status is StepStatus.SUCCEEDED

    @property
    def run_id(self) -> str:
        """The Run's id."""
        return self.header.run_id

    def unit(self, step: int, item: int) -> StepRun:
        """Return the StepRun."""
        step_run = self.steps[step]
        return step_run if item < 0 or step_run.items is None else step_run.items[item]

    def add_progress(self, amount: float) -> None:
        """Count a Step's progress, or part of it, forwards or backwards; the Run's stays in 0 to 1."""
        self.progress_sum += amount
        self.record.progress = min(max(self.progress_sum / len(self.steps), 0.0), 1.0)

    def first_failure(self) -> Failure | None:
        """Return the error of the Step that failed first, in Plan order where several did at once."""
        failed = [each for each in self.steps if each.status is StepStatus.FAILED]
        return min(failed, key=lambda each: each.ended_at or 0.0).error if failed else None

    def lookup(self, reference: Reference) -> bytes:
        """Give the raw JSON behind a reference outside a mapped item."""
        if reference.root == "steps":
            output = self.steps[self.plan.index_by_name[reference.step]].output
            return b"null" if output is None else resolve_path(output, reference)
        if reference.root == "inputs":
            return resolve_path(self.inputs, reference)
        return orjson.dumps(client_id(self.run_id))

    def _item_lookup(self, step: int, item: int, reference: Reference) -> bytes:
        if reference.root == "item":
            return resolve_path(self.steps[step].raw_items[item], reference)
        return b"%d" % item if reference.root == "index" else self.lookup(reference)

    def render_inputs(self, step: int, item: int) -> bytes:
        """Resolve the references in a Step's inputs to raw JSON.

        Raises:
            StepError: A reference leads nowhere.
        """
        lookup: Lookup = self.lookup if item < 0 else partial(self._item_lookup, step, item)
        return self.plan.steps[step].inputs.render(lookup)

    def render_output(self) -> bytes:
        """Resolve the Run's output to raw JSON.

        Raises:
            StepError: A reference leads nowhere.
        """
        return self.plan.output.render(self.lookup)


def join_outputs(items: list[StepRun]) -> bytes:
    """Make the list of the items' outputs, raw JSON."""
    return b"[" + b",".join([b"null" if item.output is None else item.output for item in items]) + b"]"
