"""The `data_analysis` agent: statistics over what was ingested.

It works on the ingest's output, on a list of them where a map ingested each input by itself, or on raw inputs
where it runs alone. Numbers only, no sentences: those are the synthesis'. The work runs in a thread and looks
between its parts whether it is still wanted.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from actors.agent import AgentContext, agent
from actors.agents.data_ingest import ingest, resolve_blob
from actors.agents.image_statistics import describe_image
from actors.agents.table_statistics import describe_table
from actors.agents.text_statistics import describe_text
from cluster.errors import FailureCode, StepError
from cluster.model.plan import Json

__all__ = ["DataAnalysis", "analyse"]


def analyse(ingested: Json, context: AgentContext, begin: float = 0.0, end: float = 1.0) -> dict[str, Json]:
    """Compute the statistics of all items. Blocks; call it in a thread.

    Args:
        ingested: The output of `data_ingest`, or a list of such outputs, which count as one.
        context: Told the progress, asked for blobs and whether to go on.
        begin: Progress of the Step when this starts, 0 to 1.
        end: Progress of the Step when this ends, 0 to 1.

    Returns:
        `{"type": "analysis_result", "tables", "texts", "images", "values", "binaries", "summary"}`; numbers
        are finite or null.

    Raises:
        StepError: The data is no ingest output, the bytes of an image cannot be read, or the Step was
            cancelled.
    """
    items = _items_of(ingested)
    parts: dict[str, list[dict[str, Json]]] = {
        name: [] for name in ("tables", "texts", "images", "values", "binaries")
    }
    for number, item in enumerate(items):

        def part_done(
            fraction: float, message: str, number: int = number, name: str = item["input_id"]
        ) -> None:
            if context.cancelled:
                raise StepError("cancelled", code=FailureCode.CANCELLED)
            share = (number + fraction) / len(items)
            context.report_progress(begin + (end - begin) * share, f"{name}: {message}")

        part_done(0.0, "analysing")
        try:
            kind, described = _describe(item, context, part_done)
        except KeyError as error:
            raise StepError(
                f"input {item['input_id']!r}: its ingested item lacks {error}",
                code=FailureCode.VALIDATION_ERROR,
            ) from error
        parts[kind].append(described)
    if items:
        context.report_progress(end, "analysed")
    return {
        "type": "analysis_result",
        **parts,
        "summary": {
            "num_items": len(items),
            "num_rows": sum(table["num_rows"] for table in parts["tables"]),
            "num_words": sum(text["num_words"] for text in parts["texts"]),
            **{f"num_{name}": len(described) for name, described in parts.items()},
        },
    }


def _items_of(ingested: Json) -> list[dict[str, Any]]:
    """Join the items of one or many ingest outputs, in order, each under an id that no other has.

    Two outputs may name an input alike: ingests that a map ran do not know of each other, and both count from
    one where the client gave no ids.
    """
    items: list[dict[str, Any]] = []
    taken: set[str] = set()
    for output in ingested if isinstance(ingested, list) else [ingested]:
        found = output.get("items") if isinstance(output, dict) else None
        if not isinstance(found, list):
            raise StepError(
                "data must be the output of data_ingest or a list of such outputs",
                code=FailureCode.VALIDATION_ERROR,
            )
        for item in found:
            if not isinstance(item, dict) or not isinstance(item.get("input_id"), str):
                raise StepError(
                    f"item {len(items)} of the data is no ingested item", code=FailureCode.VALIDATION_ERROR
                )
            input_id, number = item["input_id"], 1
            while input_id in taken:
                number += 1
                input_id = f"{item['input_id']} ({number})"
            taken.add(input_id)
            items.append({**item, "input_id": input_id})
    return items


def _describe(item: dict[str, Any], context: AgentContext, part_done: Any) -> tuple[str, dict[str, Json]]:
    kind = item.get("kind")
    if kind == "table":
        import numpy as np

        # Numbers near the end of what floats hold overflow; whatever is not finite is told as null.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return "tables", describe_table(item, part_done)
    if kind == "text":
        return "texts", describe_text(item)
    if kind == "image":
        return "images", describe_image(item, _bytes_of(item, context))
    if kind == "value":
        return "values", _describe_value(item)
    if kind == "binary":
        return "binaries", {key: item[key] for key in ("input_id", "media_type", "size_bytes", "sha256")}
    raise StepError(f"input {item['input_id']!r}: unknown kind {kind!r}", code=FailureCode.VALIDATION_ERROR)


def _bytes_of(item: dict[str, Any], context: AgentContext) -> bytes:
    data = item["data"]
    if not isinstance(data, dict):
        return base64.b64decode(data)
    try:
        return context.read_blob(data)
    except (OSError, KeyError, ValueError) as error:
        raise StepError(
            f"input {item['input_id']!r}: its blob cannot be read ({error})", retryable=True
        ) from error


def _describe_value(item: dict[str, Any]) -> dict[str, Json]:
    """Describe JSON that is no table by its shape: how deep, how much of what."""
    counts = {"objects": 0, "arrays": 0, "strings": 0, "numbers": 0, "booleans": 0, "nulls": 0}
    depth = 0
    stack: list[tuple[Json, int]] = [(item["value"], 1)]
    while stack:
        value, level = stack.pop()
        depth = max(depth, level)
        if isinstance(value, dict):
            counts["objects"] += 1
            stack.extend((inner, level + 1) for inner in value.values())
        elif isinstance(value, list):
            counts["arrays"] += 1
            stack.extend((inner, level + 1) for inner in value)
        elif isinstance(value, bool):
            counts["booleans"] += 1
        elif value is None:
            counts["nulls"] += 1
        else:
            counts["strings" if isinstance(value, str) else "numbers"] += 1
    top = item["value"]
    return {
        "input_id": item["input_id"],
        "value_type": {dict: "object", list: "array", str: "string", bool: "boolean"}.get(
            type(top), "null" if top is None else "number"
        ),
        "depth": depth,
        "num_entries": len(top) if isinstance(top, dict | list) else None,
        "keys": sorted(map(str, top))[:30] if isinstance(top, dict) else [],
        "counts": counts,
    }


@agent("data_analysis")
class DataAnalysis:
    """Computes statistics of tables, texts, images and JSON values."""

    async def execute(self, inputs: Json, context: AgentContext) -> Json:
        """Analyse.

        Args:
            inputs: `{"data": <output of data_ingest, or a list of them>}`, or `{"inputs": […]}` as
                data_ingest takes them.
            context: Progress, blobs, cancellation.

        Returns:
            See `analyse`.

        Raises:
            StepError: See `analyse` and `data_ingest.ingest`.
        """
        data = inputs.get("data") if isinstance(inputs, dict) else None
        begin = 0.0
        if data is None:
            begin = 0.3
            data = await ingest(inputs, context, progress_share=begin)
        else:
            data = await asyncio.to_thread(resolve_blob, data, context)
        return await asyncio.to_thread(analyse, data, context, begin)
