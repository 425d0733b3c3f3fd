"""A Run on a stage: events in, outcomes out, and beside it what a store would have kept of it."""

from __future__ import annotations

from typing import Any

import msgspec

from cluster.engine import GrowingRun, Outcome, Run, StepRecord, advance, initial_record, new_run
from cluster.engine.records import header_of
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model import commands as cmd
from cluster.model import events as ev
from cluster.model.compiled import compile_plan, decode_plan
from cluster.model.plan import Plan, RetryPolicy, Step, Submission
from cluster.model.view import Failure, RunEvent, RunView
from cluster.store.run_codec import (
    decode_record,
    decode_run,
    encode_growth,
    encode_record,
    encode_step,
    field_of,
    view_of,
)

T0 = 1_000_000.0
"""When every Run on a stage is accepted, Unix seconds."""

BROKEN = Failure("EXECUTION_FAILED", "broken")
FLAKY = Failure("EXECUTION_FAILED", "flaky", retryable=True)
NO_RETRY = RetryPolicy(max_retries=0)

Unit = tuple[int, int]


def step(name: str, *needs: str, **fields: Any) -> Step:
    """A Step of capability "work"."""
    return Step(name=name, capability="work", needs=needs, **fields)


def output_of(name: str) -> dict[str, str]:
    return {"$ref": f"steps.{name}.output"}


class Stage:
    """Applies events to one Run at `now`, and keeps what the outcomes say must be written.

    Attributes:
        run: The Run in memory.
        now: Unix seconds; tests move it.
        fields: The Run's hash as the store would hold it.
        events: All events so far.
    """

    def __init__(self, *steps: Step, inputs: Any = None, adopt: bool = True, **fields: Any) -> None:
        plan_fields = {
            name: fields.pop(name) for name in ("output", "success", "blueprint") if name in fields
        }
        submission = Submission(
            run_id="run-1",
            plan=Plan(name="plan", steps=steps, **plan_fields),
            inputs={} if inputs is None else inputs,
            **fields,
        )
        record = initial_record(submission, T0)
        raw = compile_plan(submission.plan).raw
        self.now = T0
        self.fields: dict[bytes, bytes] = {
            b"header": msgspec.json.encode(header_of(submission, T0)),
            b"record": encode_record(record),
            b"plan": raw,
            b"inputs": msgspec.json.encode(submission.inputs),
        }
        self.events: list[RunEvent] = []
        self.run: Run = new_run(header_of(submission, T0), record, decode_plan(raw), self.fields[b"inputs"])
        if adopt:
            self.send(ev.RunAdopted())

    def send(self, event: ev.Event) -> Outcome:
        """Apply an event and write what it changed."""
        outcome = advance(self.run, event, self.now, step_timeout_s=300.0)
        if outcome.accepted:
            self.fields[b"record"] = encode_record(self.run.record)
            for unit in outcome.changed_units:
                record = self.run.unit(*unit).to_record()
                self.fields[field_of("s", *unit).encode()] = encode_step(record)
            for unit in outcome.new_results:
                self.fields[field_of("r", *unit).encode()] = self.run.unit(*unit).output or b"null"
            if isinstance(self.run, GrowingRun):
                for number in outcome.growths:
                    self.fields[b"g:%d" % number] = encode_growth(self.run.growths[number])
            self.events += outcome.events
        return outcome

    def reloaded(self) -> Run:
        """The Run as another owner would load it now."""
        return decode_run(self.fields)

    def take_over(self) -> Outcome:
        """Go on with the Run as the store has it, as a new owner does."""
        self.run = self.reloaded()
        return self.send(ev.RunAdopted())

    # -- short ways to say what happens

    def assign(self, index: int, item: int = -1, agent_id: str = "agent-1") -> Outcome:
        return self.send(ev.StepAssigned(index, item, agent_id))

    def succeed(
        self, index: int, item: int = -1, output: bytes = b"1", attempt: int | None = None
    ) -> Outcome:
        attempt = self.run.unit(index, item).attempt if attempt is None else attempt
        return self.send(ev.StepSucceeded(index, item, attempt, output))

    def fail(self, index: int, item: int = -1, failure: Failure = BROKEN, **more: Any) -> Outcome:
        more.setdefault("jitter", 0.5)
        more.setdefault("attempt", self.run.unit(index, item).attempt)
        return self.send(ev.StepFailed(index, item, failure=failure, **more))

    def lose(self, index: int, item: int = -1, *, crashed: bool = False) -> Outcome:
        attempt = self.run.unit(index, item).attempt
        return self.send(ev.AttemptLost(index, item, attempt, "replica died", crashed))

    def answer(self, answer: str, name: str = "", data: bytes = b"null", by: str = "ann") -> Outcome:
        return self.send(ev.AnswerGiven(name, answer, data, by))

    def do(self, index: int, item: int = -1, output: bytes = b"1") -> Outcome:
        """Assign and succeed; gives the outcome of the success."""
        self.assign(index, item)
        return self.succeed(index, item, output)

    # -- what is to be seen

    @property
    def status(self) -> RunStatus:
        return self.run.record.status

    @property
    def statuses(self) -> list[StepStatus]:
        return [each.status for each in self.run.steps]

    @property
    def output(self) -> Any:
        return view_of(self.run).output

    @property
    def kinds(self) -> list[str]:
        """Types of all events, with the Step's name where there is one."""
        return [f"{each.type} {each.step}".strip() for each in self.events]


def told(outcome: Outcome) -> list[str]:
    """Types of an outcome's events, with the Step's name where there is one."""
    return [f"{each.type} {each.step}".strip() for each in outcome.events]


def queued(outcome: Outcome) -> list[Unit]:
    """Units an outcome asks slots for."""
    return [(each.step, each.item) for each in outcome.commands if isinstance(each, cmd.QueueStep)]


def started(outcome: Outcome) -> cmd.StartStep:
    """The one attempt an outcome starts."""
    (found,) = [each for each in outcome.commands if isinstance(each, cmd.StartStep)]
    return found


def is_nothing(outcome: Outcome) -> bool:
    """Whether an outcome changes nothing and asks for nothing."""
    parts = (outcome.changed_units, outcome.new_results, outcome.events, outcome.commands)
    return not outcome.accepted and outcome.refusal is None and not any(parts)


def view_from_store(stage: Stage) -> RunView:
    """The view that readers get."""
    return view_of(stage.reloaded())


__all__ = [
    "BROKEN",
    "FLAKY",
    "NO_RETRY",
    "T0",
    "Stage",
    "StepRecord",
    "decode_record",
    "is_nothing",
    "output_of",
    "queued",
    "started",
    "step",
    "told",
    "view_from_store",
]
