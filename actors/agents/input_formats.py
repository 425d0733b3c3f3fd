"""What the bytes of an input are: a table, a text, an image, a JSON value, or just bytes.

Each input becomes one plain JSON item that the analysis can read without asking again. This module refuses to
fetch anything, and to pass on what it could not fully decode: an image is decoded once here, so that a
    truncated file is
reported with the input's name and not three steps later.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from typing import Any

from actors.agent import AgentContext
from actors.agents.input_sources import InputSpec, Material, refusal, refuse
from actors.agents.tables import Table, TableError, looks_like_csv, table_from_csv, table_from_json
from cluster.model.plan import Json

__all__ = ["MAX_IMAGE_PIXELS", "decode_item"]

MAX_IMAGE_PIXELS = 50_000_000
"""Largest image that is decoded, in pixels. Compressed images can unfold a thousandfold: the header is
believed first, and nothing above this is unpacked."""

_INLINE_BYTES = 48 * 1024
_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_IMAGE_HEADS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_SUFFIX_FORMATS = {
    "csv": "csv",
    "tsv": "csv",
    "tab": "csv",
    "json": "json",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "txt": "text",
    "md": "text",
}
_MEDIA_FORMATS = {
    "text/csv": "csv",
    "text/tab-separated-values": "csv",
    "application/json": "json",
    "application/x-ndjson": "jsonl",
    "application/jsonl": "jsonl",
    "text/plain": "text",
    "text/markdown": "text",
}
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def decode_item(spec: InputSpec, material: Material, context: AgentContext) -> dict[str, Json]:
    """Decode one input.

    Args:
        spec: What the client said about it.
        material: What its source gave.
        context: Stores the bytes of images and binaries that are too large to travel inline.

    Returns:
        An item `{input_id, kind, type, source, metadata, …}`; `kind` is table, text, image, value or binary.

    Raises:
        StepError: It is not what it is said to be; the message names the input and the place.
    """
    item: dict[str, Json] = {"input_id": spec.input_id, "type": spec.type, "source": material.origin}
    if material.name:
        item["name"] = material.name
    if spec.type == "json" or (material.content is None and not isinstance(material.value, str)):
        item |= _json_item(spec, material)
    elif spec.type == "text":
        item |= _text_item(spec, material)
    elif material.content is None:
        refuse(spec.input_id, f"data of type {spec.type} must be base64")
    elif not material.content:
        refuse(spec.input_id, "is empty")
    elif spec.type == "image" or (spec.type == "binary" and material.content.startswith(_IMAGE_HEADS[:3])):
        item |= _image_item(spec, material, material.content, context)
    elif spec.type == "binary" and _format_of(spec, material):
        item |= _text_item(spec, material)
    else:
        item |= _binary_item(spec, material, material.content, context)
    item["metadata"] = spec.metadata
    return item


def _format_of(spec: InputSpec, material: Material) -> str:
    """What the client, the server or the file's ending says, in this order: csv, json, jsonl, text or ""."""
    told = str(spec.metadata.get("format", "")).lower().lstrip(".")
    if told in _SUFFIX_FORMATS:
        return _SUFFIX_FORMATS[told]
    for media_type in (str(spec.metadata.get("content_type", "")), material.content_type):
        known = _MEDIA_FORMATS.get(media_type.partition(";")[0].strip().lower(), "")
        if known and known != "text":
            return known
    for name in (str(spec.metadata.get("filename", "")), material.name):
        known = _SUFFIX_FORMATS.get(name.rpartition(".")[2].lower(), "") if "." in name else ""
        if known:
            return known
    return ""


def _json_item(spec: InputSpec, material: Material) -> dict[str, Json]:
    import orjson

    value = material.value
    form, charset = "json", ""
    if material.content is not None or isinstance(value, str):
        text, charset = (value, "") if material.content is None else _decode(spec, material)
        text = text.strip().removeprefix("\ufeff")
        if not text:
            refuse(spec.input_id, "is empty, JSON is expected")
        told = _format_of(spec, material)
        if told == "csv":
            return _csv_item(spec, text, charset)
        try:
            value = orjson.loads(text)
            if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
                value = orjson.loads(value)  # JSON that was quoted once more on its way
        except orjson.JSONDecodeError as error:
            if told == "jsonl" or _has_json_lines(text):
                value, form = _json_lines(spec, text), "json lines"
            elif isinstance(material.value, str) and spec.encoding == "plain":
                value = material.value
            else:
                refuse(spec.input_id, f"is not valid JSON: {error}")
    try:
        found = table_from_json(value)
    except TableError as error:
        refuse(spec.input_id, f"is not a usable table: {error}")
    described: dict[str, Json] = {"format": form} | ({"charset": charset} if charset else {})
    if found is None:
        return {"kind": "value", **described, "value": value}
    table, beside = found
    return _table_item(table, described | ({"attributes": beside} if beside else {}))


def _has_json_lines(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and all(
        line.lstrip()[0] in "{[" and line.rstrip()[-1] in "}]" for line in lines[:5]
    )


def _json_lines(spec: InputSpec, text: str) -> list[Json]:
    import orjson

    values: list[Json] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                values.append(orjson.loads(line))
            except orjson.JSONDecodeError as error:
                refuse(spec.input_id, f"line {number} is not valid JSON: {error}")
    return values


def _text_item(spec: InputSpec, material: Material) -> dict[str, Json]:
    text, charset = (material.value, "") if material.content is None else _decode(spec, material)
    if not text.strip():
        refuse(spec.input_id, "is empty, text is expected")
    told = _format_of(spec, material)
    if told in ("json", "jsonl"):
        return _json_item(spec, material)
    if told == "csv" or (not told and looks_like_csv(text)):
        return _csv_item(spec, text, charset)
    described: dict[str, Json] = {"charset": charset} if charset else {}
    return {"kind": "text", "format": "text", **described, "num_characters": len(text), "text": text}


def _csv_item(spec: InputSpec, text: str, charset: str) -> dict[str, Json]:
    delimiter = spec.metadata.get("delimiter", "")
    if not isinstance(delimiter, str) or len(delimiter) > 1:
        refuse(spec.input_id, "metadata.delimiter must be one character")
    try:
        table = table_from_csv(text, delimiter)
    except TableError as error:
        refuse(spec.input_id, f"is not a usable CSV table: {error}")
    return _table_item(table, {"format": "csv"} | ({"charset": charset} if charset else {}))


def _table_item(table: Table, described: dict[str, Json]) -> dict[str, Json]:
    return {
        "kind": "table",
        **described,
        "num_rows": len(table.rows),
        "num_columns": len(table.columns),
        "columns": table.columns,
        "rows": table.rows,
        **({"notes": table.notes} if table.notes else {}),
    }


def _decode(spec: InputSpec, material: Material) -> tuple[str, str]:
    """Bytes to text, and the charset by its usual name. What is told is believed, then a BOM, then UTF-8."""
    content = material.content or b""
    told = spec.metadata.get("charset") or _charset_in(material.content_type)
    for head, charset in _BOMS:
        if content.startswith(head):
            told = told or charset
            break
    if told:
        try:
            return content.decode(str(told)).removeprefix("\ufeff"), str(told).lower()
        except (LookupError, UnicodeDecodeError) as error:
            refuse(spec.input_id, f"cannot be read as {told}: {error}")
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError as error:
        if b"\0" in content[:4096]:
            refuse(spec.input_id, "is binary, not text (zero bytes at its beginning)")
        bad_byte, place = content[error.start], error.start
    return _detect(spec, content, bad_byte, place)


def _detect(spec: InputSpec, content: bytes, bad_byte: int, place: int) -> tuple[str, str]:
    from charset_normalizer import from_bytes

    best = from_bytes(content[:200_000]).best()
    # Little text gives the detector little to go by; Western single-byte text is then by far the likeliest.
    candidates = [best.encoding] if best else []
    if len(content) < 256:
        candidates.insert(0, "cp1252")
    for charset in candidates:
        text = content.decode(charset, errors="replace")
        if "\ufffd" not in text:
            return text, charset.replace("_", "-")
    raise refusal(
        spec.input_id,
        f"is neither UTF-8 (byte 0x{bad_byte:02x} at position {place}) nor another known charset; "
        "name it in metadata.charset",
    )


def _charset_in(content_type: str) -> str:
    match = re.search(r"charset\s*=\s*\"?([\w.:-]+)", content_type, re.IGNORECASE)
    return match.group(1) if match else ""


def _image_item(
    spec: InputSpec, material: Material, content: bytes, context: AgentContext
) -> dict[str, Json]:
    import struct
    import zlib

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=_IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                refuse(
                    spec.input_id,
                    f"the image has {width} x {height} pixels, the limit is {MAX_IMAGE_PIXELS:,} pixels",
                )
            form, mode, num_frames = str(image.format), image.mode, int(getattr(image, "n_frames", 1))
            image.load()
    except UnidentifiedImageError:
        refuse(spec.input_id, f"is no image of a known format ({', '.join(_IMAGE_FORMATS)})")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        refuse(spec.input_id, f"the image is over the limit of {MAX_IMAGE_PIXELS:,} pixels")
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        KeyError,
        struct.error,
        zlib.error,
    ) as error:
        refuse(spec.input_id, f"the image is damaged: {error}")
    return {
        "kind": "image",
        "format": form.lower(),
        "width": width,
        "height": height,
        "mode": mode,
        "num_frames": num_frames,
        "size_bytes": len(content),
        **_kept(material, content, f"image/{form.lower()}", context),
    }


def _binary_item(
    spec: InputSpec, material: Material, content: bytes, context: AgentContext
) -> dict[str, Json]:
    told = str(spec.metadata.get("content_type", "")) or material.content_type
    media_type = told.partition(";")[0].strip() or "application/octet-stream"
    return {
        "kind": "binary",
        "media_type": media_type,
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        **_kept(material, content, media_type, context),
    }


def _kept(material: Material, content: bytes, media_type: str, context: AgentContext) -> dict[str, Any]:
    """Where the next step finds the bytes: the blob they came from, inline while small, else a new blob."""
    if material.reference is not None:
        return {"data": material.reference}
    if len(content) <= _INLINE_BYTES:
        return {"data": base64.b64encode(content).decode("ascii"), "encoding": "base64"}
    return {"data": context.write_blob(content, media_type)}
