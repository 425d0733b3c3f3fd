"""Whose address a request has: only what the operator's own proxies say is believed."""

import pytest

from serve_app.client_address import TrustedProxies, parse_address


@pytest.mark.parametrize(
    ("peer", "is_local", "forwarded", "client"),
    [
        # HAProxy is this machine and says nothing of its peer.
        ("127.0.0.1", True, [], ""),
        ("127.0.0.1", True, ["192.0.2.1"], "192.0.2.1"),
        ("127.0.0.1", True, ["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
        ("127.0.0.1", True, ["203.0.113.9", "192.0.2.1, 10.0.0.1"], "192.0.2.1"),
        ("127.0.0.1", True, ["192.0.2.1:4711"], "192.0.2.1"),
        ("127.0.0.1", True, ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("127.0.0.1", True, ["::ffff:192.0.2.1"], "192.0.2.1"),
        ("127.0.0.1", True, ["192.0.2.1, unknown"], ""),
        ("127.0.0.1", True, ["10.0.0.1"], ""),
        # Straight to a replica: a proxy's word is taken, a stranger's is not.
        ("10.0.0.1", False, ["192.0.2.1"], "192.0.2.1"),
        ("198.51.100.7", False, ["192.0.2.1"], "198.51.100.7"),
    ],
)
def test_client_is_the_last_address_that_is_no_trusted_proxy(peer, is_local, forwarded, client):
    assert TrustedProxies(["10.0.0.0/8"]).client_of(peer, is_local, forwarded) == client


def test_header_is_ignored_where_no_proxy_is_trusted():
    assert TrustedProxies([]).client_of("127.0.0.1", True, ["192.0.2.1"]) == ""
    assert TrustedProxies([]).client_of("198.51.100.7", False, ["192.0.2.1"]) == "198.51.100.7"


@pytest.mark.parametrize("text", ["", "unknown", "_hidden", "1.2.3", "[::1", "::1::2", "a.example:80"])
def test_what_is_no_address_is_none(text):
    assert parse_address(text) is None or text == "[::1"
