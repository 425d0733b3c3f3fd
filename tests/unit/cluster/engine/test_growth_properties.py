"""Random Blueprints, with circles, and random histories: Runs that grow keep all that other Runs keep."""

from __future__ import annotations

import random
from typing import Any
from unittest.mock import patch

import orjson
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cluster.engine import GrowingRun, Outcome
from cluster.errors import InvalidPlan
from cluster.model import events as ev
from cluster.model.blueprint import Blueprint, Move, State, StateKind, Work
from cluster.model.compiled_blueprint import compile_blueprint
from cluster.model.expansion import expand
from cluster.model.view import Failure
from tests.unit.cluster.engine.blueprints import blueprint, end, moves, sub, work
from tests.unit.cluster.engine.test_properties import _MOVES, World, seen

MAX_EXAMPLES = 400
_STATUSES = ("success", "again", "odd")
_CODES = ("INVALID_INPUT_ERROR", "PERMANENT_ERROR", "EXECUTION_FAILED")
INNER = blueprint(
    work("inner", Work(capability="work", tells_status=True), success="done", again="inner", failure="bad"),
    end("done"),
    end("bad", is_failure=True),
    name="inner",
)


@st.composite
def blueprints(draw: st.DrawFn) -> Blueprint:
    """One to five states and an end; moves lead anywhere, so that most of them go in circles."""
    names = [f"s{index}" for index in range(draw(st.integers(1, 5)))]
    states: list[State] = []
    for index, name in enumerate(names):
        targets = [*names, "end", "end", names[index + 1] if index + 1 < len(names) else "end"]
        on = {status: draw(st.sampled_from(targets)) for status in ("success", *_STATUSES[1:], "failure")}
        kind = draw(st.sampled_from(["work", "work", "fan", "wait", "pass", "sub"]))
        if kind == "wait":
            limit = draw(st.sampled_from([None, 5.0]))
            ways = {"yes": on["success"], "no": on["odd"]} | (
                {} if limit is None else {"timeout": on["again"]}
            )
            states.append(State(name=name, kind=StateKind.WAIT, moves=moves(**ways), timeout_s=limit))
        elif kind == "pass":
            condition = {"ref": "data.n", "op": "eq", "value": 1}
            ways_of_pass = (Move(to=on["odd"], when=condition), Move(to=on["success"]))
            states.append(
                State(
                    name=name,
                    kind=StateKind.PASS,
                    moves=ways_of_pass,
                    set={"at": name, "n": {"$ref": "data.n"}},
                )
            )
        elif kind == "sub":
            states.append(
                sub(name, "inner", {"from": {"$ref": "data"}}, success=on["success"], failure=on["odd"])
            )
        else:
            num = 1 if kind == "work" else draw(st.integers(2, 3))
            pieces = [
                Work(
                    capability="work",
                    name=f"w{position}" if num > 1 else "",
                    tells_status=True,
                    max_retries=1,
                    timeout_s=draw(st.sampled_from([None, 5.0])),
                    inputs={"data": {"$ref": "data"}, "result": {"$ref": "result"}},
                )
                for position in range(num)
            ]
            with_failure = draw(st.booleans())
            states.append(work(name, *pieces, **(on if with_failure else {**on, "failure": "end"})))
    first = State(name="first", kind=StateKind.PASS, moves=moves(success=names[0]), set={"n": 0})
    return expand(blueprint(first, *states, end()), {"inner": INNER}.get)


class GrowingWorld(World):
    """A World whose agents tell statuses and whose people look at what is in quarantine."""

    def _reply(self, key: tuple[int, int, int], die: float) -> None:
        event: ev.Event
        if die < 0.75:
            output = self.dice.choice([{"n": self.dice.randrange(3)}, {"at": key[0]}, None, "text", [1]])
            answer: Any = {"status": self.dice.choice(_STATUSES), "data": output}
            if self.dice.random() < 0.1:
                answer = self.dice.choice([None, 7, {"status": 5}])
            event = ev.StepSucceeded(*key, orjson.dumps(answer))
        else:
            failure = Failure(self.dice.choice(_CODES), "failed", retryable=die < 0.85)
            event = ev.StepFailed(*key, failure, self.dice.random())
        self.past.append(event)
        self.send(event)

    def _check_store(self, outcome: Outcome) -> None:
        super()._check_store(outcome)
        loaded, run = self.stage.reloaded(), self.run
        assert isinstance(loaded, GrowingRun)
        assert isinstance(run, GrowingRun)
        assert [each.step for each in loaded.plan.steps] == [each.step for each in run.plan.steps]
        assert loaded.growths == run.growths
        assert loaded.taken == run.taken
        assert {name: (s.inputs, s.data, s.result) for name, s in loaded.scopes.items()} == {
            name: (s.inputs, s.data, s.result) for name, s in run.scopes.items()
        }
        assert bool(run.record.phase) != run.record.status.is_terminal

    def _check_ends(self, event: ev.Event) -> None:
        super()._check_ends(event)
        if not self.run.record.status.is_terminal:
            assert self.run.record.num_open == sum(not each.status.is_terminal for each in self.run.steps)


@settings(max_examples=MAX_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(blueprints(), st.integers(0, 80), st.integers(0, 2**32 - 1), st.sampled_from([None, None, 60.0]))
def test_any_history_of_a_growing_run_keeps_the_invariants_and_it_ends(
    given_blueprint: Blueprint, num_moves: int, seed: int, timeout_s: float | None
) -> None:
    try:
        compile_blueprint(given_blueprint)
    except InvalidPlan:
        assume(False)
    with patch("cluster.engine.growth.MAX_STEPS", 40):
        world = GrowingWorld(random.Random(seed), [], blueprint=given_blueprint, timeout_s=timeout_s)
        for _ in range(num_moves):
            world.move(world.dice.choice(_MOVES))
        world.finish()
    assert world.run.record.status.is_terminal
    assert seen(world.stage.reloaded()) == seen(world.run)
