"""The egress guard against real servers on loopback: every known way around it, and every bound."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from actors.egress import EgressRefused, Resolver, check_url, fetch
from cluster.errors import FailureCode, StepError
from tests.unit.actors.loopback_server import LOOPBACK, Received, answer, serve

HELLO = answer(200, b"hello", "Content-Type: text/plain", "X-Two: a", "X-Two: b")


def names(**addresses_by_name: str) -> Resolver:
    """A resolver of fixed names, `_` standing for a dot."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        try:
            return addresses_by_name[host.replace(".", "_")].split()
        except KeyError:
            raise socket.gaierror(socket.EAI_NONAME, "unknown") from None

    return resolve


async def test_an_allowed_server_is_called_and_answers() -> None:
    async with serve(HELLO) as server:
        response = await fetch(
            server.url("/a?b=c#d"),
            method="post",
            headers={"X-Custom": "yes", "User-Agent": "me"},
            content=b"body",
            allow=LOOPBACK,
        )
    assert (response.status, response.content, response.headers["x-two"]) == (200, b"hello", "a, b")
    assert response.url == server.url("/a?b=c")
    request = server.received[0]
    assert (request.method, request.path, request.body) == ("POST", "/a?b=c", b"body")
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert (request.headers["x-custom"], request.headers["user-agent"]) == ("yes", "me")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "0", "0.0.0.0"],
)
async def test_every_spelling_of_loopback_is_refused_and_never_connected(host: str) -> None:
    """The system's own resolver turns the odd forms into addresses, as for any client."""
    async with serve(HELLO) as server:
        with pytest.raises(EgressRefused) as refusal:
            await fetch(server.url(host=host))
        with pytest.raises(EgressRefused):
            await check_url(server.url(host=host))
    assert server.received == []
    assert (refusal.value.code, refusal.value.retryable) == (FailureCode.VALIDATION_ERROR, False)


@pytest.mark.parametrize(
    "host",
    [
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::1]",
        "[::]",
    ],
)
async def test_loopback_inside_ipv6_is_refused(host: str) -> None:
    async with serve(HELLO) as server:
        with pytest.raises(EgressRefused):
            await fetch(server.url(host=host))
    assert server.received == []


async def test_a_name_that_resolves_inside_is_refused() -> None:
    async with serve(HELLO) as server:
        for inside in ("127.0.0.1", "8.8.8.8 127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254"):
            with pytest.raises(EgressRefused, match=r"evil\.test"):
                await fetch(server.url(host="evil.test"), resolve=names(evil_test=inside))
    assert server.received == []


async def test_a_name_that_answers_differently_the_second_time_gains_nothing() -> None:
    """DNS rebinding: first an allowed address, then one inside. The name is asked once."""
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.2"] if len(asked) == 1 else ["127.0.0.1"]

    async with serve(answer(200, b"outside"), host="127.0.0.2") as outside:
        url = outside.url(host="rebind.test")
        response = await fetch(url, allow=("127.0.0.2",), resolve=rebinding)
        assert response.content == b"outside"
        assert asked == ["rebind.test"]
        with pytest.raises(EgressRefused):
            await fetch(url, allow=("127.0.0.2",), resolve=rebinding)
    assert outside.received[0].headers["host"] == f"rebind.test:{outside.port}"
    assert len(outside.received) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_inside_is_refused(status: int) -> None:
    async with serve(HELLO, host="127.0.0.1") as inside:
        for location in (
            inside.url("/metadata"),
            f"//127.0.0.1:{inside.port}/",
            "file:///etc/passwd",
            "http://u:p@x/",
        ):
            async with serve(answer(status, b"", f"Location: {location}"), host="127.0.0.2") as outside:
                with pytest.raises(EgressRefused):
                    await fetch(outside.url(host="127.0.0.2"), allow=("127.0.0.2",))
                assert len(outside.received) == 1
    assert inside.received == []


async def test_a_redirect_to_a_name_that_now_resolves_inside_is_refused() -> None:
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.2"] if len(asked) == 1 else ["127.0.0.1"]

    async with serve(answer(302, b"", "Location: /again"), host="127.0.0.2") as outside:
        with pytest.raises(EgressRefused):
            await fetch(outside.url(host="rebind.test"), allow=("127.0.0.2",), resolve=rebinding)
    assert asked == ["rebind.test", "rebind.test"]


async def test_secrets_stay_behind_when_a_redirect_leaves_the_origin() -> None:
    secrets = {"Authorization": "Bearer s", "Cookie": "c=s", "X-API-Key": "s", "Accept": "text/plain"}
    async with serve(HELLO) as other, serve(answer(302, b"", f"Location: {other.url('/there')}")) as first:
        await fetch(first.url(), headers=secrets, allow=LOOPBACK)
    assert first.received[0].headers["authorization"] == "Bearer s"
    arrived = other.received[0].headers
    assert not {"authorization", "cookie", "x-api-key"} & set(arrived)
    assert arrived["accept"] == "text/plain"


async def test_secrets_go_along_when_a_redirect_stays() -> None:
    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO if request.path == "/b" else answer(302, b"", "Location: /b"))

    async with serve(handler) as server:
        response = await fetch(server.url("/a"), headers={"Authorization": "Bearer s"}, allow=LOOPBACK)
    assert response.url == server.url("/b")
    assert [r.headers["authorization"] for r in server.received] == ["Bearer s", "Bearer s"]


@pytest.mark.parametrize(
    ("status", "method", "expected"),
    [
        (301, "POST", ("GET", b"")),
        (302, "POST", ("GET", b"")),
        (303, "PUT", ("GET", b"")),
        (303, "HEAD", ("HEAD", b"")),
        (302, "PUT", ("PUT", b"body")),
        (307, "POST", ("POST", b"body")),
        (308, "PATCH", ("PATCH", b"body")),
    ],
)
async def test_a_redirect_keeps_or_drops_the_body_as_its_status_says(
    status: int, method: str, expected: tuple[str, bytes]
) -> None:
    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        final = request.path == "/b"
        writer.write(answer(200) if final else answer(status, b"", "Location: /b"))

    content = None if method == "HEAD" else b"body"
    async with serve(handler) as server:
        await fetch(
            server.url("/a"),
            method=method,
            content=content,
            headers={"Content-Type": "text/plain"},
            allow=LOOPBACK,
        )
    last = server.received[-1]
    assert (last.method, last.body) == expected
    assert ("content-type" in last.headers) == (expected[0] not in {"GET"})


async def test_redirects_without_end_are_given_up() -> None:
    async with serve(answer(302, b"", "Location: /")) as server:
        with pytest.raises(StepError, match="more than 3 times") as error:
            await fetch(server.url(), allow=LOOPBACK, max_redirects=3)
        assert not error.value.retryable
        assert len(server.received) == 4
        response = await fetch(server.url(), allow=LOOPBACK, max_redirects=0)
    assert (response.status, response.headers["location"]) == (302, "/")


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(answer(502), host="127.0.0.2") as proxy, serve(HELLO) as server:
        for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(variable, proxy.url(host="127.0.0.2"))
        response = await fetch(server.url(), allow=LOOPBACK)
    assert response.status == 200
    assert proxy.received == []


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("CONNECT", {}),
        ("TRACE", {}),
        ("GET / HTTP/1.1\r\nX:", {}),
        ("GET", {"X-A": "b\r\nX-C: d"}),
        ("GET", {"X-A\r\nX-C": "d"}),
        ("GET", {"X-A": "snow \u2603"}),
    ],
)
async def test_a_request_that_could_smuggle_is_refused(method: str, headers: dict[str, str]) -> None:
    async with serve(HELLO) as server:
        with pytest.raises(EgressRefused):
            await fetch(server.url(), method=method, headers=headers, allow=LOOPBACK)
    assert server.received == []


async def test_headers_of_the_connection_are_ours_alone() -> None:
    theirs = {
        "Host": "internal",
        "Transfer-Encoding": "chunked",
        "Content-Length": "9",
        "Connection": "upgrade",
    }
    async with serve(HELLO) as server:
        await fetch(
            server.url(), headers={**theirs, "Proxy-Authorization": "x"}, content=b"ab", allow=LOOPBACK
        )
    arrived = server.received[0]
    assert arrived.headers["host"] == f"127.0.0.1:{server.port}"
    assert (arrived.body, arrived.headers["content-length"]) == (b"ab", "2")
    assert not {"transfer-encoding", "proxy-authorization", "connection"} & set(arrived.headers)


async def test_a_body_over_the_limit_is_refused_by_its_declared_length() -> None:
    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")

    async with serve(handler) as server:
        with pytest.raises(StepError, match="more than 1000 bytes") as error:
            await fetch(server.url(), allow=LOOPBACK, max_bytes=1000)
    assert (error.value.retryable, error.value.details["limit_bytes"]) == (False, 1000)


async def test_a_body_without_declared_length_is_cut_off_at_the_limit() -> None:
    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            await writer.drain()

    async with serve(handler) as server:
        with pytest.raises(StepError, match="more than"):
            await fetch(server.url(), allow=LOOPBACK, max_bytes=100_000)


async def test_a_compression_bomb_is_cut_off_at_the_limit() -> None:
    bomb = gzip.compress(b"\0" * (64 << 20), compresslevel=9)
    async with serve(answer(200, bomb, "Content-Encoding: gzip")) as server:
        with pytest.raises(StepError, match="more than"):
            await fetch(server.url(), allow=LOOPBACK, max_bytes=1 << 20)


async def test_a_compressed_body_is_decoded() -> None:
    async with serve(answer(200, gzip.compress(b"hello"), "Content-Encoding: gzip")) as server:
        assert (await fetch(server.url(), allow=LOOPBACK)).content == b"hello"
    assert server.received[0].headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"]
)
async def test_a_server_that_drips_cannot_outlast_the_total_time(start: bytes) -> None:
    """A byte each 20 ms keeps any per-read timeout happy for ever."""

    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(b"X" if start.endswith(b"\r\n\r\n") else b"X-Y: z\r\n" if start else b"H")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serve(handler) as server:
        began = time.monotonic()
        with pytest.raises(StepError) as error:
            await fetch(server.url("/secret"), allow=LOOPBACK, timeout_s=0.3)
    assert time.monotonic() - began < 2
    if start:
        assert (error.value.code, error.value.retryable) == (FailureCode.TIMEOUT, True)
    assert "secret" not in str(error.value)


async def test_a_resolver_that_never_answers_counts_as_a_timeout() -> None:
    async def silent(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(StepError) as error:
        await fetch("http://slow.test/", resolve=silent, timeout_s=0.05)
    assert (error.value.code, error.value.retryable) == (FailureCode.TIMEOUT, True)


async def test_a_cancelled_call_ends_as_cancelled() -> None:
    began = asyncio.Event()

    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        began.set()
        await asyncio.Event().wait()

    async with serve(handler) as server:
        call = asyncio.create_task(fetch(server.url(), allow=LOOPBACK))
        await began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_nobody_listening_may_be_tried_again() -> None:
    async with serve(HELLO) as server:
        pass
    with pytest.raises(StepError, match="no connection") as error:
        await fetch(server.url("/secret"), allow=LOOPBACK)
    assert (error.value.code, error.value.retryable) == (FailureCode.EXECUTION_FAILED, True)
    assert "secret" not in str(error.value)


async def test_the_next_address_is_tried_when_the_first_refuses() -> None:
    async with serve(HELLO, host="127.0.0.2") as server:
        resolve = names(two_test="127.0.0.3 127.0.0.2")
        response = await fetch(server.url(host="two.test"), allow=LOOPBACK, resolve=resolve)
    assert response.content == b"hello"


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b"garbage\r\n\r\n"]
)
async def test_a_broken_answer_may_be_tried_again(reply: bytes) -> None:
    async with serve(reply) as server:
        with pytest.raises(StepError, match="broke") as error:
            await fetch(server.url(), allow=LOOPBACK)
    assert error.value.retryable


async def test_a_name_that_does_not_resolve_may_be_tried_again_but_not_registered() -> None:
    with pytest.raises(StepError, match="does not resolve") as error:
        await fetch("http://unknown.test/", resolve=names())
    assert error.value.retryable
    with pytest.raises(EgressRefused, match="does not resolve"):
        await check_url("http://unknown.test/", resolve=names())


async def test_a_url_in_order_passes_the_check_without_a_call() -> None:
    await check_url("https://example.test/hook", resolve=names(example_test="93.184.215.14"))
    async with serve(HELLO) as server:
        await check_url(server.url(), LOOPBACK)
    assert server.received == []


async def test_without_reading_the_body_the_headers_are_enough() -> None:
    async def handler(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 202 OK\r\nContent-Length: 99999999999\r\n\r\n")
        await writer.drain()
        await asyncio.Event().wait()

    async with serve(handler) as server:
        response = await fetch(server.url(), allow=LOOPBACK, max_bytes=10, read_body=False)
    assert (response.status, response.content) == (202, b"")


@pytest.mark.parametrize("reply", [answer(204), b"HTTP/1.1 304 X\r\nContent-Encoding: gzip\r\n\r\n"])
async def test_an_answer_without_body_is_whole(reply: bytes) -> None:
    async with serve(reply) as server:
        assert (await fetch(server.url(), allow=LOOPBACK)).content == b""


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make a certificate for a name; return what the server shows and what a client who trusts it needs."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.9"))]
            ),
            False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(certificate_file, key_file)
    return shown, ssl.create_default_context(cafile=str(certificate_file))


async def test_tls_checks_the_name_although_the_address_is_pinned(tmp_path: Path) -> None:
    shown, trust = certificate(tmp_path, "service.test")
    asked: list[str | None] = []
    shown.sni_callback = lambda connection, name, context: asked.append(name)
    async with serve(HELLO, tls=shown) as server:

        async def call(host: str, trusted: ssl.SSLContext | None) -> bytes:
            resolve = names(service_test="127.0.0.1", other_test="127.0.0.1")
            url = server.url(host=host, scheme="https")
            return (await fetch(url, allow=LOOPBACK, resolve=resolve, ssl_context=trusted)).content

        assert await call("service.test", trust) == b"hello"
        assert asked == ["service.test"]
        for host, trusted in (("other.test", trust), ("127.0.0.1", trust), ("service.test", None)):
            with pytest.raises(StepError, match="certificate") as error:
                await call(host, trusted)
            assert not error.value.retryable
    assert len(server.received) == 1


async def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path) -> None:
    shown, trust = certificate(tmp_path, "service.test")
    async with (
        serve(HELLO) as plain,
        serve(answer(302, b"", f"Location: {plain.url()}"), tls=shown) as secure,
    ):
        with pytest.raises(EgressRefused, match="from https to http"):
            await fetch(
                secure.url(host="service.test", scheme="https"),
                allow=LOOPBACK,
                resolve=names(service_test="127.0.0.1"),
                ssl_context=trust,
            )
    assert plain.received == []


async def test_an_ipv6_server_is_called_when_allowed() -> None:
    try:
        async with serve(HELLO, host="::1") as server:
            response = await fetch(server.url(host="[::1]"), allow=("::1/128",))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert response.content == b"hello"
    assert server.received[0].headers["host"] == f"[::1]:{server.port}"
