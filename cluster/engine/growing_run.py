"""A Run of a Blueprint: it begins without Steps and grows by some with each state that is visited.

What it has gathered is never stored as a whole: it is the inputs, the outputs of its Steps and the notes of
its visits, put together again in the same order when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from cluster.engine.records import Growth, RunHeader, RunRecord, StepRecord
from cluster.engine.state import Run, StepRun, Unit
from cluster.errors import StepError
from cluster.lifecycle.step_status import StepStatus
from cluster.model.blueprint import FAILURE, SUCCESS, StateKind
from cluster.model.compiled import CompiledPlan, CompiledStep
from cluster.model.compiled_blueprint import CompiledState, CompiledWork
from cluster.model.plan import RetryPolicy, Step
from cluster.model.references import Reference, Template, resolve_path
from cluster.model.run_id import client_id

__all__ = ["DISCARD", "QUARANTINE", "RETRY", "WAIT", "GrowingRun", "Scope", "load_run", "new_run"]

WAIT = "approval"
QUARANTINE = "quarantine"
"""Capabilities of the Steps that wait for an answer."""
RETRY = "retry"
DISCARD = "discard"
"""How a quarantined visit is answered."""
_NULL = Template((b"null",))


class Scope:
    """What a Blueprint, or a sub-blueprint, has gathered.

    Attributes:
        inputs: Raw JSON.
        data: By key.
        result: What came last.
    """

    __slots__ = ("data", "inputs", "result")

    def __init__(self, inputs: bytes) -> None:
        self.inputs = inputs
        self.data: dict[str, Any] = {}
        self.result: Any = None


class GrowingRun(Run):
    """See Run.

    Attributes:
        growths: Visits so far.
        scopes: By the SUB state's name, "" for the Blueprint itself.
        taken: Step that did each piece of work of the present state, by the work's position; -1 for a wait.
    """

    __slots__ = ("_own_steps", "growths", "scopes", "taken")

    def __init__(self, header: RunHeader, record: RunRecord, plan: CompiledPlan, inputs: bytes) -> None:
        # Its Steps are its own; what Runs of the Blueprint share is only the Blueprint.
        self._own_steps: list[CompiledStep] = []
        own = CompiledPlan(plan.plan, plan.raw, self._own_steps, plan.output, plan.blueprint)
        super().__init__(header, record, own, inputs)
        self.growths: list[Growth] = []
        self.scopes = {"": Scope(inputs)}
        self.taken: dict[int, int] = {}

    @property
    def states(self) -> dict[str, CompiledState]:
        """The Blueprint's states by name."""
        return self.plan.blueprint.states if self.plan.blueprint is not None else {}

    # -- growing

    def grow(self, growth: Growth) -> None:
        """Append the Steps of a visit."""
        first = len(self.steps)
        visit = len(self.growths)
        self.growths.append(growth)
        state = self.states[growth.state]
        self._appoint(growth, first)
        for place, capability in enumerate(growth.capabilities):
            compiled = _compiled_step(first + place, visit, growth, state, place, capability)
            self._own_steps.append(compiled)
            self.plan.index_by_name[compiled.step.name] = compiled.index
            self.steps.append(StepRun(StepStatus.BLOCKED))

    def _appoint(self, growth: Growth, first: int) -> None:
        if growth.failure is not None:
            return
        if not growth.is_retry:
            self.taken.clear()
        self.taken.update({work: first + place for place, work in enumerate(growth.works)})

    def recall(self) -> None:
        """Go through the visits again, for what they gathered."""
        growths, self.growths = self.growths, []
        first = 0
        for growth in growths:
            for note in growth.notes:
                self.note(note)
            self.growths.append(growth)
            self._appoint(growth, first)
            first += len(growth.capabilities)

    def note(self, note: tuple[Any, ...]) -> None:
        """Let something happen to the gathered data: ("set", scope, object), ("open", scope, inputs),
        ("take", scope), ("close", SUB state's name) or ("fail", scope, error).
        """
        kind, scope = note[0], self.scopes[note[1]] if note[0] != "open" else None
        if scope is None:
            self.scopes[note[1]] = Scope(orjson.dumps(note[2]))
        elif kind == "set":
            scope.data.update(note[2])
        elif kind == "take":
            self._take(scope)
        elif kind == "fail":
            scope.result = {"error": note[2]}
        else:
            del self.scopes[note[1]]
            parent = self.states[note[1]]
            _gather(self.scopes[parent.state.scope], parent, scope.data)

    def _take(self, scope: Scope) -> None:
        """Take over the results of the present state's work."""
        state = self.states[self.growths[-1].state]
        if state.state.kind is StateKind.WAIT:
            step_run = self.steps[self.taken[-1]]
            scope.result = {} if step_run.output is None else orjson.loads(step_run.output)
            scope.data[state.state.into or _local_name(state)] = scope.result
        elif len(state.works) == 1:
            step_run = self.steps[self.taken[0]]
            if step_run.status is StepStatus.SUCCEEDED:
                _gather(scope, state, self.result_of(0)[1])
            else:
                scope.result = _error_of(step_run)
        else:
            scope.result = {
                work.work.name: self._shown_result(position) for position, work in enumerate(state.works)
            }
            scope.data[state.state.into or _local_name(state)] = scope.result

    def _shown_result(self, position: int) -> dict[str, Any]:
        step_run = self.steps[self.taken[position]]
        if step_run.status is not StepStatus.SUCCEEDED:
            return {"status": FAILURE, **_error_of(step_run)}
        status, data = self.result_of(position)
        return {"status": status, "data": data}

    def result_of(self, position: int) -> tuple[str, Any]:
        """Return status and data of a piece of the present state's work that succeeded.

        Raises:
            StepError: It should tell its status and does not.
        """
        index = self.taken[position]
        output = self.steps[index].output
        value = None if output is None else orjson.loads(output)
        work = self.states[self.growths[-1].state].works[position].work
        if not work.tells_status:
            return SUCCESS, value
        if isinstance(value, dict) and "$blob" not in value:
            status = value.get("status", SUCCESS)
            if isinstance(status, str):
                return status, value.get("data")
        name = self.plan.steps[index].step.name
        raise StepError(f"step {name}: its output tells no status, or is too large", "VALIDATION_ERROR")

    # -- what Steps and readers see

    def add_progress(self, amount: float) -> None:
        """Count a Step's progress; there is always one more Step to come, until the Run ends."""
        self.progress_sum += amount
        self.record.progress = min(max(self.progress_sum / (len(self.steps) + 1), 0.0), 1.0)

    def look_up_in(self, scope: str, reference: Reference) -> bytes:
        """Give the raw JSON behind a reference of a state."""
        found = self.scopes[scope]
        if reference.root == "inputs":
            return resolve_path(found.inputs, reference)
        if reference.root == "run":
            return orjson.dumps(client_id(self.run_id))
        value = found.data if reference.root == "data" else found.result
        if reference.path and isinstance(value, dict) and reference.path[0] in value:
            # Only the part that is asked for is encoded, and decoded again.
            return resolve_path(orjson.dumps(value[reference.path[0]]), _without_first(reference))
        return resolve_path(orjson.dumps(value), reference)

    def look_up_leniently(self, scope: str, reference: Reference) -> bytes:
        """The same, where what is not there is null."""
        try:
            return self.look_up_in(scope, reference)
        except StepError:
            return b"null"

    def render(self, template: Template, state: CompiledState) -> bytes:
        """Resolve the references in a state's template to raw JSON.

        Raises:
            StepError: A reference leads nowhere.
        """
        return template.render(partial(self.look_up_in, state.state.scope))

    def render_inputs(self, step: int, item: int) -> bytes:
        """See Run. Only Steps of the present visit are rendered: later the data is another."""
        state = self.states[self.growths[-1].state]
        return self.render(self.plan.steps[step].inputs, state)

    def render_output(self) -> bytes:
        """The Run's output is what it has gathered."""
        return orjson.dumps(self.scopes[""].data)


def _compiled_step(
    index: int, visit: int, growth: Growth, state: CompiledState, place: int, capability: str
) -> CompiledStep:
    name = f"{growth.state}:{visit}"
    if growth.failure is not None:
        step = Step(name=f"{name}:{QUARANTINE}", capability=QUARANTINE, answers=(RETRY, DISCARD))
        error = {"code": growth.failure.code, "message": growth.failure.message}
        return CompiledStep(index, step, Template((orjson.dumps(error),)), None, None)
    position = growth.works[place]
    if position < 0:
        step = Step(name=name, capability=capability, answers=state.answers, timeout_s=state.state.timeout_s)
        return CompiledStep(index, step, state.message or _NULL, None, None)
    compiled: CompiledWork = state.works[position]
    work = compiled.work
    step = Step(
        name=f"{name}:{work.name}" if work.name else name,
        capability=capability,
        retry=RetryPolicy(max_retries=work.max_retries),
        timeout_s=work.timeout_s,
        model=work.model,
        demands=work.demands,
        keys=work.keys,
    )
    return CompiledStep(index, step, compiled.inputs, None, None)


def _gather(scope: Scope, state: CompiledState, value: Any) -> None:
    scope.result = value
    if state.state.into:
        scope.data[state.state.into] = value
    elif isinstance(value, dict) and "$blob" not in value:
        scope.data.update(value)
    elif value is not None:
        scope.data[_local_name(state)] = value


def _local_name(state: CompiledState) -> str:
    return state.state.name.rpartition(".")[2]


def _error_of(step_run: StepRun) -> dict[str, Any]:
    error = step_run.error
    return {"error": None if error is None else {"code": error.code, "message": error.message}}


def _without_first(reference: Reference) -> Reference:
    return Reference(reference.root, "", reference.path[1:])


def new_run(header: RunHeader, record: RunRecord, plan: CompiledPlan, inputs: bytes) -> Run:
    """Make a Run that has just been accepted."""
    kind = Run if plan.blueprint is None else GrowingRun
    return kind(header, record, plan, inputs)


def load_run(
    header: RunHeader,
    record: RunRecord,
    plan: CompiledPlan,
    inputs: bytes,
    step_records: Mapping[Unit, StepRecord],
    results: Mapping[Unit, bytes],
    growths: Sequence[Growth],
) -> Run:
    """Rebuild a Run from the store; see `Run.restore`. `growths` are in the order of their numbers."""
    run = new_run(header, record, plan, inputs)
    if not isinstance(run, GrowingRun):
        run.restore(step_records, results)
        return run
    for growth in growths:
        run.grow(growth)
    run.restore(step_records, results)
    run.recall()
    return run
