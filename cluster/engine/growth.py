"""How a Run of a Blueprint goes from state to state: what comes of a visit, which Steps the next one adds.

Pure, like the rest of the engine: outputs in, Steps out. It ends no Run by itself: it says how one ends.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, NamedTuple

import orjson

from cluster.engine.growing_run import DISCARD, QUARANTINE, WAIT, GrowingRun
from cluster.engine.outcome import Outcome
from cluster.engine.records import Growth
from cluster.engine.steps import Settlement, emit, unblock
from cluster.errors import FailureCode, InvalidInput, StepError
from cluster.lifecycle.phase import Phase
from cluster.lifecycle.run_status import RunEventKind
from cluster.lifecycle.step_status import StepStatus
from cluster.model.blueprint import CANCELLED, FAILURE, SUCCESS, TIMEOUT, StateKind
from cluster.model.compiled import MAX_STEPS
from cluster.model.compiled_blueprint import CompiledState, accepted_inputs
from cluster.model.plan import OUTSIDE_PREFIX
from cluster.model.view import Failure

__all__ = ["BLAMED_ON_INPUT", "Ending", "begin", "follow"]

BLAMED_ON_INPUT = frozenset({"INVALID_INPUT_ERROR", "INTEGRITY_MISMATCH_ERROR", "CONTRACT_VIOLATION"})
"""Failures that nobody can mend by looking: the move for "failure" is taken. All others are quarantined."""
_CAPABILITY = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")


class Ending(NamedTuple):
    """How the Run ends."""

    kind: RunEventKind
    failure: Failure | None = None


class _Path:
    """The way from one visit to the next, through states that need no Step."""

    __slots__ = ("notes", "now", "out", "run")

    def __init__(self, run: GrowingRun, now: float, out: Outcome) -> None:
        self.run, self.now, self.out = run, now, out
        self.notes: list[tuple[Any, ...]] = []

    def note(self, *note: Any) -> None:
        self.run.note(note)
        self.notes.append(note)

    def enter(self, name: str) -> Ending | None:
        """Go into a state, and on to the next that needs Steps or ends the Run."""
        run = self.run
        while True:
            compiled = run.states[name]
            state = compiled.state
            run.record.state = name
            emit(run, self.out, RunEventKind.ENTERED, self.now, message=name)
            try:
                if compiled.set is not None:
                    self.note("set", state.scope, orjson.loads(run.render(compiled.set, compiled)))
                if state.kind is StateKind.SUB:
                    self.note("open", name, self._inputs_of(compiled))
                    name = state.start
                    continue
                if state.kind is StateKind.WORK:
                    works = tuple(range(len(compiled.works)))
                    return self.visit(compiled, works, self._capabilities(compiled, works))
                if state.kind is StateKind.WAIT:
                    return self.visit(compiled, (-1,), (WAIT,))
                if state.kind is StateKind.END and not state.scope:
                    return self.end(compiled)
            except StepError as error:
                return self.quarantine(compiled, Failure(error.code, error.message))
            status, failure = SUCCESS, None
            if state.kind is StateKind.END:
                if state.is_failure:
                    status, failure = FAILURE, self._failure_of(compiled)
                self.note("close", state.scope)
                compiled = run.states[state.scope]
            found = self.choose(compiled, status)
            if found is None:
                return self.fail(compiled, failure or _no_move(compiled, status))
            name = found

    def _inputs_of(self, compiled: CompiledState) -> dict[str, Any]:
        """Make the inputs of a sub-blueprint."""
        given = {} if compiled.inputs is None else orjson.loads(self.run.render(compiled.inputs, compiled))
        if not isinstance(given, dict):
            raise StepError(
                f"state {compiled.state.name}: its inputs are no object", FailureCode.VALIDATION_ERROR
            )
        try:
            return accepted_inputs(compiled.state.parameters, given)
        except InvalidInput as error:
            message = f"state {compiled.state.name}: {error.message}"
            raise StepError(message, FailureCode.VALIDATION_ERROR) from error

    def _capabilities(self, compiled: CompiledState, works: tuple[int, ...]) -> tuple[str, ...]:
        found = []
        for position in works:
            each = compiled.works[position]
            text = orjson.loads(self.run.render(each.capability, compiled))
            if each.work.is_outside:
                text = f"{OUTSIDE_PREFIX}{text}" if isinstance(text, str) and text else None
            if not isinstance(text, str) or not _CAPABILITY.match(text):
                raise StepError(
                    f"state {compiled.state.name}: {str(text)[:100]!r} is no capability", "VALIDATION_ERROR"
                )
            found.append(text)
        return tuple(found)

    def choose(self, compiled: CompiledState, status: str) -> str | None:
        """Find the next state for a status."""
        lookup = partial(self.run.look_up_leniently, compiled.state.scope)
        for condition, to in compiled.moves.get(status, ()):
            if condition is None or condition.holds(lookup):
                return to
        return None

    def visit(
        self,
        compiled: CompiledState,
        works: tuple[int, ...],
        capabilities: tuple[str, ...],
        *,
        failure: Failure | None = None,
        is_retry: bool = False,
    ) -> Ending | None:
        """Add the Steps of a visit; with a failure, the one that waits in quarantine."""
        run = self.run
        if len(run.steps) + len(capabilities) > MAX_STEPS:
            message = f"the run would grow to over {MAX_STEPS} steps"
            return self.close(Ending(RunEventKind.FAILED, Failure(FailureCode.EXECUTION_FAILED, message)))
        growth = Growth(compiled.state.name, tuple(self.notes), works, capabilities, failure, is_retry)
        self._keep(growth)
        indexes = range(len(run.steps) - len(capabilities), len(run.steps))
        run.record.num_open += len(indexes)
        run.record.phase = _phase_of(compiled, growth)
        settlement = Settlement()
        for index in indexes:
            unblock(run, index, self.now, self.out, settlement)
        return None

    def _keep(self, growth: Growth) -> None:
        self.out.growths.append(len(self.run.growths))
        self.run.grow(growth)

    def close(self, ending: Ending) -> Ending:
        """Keep what was gathered on the way to the end."""
        if self.notes:
            self._keep(Growth(self.run.record.state, tuple(self.notes)))
        return ending

    def end(self, compiled: CompiledState) -> Ending:
        """End the Run as a state says."""
        if not compiled.state.is_failure:
            return self.close(Ending(RunEventKind.SUCCEEDED))
        return self.close(Ending(RunEventKind.FAILED, self._failure_of(compiled)))

    def _failure_of(self, compiled: CompiledState) -> Failure:
        message = f"ended in state {compiled.state.name}"
        if compiled.message is not None:
            message = str(orjson.loads(self.run.render(compiled.message, compiled)))[:2000]
        return Failure(FailureCode.EXECUTION_FAILED, message)

    def quarantine(
        self, compiled: CompiledState, failure: Failure, works: tuple[int, ...] = ()
    ) -> Ending | None:
        """Wait for somebody to look. `works` failed and is done again on "retry"; without, the state is
        entered again.
        """
        return self.visit(compiled, works, (QUARANTINE,), failure=failure)

    def fail(self, compiled: CompiledState, failure: Failure) -> Ending | None:
        """Go where a failure leads: out of sub-blueprints, or to the end."""
        state = compiled.state
        while state.scope:
            parent = self.run.states[state.scope]
            error = {"code": failure.code, "message": failure.message}
            self.note("close", state.scope)
            self.note("fail", parent.state.scope, error)
            found = self.choose(parent, FAILURE)
            if found is not None:
                return self.enter(found)
            state = parent.state
        return self.close(Ending(RunEventKind.FAILED, failure))


def begin(run: GrowingRun, now: float, out: Outcome) -> Ending | None:
    """Enter the start."""
    blueprint = run.plan.plan.blueprint
    return None if blueprint is None else _Path(run, now, out).enter(blueprint.start)


def follow(run: GrowingRun, now: float, out: Outcome, settlement: Settlement) -> Ending | None:
    """Go on where all Steps of the present visit have ended.

    Returns:
        How the Run ends; None while it goes on.
    """
    if not settlement.ended or run.record.num_open:
        return None
    path = _Path(run, now, out)
    growth = run.growths[-1]
    compiled = run.states[growth.state]
    if growth.failure is not None:
        return _release(path, compiled, growth)
    if compiled.state.kind is StateKind.WAIT:
        status = _answer_of(run)
    else:
        failed = tuple(
            position for position, index in run.taken.items() if run.steps[index].status is StepStatus.FAILED
        )
        failure = _grave_failure(run, failed)
        if failure is not None:
            return path.quarantine(compiled, failure, failed)
        try:
            status = _status_of(run, compiled, failed)
        except StepError as error:
            return path.quarantine(compiled, Failure(error.code, error.message), tuple(run.taken))
    path.note("take", compiled.state.scope)
    found = path.choose(compiled, status)
    if found is not None:
        return path.enter(found)
    if status == CANCELLED:
        return path.close(
            Ending(RunEventKind.CANCELLED, Failure(FailureCode.CANCELLED, "called off by its worker"))
        )
    if status == FAILURE:
        told = next((each for index in run.taken.values() if (each := run.steps[index].error)), None)
        return path.fail(compiled, told or _no_move(compiled, status))
    return path.fail(compiled, _no_move(compiled, status))


def _release(path: _Path, compiled: CompiledState, growth: Growth) -> Ending | None:
    """Carry out what was decided about a quarantined visit."""
    run = path.run
    output = run.steps[-1].output
    if output is not None and orjson.loads(output)["answer"] == DISCARD:
        return path.close(Ending(RunEventKind.FAILED, growth.failure))
    if not growth.works:
        return path.enter(compiled.state.name)
    run.record.state = compiled.state.name
    emit(run, path.out, RunEventKind.ENTERED, path.now, message=compiled.state.name)
    capabilities = tuple(run.plan.steps[run.taken[position]].step.capability for position in growth.works)
    return path.visit(compiled, growth.works, capabilities, is_retry=True)


def _answer_of(run: GrowingRun) -> str:
    output = run.steps[run.taken[-1]].output
    return TIMEOUT if output is None else str(orjson.loads(output)["answer"])


def _grave_failure(run: GrowingRun, failed: tuple[int, ...]) -> Failure | None:
    for position in failed:
        error = run.steps[run.taken[position]].error or Failure(FailureCode.EXECUTION_FAILED, "failed")
        if error.code not in BLAMED_ON_INPUT:
            return error
    return None


def _status_of(run: GrowingRun, compiled: CompiledState, failed: tuple[int, ...]) -> str:
    statuses = [run.result_of(position)[0] for position in run.taken if position not in failed]
    if failed:
        return FAILURE
    return statuses[0] if len(compiled.works) == 1 else SUCCESS


def _no_move(compiled: CompiledState, status: str) -> Failure:
    return Failure(
        FailureCode.EXECUTION_FAILED, f"state {compiled.state.name} has no move for {status[:100]!r}"
    )


def _phase_of(compiled: CompiledState, growth: Growth) -> Phase:
    if growth.failure is not None:
        return Phase.QUARANTINED
    if compiled.state.kind is StateKind.WAIT:
        return Phase.PERSON
    if len(compiled.works) > 1:
        return Phase.PARALLEL
    if growth.capabilities[0].startswith(OUTSIDE_PREFIX):
        return Phase.OUTSIDE
    return Phase.SUB if compiled.state.scope else Phase.WORKING
