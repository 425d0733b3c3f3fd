"""Which URLs and addresses may be called on behalf of a client. Judgement only: no socket, no name lookup.

A URL from a client is a request to use our place in the network, so everything that is not plainly the public
internet is refused unless the operator named it (`TUTTI_EGRESS_ALLOW`). The ranges stand here in full and are
not left to `ipaddress.is_global`, whose answer changed between patch releases of Python.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import httpx

from cluster.errors import FailureCode, InvalidSetting, StepError

__all__ = [
    "Address",
    "EgressRefused",
    "Network",
    "Target",
    "check_addresses",
    "is_callable",
    "networks",
    "parse_target",
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_URL_CHARS = 8192
_MAX_LABEL_CHARS = 63
"""Source: RFC 1035, 2.3.4. The system's resolver breaks over longer ones."""
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_.])?")
_DEFAULT_PORTS = {"http": 80, "https": 443}

_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network; 0.0.0.0 reaches loopback on Linux
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; some clouds keep their metadata service there
        "127.0.0.0/8",
        "168.63.129.16/32",  # a public address by its number, the host's own agent on Azure
        "169.254.0.0/16",  # link-local, with the metadata service of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays, withdrawn by RFC 7526
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
"""Source: IANA IPv4 Special-Purpose Address Registry (RFC 6890), and the multicast and reserved blocks."""

_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    ipaddress.IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments, with Teredo (a relay decides where it ends)
        "2001:db8::/32",
        "2002::/16",  # 6to4, likewise
        "3fff::/20",
    )
)
"""Blocks inside 2000::/3 that are not the public internet; all outside it is refused anyway.

Source: IANA IPv6 Special-Purpose Address Registry.
"""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP_MARKS = (0x00005EFE, 0x02005EFE)

# fmt: off
_BAD_PORTS = frozenset({
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104,
    109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515,
    526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049,
    3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
    6379, 11211,
})
# fmt: on
"""Ports whose protocols can be spoken by accident in an HTTP request.

Source: Fetch standard, "bad port"; Redis and memcached (line protocols) are ours.
"""


class EgressRefused(StepError):
    """Raised when a URL, or where it leads, may not be called. Trying again does not help.

    The message names the host but never an address it resolves to: we are no oracle for private DNS.
    """

    def __init__(
        self,
        message: str,
        code: str = FailureCode.VALIDATION_ERROR,
        retryable: bool = False,
        **details: object,
    ) -> None:
        super().__init__(message, code, retryable, **details)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that has passed the checks which need no lookup.

    Attributes:
        url: The parsed URL, without fragment.
        scheme: "http" or "https".
        host: Lower-case ASCII name, or an address literal without brackets.
        port: 1 to 65535.
        literal: The address, where the host is one in its usual form.
    """

    url: httpx.URL
    scheme: str
    host: str
    port: int
    literal: Address | None

    @property
    def origin(self) -> str:
        """Scheme, host and port: all that may stand in an error, since paths and queries carry secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (
            "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        )


def parse_target(url: str) -> Target:
    """Check all of a URL that can be judged without a lookup.

    Raises:
        EgressRefused: Not http or https, credentials inside, a host or port that makes no sense, or too long.
    """
    if not isinstance(url, str) or not url:
        raise EgressRefused("the URL is missing")
    if len(url) > _MAX_URL_CHARS:
        raise EgressRefused(f"the URL is longer than {_MAX_URL_CHARS} characters")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise EgressRefused("the URL cannot be read") from None
    if parsed.scheme not in _DEFAULT_PORTS:
        raise EgressRefused("only http and https URLs may be called")
    if parsed.userinfo:
        raise EgressRefused("a URL must not carry a user name or password")
    host = parsed.raw_host.decode("ascii").lower()
    try:
        literal: Address | None = ipaddress.ip_address(host)
    except ValueError:
        literal = None
        if not _HOST.fullmatch(host) or ".." in host or max(map(len, host.split("."))) > _MAX_LABEL_CHARS:
            raise EgressRefused("the URL's host is not a name or an address") from None
    if isinstance(literal, ipaddress.IPv6Address) and literal.scope_id is not None:
        raise EgressRefused("an address with a zone is never public")
    port = _DEFAULT_PORTS[parsed.scheme] if parsed.port is None else parsed.port
    if not 1 <= port <= 65535 or port in _BAD_PORTS:
        raise EgressRefused(f"port {port} may not be called")
    return Target(parsed.copy_with(fragment=None), parsed.scheme, host, port, literal)


@lru_cache(maxsize=256)
def networks(allow: tuple[str, ...]) -> tuple[Network, ...]:
    """Parse the blocks an operator allows.

    Args:
        allow: CIDR blocks ("10.1.0.0/16", "fd00::/8"); a lone address is a block of one.

    Raises:
        InvalidSetting: An entry is no block of addresses.
    """
    try:
        return tuple(ipaddress.ip_network(block.strip(), strict=False) for block in allow)
    except ValueError as error:
        raise InvalidSetting(f"TUTTI_EGRESS_ALLOW: {error}") from None


def check_addresses(host: str, addresses: Iterable[str], allowed: tuple[Network, ...]) -> tuple[str, ...]:
    """Judge every address of a host; one bad address refuses the host.

    Args:
        host: For the message.
        addresses: What the name resolved to, in the resolver's order.
        allowed: Blocks that may be called although they are not public.

    Returns:
        The addresses in normal form (IPv4-mapped ones as IPv4), without doubles, in the same order.

    Raises:
        EgressRefused: There is none, one is not public, or one is no address at all.
    """
    checked: dict[str, None] = {}
    for text in addresses:
        try:
            address = _unmapped(ipaddress.ip_address(text))
        except ValueError:
            raise EgressRefused(f"host {host} resolves to something that is no address") from None
        if not is_callable(address, allowed):
            raise EgressRefused(
                f"host {host} is not on the public internet (TUTTI_EGRESS_ALLOW can allow it)"
            )
        checked[str(address)] = None
    if not checked:
        raise EgressRefused(f"host {host} resolves to no address")
    return tuple(checked)


def is_callable(address: Address, allowed: tuple[Network, ...]) -> bool:
    """Say whether one address may be called: in an allowed block, or public with all embedded in it."""
    address = _unmapped(address)
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return False
    if any(address.version == block.version and address in block for block in allowed):
        return True
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in block for block in _REFUSED_V4)
    if address in _NAT64:
        return is_callable(_low_v4(address), ())
    if address not in _GLOBAL_V6 or any(address in block for block in _REFUSED_V6):
        return False
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP_MARKS:
        return is_callable(_low_v4(address), ())
    return True


def _unmapped(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _low_v4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
