"""Which addresses and URLs may be called at all."""

from __future__ import annotations

import ipaddress
import pickle

import pytest

from actors.egress_policy import EgressRefused, check_addresses, is_callable, networks, parse_target
from cluster.errors import FailureCode, InvalidSetting

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:10.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::",
    "2a00:1450:4001:80b:0:5efe:10.0.0.1",
    "2a00:1450:4001:80b:200:5efe:127.0.0.1",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%lo",
    "fec0::1",
    "ff02::1",
    "4000::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_callable(ipaddress.ip_address(address), ())
    with pytest.raises(EgressRefused):
        check_addresses("x.test", [address], ())


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "::ffff:8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8", "172.32.0.1"]
)
def test_a_public_address_is_callable(address: str) -> None:
    assert is_callable(ipaddress.ip_address(address), ())


def test_one_private_address_among_public_ones_refuses_the_host() -> None:
    with pytest.raises(EgressRefused, match=r"mixed\.test"):
        check_addresses("mixed.test", ["8.8.8.8", "10.0.0.1"], ())


def test_a_refusal_never_names_the_address() -> None:
    with pytest.raises(EgressRefused) as refusal:
        check_addresses("internal.corp", ["10.11.12.13"], ())
    assert "10.11.12.13" not in str(refusal.value)
    assert "10.11.12.13" not in str(refusal.value.details)


def test_an_allowed_block_opens_only_itself() -> None:
    allowed = networks(("10.1.0.0/16", "fd00:1::/32"))
    assert check_addresses("x", ["10.1.2.3", "fd00:1::5", "::ffff:10.1.2.3"], allowed) == (
        "10.1.2.3",
        "fd00:1::5",
    )
    for address in ("10.2.0.1", "fd00:2::1", "64:ff9b::10.1.2.3", "::10.1.2.3"):
        assert not is_callable(ipaddress.ip_address(address), allowed)


def test_a_wrong_block_is_an_invalid_setting() -> None:
    with pytest.raises(InvalidSetting, match="TUTTI_EGRESS_ALLOW"):
        networks(("10.0.0.0/99",))


def test_a_host_without_addresses_is_refused() -> None:
    with pytest.raises(EgressRefused, match="no address"):
        check_addresses("x", [], ())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "http://",
        "http:///path",
        "http://user@example.com/",
        "http://user:pass@example.com/",
        "http://example.com\\@127.0.0.1/",
        "http://exa mple.com/",
        "http://exa%6dple.com/",
        "http://a..b/",
        "http://-x.test/",
        "http://[fe80::1%25lo]/",
        "http://[::1/",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:22/",
        "http://example.com:25/",
        "http://example.com:6379/",
        "http://example.com:x/",
        "http://①②⑦.0.0.1/",
        "http://example.com/\r\nHost: other",
        "http://example.com/" + "a" * 9000,
    ],
)
def test_a_url_that_makes_no_sense_is_refused_before_any_lookup(url: str) -> None:
    with pytest.raises(EgressRefused) as refusal:
        parse_target(url)
    assert refusal.value.code == FailureCode.VALIDATION_ERROR
    assert not refusal.value.retryable


def test_a_target_names_its_origin_without_path_and_query() -> None:
    target = parse_target("HTTPS://API.Example.com:8443/v1/secret?key=secret#secret")
    assert target.origin == "https://api.example.com:8443"
    assert "#" not in str(target.url)
    assert parse_target("http://[2606:4700::1111]/x").origin == "http://[2606:4700::1111]"
    assert parse_target("https://example.com:443/x").origin == "https://example.com"


def test_a_refusal_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(EgressRefused("no", field="url")))
    assert (type(again), again.message, again.code, again.details["field"]) == (
        EgressRefused,
        "no",
        FailureCode.VALIDATION_ERROR,
        "url",
    )
