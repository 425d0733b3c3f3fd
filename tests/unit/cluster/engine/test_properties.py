"""Random Plans and random histories through the pure engine: what must hold whatever happens."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.engine import Outcome, Run
from cluster.lifecycle.run_status import RunStatus
from cluster.lifecycle.step_status import StepStatus
from cluster.model import commands as cmd
from cluster.model import events as ev
from cluster.model.plan import RetryPolicy, Step, SuccessRule
from cluster.model.view import Failure, RunView
from cluster.store.run_codec import view_of
from tests.unit.cluster.engine.stage import Stage, output_of

MAX_EXAMPLES = 800
_TERMINAL_KINDS = {"step.succeeded", "step.failed", "step.skipped", "step.cancelled"}
_RETRY = RetryPolicy(max_retries=2, initial_delay_s=1.0, max_delay_s=4.0)
_MOVES = (
    *["assign"] * 6,
    *["answer"] * 6,
    *["repeat"] * 2,
    *["timer"] * 2,
    "lose",
    "progress",
    "pause",
    "resume",
    "priority",
    "unserve",
    "takeover",
    "takeover",
    "predecessor",
    "cancel",
    "reply_from_outside",
    "reply_from_outside",
)


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """Steps in any order of the list (a Plan's order need not be topological), 1 to 7 of them."""
    num_steps = draw(st.integers(1, 7))
    steps: list[Step] = []
    for index in range(num_steps):
        earlier = [f"s{other}" for other in range(index)]
        needs = tuple(draw(st.lists(st.sampled_from(earlier), max_size=3, unique=True))) if earlier else ()
        fields: dict[str, Any] = {
            "needs": needs,
            "retry": _RETRY,
            "timeout_s": draw(st.sampled_from([None, 5.0])),
        }
        fields["optional"] = draw(st.integers(0, 3)) == 0
        shape = draw(st.sampled_from(["plain", "plain", "plain", "map", "map_ref", "when", "gate"]))
        if shape == "map":
            fields["map"] = list(range(draw(st.integers(0, 4))))
            fields["inputs"] = {"item": {"$ref": "item"}, "index": {"$ref": "index"}}
        elif shape == "map_ref" and earlier:
            fields["map"] = output_of(draw(st.sampled_from(earlier)))
        elif shape == "gate":
            fields["answers"] = ("yes", "no")
        elif shape == "when" and earlier:
            ref = f"steps.{draw(st.sampled_from(earlier))}.output"
            fields["when"] = {"ref": ref, "op": draw(st.sampled_from(["exists", "truthy"]))}
        if earlier and draw(st.booleans()):
            fields["inputs"] = {"from": output_of(draw(st.sampled_from(earlier)))}
        steps.append(Step(name=f"s{index}", capability="work", **fields))
    return {
        "steps": draw(st.permutations(steps)),
        "success": draw(st.sampled_from(SuccessRule)),
        "timeout_s": draw(st.sampled_from([None, None, 60.0])),
        "after": draw(st.sampled_from([(), (), (), ("before-1", "before-2")])),
    }


class World:
    """The shell around one Run: slots, agents and timers, driven by commands alone and by dice.

    Whatever the engine does not ask for by a command does not happen, so a forgotten one shows as a hang.
    """

    def __init__(self, dice: random.Random, steps: list[Step], **fields: Any) -> None:
        self.dice = dice
        self.stage = Stage(*steps, adopt=False, **fields)
        self.waiting: set[tuple[int, int]] = set()
        self.outstanding: set[tuple[int, int, int]] = set()
        self.timers: dict[tuple[int, int], float] = {}
        self.watched: set[str] = set()
        self.past: list[ev.Event] = []
        self.ends: Counter[tuple[str, int]] = Counter()
        self.settled: dict[tuple[int, int], StepStatus] = {}
        self.end: RunStatus | None = None
        self.send(ev.RunAdopted())

    @property
    def run(self) -> Run:
        return self.stage.run

    def send(self, event: ev.Event) -> Outcome:
        num_events = len(self.stage.events)
        outcome = self.stage.send(event)
        self._obey(outcome)
        self._check(event, outcome, num_events)
        return outcome

    def _obey(self, outcome: Outcome) -> None:
        lost: list[ev.AttemptLost] = []
        for command in outcome.commands:
            match command:
                case cmd.QueueStep(step, item):
                    self.waiting.add((step, item))
                case cmd.StartStep(step, item, attempt):
                    self.outstanding.add((step, item, attempt))
                case cmd.FindAttempt(step, item, attempt):
                    if (step, item, attempt) not in self.outstanding:
                        lost.append(ev.AttemptLost(step, item, attempt, "gone", crashed=False))
                case cmd.SetTimer(step, item, at):
                    self.timers[(step, item)] = at
                case cmd.WatchRuns(run_ids):
                    self.watched.update(run_ids)
                case cmd.StopStep(step, item, attempt):
                    if self.dice.random() < 0.5:  # or its result is on its way already
                        self.outstanding.discard((step, item, attempt))
        for event in lost:
            self.send(event)

    # -- what must hold after every event

    def _check(self, event: ev.Event, outcome: Outcome, num_events: int) -> None:
        record = self.run.record
        assert outcome.accepted or not (outcome.changed_units or outcome.new_results or outcome.events), event
        assert [e.seq for e in outcome.events] == list(
            range(2 + num_events, 2 + num_events + len(outcome.events))
        )
        assert record.event_seq == 1 + len(self.stage.events)
        assert all(0.0 <= e.progress <= 1.0 and 0.0 <= e.step_progress <= 1.0 for e in outcome.events), event
        assert 0.0 <= record.progress <= 1.0
        self.ends.update((e.step, e.item) for e in outcome.events if e.type in _TERMINAL_KINDS)
        assert all(count == 1 for count in self.ends.values()), "a StepRun ended twice"
        self._check_ends(event)
        self._check_sets()
        self._check_liveness()
        self._check_store(outcome)

    def _check_ends(self, event: ev.Event) -> None:
        if self.end is not None:
            assert self.run.record.status is self.end, f"{event} changed a terminal Run"
        if self.run.record.status.is_terminal:
            self.end = self.run.record.status
            assert not (self.run.ready or self.run.running or self.run.backoff)
        for unit, step_run in units_of(self.run):
            if unit in self.settled:
                assert step_run.status is self.settled[unit], f"{event} changed terminal {unit}"
            elif step_run.status.is_terminal:
                self.settled[unit] = step_run.status

    def _check_sets(self) -> None:
        run = self.run
        by_status: dict[StepStatus, set[tuple[int, int]]] = {status: set() for status in StepStatus}
        for unit, step_run in units_of(run):
            by_status[step_run.status].add(unit)
        assert run.ready == by_status[StepStatus.READY]
        assert run.running == by_status[StepStatus.RUNNING]
        assert run.backoff == by_status[StepStatus.BACKOFF]
        assert run.num_waiting == len(by_status[StepStatus.WAITING])

    def _check_liveness(self) -> None:
        """Nothing waits for what will not come: this is what keeps a Run from hanging."""
        run, status = self.run, self.run.record.status
        if status.is_terminal:
            return
        if status is RunStatus.PENDING:
            assert set(run.record.waiting_for) <= self.watched
            assert run.record.waiting_for
            return
        for unit in run.running:
            assert (*unit, run.unit(*unit).attempt) in self.outstanding or self._is_lost(unit)
            assert unit in self.timers
        assert run.backoff <= self.timers.keys()
        assert status is RunStatus.PAUSED or run.ready <= self.waiting
        assert run.ready or run.running or run.backoff or run.num_waiting, "nothing can go on"
        if status is RunStatus.WAITING:
            assert not (run.ready or run.running or run.backoff)
        for unit, step_run in units_of(run):
            if step_run.status is StepStatus.WAITING and step_run.deadline_at is not None:
                assert unit in self.timers
        if run.record.deadline_at is not None:
            assert (-1, -1) in self.timers

    def _is_lost(self, unit: tuple[int, int]) -> bool:
        """Whether this check runs inside a takeover, before the loss of the attempt is told."""
        attempt = self.run.unit(*unit).attempt
        return (*unit, attempt) in {
            (e.step, e.item, e.attempt) for e in self.past if type(e) is ev.AttemptLost
        }

    def _check_store(self, outcome: Outcome) -> None:
        """A new owner would load the same Run."""
        copy = Stage.__new__(Stage)
        copy.now, copy.fields, copy.events = self.stage.now, dict(self.stage.fields), []
        copy.run = copy.reloaded()
        assert seen(copy.run) == seen(self.run)
        if self.run.record.status.is_terminal:
            return
        adopted = copy.send(ev.RunAdopted())
        assert not adopted.accepted, "loading changed the Run"
        assert state_of(copy.run) == state_of(self.run)

    # -- what may happen

    def move(self, kind: str) -> None:
        self.stage.now += self.dice.choice([0.0, 0.1, 1.0])
        getattr(self, f"_{kind}")()

    def _assign(self) -> None:
        if self.waiting:
            unit = self.dice.choice(sorted(self.waiting))
            self.waiting.discard(unit)
            self.send(ev.StepAssigned(*unit, f"agent-{self.dice.randrange(3)}"))

    def _answer(self) -> None:
        if self.outstanding:
            key = self.dice.choice(sorted(self.outstanding))
            if self.dice.random() < 0.8:
                self.outstanding.discard(key)  # else its answer comes again later
            self._reply(key, self.dice.random())

    def _reply(self, key: tuple[int, int, int], die: float) -> None:
        event: ev.Event
        if die < 0.6:
            output = orjson.dumps(self.dice.choice([1, None, [1, 2], {"a": 1}, [], "text"]))
            event = ev.StepSucceeded(*key, output)
        else:
            failure = Failure("EXECUTION_FAILED", "failed", retryable=die < 0.85)
            event = ev.StepFailed(
                *key, failure, self.dice.random(), self.dice.choice([0.0, 3.0, float("inf")])
            )
        self.past.append(event)
        self.send(event)

    def _reply_from_outside(self) -> None:
        names = [
            self.run.plan.steps[index].step.name
            for (index, _), each in units_of(self.run)
            if each.status is StepStatus.WAITING
        ]
        name = self.dice.choice([*names, "", "other"])
        index = self.run.plan.index_by_name.get(name)
        known = self.run.plan.steps[index].step.answers if index is not None else ("yes",)
        answer = self.dice.choice([*known, "perhaps"])
        self.past.append(ev.AnswerGiven(name, answer, orjson.dumps(self.dice.choice([1, None])), "ann"))
        self.send(self.past[-1])

    def _repeat(self) -> None:
        if self.past:
            self.send(self.dice.choice(self.past))

    def _timer(self) -> None:
        if self.timers:
            unit = self.dice.choice(sorted(self.timers))
            if self.dice.random() < 0.7:
                self.stage.now = max(self.stage.now, self.timers.pop(unit))
            self.send(ev.TimerFired(*unit, self.dice.random()))

    def _lose(self) -> None:
        if self.outstanding:
            key = self.dice.choice(sorted(self.outstanding))
            self.outstanding.discard(key)
            self.past.append(ev.AttemptLost(*key, "died", self.dice.random() < 0.7))
            self.send(self.past[-1])

    def _progress(self) -> None:
        if self.outstanding:
            key = self.dice.choice(sorted(self.outstanding))
            done = self.dice.choice([0.3, 1.0, self.dice.random(), -5.0, 7.0, float("nan"), float("inf")])
            self.past.append(ev.StepProgressed(*key, done, "on it"))
            self.send(self.past[-1])

    def _pause(self) -> None:
        self.send(ev.PauseRequested())

    def _resume(self) -> None:
        self.send(ev.ResumeRequested())

    def _priority(self) -> None:
        self.send(ev.PriorityRequested(self.dice.choice([0, 100, 101])))

    def _unserve(self) -> None:
        if self.waiting and self.dice.random() < 0.3:
            unit = self.dice.choice(sorted(self.waiting))
            self.waiting.discard(unit)
            self.send(ev.StepUnserved(*unit, "nobody serves it"))

    def _cancel(self) -> None:
        if self.dice.random() < 0.2:
            self.send(ev.CancelRequested("enough"))

    def _predecessor(self) -> None:
        status = self.dice.choice([RunStatus.SUCCEEDED, RunStatus.SUCCEEDED, RunStatus.FAILED])
        self.past.append(ev.PredecessorEnded(self.dice.choice(["before-1", "before-2", "other"]), status))
        self.send(self.past[-1])

    def _takeover(self) -> None:
        if self.run.record.status.is_terminal:
            return  # no owner loads it
        self.waiting.clear()
        self.timers.clear()
        self.watched.clear()
        gone = [key for key in sorted(self.outstanding) if self.dice.random() < 0.3]
        self.outstanding.difference_update(gone)
        self.past += [ev.AttemptLost(*key, "gone", crashed=False) for key in gone]
        self.stage.run = self.stage.reloaded()
        outcome = self.stage.send(ev.RunAdopted())
        for command in outcome.commands:
            if isinstance(command, cmd.SetTimer):
                self.timers[(command.step, command.item)] = command.at
        self._obey(outcome)

    # -- to the end

    def finish(self) -> None:
        """Let all outstanding attempts answer and all timers fire."""
        for _ in range(2000):
            status = self.run.record.status
            if status.is_terminal:
                return
            if status is RunStatus.PENDING:
                for run_id in self.run.record.waiting_for:
                    self.send(ev.PredecessorEnded(run_id, RunStatus.SUCCEEDED))
            elif status is RunStatus.PAUSED:
                self._resume()
            elif self.waiting:
                self._assign()
            elif self.run.num_waiting and self.dice.random() < 0.9:
                self._reply_from_outside()
            elif self.outstanding:
                key = self.dice.choice(sorted(self.outstanding))
                self.outstanding.discard(key)
                self._reply(key, self.dice.random())
            elif self.timers:
                unit = min(self.timers, key=lambda each: (self.timers[each], each))
                self.stage.now = max(self.stage.now, self.timers.pop(unit))
                self.send(ev.TimerFired(*unit, self.dice.random()))
        raise AssertionError("the Run did not end")


def units_of(run: Run) -> list[tuple[tuple[int, int], Any]]:
    units = []
    for index, step_run in enumerate(run.steps):
        units.append(((index, -1), step_run))
        units += [((index, position), item) for position, item in enumerate(step_run.items or ())]
    return units


def seen(run: Run) -> RunView:
    """What readers see, but for when a StepRun ended that never started: its end is not written."""
    view = view_of(run)
    steps = [
        msgspec.structs.replace(each, ended_at=None)
        if each.status is StepStatus.CANCELLED and not each.attempt
        else each
        for each in view.steps
    ]
    return msgspec.structs.replace(view, steps=tuple(steps))


def state_of(run: Run) -> dict[str, Any]:
    """All of a Run that the future depends on."""
    return {
        "record": run.record,
        "ready": run.ready,
        "running": run.running,
        "backoff": run.backoff,
        "num_succeeded": run.num_succeeded,
        "progress": round(run.progress_sum, 6),
        "units": {
            unit: (each.to_record(), each.remaining, each.open_items, each.output, each.raw_items)
            for unit, each in units_of(run)
            if not each.status.is_terminal
        },
        "ended": {
            unit: (each.status, each.output) for unit, each in units_of(run) if each.status.is_terminal
        },
    }


@settings(max_examples=MAX_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans(), st.integers(0, 80), st.integers(0, 2**32 - 1))
def test_any_history_keeps_the_invariants_and_every_run_ends(
    plan: dict[str, Any], num_moves: int, seed: int
) -> None:
    world = World(random.Random(seed), list(plan.pop("steps")), **plan)
    for _ in range(num_moves):
        world.move(world.dice.choice(_MOVES))
    world.finish()
    assert world.run.record.status.is_terminal
    assert seen(world.stage.reloaded()) == seen(world.run)
