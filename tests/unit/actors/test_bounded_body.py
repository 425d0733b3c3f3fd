"""Bodies that try to grow past their limit."""

from __future__ import annotations

import gzip
import zlib

import pytest

from actors.bounded_body import BoundedBody
from cluster.errors import StepError

TEXT = b"all players together " * 500


def read(coding: str, data: bytes, limit_bytes: int = 1 << 20, chunk_bytes: int = 100) -> bytes:
    body = BoundedBody(coding, limit_bytes, "http://x")
    for start in range(0, len(data), chunk_bytes):
        body.feed(data[start : start + chunk_bytes])
    return body.finish()


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100, 1 << 20])
@pytest.mark.parametrize(
    ("coding", "data"),
    [
        ("", TEXT),
        ("identity", TEXT),
        ("gzip", gzip.compress(TEXT)),
        ("X-GZIP", gzip.compress(TEXT)),
        ("gzip", gzip.compress(TEXT[:999]) + gzip.compress(TEXT[999:])),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
    ],
)
def test_every_coding_we_ask_for_is_decoded(coding: str, data: bytes, chunk_bytes: int) -> None:
    assert read(coding, data, chunk_bytes=chunk_bytes) == TEXT


def test_a_body_of_exactly_the_limit_passes() -> None:
    assert read("", b"x" * 1000, limit_bytes=1000) == b"x" * 1000
    assert read("gzip", gzip.compress(b"x" * 1000), limit_bytes=1000) == b"x" * 1000


@pytest.mark.parametrize("data", [b"x" * 1001, gzip.compress(b"x" * 1001)])
def test_one_byte_over_the_limit_is_refused(data: bytes) -> None:
    with pytest.raises(StepError, match="more than 1000 bytes") as error:
        read("gzip" if data[0] == 0x1F else "", data, limit_bytes=1000)
    assert not error.value.retryable


def test_a_compression_bomb_in_one_chunk_never_unfolds_past_the_limit() -> None:
    bomb = gzip.compress(b"\0" * (200 << 20), compresslevel=1)
    body = BoundedBody("gzip", 2 << 20, "http://x")
    with pytest.raises(StepError, match="more than"):
        body.feed(bomb[: 1 << 20])
    assert len(body._content) <= (2 << 20) + 1


def test_thousands_of_tiny_gzip_members_are_refused_before_they_hold_the_loop() -> None:
    with pytest.raises(StepError, match="damaged"):
        read("gzip", gzip.compress(b"") * 5000, chunk_bytes=1 << 16)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress"])
def test_a_coding_that_was_not_asked_for_is_refused(coding: str) -> None:
    with pytest.raises(StepError, match="not asked for"):
        BoundedBody(coding, 100, "http://x")


@pytest.mark.parametrize(
    ("coding", "data"), [("gzip", b"plain text"), ("deflate", zlib.compress(b"a") + b"tail")]
)
def test_damaged_data_is_an_error(coding: str, data: bytes) -> None:
    with pytest.raises(StepError, match="damaged"):
        read(coding, data)


def test_a_truncated_body_may_be_tried_again() -> None:
    with pytest.raises(StepError, match="broke off") as error:
        read("gzip", gzip.compress(TEXT)[:-12])
    assert error.value.retryable


def test_an_empty_body_needs_no_compression() -> None:
    assert read("gzip", b"") == b""
