"""What clients send, and what becomes of it."""

from __future__ import annotations

import base64
import http.server
import io
import json
import struct
import threading
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image

from actors.agents.data_ingest import DataIngest
from cluster.errors import FailureCode, StepError


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


async def ingest_one(context, **entry):
    result = await DataIngest().execute({"inputs": [{"input_id": "x", **entry}]}, context)
    json.dumps(result, allow_nan=False)
    return result["items"][0]


async def refusal_of(context, **entry) -> str:
    with pytest.raises(StepError) as caught:
        await DataIngest().execute({"inputs": [{"input_id": "x", **entry}]}, context)
    assert caught.value.code == FailureCode.VALIDATION_ERROR
    assert not caught.value.retryable
    assert "'x'" in caught.value.message
    return caught.value.message


def png(width: int = 4, height: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("inputs", [None, {}, {"inputs": None}, {"inputs": []}])
async def test_no_inputs_give_no_items(context, inputs) -> None:
    result = await DataIngest().execute(inputs, context)
    assert result == {
        "type": "ingested_data",
        "items": [],
        "summary": {"num_items": 0, "num_by_kind": {}, "num_rows": 0},
    }


async def test_plain_text_stays_as_it_is(context) -> None:
    item = await ingest_one(context, type="text", data="Sample data")
    assert (item["kind"], item["text"]) == ("text", "Sample data")


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("utf-8", "Grüße aus Köln, fünf Äpfel"),
        ("utf-16", "Grüße aus Köln"),
        ("utf-8-sig", "Grüße"),
        ("cp1252", "Grüße aus Köln, fünf Äpfel"),
    ],
)
async def test_charset_of_bytes_is_found(context, charset, text) -> None:
    item = await ingest_one(context, type="text", encoding="base64", data=b64(text.encode(charset)))
    assert item["text"] == text


async def test_told_charset_is_believed_and_its_failure_said(context) -> None:
    content = b64("жук".encode("koi8-r"))
    item = await ingest_one(
        context, type="text", encoding="base64", data=content, metadata={"charset": "koi8-r"}
    )
    assert item["text"] == "жук"
    message = await refusal_of(
        context, type="text", encoding="base64", data=content, metadata={"charset": "utf-8"}
    )
    assert "utf-8" in message


async def test_binary_sent_as_text_is_refused(context) -> None:
    assert "binary" in await refusal_of(
        context, type="text", encoding="base64", data=b64(b"\x80\x00\x01\x02")
    )


@pytest.mark.parametrize(
    "data",
    [
        [{"a": 1, "b": "x"}, {"a": 2.5, "b": None}],
        {"a": [1, 2.5], "b": ["x", None]},
        {"columns": ["a", "b"], "rows": [[1, "x"], [2.5, None]]},
        [["a", "b"], [1, "x"], [2.5, None]],
        {"results": [{"a": 1, "b": "x"}, {"a": 2.5, "b": None}], "page": 1},
        '[{"a": 1, "b": "x"}, {"a": 2.5, "b": null}]',
        '{"a": 1, "b": "x"}\n{"a": 2.5, "b": null}\n',
    ],
)
async def test_every_usual_form_of_a_json_table_gives_the_same_table(context, data) -> None:
    item = await ingest_one(context, type="json", data=data)
    assert (item["kind"], item["columns"], item["rows"]) == ("table", ["a", "b"], [[1, "x"], [2.5, None]])


async def test_nested_objects_become_dotted_columns_and_late_keys_count(context) -> None:
    item = await ingest_one(context, type="json", data=[{"a": {"b": 1}}, {"a": {"b": 2}, "c": [1]}])
    assert item["columns"] == ["a.b", "c"]
    assert item["rows"] == [[1, None], [2, "[1]"]]


async def test_json_that_is_no_table_is_a_value(context) -> None:
    item = await ingest_one(context, type="json", data={"a": [1, {"b": 2}]})
    assert (item["kind"], item["value"]) == ("value", {"a": [1, {"b": 2}]})


async def test_broken_json_names_the_place(context) -> None:
    assert "line 1 column 7" in await refusal_of(context, type="json", data='{"a": }')
    assert "line 2" in await refusal_of(
        context, type="json", data='{"a": 1}\n{"a": }\n', metadata={"format": "jsonl"}
    )


async def test_csv_cells_get_types_but_codes_keep_their_zeros(context) -> None:
    text = "id;price;ok;day\n007;1.234,50;true;2024-01-01\n008;2,25;false;\n"
    item = await ingest_one(context, type="text", data=text, metadata={"format": "csv"})
    assert item["columns"] == ["id", "price", "ok", "day"]
    assert item["rows"] == [["007", 1234.5, True, "2024-01-01"], ["008", 2.25, False, None]]


async def test_text_that_is_plainly_csv_becomes_a_table_and_prose_does_not(context) -> None:
    text = "a,b,c\n" + "\n".join(f"{n},{n * 2},x" for n in range(6))
    assert (await ingest_one(context, type="text", data=text))["kind"] == "table"
    prose = "Well, this is prose, with commas.\n" * 6
    assert (await ingest_one(context, type="text", data=prose))["kind"] == "text"


async def test_csv_line_that_is_too_long_is_named(context) -> None:
    message = await refusal_of(context, type="text", data="a,b\n1,2\n1,2,3\n", metadata={"format": "csv"})
    assert "line 3 has 3 cells, the header has 2" in message


async def test_doubled_csv_headers_are_told_apart_and_short_rows_are_noted(context) -> None:
    item = await ingest_one(context, type="text", data="a,a,b\n1,2,3\n4\n", metadata={"format": "csv"})
    assert item["columns"] == ["a", "a (2)", "b"]
    assert item["rows"][1] == [4, None, None]
    assert len(item["notes"]) == 2


async def test_small_image_travels_inline_and_large_one_as_blob(context) -> None:
    small = await ingest_one(context, type="image", data=b64(png()))
    assert (small["width"], small["height"], small["format"], small["encoding"]) == (4, 3, "png", "base64")
    noise = Image.effect_noise((400, 400), 90)
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    large = await ingest_one(context, type="image", data="data:image/png;base64," + b64(buffer.getvalue()))
    assert context.read_blob(large["data"]) == buffer.getvalue()


async def test_blob_that_came_as_reference_is_not_stored_again(context) -> None:
    reference = context.write_blob(png(), "image/png")
    assert (await ingest_one(context, type="image", data=reference))["data"] == reference


async def test_long_text_that_went_to_the_blob_store_is_read_back(context) -> None:
    reference = context.write_blob(json.dumps("Grüße").encode(), "application/json")
    assert (await ingest_one(context, type="text", data=reference))["text"] == "Grüße"
    reference = context.write_blob(json.dumps([{"a": 1}, {"a": 2}]).encode(), "application/json")
    assert (await ingest_one(context, type="json", data=reference))["num_rows"] == 2


async def test_list_of_inputs_that_went_to_the_blob_store_is_read_back(context) -> None:
    entries = [{"input_id": "x", "type": "text", "data": "words"}]
    reference = context.write_blob(json.dumps(entries).encode(), "application/json")
    result = await DataIngest().execute({"inputs": reference}, context)
    assert result["items"][0]["text"] == "words"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
async def test_decompression_bomb_is_refused_by_its_header(context, side) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9999))
        + chunk(b"IEND", b"")
    )
    assert "pixels" in await refusal_of(context, type="image", data=b64(bomb))


async def test_damaged_images_and_false_images_are_refused(context) -> None:
    assert "damaged" in await refusal_of(context, type="image", data=b64(png(300, 300)[:-40]))
    assert "known format" in await refusal_of(context, type="image", data=b64(b"no image at all"))


async def test_unknown_bytes_stay_bytes(context) -> None:
    item = await ingest_one(context, type="binary", data=b64(b"\x01\x02\x03"))
    assert (item["kind"], item["size_bytes"]) == ("binary", 3)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"type": "text"}, "neither data nor url"),
        ({"type": "hologram", "data": ""}, "unknown type"),
        ({"type": "text", "data": "x", "encoding": "rot13"}, "unknown encoding"),
        ({"type": "image", "data": "%%%"}, "base64"),
        ({"type": "image", "data": {"a": 1}}, "must be base64"),
        ({"type": "image", "data": "plain words", "encoding": "plain"}, "must be base64"),
        ({"type": "text", "data": "   "}, "is empty"),
        ({"type": "json", "data": ""}, "is empty"),
        ({"type": "text", "url": "ftp://example.org/a"}, "scheme"),
        ({"type": "text", "url": "file:///etc/passwd"}, "switched off"),
        ({"type": "text", "url": "http://["}, "cannot be read"),
        ({"type": "text", "url": "http://" + "a" * 64 + ".example/"}, "not a name"),
        ({"type": "text", "data": "x", "metadata": ["x"]}, "metadata"),
    ],
)
async def test_unusable_input_is_refused_with_its_name_and_reason(context, entry, said) -> None:
    assert said in await refusal_of(context, **entry)


async def test_inputs_with_the_same_id_are_refused(context) -> None:
    entry = {"input_id": "x", "type": "text", "data": "a"}
    with pytest.raises(StepError, match="given twice"):
        await DataIngest().execute({"inputs": [entry, entry]}, context)


async def test_files_below_an_input_folder_are_read(context, tmp_path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a b.csv").write_text("a,b\n1,2\n")
    context.input_dirs = (str(folder),)
    for url in ("file:deep/a%20b.csv", f"file://{folder}/deep/a%20b.csv"):
        item = await ingest_one(context, type="text", url=url)
        assert (item["kind"], item["name"], item["rows"]) == ("table", "a b.csv", [[1, 2]])


async def test_files_elsewhere_are_refused_without_telling_whether_they_exist(context, tmp_path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    context.input_dirs = (str(folder),)
    messages = {
        await refusal_of(context, type="text", url=url)
        for url in (
            "file:../secret.txt",
            "file:link.txt",
            f"file://{tmp_path}/secret.txt",
            "file:..%2Fnothing.txt",
            "file:///etc/passwd",
        )
    }
    assert messages == {"input 'x': the file does not lie below an allowed input folder"}
    assert "no such file" in await refusal_of(context, type="text", url="file:nothing.txt")
    assert "regular file" in await refusal_of(context, type="text", url="file:.")


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"a,b\n1,2\n" if self.path.startswith("/table") else b"gone"
        self.send_response(200 if self.path.startswith("/table") else int(self.path[1:]))
        self.send_header("Content-Type", "text/csv; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_address_is_fetched_through_the_guard(context, address) -> None:
    assert await refusal_of(context, type="text", url=f"{address}/table")
    context.egress_allow = ("127.0.0.0/8",)
    item = await ingest_one(context, type="text", url=f"{address}/table")
    assert (item["kind"], item["source"], item["rows"]) == ("table", "url", [[1, 2]])


async def test_server_errors_may_be_tried_again_and_missing_pages_not(context, address) -> None:
    context.egress_allow = ("127.0.0.0/8",)
    assert "404" in await refusal_of(context, type="text", url=f"{address}/404")
    with pytest.raises(StepError, match="503") as caught:
        await ingest_one(context, type="text", url=f"{address}/503")
    assert caught.value.retryable
