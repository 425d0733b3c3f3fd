"""The only door through which the service calls an address that a client named, for agents and for webhooks.

Names are resolved here, once per hop; every address is judged (`egress_policy`), and the connection goes to a
judged address, so a name that answers differently the second time (DNS rebinding) gains nothing: there is no
second time. The Host header and the TLS checks keep using the name. The door refuses to use proxies or
credentials of the environment, to keep connections or cookies, to follow a redirect unjudged, and to wait or
read without bound.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import httpcore
import httpx

from actors.bounded_body import BoundedBody
from actors.egress_policy import EgressRefused, Network, Target, check_addresses, networks, parse_target
from cluster.errors import FailureCode, StepError

__all__ = ["EgressRefused", "FetchedResponse", "Resolver", "check_url", "fetch", "resolve_by_system"]

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Turns (host, port) into addresses as text; raises OSError when it cannot."""

_CHECK_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 5.0
_MAX_ADDRESSES_TRIED = 4
_CHUNKS_PER_YIELD = 128

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_REFUSED_METHODS = frozenset({"CONNECT", "TRACE"})
_OWN_HEADERS = frozenset(
    {"accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-authenticate"}
    | {"proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers that describe the connection, which is ours: a client's values are left out."""

_SHAREABLE_HEADERS = frozenset({"accept", "accept-language", "content-type", "user-agent"})
"""All that crosses to another origin. Not a list of secrets: any custom header may be one."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_USER_AGENT = "tutti"


@dataclass(frozen=True, slots=True)
class FetchedResponse:
    """What came back.

    Attributes:
        status: 200 to 599.
        headers: Lower-case names; values of repeated headers are joined with ", ".
        content: The decoded body, at most `max_bytes`.
        url: Where it came from after redirects, whole: it may hold secrets in its query.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """Ask the system's resolver, which also normalises the decimal, octal, hex and short forms of IPv4."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(str(sockaddr[0]) for _, _, _, _, sockaddr in found)


async def check_url(url: str, allow: tuple[str, ...] = (), *, resolve: Resolver = resolve_by_system) -> None:
    """Judge a URL as `fetch` would, without calling it; for URLs that are stored and called later.

    Args:
        url: What a client wants called.
        allow: CIDR blocks that may be called although they are not public.
        resolve: The resolver.

    Raises:
        EgressRefused: The URL may not be called, or its host does not resolve within 5 s.
    """
    target = parse_target(url)
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            await _addresses(target, networks(allow), resolve)
    except (TimeoutError, OSError):
        raise EgressRefused(f"host {target.host} does not resolve") from None


async def fetch(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
    allow: tuple[str, ...] = (),
    timeout_s: float = 30.0,
    max_bytes: int = 32 << 20,
    max_redirects: int = 5,
    read_body: bool = True,
    resolve: Resolver = resolve_by_system,
    ssl_context: ssl.SSLContext | None = None,
) -> FetchedResponse:
    """Call a URL under guard.

    Args:
        url: http or https, without credentials.
        method: Any but CONNECT and TRACE.
        headers: Sent to the URL's own origin; to another one only the harmless few go along.
        content: The body.
        allow: CIDR blocks that may be called although they are not public.
        timeout_s: Limit of everything together, from the lookup to the last byte, > 0.
        max_bytes: Limit of the body as sent and as decoded.
        max_redirects: How many to follow; 0 returns the redirect itself.
        read_body: False returns with an empty `content` as soon as the headers are there.
        resolve: The resolver.
        ssl_context: Whom to trust; None for the public authorities.

    Raises:
        EgressRefused: The URL, a header or a redirect may not be used.
        StepError: TIMEOUT (retryable); EXECUTION_FAILED: no connection or a broken one (retryable), an
            untrusted certificate, too many redirects, or a body over the limit.
    """
    target = parse_target(url)
    method = method.upper()
    if not _TOKEN.fullmatch(method) or method in _REFUSED_METHODS:
        raise EgressRefused("this HTTP method may not be used")
    request = _Request(target, method, _checked_headers(headers or {}), content)
    call = _Call(networks(allow), timeout_s, max_bytes, read_body, resolve, ssl_context or _public_trust())
    origin = target.origin
    try:
        async with asyncio.timeout(timeout_s):
            for hop in range(max_redirects + 1):
                origin = request.target.origin
                response = await call.send(request, follow=max_redirects > 0)
                location = response.headers.get("location")
                if max_redirects == 0 or response.status not in _REDIRECTS or location is None:
                    return response
                if hop < max_redirects:
                    request = request.redirected(response.status, location)
    except TimeoutError:
        message = f"{origin} did not answer within {timeout_s:g} s"
        raise StepError(message, FailureCode.TIMEOUT, retryable=True) from None
    raise StepError(f"{target.origin} redirected more than {max_redirects} times")


@dataclass(frozen=True, slots=True)
class _Request:
    """One hop: a judged URL and what goes there."""

    target: Target
    method: str
    headers: Mapping[str, str]
    content: bytes | None

    def redirected(self, status: int, location: str) -> _Request:
        """Make the next hop. Source: RFC 9110, 15.4, and the Fetch standard's HTTP-redirect fetch."""
        try:
            joined = str(self.target.url.join(location))
        except httpx.InvalidURL:
            raise EgressRefused(f"{self.target.origin} redirected to a URL that cannot be read") from None
        target = parse_target(joined)
        if self.target.scheme == "https" and target.scheme == "http":
            raise EgressRefused(f"{self.target.origin} redirected from https to http")
        method, content, headers = self.method, self.content, dict(self.headers)
        if target.origin != self.target.origin:
            headers = {name: value for name, value in headers.items() if name in _SHAREABLE_HEADERS}
        if (status == 303 and method != "HEAD") or (status in {301, 302} and method == "POST"):
            method, content = "GET", None
            headers = {name: value for name, value in headers.items() if not name.startswith("content-")}
        return _Request(target, method, headers, content)


@dataclass(frozen=True, slots=True)
class _Call:
    """What holds for all hops."""

    allowed: tuple[Network, ...]
    timeout_s: float
    max_bytes: int
    read_body: bool
    resolve: Resolver
    ssl_context: ssl.SSLContext

    async def send(self, request: _Request, follow: bool) -> FetchedResponse:
        target = request.target
        try:
            addresses = await _addresses(target, self.allowed, self.resolve)
        except OSError:
            raise StepError(f"host {target.host} does not resolve", retryable=True) from None
        url = httpcore.URL(
            scheme=target.scheme, host=target.host, port=target.port, target=target.url.raw_path
        )
        headers = {
            **request.headers,
            "host": target.url.netloc.decode("ascii"),
            "accept-encoding": "gzip, deflate",
        }
        headers.setdefault("user-agent", _USER_AGENT)
        headers.setdefault("accept", "*/*")
        pool = httpcore.AsyncConnectionPool(
            ssl_context=self.ssl_context,
            max_connections=1,
            max_keepalive_connections=0,
            network_backend=_PinnedBackend(addresses, min(_CONNECT_TIMEOUT_S, self.timeout_s / 2)),
        )
        wire = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        content = (
            b"" if request.content is None and request.method in {"POST", "PUT", "PATCH"} else request.content
        )
        try:
            async with pool, pool.stream(request.method, url, headers=wire, content=content) as response:
                return await self._read(request, response, follow)
        except (httpcore.ConnectTimeout, httpcore.ReadTimeout, httpcore.WriteTimeout, httpcore.PoolTimeout):
            raise TimeoutError from None
        except (httpcore.UnsupportedProtocol, httpcore.LocalProtocolError):
            raise EgressRefused(f"the request to {target.origin} cannot be sent as HTTP") from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise _connection_error(target, error) from None

    async def _read(self, request: _Request, response: httpcore.Response, follow: bool) -> FetchedResponse:
        headers: dict[str, str] = {}
        for raw_name, raw_value in response.headers:
            name, value = raw_name.decode("ascii").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        moves_on = follow and response.status in _REDIRECTS and "location" in headers
        content = b""
        if self.read_body and not moves_on and request.method != "HEAD":
            content = await self._read_body(request.target.origin, headers, response)
        return FetchedResponse(response.status, headers, content, str(request.target.url))

    async def _read_body(self, origin: str, headers: Mapping[str, str], response: httpcore.Response) -> bytes:
        body = BoundedBody(headers.get("content-encoding", ""), self.max_bytes, origin)
        declared = headers.get("content-length", "")
        if (
            declared.isascii()
            and declared.isdigit()
            and len(declared) < 20
            and int(declared) > self.max_bytes
        ):
            raise body.too_large()
        num_chunks = 0
        async for chunk in response.aiter_stream():
            body.feed(chunk)
            num_chunks += 1
            if num_chunks % _CHUNKS_PER_YIELD == 0:
                # A buffer full of one-byte chunks comes apart without a wait: let others and the clock run.
                await asyncio.sleep(0)
        return body.finish()


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the judged addresses, whatever name it is asked for. TLS still checks the name."""

    def __init__(self, addresses: Sequence[str], connect_timeout_s: float) -> None:
        self._addresses = addresses
        self._connect_timeout_s = connect_timeout_s
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        tried = self._addresses[:_MAX_ADDRESSES_TRIED]
        for address in tried[:-1]:
            try:
                return await self._sockets.connect_tcp(address, port, self._connect_timeout_s)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._sockets.connect_tcp(tried[-1], port, timeout)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.UnsupportedProtocol("local sockets may not be called")

    async def sleep(self, seconds: float) -> None:
        await self._sockets.sleep(seconds)


async def _addresses(target: Target, allowed: tuple[Network, ...], resolve: Resolver) -> tuple[str, ...]:
    found = (str(target.literal),) if target.literal is not None else await resolve(target.host, target.port)
    return check_addresses(target.host, found, allowed)


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise EgressRefused("a header's name is not one")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise EgressRefused(f"the value of header {name} cannot be sent")
        if name.lower() not in _OWN_HEADERS:
            checked[name.lower()] = value.strip()
    return checked


def _connection_error(target: Target, error: Exception) -> StepError:
    # httpcore drops the cause, yet makes its error of the one it caught.
    cause = error.args[0] if error.args else None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return StepError(f"the certificate of {target.origin} is not trusted: {cause.verify_message}")
    if isinstance(error, httpcore.ConnectError):
        return StepError(f"no connection to {target.origin}", retryable=True)
    return StepError(f"the connection to {target.origin} broke", retryable=True)


@lru_cache(maxsize=1)
def _public_trust() -> ssl.SSLContext:
    # Reading the authorities takes longer than most calls, so it is done once.
    return httpx.create_ssl_context(trust_env=False)
