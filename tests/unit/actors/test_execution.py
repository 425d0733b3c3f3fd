"""What an agent gives back, or raises, becomes a result that can be stored or a failure that says why."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actors.agent import agent, declaration_of
from actors.execution import AttemptContext, Host, execute, failure_of
from actors.messages import StepCall
from cluster.errors import FailureCode, StepError
from cluster.model.view import Failure
from cluster.store.blobs import BlobStore


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


async def run(output: Any, tmp_path: Path, threads: ThreadPoolExecutor) -> bytes:
    @agent("give")
    async def give(_inputs: Any) -> Any:
        return output

    host = Host(BlobStore(tmp_path), threads, inline_limit_bytes=1000, input_dirs=(), egress_allow=())
    call = StepCall(("r", 0, -1, 1), "s", "give", b"{}", b"{}", "default", time.time() + 60)
    context = AttemptContext(call, host, lambda _fraction, _message: None)
    return await execute(declaration_of(give).bind(), call, context, host)


@pytest.mark.parametrize(
    "output",
    [
        {"mean": math.nan},
        {"rows": [[1.0, math.inf]] * 500},
        {"rows": np.array([1.0, math.nan])},
        {1: "one"},
        {"object": object()},
    ],
    ids=["nan", "large with infinity", "array with nan", "key that is no string", "object"],
)
async def test_output_that_json_cannot_say_fails_the_step_instead_of_being_changed(
    output: Any, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    with pytest.raises(StepError, match="the agent's output is not JSON") as caught:
        await run(output, tmp_path, threads)
    assert (caught.value.code, caught.value.retryable) == (FailureCode.EXECUTION_FAILED, False)


async def test_output_with_nulls_is_taken_as_it_is(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    output = {"a": None, "b": np.array([1.5]), "c": (1, None)}
    assert await run(output, tmp_path, threads) == b'{"a":null,"b":[1.5],"c":[1,null]}'


async def test_reference_that_only_has_the_digest_of_a_blob_reads_nothing(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    """However it came into an input (an answer of an API, text that an agent decoded): it is no reference."""
    seen: list[Any] = []

    @agent("look")
    def look(inputs: Any) -> None:
        seen.append(inputs)

    blobs = BlobStore(tmp_path)
    reference = blobs.put(b'{"secret": 1}', "application/json")
    host = Host(blobs, threads, inline_limit_bytes=1000, input_dirs=(), egress_allow=())

    async def give(value: Any) -> None:
        raw = msgspec.json.encode({"x": value})
        call = StepCall(("r", 0, -1, 1), "s", "look", raw, b"{}", "default", time.time() + 60)
        context = AttemptContext(call, host, lambda _fraction, _message: None)
        await execute(declaration_of(look).bind(), call, context, host)

    await give({**reference, "path": "secret"})
    with pytest.raises(StepError, match="not a reference that this service has made") as caught:
        await give({"$blob": reference["$blob"], "media_type": "application/json", "path": "secret"})
    assert caught.value.code == FailureCode.VALIDATION_ERROR
    assert seen == [{"x": 1}]


@pytest.mark.parametrize("fake", [{"$blob": "sha256:" + "0" * 64}, {"$blob": 1}, {"x": [{"$blob": {}}]}])
async def test_output_with_a_reference_that_is_none_fails_the_step(
    fake: Any, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    with pytest.raises(StepError, match="not a reference"):
        await run({"kept": fake}, tmp_path, threads)
    true = BlobStore(tmp_path).put(b"text", "text/plain")
    assert msgspec.json.decode(await run({"kept": true}, tmp_path, threads)) == {"kept": true}


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class _Deadly(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class _Bare(StepError):
    def __init__(self) -> None:
        self.x = 1


def _without_details() -> StepError:
    error = StepError("no details")
    error.details = None  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (_Deadly(), "_Deadly: (its text cannot be had: KeyboardInterrupt)"),
        (_Bare(), "_Bare: (it cannot be read: AttributeError)"),
        (_without_details(), "no details"),
        (_Mute(), "_Mute: (its text cannot be had: RuntimeError)"),
        (ValueError("half a pair: \ud800"), "ValueError: half a pair: ?"),
        (StepError(_Mute()), "(its text cannot be had: RuntimeError)"),  # type: ignore[arg-type]
        (StepError(404, retryable="yes", retry_after_s=10**400), "404"),  # type: ignore[arg-type]
        (StepError("later", retry_after_s=math.nan), "later"),
    ],
    ids=[
        "text kills",
        "bare",
        "no details",
        "text raises",
        "half a pair",
        "message raises",
        "wrong types",
        "wait that is no number",
    ],
)
def test_exception_of_whatever_kind_becomes_a_failure_that_can_be_stored(error: Exception, told: str) -> None:
    failure, wait_s = failure_of(error)
    assert failure.message == told
    assert 0.0 <= wait_s <= 300.0
    assert msgspec.json.decode(msgspec.json.encode(failure), type=Failure) == failure


async def test_exception_whose_text_raises_reaches_the_caller_of_the_agent(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    @agent("raise")
    def fail(_inputs: Any) -> Any:
        raise _Mute

    host = Host(BlobStore(tmp_path), threads, inline_limit_bytes=1000, input_dirs=(), egress_allow=())
    call = StepCall(("r", 0, -1, 1), "s", "raise", b"{}", b"{}", "default", time.time() + 60)
    context = AttemptContext(call, host, lambda _fraction, _message: None)
    with pytest.raises(_Mute):
        await asyncio.wait_for(execute(declaration_of(fail).bind(), call, context, host), 10)


# -- progress


class _Teller:
    """A context, and what it passes on."""

    def __init__(self, tmp_path: Path, threads: ThreadPoolExecutor) -> None:
        self.told: list[tuple[float, str]] = []
        self.host = Host(
            BlobStore(tmp_path), threads, inline_limit_bytes=1000, input_dirs=(), egress_allow=()
        )
        call = StepCall(("r", 0, -1, 1), "s", "tell", b"{}", b"{}", "default", time.time() + 60)
        self.context = AttemptContext(call, self.host, lambda *told: self.told.append(told))


@pytest.mark.parametrize("fraction", ["0.5", None, b"1", [0.5], 10**400])
async def test_progress_that_is_no_number_is_the_agents_own_failure(
    fraction: Any, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    teller = _Teller(tmp_path, threads)
    with pytest.raises((TypeError, OverflowError)):
        await teller.context.progress(fraction)
    with pytest.raises((TypeError, OverflowError)):
        teller.context.report_progress(fraction)
    assert not teller.told


@pytest.mark.parametrize("fraction", [np.float32(0.5), np.float64(0.5), Decimal("0.5"), Fraction(1, 2)])
async def test_progress_of_any_kind_of_number_is_passed_on_as_a_float(
    fraction: Any, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    teller = _Teller(tmp_path, threads)
    await teller.context.progress(fraction, 7)  # type: ignore[arg-type]
    assert teller.told == [(0.5, "7")]
    assert type(teller.told[0][0]) is float


async def test_progress_that_is_told_all_the_time_is_passed_on_now_and_then_also_at_its_end(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    teller = _Teller(tmp_path, threads)
    began = time.monotonic()
    for number in range(20_000):
        await teller.context.progress(1.0 if number > 10_000 else 0.5)
    assert len(teller.told) <= 3 + (time.monotonic() - began) / 0.1
    assert {fraction for fraction, _ in teller.told} == {0.5, 1.0}
