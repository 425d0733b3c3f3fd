"""The API caller against real servers: forms of inputs, answers, failures, circuits, secrets."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import pytest

from actors.agent import declaration_of
from actors.agents.api_caller import ApiCaller
from actors.agents.api_requests import api_requests
from actors.agents.api_responses import render_body, retry_after_s
from cluster.errors import FailureCode, StepError
from tests.unit.actors.loopback_server import LOOPBACK, Handler, Received, answer, serve

JSON_ANSWER = answer(
    200, b'{"temperature": 21.5}', "Content-Type: application/json", "Set-Cookie: session=abc"
)


@pytest.fixture(autouse=True)
def _allow_loopback(context: Any) -> None:
    context.egress_allow = LOOPBACK


def sequence(*replies: bytes) -> Handler:
    """Answer each request with the next reply, the last one for ever."""
    left = list(replies)

    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0) if len(left) > 1 else left[0])

    return handler


async def call(inputs: Any, context: Any, agent: ApiCaller | None = None) -> Any:
    return await (agent or ApiCaller()).execute(inputs, context)


async def refused(inputs: Any, context: Any, agent: ApiCaller | None = None) -> StepError:
    with pytest.raises(StepError) as error:
        await call(inputs, context, agent)
    return error.value


async def test_an_endpoint_is_called_and_its_json_decoded(context: Any) -> None:
    async with serve(JSON_ANSWER) as server:
        output = await call({"endpoint": server.url("/weather?key=hidden")}, context)
    assert output.pop("elapsed_ms") >= 0
    assert output == {
        "type": "api_response",
        "status": 200,
        "headers": {"content-length": "21", "content-type": "application/json"},
        "body": {"temperature": 21.5},
        "encoding": "json",
        "url": server.url("/weather"),
    }
    assert (server.received[0].method, server.received[0].path) == ("GET", "/weather?key=hidden")


async def test_the_declared_agent_is_async_and_serves_its_capability(context: Any) -> None:
    declaration = declaration_of(ApiCaller)
    bound = declaration.bind()
    assert declaration.capabilities == ("api_caller",)
    assert bound.is_async  # type: ignore[attr-defined]
    async with serve(JSON_ANSWER) as server:
        output = await bound({"url": server.url()}, "api_caller", context)  # type: ignore[misc]
    assert output["status"] == 200  # type: ignore[index]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("kind", ["json", "JSON"])
async def test_a_json_input_describes_the_call(context: Any, as_text: bool, kind: str) -> None:
    async with serve(JSON_ANSWER) as server:
        data: Any = {
            "endpoint": server.url("/x"),
            "method": "post",
            "headers": {"X-A": 1},
            "body": {"q": [1, 2]},
        }
        item = {"input_id": "i", "type": kind, "data": json.dumps(data) if as_text else data}
        output = await call({"inputs": [item]}, context)
    assert output["status"] == 200
    [request] = server.received
    assert (request.method, request.path, json.loads(request.body)) == ("POST", "/x", {"q": [1, 2]})
    assert (request.headers["content-type"], request.headers["x-a"]) == ("application/json", "1")
    assert request.headers["idempotency-key"] == "run-1/step:0"


async def test_metadata_fills_what_the_input_leaves_out(context: Any) -> None:
    async with serve(JSON_ANSWER) as server:
        context.metadata = {"endpoint": server.url("/m"), "method": "PUT", "headers": '{"X-B": "2"}'}
        await call({"inputs": [{"type": "json", "data": {"amount": 3}}]}, context)
        await call({"inputs": []}, context)
        await call({}, context)
        item = {"type": "json", "data": {"body": "text"}, "metadata": {"method": "PATCH"}}
        await call({"inputs": [item]}, context)
    first, second, third, fourth = server.received
    assert (first.method, first.path, json.loads(first.body)) == ("PUT", "/m", {"amount": 3})
    assert (second.method, second.body, second.headers["x-b"]) == ("PUT", b"", "2")
    assert third.method == "PUT"
    assert (fourth.method, fourth.body, fourth.headers["content-type"]) == (
        "PATCH",
        b"text",
        "text/plain; charset=utf-8",
    )


async def test_several_inputs_make_several_calls_in_order(context: Any) -> None:
    async with serve(JSON_ANSWER) as server:
        items = [{"type": "json", "data": {"url": server.url(f"/{n}"), "method": "POST"}} for n in range(3)]
        output = await call({"inputs": items}, context)
    assert [r.path for r in server.received] == ["/0", "/1", "/2"]
    assert [response["url"] for response in output["responses"]] == [server.url(f"/{n}") for n in range(3)]
    assert [r.headers["idempotency-key"][-2:] for r in server.received] == [":0", ":1", ":2"]


@pytest.mark.parametrize(
    "inputs",
    [
        None,
        [],
        {},
        {"inputs": "x"},
        {"inputs": ["x"]},
        {"inputs": [{"type": "image", "data": "aa"}]},
        {"inputs": [{"type": "json", "data": "{oops"}]},
        {"inputs": [{"type": "json", "data": {}, "metadata": 5}]},
        {"inputs": [{"type": "json", "data": {"body": 1}}] * 101},
        {"endpoint": 5},
        {"endpoint": "ftp://x/"},
        {"endpoint": "http://127.0.0.1:22/"},
        {"endpoint": "http://x/", "method": 5},
        {"endpoint": "http://x/", "headers": []},
        {"endpoint": "http://x/", "headers": "{oops"},
        {"endpoint": "http://x/", "headers": {"a": None}},
        {"endpoint": "http://x/", "timeout_s": -1},
        {"endpoint": "http://x/", "timeout_s": "soon"},
        {"endpoint": "http://x/", "timeout_s": float("nan")},
        {"endpoint": "http://x/", "timeout_s": 9999},
    ],
)
async def test_a_request_that_cannot_be_made_is_a_validation_error(context: Any, inputs: Any) -> None:
    error = await refused(inputs, context)
    assert (error.code, error.retryable) == (FailureCode.VALIDATION_ERROR, False)


async def test_a_private_address_is_refused(context: Any) -> None:
    context.egress_allow = ()
    async with serve(JSON_ANSWER) as server:
        error = await refused({"endpoint": server.url()}, context)
    assert (error.code, error.retryable, server.received) == (FailureCode.VALIDATION_ERROR, False, [])


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        (400, False),
        (401, False),
        (404, False),
        (408, True),
        (425, True),
        (429, True),
        (500, True),
        (503, True),
    ],
)
async def test_a_status_of_400_or_more_fails_the_step(context: Any, status: int, retryable: bool) -> None:
    async with serve(answer(status, b"", "Retry-After: 7")) as server:
        error = await refused({"endpoint": server.url("/secret?key=secret")}, context)
    assert (error.code, error.retryable, error.details["status"]) == (
        FailureCode.EXECUTION_FAILED,
        retryable,
        status,
    )
    assert error.message == f"GET {server.url('').rstrip('/')} answered {status}"
    assert error.details.get("retry_after_s") == (7.0 if retryable else None)


@pytest.mark.parametrize("status", [201, 204, 304])
async def test_a_status_below_400_is_a_result(context: Any, status: int) -> None:
    reply = answer(status, b"x") if status == 201 else f"HTTP/1.1 {status} X\r\n\r\n".encode()
    async with serve(reply) as server:
        assert (await call({"endpoint": server.url()}, context))["status"] == status


async def test_nobody_listening_may_be_tried_again(context: Any) -> None:
    async with serve(JSON_ANSWER) as server:
        pass
    error = await refused({"endpoint": server.url()}, context)
    assert (error.code, error.retryable) == (FailureCode.EXECUTION_FAILED, True)


async def test_a_slow_server_is_a_timeout_by_the_calls_limit_or_the_steps_deadline(context: Any) -> None:
    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with serve(handler) as server:
        error = await refused({"endpoint": server.url(), "timeout_s": "0.1"}, context)
        assert (error.code, error.retryable) == (FailureCode.TIMEOUT, True)
        context.deadline_at = time.time() + 0.1
        error = await refused({"endpoint": server.url()}, context)
        assert (error.code, error.retryable) == (FailureCode.TIMEOUT, True)
        context.deadline_at = time.time() - 1
        assert (await refused({"endpoint": server.url()}, context)).code == FailureCode.TIMEOUT
    assert len(server.received) == 2


async def test_five_failures_open_the_circuit_of_this_host_and_tenant_alone(context: Any) -> None:
    agent = ApiCaller()
    async with serve(answer(500)) as broken, serve(JSON_ANSWER) as sound:
        for _ in range(5):
            await refused({"endpoint": broken.url()}, context, agent)
        error = await refused({"endpoint": broken.url("/other")}, context, agent)
        assert (len(broken.received), error.retryable) == (5, True)
        assert 50 < error.details["retry_after_s"] <= 60
        assert (await call({"endpoint": sound.url()}, context, agent))["status"] == 200
        context.tenant = "other"
        await refused({"endpoint": broken.url()}, context, agent)
        assert len(broken.received) == 6


async def test_answers_that_are_not_the_hosts_failure_keep_the_circuit_closed(context: Any) -> None:
    agent = ApiCaller()
    async with serve(answer(429)) as server:
        for _ in range(7):
            await refused({"endpoint": server.url()}, context, agent)
        assert len(server.received) == 7


async def test_a_success_in_between_keeps_the_circuit_closed(context: Any) -> None:
    agent = ApiCaller()
    failure = answer(500)
    async with serve(sequence(*[failure] * 4, JSON_ANSWER, *[failure] * 4, JSON_ANSWER)) as server:
        for _ in range(2):
            for _ in range(4):
                await refused({"endpoint": server.url()}, context, agent)
            await call({"endpoint": server.url()}, context, agent)


async def test_secrets_that_the_other_side_echoes_are_blotted_out(context: Any) -> None:
    async def echo(request: Received, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"headers": request.headers, "name": "free"}).encode()
        writer.write(
            answer(200, body, "Content-Type: application/json", f"X-Echo: {request.headers['authorization']}")
        )

    headers = {
        "Authorization": "Bearer top-secret-token",
        "X-API-Key": "another-secret",
        "Accept": "application/json",
    }
    async with serve(echo) as server:
        output = await call({"endpoint": server.url("/p"), "headers": headers}, context)
    assert server.received[0].headers["authorization"] == "Bearer top-secret-token"
    shown = json.dumps(output)
    assert "top-secret-token" not in shown
    assert "another-secret" not in shown
    assert output["body"]["headers"]["accept"] == "application/json"


async def test_errors_hold_no_secret(context: Any) -> None:
    secret = {"Authorization": "Bearer top-secret-token"}
    async with serve(answer(403, b"top-secret-token")) as server:
        url = server.url("/top-secret-token?k=top-secret-token")
        errors = [await refused({"endpoint": url, "headers": secret}, context)]
    errors.append(await refused({"endpoint": url, "headers": secret}, context))
    errors.append(await refused({"endpoint": "http://u:top-secret-token@x/"}, context))
    errors.append(await refused({"endpoint": url, "headers": {"A": "top-secret-token\n"}}, context))
    for error in errors:
        assert "top-secret-token" not in f"{error.message} {error.details}"


async def test_a_large_body_goes_to_the_blob_store(context: Any) -> None:
    content = json.dumps(list(range(50_000))).encode()
    async with serve(answer(200, content, "Content-Type: application/json")) as server:
        output = await call({"endpoint": server.url()}, context)
    assert output["encoding"] == "blob"
    assert output["body"]["media_type"] == "application/json"
    assert context.read_blob(output["body"]) == content


async def test_a_body_may_be_a_blob(context: Any) -> None:
    stored = context.write_blob(b"\x00\x01", "image/png")
    reference = {**stored, "$blob": "sha256:" + stored["$blob"]}
    context.read_blob = lambda wanted: b"\x00\x01" if wanted == reference else b""
    async with serve(JSON_ANSWER) as server:
        await call({"endpoint": server.url(), "method": "POST", "body": reference}, context)
    assert (server.received[0].body, server.received[0].headers["content-type"]) == (b"\x00\x01", "image/png")


@pytest.mark.parametrize(
    ("content", "content_type", "expected"),
    [
        (b"[1]", "application/problem+json", ([1], "json", None)),
        (b"{oops", "application/json", ("{oops", "text", None)),
        ("grüß".encode("latin-1"), "text/plain; charset=ISO-8859-1", ("grüß", "text", None)),
        ("grüß".encode(), 'text/html; charset="utf-8"', ("grüß", "text", None)),
        (b"\xff", "text/plain", ("\ufffd", "text", None)),
        (b"abc", "text/plain; charset=zlib", ("abc", "text", None)),
        (b"abc", "text/plain; charset=punycode", ("abc", "text", None)),
        (b"abc", "text/plain; charset=no-such", ("abc", "text", None)),
        (b"<a/>", "application/atom+xml", ("<a/>", "text", None)),
        (b"", "", ("", "text", None)),
        (b"\x89PNG", "image/png", (base64.b64encode(b"\x89PNG").decode(), "base64", None)),
    ],
)
def test_a_body_is_shown_by_its_type(content: bytes, content_type: str, expected: Any) -> None:
    assert render_body(content, content_type, ()) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", None),
        ("7", 7.0),
        ("99999999999999999999", 300.0),
        ("-5", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str, expected: float | None) -> None:
    assert retry_after_s(value, now=1000.0) == expected


def test_a_scheme_alone_is_no_secret_but_its_credential_is() -> None:
    [request] = api_requests({"url": "http://x/", "headers": {"Authorization": "Bearer abcdef"}}, {})
    assert request.secrets == ("Bearer abcdef", "abcdef")
