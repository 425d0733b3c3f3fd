"""What each route asks of its caller, and whom the process talks to at all.

Every route carries exactly one rule, `requires(...)` or `public()`; a test walks the routes and fails where
there is none. `Door` stands before all routes: in open mode it refuses every peer that is not this machine
and every web page of elsewhere, since Serve's replicas listen wider than the service does; it also bounds
bodies.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import psutil
from starlette.requests import HTTPConnection

from cluster.errors import Forbidden, PayloadTooLarge, TuttiError, Unauthenticated
from serve_app.auth import CREDENTIAL_NAMES, NO_CREDENTIAL, Authenticator, Principal, single_values
from serve_app.client_address import FORWARDED_FOR, TrustedProxies, parse_address
from serve_app.rate_limit import RateLimiter

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from cluster.settings import Settings
    from serve_app.request_figures import RequestFigures

__all__ = ["AccessRule", "Door", "Gate", "LocalPeers", "grpc_peer_address", "public", "requires", "rule_of"]

_ALLOWANCE = "tutti.allowance"
_WANTED = {name.encode(): name for name in CREDENTIAL_NAMES}
_MARK = "__tutti_access__"
_FORWARDED_FOR = FORWARDED_FOR.encode()
_log = logging.getLogger("tutti.access")


class AccessRule(NamedTuple):
    """Lowest role that may call, None for anybody; a scope that the caller must hold, None for none; whether
    it must be an operator, because what the route changes is shared by all tenants; and whether a credential
    is needed in open mode too, because the route's document promises 401 without one.
    """

    role: str | None
    scope: str | None = None
    is_for_operators: bool = False
    needs_credential: bool = False


class Gate:
    """Checks credentials and rate limits for every transport.

    Attributes:
        peers: Which peers count as this machine.
        individual_workers: Ids of workers that have a token of their own.
    """

    def __init__(self, settings: Settings) -> None:
        self._authenticator = Authenticator(settings)
        self.individual_workers = self._authenticator.individual_workers
        self.is_open = settings.auth == "open"
        is_limited = settings.rate_limit > 0 and not self.is_open
        self._limiter = RateLimiter(settings.rate_limit) if is_limited else None
        self.peers = LocalPeers()
        self._proxies = TrustedProxies(settings.trusted_proxies)

    async def admit(
        self,
        credentials: Iterable[tuple[str, str]],
        rule: AccessRule,
        state: dict[str, Any] | None = None,
        *,
        peer: str = "",
        forwarded: Sequence[str] = (),
    ) -> Principal:
        """Say who calls, or refuse.

        Args:
            credentials: Names of CREDENTIAL_NAMES, and values, as they were given.
            rule: What is asked for.
            state: Where to leave the allowance for the response's headers.
            peer: Address of the connection's other end.
            forwarded: Values of X-Forwarded-For.

        Raises:
            Unauthenticated, Forbidden, LimitExceeded, InvalidInput: See there.
        """
        try:
            principal = self._authenticator.authenticate(single_values(credentials))
        except Unauthenticated:
            await self._note_refusal(self._proxies.client_of(peer, self.peers.has(peer), forwarded))
            raise
        if rule.needs_credential and principal.is_anonymous:
            raise Unauthenticated(NO_CREDENTIAL)
        if self._limiter is not None:
            allowance = await self._limiter.spend(f"{principal.tenant}/{principal.subject}")
            if state is not None:
                state[_ALLOWANCE] = allowance
        if rule.role is not None and not principal.has_role(rule.role):
            raise Forbidden(f"this needs the role {rule.role}")
        if rule.scope is not None and rule.scope not in principal.scopes and not principal.has_role("admin"):
            raise Forbidden(f"this needs the scope {rule.scope}")
        if rule.is_for_operators and not principal.is_operator:
            raise Forbidden("this changes what all tenants share: it needs an admin of no tenant")
        return principal

    async def _note_refusal(self, address: str) -> None:
        """Log a failed credential and count it by address; those whose address is not known share a count.

        Raises:
            LimitExceeded: Too many failed from there.
        """
        if self._limiter is not None:
            await self._limiter.spend(f"address {address}")
        _log.info("credential refused, client %s", address or "not known")


def requires(
    role: str,
    scope: str | None = None,
    *,
    is_for_operators: bool = False,
    needs_credential: bool = False,
) -> Callable[[HTTPConnection], Awaitable[Principal]]:
    """Make the dependency of a route; it gives the Principal. See AccessRule for the arguments."""
    rule = AccessRule(role, scope, is_for_operators, needs_credential)

    async def check(connection: HTTPConnection) -> Principal:
        gate: Gate = connection.app.state.gate
        headers = connection.scope["headers"]
        credentials = [(_WANTED[name], value.decode("latin-1")) for name, value in headers if name in _WANTED]
        client = connection.scope.get("client")
        return await gate.admit(
            credentials,
            rule,
            connection.scope,  # type: ignore[arg-type]
            peer=client[0] if client else "",
            forwarded=[value.decode("latin-1") for name, value in headers if name == _FORWARDED_FOR],
        )

    setattr(check, _MARK, rule)
    return check


def public() -> Callable[[], Awaitable[None]]:
    """Make the dependency of a route that anybody may call."""

    async def check() -> None:
        return None

    setattr(check, _MARK, AccessRule(None))
    return check


def rule_of(dependency: object) -> AccessRule | None:
    """Return the rule that `requires` or `public` left on a dependency, None on others."""
    return getattr(dependency, _MARK, None)


class LocalPeers:
    """Tells whether a peer is a process of this machine: loopback, or one of its own addresses.

    HAProxy reaches replicas by the node's address where Ray has joined a cluster; nobody else can speak from
    it.
    """

    def __init__(self) -> None:
        own = {
            each.address.partition("%")[0]
            for addresses in psutil.net_if_addrs().values()
            for each in addresses
            if each.family in (socket.AF_INET, socket.AF_INET6)
        }
        self._known = dict.fromkeys(own, True)

    def has(self, address: str) -> bool:
        """Whether `address` (an IP address as text) is this machine."""
        found = self._known.get(address)
        if found is None:
            found = _is_loopback(address.partition("%")[0])
            if found:
                self._known[address] = True
        return found

    def has_grpc_peer(self, peer: str) -> bool:
        """The same for a gRPC peer, `ipv4:1.2.3.4:5`, `ipv6:[::1]:5` or `unix:`."""
        return peer.startswith("unix:") or self.has(grpc_peer_address(peer))


def grpc_peer_address(peer: str) -> str:
    """Address of a gRPC peer, which is named `ipv4:1.2.3.4:5` or `ipv6:[::1]:5`."""
    return unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]")


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


class Door:
    """The ASGI application around the FastAPI one.

    Attributes:
        app: The FastAPI application.
        routes: Empty: Serve walks them for a label of each request, a second match that nobody reads.
        router: Its router, which Serve asks about slashes.
    """

    def __init__(
        self, app: FastAPI, settings: Settings, answer: Callable[[TuttiError, str], ASGIApp]
    ) -> None:
        self.app, self.router = app, app.router
        self.routes: tuple[BaseRoute, ...] = ()
        self._inner: ASGIApp = app
        self._gate: Gate = app.state.gate
        self._figures: RequestFigures = app.state.figures
        self._max_body_bytes = settings.max_body_bytes
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            await self._figures.serve(self._admit, scope, receive, send)
        elif scope["type"] == "websocket":
            await self._admit(scope, receive, send)
        else:
            await self._inner(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if self._gate.is_open and (reason := self._strangeness(scope, headers)):
            await self._refuse(Forbidden(reason), scope, receive, send)
            return
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            too_large = PayloadTooLarge(
                f"the body is over the limit of {self._max_body_bytes} bytes",
                limit_bytes=self._max_body_bytes,
            )
            for name, value in headers:
                if name == b"content-length" and (
                    not value.isdigit() or len(value) > 18 or int(value) > self._max_body_bytes
                ):
                    await self._refuse(too_large, scope, receive, send)
                    return
            receive = self._bounded(receive, too_large)
        await self._inner(scope, receive, send if self._gate.is_open else _with_allowance(scope, send))

    async def _refuse(self, error: TuttiError, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": error.message})
            return
        await self._answer(error, scope["path"])(scope, receive, send)

    def _strangeness(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> str | None:
        """Say what makes the caller a stranger: the peer, or the web page or name it came by."""
        client = scope.get("client")
        if client is None or not self._gate.peers.has(client[0]):
            return "without authentication only this machine is served"
        for name, value in headers:
            if name == b"host" and not _is_own_name(value.decode("latin-1")):
                return "without authentication the service is known as localhost only"
            if name == _FORWARDED_FOR and not self._all_local(value.decode("latin-1")):
                return "without authentication only this machine is served, also through a proxy"
            if name == b"origin" and not _is_own_origin(value.decode("latin-1")):
                return "without authentication web pages of other origins are refused"
        return None

    def _all_local(self, forwarded: str) -> bool:
        addresses = [parse_address(part) for part in forwarded.split(",")]
        return all(address is not None and self._gate.peers.has(str(address)) for address in addresses)

    def _bounded(self, receive: Receive, too_large: PayloadTooLarge) -> Receive:
        left_bytes = self._max_body_bytes

        async def bounded() -> Message:
            nonlocal left_bytes
            message = await receive()
            if message["type"] == "http.request":
                left_bytes -= len(message.get("body", b""))
                if left_bytes < 0:
                    raise too_large
            return message

        return bounded


def _is_own_origin(origin: str) -> bool:
    try:
        host = urlsplit(origin).hostname
    except ValueError:
        return False
    return host is not None and (host == "localhost" or host.endswith(".localhost") or _is_loopback(host))


def _is_own_name(host: str) -> bool:
    """Another name may be a web page's own, pointed at us (DNS rebinding); an address cannot."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost") or name == socket.gethostname():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_allowance(scope: Scope, send: Send) -> Send:
    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start" and (allowance := scope.get(_ALLOWANCE)) is not None:
            message = {**message, "headers": [*message.get("headers", ()), *allowance.headers]}
        await send(message)

    return telling
