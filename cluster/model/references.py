"""References and conditions: how a Step's inputs point at earlier results.

A reference is the JSON object {"$ref": PATH}, where PATH is one of

    inputs[.a.b.0]                  the Run's inputs
    steps.NAME.output[.a.b.0]       an earlier Step's output (null when it was skipped or failed)
    item[.a.b]   index              inside a mapped Step: the item and its position
    run.id                          the Run's id
    data[.a.b]   result[.a.b]       inside a Blueprint: what it has gathered, and what came last

A template is JSON with references anywhere inside. Rendering joins raw JSON: an output that is handed on
whole is never decoded. This module refuses to be a language: no arithmetic, no calls, no text interpolation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import orjson

from cluster.errors import InvalidPlan, StepError
from cluster.model.plan import Json

__all__ = [
    "MAX_DEPTH",
    "Condition",
    "Lookup",
    "Reference",
    "Template",
    "compile_condition",
    "compile_template",
    "decode_value",
    "encode_value",
    "parse_reference",
    "resolve_path",
]

MAX_DEPTH = 100
"""Levels that templates and conditions may be nested: far from what the interpreter's stack holds."""


def _is_equal(a: Any, b: Any) -> bool:
    """Compare as JSON does, where true is no number."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: _is_equal(a, b),
    "ne": lambda a, b: not _is_equal(a, b),
    "lt": lambda a, b: bool(a < b),
    "le": lambda a, b: bool(a <= b),
    "gt": lambda a, b: bool(a > b),
    "ge": lambda a, b: bool(a >= b),
    "in": lambda a, b: a in b,
    "contains": lambda a, b: b in a,
    "truthy": lambda a, _b: bool(a),
    "exists": lambda a, _b: a is not None,
}


class Reference(NamedTuple):
    """A parsed PATH.

    Attributes:
        root: "inputs", "steps", "item", "index", "run", "data" or "result".
        step: The Step's name where root is "steps", else "".
        path: Keys and list positions below the root.
    """

    root: str
    step: str
    path: tuple[str, ...]

    @property
    def text(self) -> str:
        """PATH, as clients write it."""
        root = f"steps.{self.step}.output" if self.root == "steps" else self.root
        return ".".join((root, *self.path))


Lookup = Callable[[Reference], bytes]
"""Gives the raw JSON behind a reference."""


class Template(NamedTuple):
    """Compiled JSON: literal bytes and references in turn."""

    segments: tuple[bytes | Reference, ...]

    def render(self, lookup: Lookup) -> bytes:
        """Join the segments to JSON bytes."""
        return b"".join([s if type(s) is bytes else lookup(s) for s in self.segments])  # type: ignore[arg-type]

    @property
    def references(self) -> Iterator[Reference]:
        """The references in it, in order."""
        return (s for s in self.segments if isinstance(s, Reference))


class Condition(NamedTuple):
    """A compiled condition.

    JSON forms: {"ref": PATH, "op": "eq", "value": …} (op defaults to "truthy"), {"all": […]}, {"any": […]},
    {"not": {…}}. Operators: eq ne lt le gt ge in contains truthy exists. Values of different kinds are never
    less or
    greater than each other: such a comparison is false.
    """

    kind: str
    reference: Reference | None
    value: Any
    parts: tuple[Condition, ...]

    def holds(self, lookup: Lookup) -> bool:
        """Evaluate it.

        Raises:
            StepError: A reference leads nowhere.
        """
        if self.kind == "all":
            return all(part.holds(lookup) for part in self.parts)
        if self.kind == "any":
            return any(part.holds(lookup) for part in self.parts)
        if self.kind == "not":
            return not self.parts[0].holds(lookup)
        if self.reference is None:
            return False
        try:
            return _OPERATORS[self.kind](decode_value(lookup(self.reference)), self.value)
        except TypeError:
            return False

    @property
    def references(self) -> Iterator[Reference]:
        """The references in it, in order."""
        if self.reference is not None:
            yield self.reference
        for part in self.parts:
            yield from part.references


def parse_reference(text: Any, where: str) -> Reference:
    """Parse PATH.

    Raises:
        InvalidPlan: It has none of the forms above.
    """
    if not isinstance(text, str) or not text:
        raise InvalidPlan(f"{where}: $ref must be a non-empty string", field=where)
    root, *path = text.split(".")
    if root == "steps":
        if len(path) < 2 or path[1] != "output" or not path[0]:
            raise InvalidPlan(f"{where}: {text!r} must read steps.NAME.output[.path]", field=where)
        return Reference("steps", path[0], tuple(path[2:]))
    is_whole = (root == "index" and not path) or (root == "run" and path == ["id"])
    if root in {"inputs", "item", "data", "result"} or is_whole:
        return Reference(root, "", tuple(path))
    raise InvalidPlan(
        f"{where}: {text!r} must begin with inputs, steps, item, index or be run.id", field=where
    )


def compile_template(value: Json, where: str) -> Template:
    """Compile JSON with references.

    Raises:
        InvalidPlan: A reference is malformed, or the value is not JSON.
    """
    segments: list[bytes | Reference] = []
    buffer = bytearray()

    def literal(piece: Any) -> None:
        try:
            buffer.extend(orjson.dumps(piece))
        except TypeError as error:
            raise InvalidPlan(f"{where}: not JSON ({error})", field=where) from error

    def walk(node: Json, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise InvalidPlan(f"{where}: nested over {MAX_DEPTH} levels", field=where)
        if isinstance(node, dict):
            if "$ref" in node:
                if len(node) != 1:
                    raise InvalidPlan(f"{where}: $ref stands alone in its object", field=where)
                segments.append(bytes(buffer))
                buffer.clear()
                segments.append(parse_reference(node["$ref"], where))
                return
            buffer.extend(b"{")
            for position, (key, child) in enumerate(node.items()):
                buffer.extend(b"," if position else b"")
                literal(str(key))
                buffer.extend(b":")
                walk(child, depth + 1)
            buffer.extend(b"}")
        elif isinstance(node, list | tuple):
            buffer.extend(b"[")
            for position, child in enumerate(node):
                buffer.extend(b"," if position else b"")
                walk(child, depth + 1)
            buffer.extend(b"]")
        else:
            literal(node)

    walk(value)
    segments.append(bytes(buffer))
    return Template(tuple(s for s in segments if s != b""))


def compile_condition(value: Json, where: str, depth: int = 0) -> Condition:
    """Compile a condition, which lies `depth` levels inside another.

    Raises:
        InvalidPlan: It has none of the forms that Condition lists.
    """
    if depth > MAX_DEPTH:
        raise InvalidPlan(f"{where}: nested over {MAX_DEPTH} levels", field=where)
    if not isinstance(value, dict):
        raise InvalidPlan(f"{where}: a condition is an object", field=where)
    for kind in ("all", "any"):
        if set(value) == {kind} and isinstance(value[kind], list):
            parts = tuple(compile_condition(part, where, depth + 1) for part in value[kind])
            return Condition(kind, None, None, parts)
    if set(value) == {"not"}:
        return Condition("not", None, None, (compile_condition(value["not"], where, depth + 1),))
    operator = value.get("op", "truthy")
    is_known = isinstance(operator, str) and operator in _OPERATORS
    if "ref" not in value or not is_known or not set(value) <= {"ref", "op", "value"}:
        raise InvalidPlan(f"{where}: a condition reads ref, op ({' '.join(_OPERATORS)}), value", field=where)
    return Condition(operator, parse_reference(value["ref"], where), value.get("value"), ())


def resolve_path(raw: bytes, reference: Reference) -> bytes:
    """Walk a path inside raw JSON. Null stays null; a blob reference takes the path along for the agent to
    walk.

    Raises:
        StepError: The path leads nowhere (VALIDATION_ERROR, not retryable).
    """
    if not reference.path:
        return raw
    node = decode_value(raw)
    for position, key in enumerate(reference.path):
        if node is None:
            return b"null"
        if isinstance(node, dict) and "$blob" in node:
            rest = ".".join(reference.path[position:])
            before = node.get("path")
            return orjson.dumps({**node, "path": f"{before}.{rest}" if before else rest})
        try:
            node = node[int(key)] if isinstance(node, list) else node[key]
        except (KeyError, IndexError, TypeError, ValueError):
            message = f"reference {reference.text}: nothing at {key!r}"
            raise StepError(message, code="VALIDATION_ERROR") from None
    return encode_value(node)


def decode_value(raw: bytes) -> Json:
    """Decode a value that a reference gave.

    Raises:
        StepError: It is nested deeper than the decoder goes (VALIDATION_ERROR, not retryable).
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise StepError(
            f"a value cannot be read, or is nested too deep: {error}", "VALIDATION_ERROR"
        ) from None


def encode_value(value: Json) -> bytes:
    """Encode a part of a value that a reference gave.

    Raises:
        StepError: It is nested deeper than the encoder goes (VALIDATION_ERROR, not retryable).
    """
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise StepError(f"a value is nested too deep: {error}", "VALIDATION_ERROR") from None
