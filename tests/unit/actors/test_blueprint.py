"""Blueprints in Python and YAML: to one model, checked when they are read."""

from __future__ import annotations

from typing import Any

import pytest

from actors.blueprint import Blueprint, agent_work, outcome, parameter, ref, task, when
from actors.blueprint_yaml import read_blueprints
from cluster.errors import InvalidInput, InvalidPlan
from cluster.model.compiled_blueprint import accepted_inputs, compile_blueprint


def built() -> Blueprint:
    flow = Blueprint("flow", parameters={"url": parameter(str, required=True), "size": int})
    flow.dispatch("send", ref("inputs.url"), params={"n": ref("data.n")}, to={"success": "fork"}, start=True)
    flow.pass_through("fork", to=[when("data.n", "gt", 5, to="ask"), "fan"], data={"seen": True})
    flow.approval("ask", to={"approved": "inner", "timeout": "no"}, message={"n": 1}, timeout_s=60)
    flow.parallel(
        "fan",
        [task("echo", {"a": 1}, name="a"), agent_work("echo", name="b", retries=0)],
        to={"success": "inner"},
    )
    flow.run("inner", "other", to={"success": "done", "failure": "no"}, inputs={"x": ref("data")})
    flow.end("done")
    flow.end("no", failure=True, message="no")
    return flow


YAML = """
name: flow
parameters:
  url: {type: string, required: true}
  size: integer
start: send
states:
  send: {dispatch: {$ref: inputs.url}, params: {n: {$ref: data.n}}, to: fork}
  fork:
    pass: null
    set: {seen: true}
    to: [{to: ask, when: {ref: data.n, op: gt, value: 5}}, fan]
  ask: {approval: {message: {n: 1}, timeout_s: 60}, to: {approved: inner, timeout: "no"}}
  fan:
    parallel: [{dispatch: echo, params: {a: 1}, name: a}, {agent: echo, name: b, retries: 0}]
    to: {success: inner}
  inner: {run: other, inputs: {x: {$ref: data}}, to: {success: done, failure: "no"}}
  done: end
  "no": {end: failure, message: "no"}
"""


def test_python_and_yaml_come_to_the_same_model() -> None:
    (read,) = read_blueprints(YAML)
    assert read.model() == built().model()
    assert read.path == "/api/v1/jobs/flow"


def test_two_starts_and_none_are_refused() -> None:
    flow = Blueprint("flow")
    flow.end("done")
    with pytest.raises(InvalidPlan, match="0 states are its start"):
        flow.model()
    flow.pass_through("a", to="done", start=True)
    flow.pass_through("b", to="done", start=True)
    with pytest.raises(InvalidPlan, match="2 states are its start"):
        flow.model()


def test_handler_is_given_what_it_names() -> None:
    flow = Blueprint("flow", parameters={"url": str})

    @flow.handler("work", to={"success": "done"}, start=True)
    def work(url: str, text: str, data: dict[str, Any], job_id: str, context: Any, more: int = 3) -> None: ...

    (piece,) = flow.model(code="abc").states[0].work
    assert piece.inputs == {
        "blueprint": "flow",
        "state": "work",
        "code": "abc",
        "values": {
            "url": {"$ref": "inputs.url"},
            "text": {"$ref": "data.text"},
            "data": {"$ref": "data"},
            "job_id": {"$ref": "run.id"},
        },
        "optional": ["more"],
        "data": {"$ref": "data"},
    }


def test_handler_whose_type_is_not_that_of_the_declared_parameter_is_refused() -> None:
    flow = Blueprint("flow", parameters={"url": str})
    with pytest.raises(InvalidPlan, match="url is declared as string"):

        @flow.handler("work", to={"success": "done"}, start=True)
        def work(url: int) -> None: ...


def test_handler_whose_type_json_cannot_be_is_refused() -> None:
    flow = Blueprint("flow")
    with pytest.raises(InvalidPlan, match="value"):

        @flow.handler("work", to={"success": "done"}, start=True)
        def work(value: type) -> None: ...


@pytest.mark.parametrize("path", ["../x", "a b", "", "jobs//x"])
def test_endpoint_that_is_no_plain_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidPlan, match="is no path"):
        Blueprint("flow", endpoint=path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not YAML"),
        ("[1]", "must be an object"),
        ("{name: a, start: s, states: {s: end}, extra: 1}", "'extra' is none of"),
        ("{name: a, start: x, states: {s: end}}", "a start that is one of its states"),
        ("{name: a, start: s, states: {s: {}}}", "must be one of dispatch"),
        ("{name: a, start: s, states: {s: {dispatch: x, agent: y, to: s}}}", "must be one of dispatch"),
        ("{name: a, start: s, states: {s: {dispatch: x, to: {yes: s}}}}", "quote them"),
        ("{name: a, start: s, states: {s: {dispatch: x, retries: many, to: s}}}", "retries must be"),
        ("{name: a, start: s, parameters: {p: text}, states: {s: end}}", "parameter p"),
    ],
)
def test_yaml_that_is_no_blueprint_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(InvalidPlan, match=message):
        read_blueprints(text)


def test_inputs_are_checked_against_the_parameters_and_defaults_put_in() -> None:
    flow = Blueprint(
        "flow", parameters={"url": parameter(str, required=True), "n": parameter(int, default=2)}
    )
    flow.end("done")
    flow.pass_through("a", to="done", start=True)
    model = flow.model()
    assert accepted_inputs(model.parameters, {"url": "x"}) == {"url": "x", "n": 2}
    for wrong in ({}, {"url": 1}, {"url": "x", "n": True}, {"url": "x", "other": 1}):
        with pytest.raises(InvalidInput):
            accepted_inputs(model.parameters, wrong)


def test_outcome_names_status_and_data() -> None:
    assert outcome("odd", {"a": 1}) == ("odd", {"a": 1})


def test_reference_to_a_parameter_that_is_not_declared_is_refused() -> None:
    flow = Blueprint("flow", parameters={"url": str})
    flow.dispatch("send", "echo", params=ref("inputs.link"), to={"success": "done"}, start=True)
    flow.end("done")
    with pytest.raises(InvalidPlan, match=r"inputs\.link is none of the parameters url"):
        compile_blueprint(flow.model())
