"""The agent that calls an HTTP API: `api_caller`.

Every call goes through the egress guard. Transient failures are reported as retryable and retried by the
engine, never here; a host that keeps failing is left in peace for a minute. The agent refuses to put a secret
it was given into an error or a result, even when the other side echoes it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

import httpx

from actors.agent import AgentContext, agent
from actors.agents.api_requests import ApiRequest, api_requests
from actors.agents.api_responses import redact, render_body, retry_after_s, shown_headers
from actors.egress import EgressRefused, FetchedResponse, Resolver, fetch, resolve_by_system
from actors.egress_policy import parse_target
from cluster.errors import FailureCode, StepError
from cluster.model.blob_reference import is_reference
from cluster.model.plan import Json
from cluster.scheduling.circuits import Circuits

__all__ = ["ApiCaller", "CircuitGate", "LocalCircuits"]

_TRANSIENT_STATUSES = frozenset({408, 425, 429})
_MAX_RESPONSE_BYTES = 32 << 20


class CircuitGate(Protocol):
    """Where the agent asks whether a host may be called; the seam for circuits that replicas share."""

    async def admit(self, key: str) -> float:
        """Return 0 when a call may go, else the seconds to wait."""

    async def record(self, key: str, succeeded: bool) -> None:
        """Tell how a call ended."""


class LocalCircuits:
    """The circuits of this replica alone: 5 failures in a row open one for 60 s."""

    def __init__(self) -> None:
        self._circuits = Circuits()

    async def admit(self, key: str) -> float:
        """Return 0 when a call may go, else the seconds to wait."""
        return self._circuits.admit(key, time.monotonic())

    async def record(self, key: str, succeeded: bool) -> None:
        """Tell how a call ended."""
        self._circuits.record(key, succeeded, time.monotonic())


@agent("api_caller")
class ApiCaller:
    """Calls one API for each request in its inputs, one after the other.

    Args:
        circuits: Whether a host may be called.
        resolve: The resolver.
    """

    def __init__(self, circuits: CircuitGate | None = None, resolve: Resolver = resolve_by_system) -> None:
        self._circuits = circuits or LocalCircuits()
        self._resolve = resolve

    async def execute(self, inputs: Json, context: AgentContext) -> Json:
        """Make the calls.

        Args:
            inputs: See `api_requests`.
            context: Its metadata fills what the inputs leave out.

        Returns:
            {"type": "api_response", "status", "headers", "body", "encoding", "elapsed_ms", "url"}; `encoding`
            is json, text, base64 or blob. Where several requests were given: {"type", "responses": [the same,
            in order]}.

        Raises:
            StepError: VALIDATION_ERROR for a request that cannot be made; EXECUTION_FAILED for status 4xx,
                retryable for 408, 425, 429, 5xx, a lost connection and an open circuit
                (`details["retry_after_s"]` where the other side said when); TIMEOUT, retryable.
        """
        requests = api_requests(inputs, context.metadata)
        responses = [
            await self._call(request, position, context) for position, request in enumerate(requests)
        ]
        if len(responses) == 1:
            return responses[0]
        return {"type": "api_response", "responses": responses}

    async def _call(self, request: ApiRequest, position: int, context: AgentContext) -> dict[str, Json]:
        origin = parse_target(request.url).origin
        # By tenant: one tenant's broken path on a shared host must not shut the host for the others.
        circuit = f"{context.tenant} {origin}"
        wait_s = await self._circuits.admit(circuit)
        if wait_s > 0:
            message = f"{origin} failed too often in a row and is left in peace for {wait_s:.0f} s"
            raise StepError(message, retryable=True, retry_after_s=wait_s)
        content, headers = await _body_of(request, context)
        if request.method not in {"GET", "HEAD", "OPTIONS"}:
            # An attempt may be repeated after the other side did the work; those that deduplicate can tell.
            headers.setdefault("idempotency-key", f"{context.idempotency_key}:{position}")
        started_at = time.monotonic()
        try:
            response = await fetch(
                request.url,
                method=request.method,
                headers=headers,
                content=content,
                allow=context.egress_allow,
                timeout_s=_time_left_s(request, context),
                max_bytes=_MAX_RESPONSE_BYTES,
                resolve=self._resolve,
            )
        except EgressRefused:
            raise
        except StepError as error:
            await self._circuits.record(circuit, succeeded=not error.retryable)
            raise
        elapsed_ms = round((time.monotonic() - started_at) * 1000)
        failed = response.status >= 500 or response.status == 408
        await self._circuits.record(circuit, succeeded=not failed)
        _check_status(request, origin, response)
        return await _render(request, response, elapsed_ms, context)


def _time_left_s(request: ApiRequest, context: AgentContext) -> float:
    if context.deadline_at is None:
        return request.timeout_s
    left_s = context.deadline_at - time.time()
    if left_s <= 0:
        raise StepError("the step's deadline has passed", FailureCode.TIMEOUT, retryable=True)
    return min(request.timeout_s, left_s)


async def _body_of(request: ApiRequest, context: AgentContext) -> tuple[bytes | None, dict[str, str]]:
    if not is_reference(request.body):
        return request.content, dict(request.headers)
    content = await asyncio.to_thread(context.read_blob, request.body)
    media_type = request.body.get("media_type", "application/octet-stream")
    return content, {"content-type": str(media_type), **request.headers}


def _check_status(request: ApiRequest, origin: str, response: FetchedResponse) -> None:
    status = response.status
    if status < 400:
        return
    retryable = status in _TRANSIENT_STATUSES or status >= 500
    details: dict[str, Json] = {"status": status}
    wait_s = retry_after_s(response.headers.get("retry-after", ""), time.time())
    if retryable and wait_s is not None:
        details["retry_after_s"] = wait_s
    raise StepError(f"{request.method} {origin} answered {status}", retryable=retryable, **details)


async def _render(
    request: ApiRequest, response: FetchedResponse, elapsed_ms: int, context: AgentContext
) -> dict[str, Json]:
    secrets = request.secrets
    media_type = response.headers.get("content-type", "")
    body, encoding, content_to_store = render_body(response.content, media_type, secrets)
    if content_to_store is not None:
        stored_type = media_type or "application/octet-stream"
        body = await asyncio.to_thread(context.write_blob, content_to_store, stored_type)
    return {
        "type": "api_response",
        "status": response.status,
        "headers": {n: redact(value, secrets) for n, value in shown_headers(response.headers).items()},
        "body": body,
        "encoding": encoding,
        "elapsed_ms": elapsed_ms,
        # Queries carry keys and signatures; the path is kept, so that one sees where a redirect led.
        "url": redact(str(httpx.URL(response.url).copy_with(query=None)), secrets),
    }
