"""The `data_ingest` agent: what clients send, as items that the analysis can read.

It says clearly what is wrong with which input, and refuses a bad one rather than leaving it out: a report
over less than was sent would look complete. Its output depends on its input alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

from actors.agent import AgentContext, agent
from actors.agents.input_formats import decode_item
from actors.agents.input_sources import load, read_spec
from cluster.errors import FailureCode, StepError
from cluster.model.plan import Json

__all__ = ["DataIngest", "ingest", "resolve_blob"]

_MAX_INPUTS = 1000
_KINDS = ("table", "text", "image", "value", "binary")


async def ingest(inputs: Json, context: AgentContext, progress_share: float = 1.0) -> dict[str, Json]:
    """Read and decode all inputs, one after the other: what they unfold to in memory is bounded by one.

    Args:
        inputs: `{"inputs": [{input_id, type, data | url, encoding, metadata}]}`; without inputs there are no
            items.
        context: Progress, blobs, input folders and the egress rules.
        progress_share: Part of the Step's progress that this is, 0 to 1.

    Returns:
        `{"type": "ingested_data", "items": […], "summary": {num_items, num_by_kind, num_rows}}`.

    Raises:
        StepError: An input cannot be used (VALIDATION_ERROR) or not be got for now (retryable).
    """
    entries = inputs.get("inputs") if isinstance(inputs, dict) else inputs
    entries = await asyncio.to_thread(resolve_blob, entries, context) or []
    if not isinstance(entries, list):
        raise StepError("inputs must be a list", code=FailureCode.VALIDATION_ERROR)
    if len(entries) > _MAX_INPUTS:
        raise StepError(
            f"there are {len(entries)} inputs, the limit is {_MAX_INPUTS}", code=FailureCode.VALIDATION_ERROR
        )
    specs = [read_spec(entry, position) for position, entry in enumerate(entries, 1)]
    seen: set[str] = set()
    for spec in specs:
        if spec.input_id in seen:
            raise StepError(f"input {spec.input_id!r}: given twice", code=FailureCode.VALIDATION_ERROR)
        seen.add(spec.input_id)
    items: list[dict[str, Any]] = []
    for number, spec in enumerate(specs, 1):
        material = await load(spec, context)
        items.append(await asyncio.to_thread(decode_item, spec, material, context))
        await context.progress(progress_share * number / len(specs), f"read {spec.input_id}")
    return {
        "type": "ingested_data",
        "items": items,
        "summary": {
            "num_items": len(items),
            "num_by_kind": {
                kind: count for kind in _KINDS if (count := sum(item["kind"] == kind for item in items))
            },
            "num_rows": sum(item.get("num_rows", 0) for item in items),
        },
    }


def resolve_blob(value: Json, context: AgentContext) -> Json:
    """Give a JSON value itself where a large one, or an entry of a list, travels as a blob reference.

    Raises:
        StepError: The blob is not there or holds no JSON; retryable, a store may be away for a moment.
    """
    if isinstance(value, list):
        return [resolve_blob(entry, context) for entry in value]
    if not (isinstance(value, dict) and "$blob" in value):
        return value
    import orjson

    try:
        return orjson.loads(context.read_blob(value))
    except (OSError, KeyError, ValueError) as error:
        raise StepError(f"a blob of JSON cannot be read ({error})", retryable=True) from error


@agent("data_ingest")
class DataIngest:
    """Reads text, tables, images and other bytes from inline data, base64, blobs, addresses and files."""

    async def execute(self, inputs: Json, context: AgentContext) -> Json:
        """Ingest; see `ingest`."""
        return await ingest(inputs, context)
