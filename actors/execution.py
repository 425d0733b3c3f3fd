"""One attempt on a replica: the context an agent works in, and the call of its code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson

from cluster.errors import FailureCode, InvalidInput, StepError
from cluster.model.blob_reference import reserved_objects, resolve
from cluster.model.strict_json import encode_strictly
from cluster.model.view import Failure

if TYPE_CHECKING:
    from actors.messages import StepCall
    from cluster.store.blobs import BlobStore

__all__ = ["AttemptContext", "Host", "execute", "failure_of"]

_PROGRESS_PAUSE_S = 0.1
_PROGRESS_SHARE = 0.001
_LONGEST_PAUSE_S = 10.0
"""Between two reports of progress lies a thousandth of the attempt's age: no stream grows without end."""
_RETRYABLE = (ConnectionError, TimeoutError, InterruptedError)
_MAX_MESSAGE = 2000
_MAX_RETRY_AFTER_S = 300.0


class Host:
    """What a replica lends its attempts: blobs, threads, settings. One per replica."""

    def __init__(
        self,
        blobs: BlobStore,
        threads: ThreadPoolExecutor,
        *,
        inline_limit_bytes: int,
        input_dirs: tuple[str, ...],
        egress_allow: tuple[str, ...],
        code_dir: str = "",
    ) -> None:
        self.blobs = blobs
        self.threads = threads
        self.inline_limit_bytes = inline_limit_bytes
        self.input_dirs = input_dirs
        self.egress_allow = egress_allow
        self.code_dir = code_dir
        self.loop = asyncio.get_running_loop()


class AttemptContext:
    """The AgentContext of one attempt; see actors.agent.AgentContext."""

    __slots__ = (
        "_began_at",
        "_call",
        "_has_told_end",
        "_host",
        "_last_progress_at",
        "_metadata",
        "_report",
        "_stopped",
        "attempt",
        "code_dir",
        "deadline_at",
        "egress_allow",
        "input_dirs",
        "item",
        "run_id",
        "step",
        "tenant",
    )

    def __init__(self, call: StepCall, host: Host, report: Callable[[float, str], None]) -> None:
        self.run_id, _, self.item, self.attempt = call.key
        self.step, self.tenant, self.deadline_at = call.name, call.tenant, call.deadline_at
        self.input_dirs, self.egress_allow = host.input_dirs, host.egress_allow
        self.code_dir = host.code_dir
        self._call, self._host, self._report = call, host, report
        self._metadata: dict[str, Any] | None = None
        self._began_at = time.monotonic()
        self._last_progress_at = 0.0
        self._has_told_end = False
        self._stopped = False

    @property
    def metadata(self) -> dict[str, Any]:
        """The Run's metadata."""
        if self._metadata is None:
            self._metadata = orjson.loads(self._call.metadata)
        return self._metadata

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this StepRun."""
        return f"{self.run_id}:{self.step}:{self.item}"

    async def progress(self, fraction: float, message: str = "") -> None:
        """Tell how far the work is; at most ten a second are passed on, fewer of a long attempt."""
        self._tell(*_progress_of(fraction, message))

    def report_progress(self, fraction: float, message: str = "") -> None:
        """The same from a thread."""
        self._host.loop.call_soon_threadsafe(self._tell, *_progress_of(fraction, message))

    def _tell(self, fraction: float, message: str) -> None:
        now = time.monotonic()
        pause_s = min(max((now - self._began_at) * _PROGRESS_SHARE, _PROGRESS_PAUSE_S), _LONGEST_PAUSE_S)
        is_end = fraction >= 1.0 and not self._has_told_end
        if is_end or now - self._last_progress_at >= pause_s:
            self._has_told_end = self._has_told_end or is_end
            self._last_progress_at = now
            self._report(fraction, message)

    @property
    def cancelled(self) -> bool:
        """Whether the result is no longer wanted."""
        return self._stopped

    def stop(self) -> None:
        """Let `cancelled` be true from now on."""
        self._stopped = True

    def read_blob(self, reference: dict[str, Any]) -> bytes:
        """Read the bytes behind a blob reference."""
        return self._host.blobs.read(reference)

    def write_blob(self, content: bytes, media_type: str) -> dict[str, Any]:
        """Store bytes and return a reference."""
        return self._host.blobs.put(content, media_type)


async def execute(bound: Any, call: StepCall, context: AttemptContext, host: Host) -> bytes:
    """Run an agent on its inputs.

    Returns:
        The output as raw JSON, a blob reference where it is over the inline limit.

    Raises:
        StepError: The output is not JSON, or holds a reference that is none.
        Exception: Whatever the agent raises.
    """
    inputs = orjson.loads(call.inputs)
    if b'"$blob"' in call.inputs:
        inputs = await asyncio.to_thread(resolve, inputs, host.blobs.read)
    if bound.is_async:
        output = await bound(inputs, call.capability, context)
    else:
        output = await _in_thread(host, context, bound, inputs, call.capability)
    try:
        raw = encode_strictly(output, numpy=True)
    except TypeError as error:
        raise StepError(f"the agent's output is not JSON: {error}") from error
    if b'"$blob"' in raw:
        try:
            for reference in reserved_objects(orjson.loads(raw)):
                host.blobs.check(reference)
        except InvalidInput as error:
            message = f"the agent's output has a $blob in it that is {error.message}"
            raise StepError(message, code=FailureCode.VALIDATION_ERROR) from error
    if len(raw) <= host.inline_limit_bytes:
        return raw
    reference = await asyncio.to_thread(host.blobs.put, raw, "application/json")
    return orjson.dumps(reference)


async def _in_thread(host: Host, context: AttemptContext, bound: Any, inputs: Any, capability: str) -> Any:
    """Run sync code in a thread. When cancelled, the thread is told and waited for: its slot is not free
    before.
    """
    work = host.loop.run_in_executor(host.threads, _call, bound, inputs, capability, context)
    try:
        output, error = await asyncio.shield(work)
    except asyncio.CancelledError:
        context.stop()
        await asyncio.wait([work])
        raise
    if error is not None:
        raise error
    return output


def _call(bound: Any, *arguments: Any) -> tuple[Any, BaseException | None]:
    """Call sync code. What it raises is returned: a future would swallow StopIteration and never be done."""
    try:
        return bound(*arguments), None
    except BaseException as error:  # noqa: BLE001 - it is raised again where the attempt is reported
        return None, error


def _progress_of(fraction: object, message: object) -> tuple[float, str]:
    """Check what an agent tells in its own place, where its mistake is its own failure.

    Raises:
        TypeError, ValueError, OverflowError: The fraction is no number.
    """
    if isinstance(fraction, str | bytes | bytearray):
        raise TypeError(f"progress is a number from 0 to 1, not {type(fraction).__name__}")
    return float(fraction), _text_of(message)  # type: ignore[arg-type]


def failure_of(error: BaseException) -> tuple[Failure, float]:
    """Turn what an agent raised into a Failure and the seconds the other side asked to wait.

    Nothing in an agent's exception is trusted to be what it should: whatever it is, a Failure comes of it.
    """
    try:
        return _failure_of(error)
    except BaseException as second:  # noqa: BLE001 - foreign code, called while a failure is told: it must not fail again
        text = f"{type(error).__name__}: (it cannot be read: {type(second).__name__})"
        return Failure(FailureCode.EXECUTION_FAILED, text[:_MAX_MESSAGE]), 0.0


def _failure_of(error: BaseException) -> tuple[Failure, float]:
    if isinstance(error, StepError):
        failure = Failure(_text_of(error.code), _text_of(error.message), bool(error.retryable))
        details = error.details if isinstance(error.details, dict) else {}
        return failure, _wait_s(details.get("retry_after_s"))
    text = f"{type(error).__name__}: {_text_of(error)}"[:_MAX_MESSAGE]
    if isinstance(error, TimeoutError):
        return Failure(FailureCode.TIMEOUT, text, retryable=True), 0.0
    return Failure(FailureCode.EXECUTION_FAILED, text, isinstance(error, _RETRYABLE)), 0.0


def _text_of(value: object) -> str:
    """Text that can be stored: at most 2,000 characters, no halves of pairs."""
    try:
        text = str(value)
    except BaseException as error:  # noqa: BLE001 - foreign code, called while a failure is told: it must not fail again
        text = f"(its text cannot be had: {type(error).__name__})"
    return text[:_MAX_MESSAGE].encode("utf-8", "replace").decode()


def _wait_s(asked: object) -> float:
    if not isinstance(asked, int | float):
        return 0.0
    # Compared before it is converted: an int may be too large for a float. NaN loses both comparisons.
    return 0.0 if not asked > 0 else float(asked) if asked < _MAX_RETRY_AFTER_S else _MAX_RETRY_AFTER_S
