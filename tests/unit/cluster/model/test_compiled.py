"""What a Plan may be, and every reason why one is refused."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import InvalidPlan
from cluster.model.compiled import MAX_STEPS, Wish, compile_plan, decode_plan, encode_plan
from cluster.model.plan import Plan, RetryPolicy, Step
from cluster.model.references import MAX_DEPTH


def plan_of(*steps: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "p", "steps": [{"capability": "c", **each} for each in steps], **fields}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def nested_condition(depth: int) -> Any:
    value: Any = {"ref": "inputs.x"}
    for _ in range(depth):
        value = {"not": value}
    return value


A, B = {"name": "a"}, {"name": "b"}

REFUSED: dict[str, tuple[Any, str]] = {
    "nan in the inputs": (plan_of({"name": "a", "inputs": [float("nan")]}), "nan is no JSON number"),
    "infinity in a condition": (
        plan_of({"name": "a", "when": {"ref": "inputs.x", "op": "lt", "value": float("inf")}}),
        "inf is no JSON number",
    ),
    "nan for a timeout": (plan_of({"name": "a", "timeout_s": float("nan")}), "nan is no JSON number"),
    "blob in the inputs": (plan_of({"name": "a", "inputs": [{"x": {"$blob": 1}}]}), "$blob is reserved"),
    "blob built of parts": (
        plan_of({"name": "a", "inputs": {"$blob": {"$ref": "inputs.x"}, "path": "y"}}),
        "$blob is reserved",
    ),
    "blob in the output": (plan_of({"name": "a"}, output={"$blob": "x"}), "$blob is reserved"),
    "map over a number": (
        {"name": "p", "steps": [{"name": "a", "capability": "b", "map": 5}]},
        "must be a list or a reference",
    ),
    "negative resources": (
        {"name": "p", "steps": [{"name": "a", "capability": "b", "resources": {"num_gpus": -1}}]},
        "must not be negative",
    ),
    "model with a space": (plan_of({"name": "a", "model": "big model"}), "model 'big model' must match"),
    "long model": (plan_of({"name": "a", "model": "m" * 201}), "must match"),
    "key with a star": (plan_of({"name": "a", "keys": ["user-*"]}), "key 'user-*' must match"),
    "empty key": (plan_of({"name": "a", "keys": [""]}), "key '' must match"),
    "too many keys": (plan_of({"name": "a", "keys": [f"k{n}" for n in range(9)]}), "9 keys, at most 8"),
    "doubled key": (plan_of({"name": "a", "keys": ["k", "k"]}), "a key stands twice"),
    "key of a tenant": (plan_of({"name": "a", "keys": ["tenant:acme"]}), "every Step has this kind"),
    "key of a capability": (plan_of({"name": "a", "keys": ["capability:x"]}), "every Step has this kind"),
    "not an object": ([], "Expected `object`"),
    "null": (None, "Expected `object`"),
    "no name": ({"steps": [{"name": "a", "capability": "c"}]}, "missing required field `name`"),
    "empty name": ({**plan_of(A), "name": ""}, "plan.name must have 1 to 200"),
    "long name": ({**plan_of(A), "name": "x" * 201}, "plan.name must have 1 to 200"),
    "no steps": (plan_of(), "plan.steps must have 1 to"),
    "too many steps": (plan_of(*({"name": f"s{n}"} for n in range(MAX_STEPS + 1))), "plan.steps must have"),
    "unknown field": (plan_of(A, colour="red"), "unknown field `colour`"),
    "unknown field of a step": (plan_of({"name": "a", "colour": "red"}), "unknown field `colour`"),
    "wrong type": (plan_of({"name": 5}), "Expected `str`"),
    "unknown success rule": (plan_of(A, success="some"), "Invalid enum value"),
    "step name with a dot": (plan_of({"name": "a.b"}), "must match"),
    "empty step name": (plan_of({"name": ""}), "must match"),
    "long step name": (plan_of({"name": "x" * 129}), "must match"),
    "step name with a newline": (plan_of({"name": "a\n"}), "must match"),
    "bad capability": (plan_of({"name": "a", "capability": "c c"}), "capability 'c c' must match"),
    "doubled step name": (plan_of(A, A), "step name 'a' stands twice"),
    "unknown need": (plan_of({"name": "a", "needs": ["z"]}), "no step named 'z'"),
    "unknown step in inputs": (
        plan_of({"name": "a", "inputs": {"$ref": "steps.z.output"}}),
        "no step named 'z'",
    ),
    "unknown step in map": (plan_of({"name": "a", "map": {"$ref": "steps.z.output"}}), "no step named 'z'"),
    "unknown step in when": (plan_of({"name": "a", "when": {"ref": "steps.z.output"}}), "no step named 'z'"),
    "need of itself": (plan_of({"name": "a", "needs": ["a"]}), "in a circle: a"),
    "own output as input": (plan_of({"name": "a", "inputs": {"$ref": "steps.a.output"}}), "in a circle: a"),
    "circle": (plan_of({"name": "a", "needs": ["b"]}, {"name": "b", "needs": ["a"]}), "in a circle: a, b"),
    "zero timeout": (plan_of({"name": "a", "timeout_s": 0}), "timeout_s must be above 0"),
    "negative timeout": (plan_of({"name": "a", "timeout_s": -1}), "timeout_s must be above 0"),
    "negative retries": (plan_of({"name": "a", "retry": {"max_retries": -1}}), "retry needs"),
    "too many retries": (plan_of({"name": "a", "retry": {"max_retries": 101}}), "retry needs"),
    "negative delay": (plan_of({"name": "a", "retry": {"initial_delay_s": -1}}), "retry needs"),
    "negative longest delay": (plan_of({"name": "a", "retry": {"max_delay_s": -1}}), "retry needs"),
    "shrinking delay": (plan_of({"name": "a", "retry": {"multiplier": 0.5}}), "retry needs"),
    "item without map": (plan_of({"name": "a", "inputs": {"$ref": "item"}}), "exist only in a step with map"),
    "index without map": (
        plan_of({"name": "a", "inputs": {"$ref": "index"}}),
        "exist only in a step with map",
    ),
    "item in map": (plan_of({"name": "a", "map": {"$ref": "item"}}), "exist only in inputs"),
    "item in when": (plan_of({"name": "a", "map": [1], "when": {"ref": "item"}}), "exist only in inputs"),
    "malformed reference": (
        plan_of({"name": "a", "inputs": {"$ref": "outputs.b"}}),
        "must begin with inputs",
    ),
    "output of nobody": (
        plan_of(A, output={"$ref": "steps.z.output.b"}),
        "output: reference steps.z.output.b leads nowhere",
    ),
    "output of an item": (plan_of(A, output={"$ref": "item"}), "leads nowhere"),
    "condition that is none": (plan_of({"name": "a", "when": "yes"}), "a condition is an object"),
    "number beyond 64 bits": (plan_of({"name": "a", "inputs": 2**64}), "not JSON"),
    "half a character": (plan_of({"name": "a", "inputs": "\ud800"}), "not JSON"),
    "half a character in a name": ({**plan_of(A), "name": "\ud800"}, "not JSON"),
    "inputs nested too deep": (plan_of({"name": "a", "inputs": nested(MAX_DEPTH + 1)}), "nested over"),
    "map nested too deep": (plan_of({"name": "a", "map": nested(MAX_DEPTH + 1)}), "nested over"),
    "output nested too deep": (plan_of(A, output=nested(MAX_DEPTH + 1)), "nested over"),
    "condition nested too deep": (
        plan_of({"name": "a", "when": nested_condition(MAX_DEPTH + 1)}),
        "nested over",
    ),
    "nested beyond the interpreter": (plan_of({"name": "a", "inputs": nested(100_000)}), "nested"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_plan_is_refused_with_its_reason(case: str) -> None:
    plan, reason = REFUSED[case]
    with pytest.raises(InvalidPlan) as refused:
        compile_plan(plan)
    assert reason in str(refused.value)


@pytest.mark.parametrize("value", [object(), float("inf"), float("nan")])
def test_plan_of_a_python_driver_with_what_is_not_json_is_refused(value: object) -> None:
    retry = RetryPolicy(max_delay_s=value)  # type: ignore[arg-type]
    with pytest.raises(InvalidPlan):
        compile_plan(Plan(name="p", steps=(Step(name="a", capability="c", retry=retry),)))


def test_nesting_up_to_the_limit_is_accepted() -> None:
    compile_plan(plan_of({"name": "a", "inputs": nested(MAX_DEPTH), "when": nested_condition(MAX_DEPTH)}))


def test_references_are_needs_and_dependents_know_them() -> None:
    compiled = compile_plan(
        plan_of(
            {"name": "last", "inputs": {"x": {"$ref": "steps.mid.output.y"}}, "needs": ["first"]},
            {"name": "mid", "map": {"$ref": "steps.first.output"}, "inputs": {"$ref": "item"}},
            {"name": "first"},
            {"name": "maybe", "when": {"any": [{"not": {"ref": "steps.mid.output"}}]}},
        )
    )
    assert [each.needs for each in compiled.steps] == [(1, 2), (2,), (), (1,)]
    assert [each.dependents for each in compiled.steps] == [[], [0, 3], [0, 1], []]
    assert compiled.roots == (2,)


def test_output_of_the_only_last_step_is_the_runs_output() -> None:
    compiled = compile_plan(plan_of(A, {"name": "b", "needs": ["a"]}))
    assert compiled.output.render(lambda reference: reference.step.encode()) == b"b"


def test_outputs_of_several_last_steps_make_an_object() -> None:
    compiled = compile_plan(plan_of(A, B))
    assert (
        compiled.output.render(lambda reference: b'"' + reference.step.encode() + b'"')
        == b'{"a":"a","b":"b"}'
    )


def test_equal_plans_compile_once() -> None:
    assert compile_plan(plan_of(A)) is compile_plan(plan_of(A))
    plan = compile_plan(plan_of(A)).plan
    assert decode_plan(encode_plan(plan)) is compile_plan(plan)


def test_plan_of_the_greatest_size_compiles() -> None:
    chain = [{"name": "s0"}, *({"name": f"s{n}", "needs": [f"s{n - 1}"]} for n in range(1, MAX_STEPS))]
    assert len(compile_plan(plan_of(*chain)).steps) == MAX_STEPS


def test_step_knows_what_it_asks_of_a_pool() -> None:
    asked = {
        "resources": {"num_gpus": 0.5, "memory_bytes": 10},
        "model": "org/m:7b@2",
        "keys": ["user-1", "k"],
    }
    (plain, wishful) = compile_plan(plan_of(A, {**B, **asked})).steps
    assert plain.wish == Wish("c")
    assert wishful.wish == Wish("c", "org/m:7b@2", 0.0, 0.5, 10)
    assert wishful.step.keys == ("user-1", "k")
