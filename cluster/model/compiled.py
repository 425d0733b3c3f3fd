"""A Plan, checked and prepared: what the engine works on. Compiling is the only validation a Plan gets.

Equal Plans compile once: Runs of one Plan share its compiled form, found by the Plan's bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec
import orjson

from cluster.errors import InvalidPlan
from cluster.model.blob_reference import RESERVED_KEY, has_reserved_key
from cluster.model.compiled_blueprint import CompiledBlueprint, compile_blueprint
from cluster.model.plan import Json, Plan, Step
from cluster.model.references import (
    Condition,
    Reference,
    Template,
    compile_condition,
    compile_template,
)
from cluster.model.strict_json import check_strictly

__all__ = [
    "MAX_ANSWERS",
    "MAX_KEYS",
    "MAX_STEPS",
    "CompiledPlan",
    "CompiledStep",
    "Wish",
    "compile_plan",
    "decode_plan",
    "encode_plan",
]

MAX_STEPS = 10_000
MAX_KEYS = 8
MAX_ANSWERS = 16
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
_CAPABILITY = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")
_MODEL = re.compile(r"[A-Za-z0-9_.:/@+-]{1,200}\Z")
_OF_BLUEPRINTS = frozenset({"data", "result"})
_RESERVED = f'"{RESERVED_KEY}"'.encode()
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Plan)


class Wish(NamedTuple):
    """What decides which pools may execute a Step; equal for all Steps that ask for the same.

    Attributes:
        num_cpus, num_gpus, memory_bytes: What a replica must have at least; 0 where it does not matter.
    """

    capability: str
    model: str = ""
    num_cpus: float = 0.0
    num_gpus: float = 0.0
    memory_bytes: int = 0


class CompiledStep:
    """A Step with its place in the DAG.

    Attributes:
        index: Position in the Plan.
        needs: Indexes of the Steps that must end first.
        dependents: Indexes of the Steps that wait for this one.
        inputs: Template of the agent's input.
        items: Template of the list to map over, or None.
        when: Condition, or None.
        wish: What it asks of a pool.
    """

    __slots__ = ("dependents", "index", "inputs", "items", "needs", "step", "when", "wish")

    def __init__(
        self, index: int, step: Step, inputs: Template, items: Template | None, when: Condition | None
    ) -> None:
        self.index, self.step, self.inputs, self.items, self.when = index, step, inputs, items, when
        self.needs: tuple[int, ...] = ()
        self.dependents: list[int] = []
        asked = step.resources
        self.wish = Wish(
            step.capability, step.model, asked.num_cpus or 0.0, asked.num_gpus or 0.0, asked.memory_bytes or 0
        )


class CompiledPlan:
    """A checked Plan.

    Attributes:
        plan: The Plan itself.
        raw: Its JSON bytes, as stored.
        steps: In Plan order.
        index_by_name: Step name to index.
        roots: Indexes of Steps that need nothing.
        output: Template of the Run's output.
        blueprint: The compiled Blueprint, None where there is none.
    """

    __slots__ = ("blueprint", "index_by_name", "output", "plan", "raw", "roots", "steps")

    def __init__(
        self,
        plan: Plan,
        raw: bytes,
        steps: Sequence[CompiledStep],
        output: Template,
        blueprint: CompiledBlueprint | None = None,
    ) -> None:
        self.plan, self.raw, self.steps, self.output = plan, raw, steps, output
        self.blueprint = blueprint
        self.index_by_name = {s.step.name: s.index for s in steps}
        self.roots = tuple(s.index for s in steps if not s.needs)


def encode_plan(plan: Plan) -> bytes:
    """Encode a Plan as it is stored."""
    return _encoder.encode(plan)


@lru_cache(maxsize=512)
def decode_plan(raw: bytes) -> CompiledPlan:
    """Compile stored Plan bytes; equal bytes give the same object.

    Raises:
        InvalidPlan: See compile_plan.
    """
    try:
        plan = _decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise InvalidPlan(f"plan: {error}") from error
    return _compile(plan, raw)


def compile_plan(plan: Plan | Json) -> CompiledPlan:
    """Check a Plan (or its JSON builtins) and prepare it.

    Raises:
        InvalidPlan: A field has the wrong type or range, a name is doubled or malformed, a reference or need
            names
            no Step, a Step needs itself (a cycle), item is used outside a mapped Step, or there are over
            MAX_STEPS.
    """
    try:
        if not isinstance(plan, Plan):
            plan = msgspec.convert(plan, Plan)
        raw = encode_plan(plan)
        if b"null" in raw:  # the encoder's word for NaN and infinity too
            check_strictly(plan)
    except msgspec.ValidationError as error:
        raise InvalidPlan(f"plan: {error}") from error
    except RecursionError as error:
        raise InvalidPlan("plan: nested too deep") from error
    except (TypeError, ValueError) as error:  # half a character of a pair is a ValueError
        raise InvalidPlan(f"plan: not JSON ({error})") from error
    return decode_plan(raw)


def _compile(plan: Plan, raw: bytes) -> CompiledPlan:
    _refuse_reserved(raw)
    if not 1 <= len(plan.name) <= 200:
        raise InvalidPlan("plan.name must have 1 to 200 characters", field="name")
    if plan.blueprint is not None:
        if plan.steps or plan.output is not None:
            raise InvalidPlan("plan: a blueprint makes steps and output by itself", field="blueprint")
        return CompiledPlan(plan, raw, (), Template(()), compile_blueprint(plan.blueprint))
    if not 1 <= len(plan.steps) <= MAX_STEPS:
        raise InvalidPlan(f"plan.steps must have 1 to {MAX_STEPS} entries", field="steps")
    steps = tuple(_compile_step(index, step) for index, step in enumerate(plan.steps))
    index_by_name: dict[str, int] = {}
    for compiled in steps:
        if index_by_name.setdefault(compiled.step.name, compiled.index) != compiled.index:
            raise InvalidPlan(f"step name {compiled.step.name!r} stands twice", field="steps")
    for compiled in steps:
        compiled.needs = tuple(sorted(_needs(compiled, index_by_name)))
        for need in compiled.needs:
            steps[need].dependents.append(compiled.index)
    _refuse_cycles(steps)
    return CompiledPlan(plan, raw, steps, _output(plan, steps, index_by_name))


def _compile_step(index: int, step: Step) -> CompiledStep:
    where = f"steps[{index}]"
    if not _NAME.match(step.name):
        raise InvalidPlan(f"{where}.name {step.name!r} must match {_NAME.pattern}", field=f"{where}.name")
    where = f"step {step.name}"
    if not _CAPABILITY.match(step.capability):
        raise InvalidPlan(
            f"{where}: capability {step.capability!r} must match {_CAPABILITY.pattern}", field=where
        )
    if step.timeout_s is not None and not 0 < step.timeout_s < float("inf"):
        raise InvalidPlan(f"{where}: timeout_s must be above 0", field=where)
    retry = step.retry
    if (
        not 0 <= retry.max_retries <= 100
        or retry.initial_delay_s < 0
        or retry.max_delay_s < 0
        or retry.multiplier < 1
    ):
        raise InvalidPlan(
            f"{where}: retry needs 0 <= max_retries <= 100, delays >= 0, multiplier >= 1", field=where
        )
    if step.map is not None and not (isinstance(step.map, list) or _is_reference(step.map)):
        raise InvalidPlan(f"{where}.map must be a list or a reference to one", field=where)
    _check_demands(step, where)
    items = compile_template(step.map, f"{where}.map") if step.map is not None else None
    when = compile_condition(step.when, f"{where}.when") if step.when is not None else None
    compiled = CompiledStep(index, step, compile_template(step.inputs, f"{where}.inputs"), items, when)
    if items is None and any(r.root in {"item", "index"} for r in compiled.inputs.references):
        raise InvalidPlan(f"{where}: item and index exist only in a step with map", field=where)
    _check_answers(step, where)
    outside = [*(items.references if items else ()), *(when.references if when else ())]
    if any(r.root in {"item", "index"} for r in outside):
        raise InvalidPlan(f"{where}: item and index exist only in inputs", field=where)
    if any(r.root in _OF_BLUEPRINTS for r in (*compiled.inputs.references, *outside)):
        raise InvalidPlan(f"{where}: data and result exist only in a blueprint", field=where)
    return compiled


def _check_answers(step: Step, where: str) -> None:
    if len(step.answers) > MAX_ANSWERS or len(set(step.answers)) < len(step.answers):
        raise InvalidPlan(f"{where}: answers are at most {MAX_ANSWERS} different words", field=where)
    for answer in step.answers:
        if not _NAME.match(answer):
            raise InvalidPlan(f"{where}: answer {answer!r} must match {_NAME.pattern}", field=where)
    if step.answers and step.map is not None:
        raise InvalidPlan(f"{where}: a step with map does not wait for answers", field=where)


def _refuse_reserved(raw: bytes) -> None:
    """References to blobs come whole, from inputs and outputs: no Plan names a blob or joins one of parts."""
    if _RESERVED not in raw:
        return
    try:
        found = has_reserved_key(orjson.loads(raw))
    except orjson.JSONDecodeError as error:
        raise InvalidPlan(f"plan: nested too deep ({error})") from None
    if found:
        raise InvalidPlan(f"plan: {RESERVED_KEY} is reserved", field="plan")


def _check_demands(step: Step, where: str) -> None:
    """Check what a Step asks of pools and limits."""
    wanted = step.resources
    amounts = (wanted.num_cpus, wanted.num_gpus, wanted.memory_bytes)
    if any(each is not None and each < 0 for each in amounts):
        raise InvalidPlan(f"{where}: resources must not be negative", field=where)
    if step.model and not _MODEL.match(step.model):
        raise InvalidPlan(f"{where}: model {step.model!r} must match {_MODEL.pattern}", field=where)
    if len(step.keys) > MAX_KEYS:
        raise InvalidPlan(f"{where}: {len(step.keys)} keys, at most {MAX_KEYS}", field=where)
    for key in step.keys:
        if not _CAPABILITY.match(key):
            raise InvalidPlan(f"{where}: key {key!r} must match {_CAPABILITY.pattern}", field=where)
        if key.startswith(("tenant:", "capability:")):
            raise InvalidPlan(f"{where}: key {key!r}: every Step has this kind by itself", field=where)
    if len(set(step.keys)) < len(step.keys):
        raise InvalidPlan(f"{where}: a key stands twice", field=where)


def _is_reference(value: Json) -> bool:
    return isinstance(value, dict) and set(value) == {"$ref"}


def _needs(compiled: CompiledStep, index_by_name: dict[str, int]) -> set[int]:
    references: list[Reference] = [*compiled.inputs.references]
    references += [*compiled.items.references] if compiled.items else []
    references += [*compiled.when.references] if compiled.when else []
    names = [*compiled.step.needs, *(r.step for r in references if r.root == "steps")]
    for name in names:
        if name not in index_by_name:
            raise InvalidPlan(f"step {compiled.step.name}: no step named {name!r}", field=compiled.step.name)
    return {index_by_name[name] for name in names}


def _refuse_cycles(steps: tuple[CompiledStep, ...]) -> None:
    """Walk the DAG in topological order. Source: Kahn, "Topological sorting of large networks", CACM
    5(11), 1962.
    """
    remaining = [len(s.needs) for s in steps]
    free = [s.index for s in steps if not s.needs]
    num_seen = 0
    while free:
        index = free.pop()
        num_seen += 1
        for dependent in steps[index].dependents:
            remaining[dependent] -= 1
            if not remaining[dependent]:
                free.append(dependent)
    if num_seen < len(steps):
        names = ", ".join(s.step.name for s in steps if remaining[s.index])
        raise InvalidPlan(f"steps need each other in a circle: {names[:300]}", field="steps")


def _output(plan: Plan, steps: tuple[CompiledStep, ...], index_by_name: dict[str, int]) -> Template:
    if plan.output is not None:
        output = compile_template(plan.output, "output")
        for reference in output.references:
            if reference.root in {"item", "index", *_OF_BLUEPRINTS} or (
                reference.root == "steps" and reference.step not in index_by_name
            ):
                raise InvalidPlan(f"output: reference {reference.text} leads nowhere", field="output")
        return output
    last = [s.step.name for s in steps if not s.dependents]
    if len(last) == 1:
        return compile_template({"$ref": f"steps.{last[0]}.output"}, "output")
    return compile_template({name: {"$ref": f"steps.{name}.output"} for name in last}, "output")
