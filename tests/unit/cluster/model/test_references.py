"""References, templates and conditions: what they give, what they leave alone, what they refuse."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cluster.errors import InvalidPlan, StepError
from cluster.model.references import (
    Reference,
    compile_condition,
    compile_template,
    parse_reference,
    resolve_path,
)

DATA: dict[str, Any] = {
    "inputs": {"n": 5, "zero": 0, "list": [1, [2, 3]], "text": "abc", "null": None, "yes": True, "0": "key"},
}


def lookup(reference: Reference) -> bytes:
    return resolve_path(orjson.dumps(DATA[reference.root]), reference)


def rendered(template: Any) -> Any:
    return orjson.loads(compile_template(template, "here").render(lookup))


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("inputs", Reference("inputs", "", ())),
        ("inputs.a.0", Reference("inputs", "", ("a", "0"))),
        ("steps.fetch.output", Reference("steps", "fetch", ())),
        ("steps.fetch.output.rows.0.id", Reference("steps", "fetch", ("rows", "0", "id"))),
        ("item", Reference("item", "", ())),
        ("item.a", Reference("item", "", ("a",))),
        ("index", Reference("index", "", ())),
        ("run.id", Reference("run", "", ("id",))),
    ],
)
def test_path_is_parsed_into_root_step_and_keys(text: str, parsed: Reference) -> None:
    assert parse_reference(text, "here") == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "steps",
        "steps.a",
        "steps.a.input",
        "steps..output",
        "index.a",
        "run",
        "run.name",
        "run.id.x",
        "other",
        5,
    ],
)
def test_path_of_no_known_form_is_refused(text: Any) -> None:
    with pytest.raises(InvalidPlan):
        parse_reference(text, "here")


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ({"$ref": "inputs.n"}, 5),
        ({"a": [{"$ref": "inputs.text"}, 1, None], "b": {}}, {"a": ["abc", 1, None], "b": {}}),
        ([{"$ref": "inputs.list.1.0"}, {"$ref": "inputs.list.-1"}], [2, [2, 3]]),
        ({"$ref": "inputs.0"}, "key"),
        ({"$ref": "inputs.null.any.thing"}, None),
        ("plain {{text}} and $ref", "plain {{text}} and $ref"),
        ({"ref": "inputs.n"}, {"ref": "inputs.n"}),
        ({'quo"te': "\u2028 é"}, {'quo"te': "\u2028 é"}),
        ([], []),
    ],
)
def test_template_renders_literals_and_references_in_place(template: Any, value: Any) -> None:
    assert rendered(template) == value


def test_reference_does_not_share_its_object() -> None:
    with pytest.raises(InvalidPlan, match="stands alone"):
        compile_template({"$ref": "inputs", "default": 1}, "here")


def test_value_that_looks_like_a_reference_in_the_data_stays_data() -> None:
    DATA["item"] = {"$ref": "inputs.n"}
    assert rendered({"$ref": "item"}) == {"$ref": "inputs.n"}


@pytest.mark.parametrize("path", ["missing", "list.9", "list.x", "n.x", "text.0", "list.1.0.x"])
def test_path_that_leads_nowhere_is_the_steps_error(path: str) -> None:
    with pytest.raises(StepError) as error:
        rendered({"$ref": f"inputs.{path}"})
    assert error.value.code == "VALIDATION_ERROR"
    assert not error.value.retryable
    assert f"inputs.{path}" in str(error.value)


def test_error_names_the_reference_as_the_plan_wrote_it() -> None:
    reference = parse_reference("steps.fetch.output.rows.7", "here")
    with pytest.raises(StepError, match=r"reference steps\.fetch\.output\.rows\.7: nothing at '7'"):
        resolve_path(b'{"rows":[]}', reference)


def test_output_handed_on_whole_is_not_decoded() -> None:
    raw = b'{"big" : 1e5,  "kept":"as it is"}'
    assert compile_template({"x": {"$ref": "inputs"}}, "here").render(lambda _: raw) == b'{"x":' + raw + b"}"


@pytest.mark.parametrize(
    ("blob", "path", "taken_along"),
    [
        ({"$blob": "sha256:00"}, "inputs.rows.0", "rows.0"),
        ({"$blob": "sha256:00", "path": "a.b"}, "inputs.rows", "a.b.rows"),
    ],
)
def test_blob_reference_takes_the_path_along(blob: dict[str, Any], path: str, taken_along: str) -> None:
    found = orjson.loads(resolve_path(orjson.dumps(blob), parse_reference(path, "here")))
    assert found == {**blob, "path": taken_along}


def test_blob_inside_a_value_takes_only_the_rest_of_the_path() -> None:
    raw = orjson.dumps({"a": {"$blob": "sha256:00"}})
    found = orjson.loads(resolve_path(raw, parse_reference("inputs.a.b.c", "here")))
    assert found == {"$blob": "sha256:00", "path": "b.c"}


# -- conditions


def holds(condition: Any) -> bool:
    return compile_condition(condition, "here").holds(lookup)


@pytest.mark.parametrize(
    ("ref", "op", "value", "expected"),
    [
        ("n", "eq", 5, True),
        ("n", "ne", 5, False),
        ("n", "lt", 6, True),
        ("n", "le", 5, True),
        ("n", "gt", 5, False),
        ("n", "ge", 5, True),
        ("n", "in", [1, 5], True),
        ("n", "in", [1, 2], False),
        ("list", "contains", 1, True),
        ("text", "contains", "bc", True),
        ("text", "lt", "b", True),
        ("zero", "truthy", None, False),
        ("n", "truthy", None, True),
        ("null", "exists", None, False),
        ("zero", "exists", None, True),
        ("null", "eq", None, True),
        # Values of different kinds compare as false instead of failing.
        ("n", "lt", "6", False),
        ("null", "lt", 1, False),
        ("n", "contains", 5, False),
        ("n", "in", 5, False),
        ("text", "contains", 1, False),
        ("n", "in", None, False),
    ],
)
def test_operator_compares_the_referenced_value(ref: str, op: str, value: Any, expected: bool) -> None:
    assert holds({"ref": f"inputs.{ref}", "op": op, "value": value}) is expected


def test_condition_without_an_operator_is_truthy() -> None:
    assert holds({"ref": "inputs.yes"})
    assert not holds({"ref": "inputs.zero"})


def test_conditions_combine() -> None:
    yes, no = {"ref": "inputs.yes"}, {"ref": "inputs.zero"}
    assert holds({"all": [yes, {"not": no}]})
    assert not holds({"all": [yes, no]})
    assert holds({"any": [no, yes]})
    assert not holds({"any": [no]})
    assert holds({"all": []})
    assert not holds({"any": []})


def test_condition_that_is_decided_does_not_look_further() -> None:
    nowhere = {"ref": "inputs.nowhere"}
    assert holds({"any": [{"ref": "inputs.yes"}, nowhere]})
    assert not holds({"all": [{"ref": "inputs.zero"}, nowhere]})


def test_condition_on_what_leads_nowhere_is_the_steps_error() -> None:
    with pytest.raises(StepError):
        holds({"ref": "inputs.nowhere"})


@pytest.mark.parametrize(
    "condition",
    [
        None,
        [],
        {},
        {"op": "eq", "value": 1},
        {"ref": "inputs.n", "op": "like"},
        {"ref": "inputs.n", "op": []},
        {"ref": "inputs.n", "op": None},
        {"ref": "inputs.n", "colour": 1},
        {"ref": "somewhere"},
        {"ref": ["inputs"]},
        {"all": {}},
        {"all": [], "any": []},
        {"not": []},
        {"not": {"ref": "inputs.n"}, "ref": "inputs.n"},
        {"all": ["x"]},
    ],
)
def test_condition_of_no_known_form_is_refused(condition: Any) -> None:
    with pytest.raises(InvalidPlan):
        compile_condition(condition, "here")


def test_references_of_a_condition_are_listed_in_order() -> None:
    condition = compile_condition(
        {"all": [{"ref": "steps.b.output"}, {"not": {"ref": "steps.a.output.x"}}]}, ""
    )
    assert [each.step for each in condition.references] == ["b", "a"]


# -- values too deep for the decoder


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize("levels", [300, 5000])
def test_value_nested_too_deep_to_walk_is_the_steps_error(levels: int) -> None:
    raw = b'{"a":' + deep(levels) + b"}"
    with pytest.raises(StepError, match="nested too deep"):
        resolve_path(raw, parse_reference("inputs.a", "here"))


def test_condition_on_a_value_nested_too_deep_is_the_steps_error() -> None:
    with pytest.raises(StepError, match="nested too deep"):
        compile_condition({"ref": "inputs"}, "here").holds(lambda _: deep(5000))
