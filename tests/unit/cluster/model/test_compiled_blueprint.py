"""What a Blueprint must be: one of everything it needs, nothing that dangles, an end for whoever begins."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import InvalidPlan
from cluster.model.blueprint import Move, Parameter, ParameterType, State, StateKind, Work
from cluster.model.compiled_blueprint import compile_blueprint
from cluster.model.expansion import expand
from tests.unit.cluster.engine.blueprints import blueprint, end, moves, passing, sub, wait, work

END = end()
PLAIN = Work(capability="work")


def wait_for(**fields: Any) -> State:
    return State(name="a", kind=StateKind.WAIT, **fields)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ((work("a", success="end"),), "leads to 'end', which is no state"),
        ((work("a", success="end"), END, end("other")), "nothing leads to the state other"),
        (
            (work("a", success="b", no="end"), work("b", success="b"), END),
            "no end can be reached from the state b",
        ),
        ((work("a", success="a"),), "no end can be reached"),
        ((work("a", success="end"), END, END), "end stands twice"),
        (
            (passing("a", Move(to="b")), passing("b", Move(to="a"), Move(to="end")), END),
            "stands before others",
        ),
        (
            (
                passing("a", Move(to="b", when={"ref": "data"}), Move(to="end")),
                passing("b", Move(to="a")),
                END,
            ),
            "nothing is done in the circle of a, b",
        ),
        ((work("a", PLAIN, PLAIN, success="end"), END), "need different names"),
        ((State(name="a", kind=StateKind.WORK, moves=moves(success="end")), END), "pieces of it"),
        ((State(name="a", kind=StateKind.WORK, work=(PLAIN,)), END), "every state but an end has moves"),
        ((wait("a", timeout="end"), END), "at least one answer"),
        ((wait_for(moves=moves(yes="end", timeout="end")), END), "with timeout_s has a move"),
        ((wait_for(moves=moves(yes="end"), timeout_s=5.0), END), "with timeout_s has a move"),
        ((sub("a", "inner", success="end"), END), "expanded"),
        ((work("a", Work(capability="no good"), success="end"), END), "capability"),
        (
            (work("a", Work(capability={"$ref": "steps.x.output"}), success="end"), END),
            "must begin with inputs",
        ),
        ((passing("a", Move(to="end"), set=[1]), END), "set must be an object"),
        ((passing("a", Move(to="end", on="odd")), END), "moves for 'success' only"),
        ((passing("a", Move(to="end", when={"ref": "item"})), END), "must begin with inputs"),
        ((work("a b", success="end"), END), "must match"),
    ],
)
def test_blueprint_that_breaks_a_rule_is_refused_with_the_place(
    states: tuple[State, ...], message: str
) -> None:
    with pytest.raises(InvalidPlan, match=message):
        compile_blueprint(blueprint(*states))


def test_parameter_whose_default_is_of_another_type_is_refused() -> None:
    odd = Parameter(name="n", type=ParameterType.INTEGER, default="x")
    with pytest.raises(InvalidPlan, match="parameter n"):
        compile_blueprint(blueprint(work("a", success="end"), END, parameters=(odd,)))


def test_circle_with_work_in_it_is_fine() -> None:
    compile_blueprint(blueprint(work("a", success="end", again="b"), passing("b", Move(to="a")), END))


def test_blueprint_that_runs_through_itself_is_refused() -> None:
    one = blueprint(sub("a", "two", success="end"), END, name="one")
    two = blueprint(sub("a", "one", success="end"), END, name="two")
    with pytest.raises(InvalidPlan, match="one > two > one"):
        expand(one, {"one": one, "two": two}.get)


def test_sub_blueprint_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="there is no blueprint 'two'"):
        expand(blueprint(sub("a", "two", success="end"), END), {}.get)
