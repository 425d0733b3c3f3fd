import base64

import orjson
import pytest

from cluster.model.blob_reference import is_reference, resolve
from cluster.store.blobs import BlobStore
from cluster.store.large_inputs import offload_inputs

LIMIT = 4096


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path)


def _element(**values):
    return {
        "input_id": "a",
        "type": "text",
        "encoding": "plain",
        "data": "",
        "url": "",
        "metadata": {},
        **values,
    }


def test_only_as_many_elements_move_as_are_needed_and_the_largest_first(blobs):
    inputs = {"inputs": [_element(data="s" * 1000), _element(data="l" * 9000), _element(data="m" * 1500)]}
    small, large, medium = offload_inputs(inputs, blobs, LIMIT)["inputs"]
    assert is_reference(large["data"])
    assert (small["data"], medium["data"]) == ("s" * 1000, "m" * 1500)
    assert len(inputs["inputs"][1]["data"]) == 9000


def test_text_comes_back_as_the_value_it_was(blobs):
    slim = offload_inputs({"inputs": [_element(data="ä" * 9000)]}, blobs, LIMIT)
    assert resolve(slim, blobs.read) == {"inputs": [_element(data="ä" * 9000)]}


def test_base64_is_stored_as_the_bytes_it_stands_for(blobs):
    content = bytes(range(256)) * 40
    element = _element(type="image", encoding="base64", data=base64.b64encode(content).decode())
    (slim,) = offload_inputs({"inputs": [element]}, blobs, LIMIT)["inputs"]
    assert blobs.read(slim["data"]) == content
    assert slim["data"]["media_type"] == "application/octet-stream"


def test_wrong_base64_is_kept_for_the_agent_to_complain_about(blobs):
    element = _element(type="image", encoding="base64", data="*" * 9000)
    (slim,) = offload_inputs({"inputs": [element]}, blobs, LIMIT)["inputs"]
    assert orjson.loads(blobs.read(slim["data"])) == "*" * 9000


def test_json_text_is_stored_as_it_is(blobs):
    text = orjson.dumps([1] * 9000).decode()
    (slim,) = offload_inputs({"inputs": [_element(type="json", encoding="json", data=text)]}, blobs, LIMIT)[
        "inputs"
    ]
    assert blobs.read(slim["data"]) == text.encode()


def test_large_values_of_other_inputs_move_one_by_one(blobs):
    slim = offload_inputs({"rows": [1] * 9000, "title": "x"}, blobs, LIMIT)
    assert is_reference(slim["rows"])
    assert slim["title"] == "x"


@pytest.mark.parametrize("inputs", [{str(n): n for n in range(2000)}, ["x"] * 9000, "x" * 9000])
def test_many_small_values_move_as_a_whole(blobs, inputs):
    slim = offload_inputs(inputs, blobs, LIMIT)
    assert is_reference(slim)
    assert resolve(slim, blobs.read) == inputs
