"""From which address a request came, as far as it can be known behind proxies.

HAProxy, which stands before every replica, tells nothing of its peer: a replica sees this machine. Only a
proxy in front of it can say more, by X-Forwarded-For, and anybody can write that header. So it is believed
where the operator has named the proxies, and the operator must let nobody else reach the port.

Source: RFC 7239, section 8.1; the header itself is older than the RFC.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

__all__ = ["FORWARDED_FOR", "TrustedProxies", "parse_address"]

FORWARDED_FOR = "x-forwarded-for"

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedProxies:
    """Finds the client behind the proxies.

    Args:
        blocks: CIDR blocks of the proxies; empty to believe nobody.
    """

    def __init__(self, blocks: Sequence[str]) -> None:
        self._blocks = [ipaddress.ip_network(block) for block in blocks]

    def client_of(self, peer: str, peer_is_local: bool, forwarded: Iterable[str]) -> str:
        """Name the client.

        Args:
            peer: Address of the connection's other end.
            peer_is_local: Whether that is this machine, and so HAProxy.
            forwarded: Values of all X-Forwarded-For headers, in their order.

        Returns:
            An address, or "" where it is not known.
        """
        if not peer_is_local and not self._has(parse_address(peer)):
            return peer
        if not self._blocks:
            return ""
        # Each proxy adds its peer at the end: what stands left of the first stranger is the client's own say.
        for text in reversed([part for value in forwarded for part in value.split(",")]):
            address = parse_address(text)
            if address is None:
                return ""
            if not self._has(address):
                return str(address)
        return ""

    def _has(self, address: _Address | None) -> bool:
        return address is not None and any(address in block for block in self._blocks)


def parse_address(text: str) -> _Address | None:
    """Read an address as proxies write it, with or without port and brackets; None where it is none."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
