"""Which addresses may be contacted. The metadata services of clouds never, in whatever disguise."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.catalog.errors import AddressRefused, EnterpriseError, UpstreamRefused, ValidationFailed
from agenticmail_enterprise.gateway.addresses import (
    canonical_host,
    check_address,
    check_url,
    embedded,
    is_private,
    lookup,
    never,
    permitted,
    resolve,
)

NEVER = [
    "169.254.169.254", "169.254.170.2", "169.254.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192",
    "0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "240.0.0.1",
    "[fd00:ec2::254]", "[fd00:ec2::23]", "[fd20:ce::254]", "[fe80::1]", "[fe80::a9fe:a9fe]", "[ff02::1]", "[::]",
    "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[::169.254.169.254]", "[64:ff9b::169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::a9fe:a9fe]", "[64:ff9b:1:a9fe:a9:fe00::]", "[64:ff9b:1:a9:fe:a9fe::]",
    "[2002:a9fe:a9fe::]", "[2002:a9fe:a9fe::1]", "[2001:0:a9fe:a9fe::]", "[2001:0:1:2:0:0:5601:5601]",
    "[2001:db8::5efe:169.254.169.254]", "[2001:db8::200:5efe:169.254.169.254]", "[::ffff:0.0.0.0]",
    "[::ffff:100.100.100.200]", "[2002:6464:64c8::]", "[::ffff:168.63.129.16]", "[64:ff9b::168.63.129.16]",
    "metadata.google.internal", "METADATA.google.internal", "metadata.google.internal.", "metadata.goog", "metadata",
    "instance-data", "metadata.azure.internal",
    # the same in figures that only software reads
    "2852039166", "0xa9fea9fe", "0xA9.0xFE.0xA9.0xFE", "0251.0376.0251.0376", "169.254.43518", "169.16689662",
    "0251.254.169.254", "169.254.169.254.", "①⑥⑨.254.169.254", "169。254。169。254", "１６９.254.169.254",
    "[fe80::1%25eth0]", "0x7f.1", "127.1", "2130706433", "017700000001", "0177.0.0.1", "127.0.0.01", "1", "0",
    "4294967296", "1.2.3.4.5", "256.1.1.1", "0x", "[fd00:42::42]", "[100::1]", "[fec0::1]",
]  # fmt: skip

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1", "192.0.2.1",
    "localhost", "LOCALHOST", "db.localhost", "localhost.", "[::1]", "[fd12::1]", "[fc00::1]", "[2001:db8::1]",
    "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[64:ff9b::10.0.0.1]", "[2002:7f00:1::]", "[2002:c0a8:101::]",
    "[2001:db8::5efe:10.0.0.1]", "[::127.0.0.1]",
]  # fmt: skip

PUBLIC = [
    "example.com", "1.1.1.1", "8.8.8.8", "100.128.0.1", "[2606:4700::1111]", "[::ffff:8.8.8.8]", "[64:ff9b::8.8.8.8]",
    "[2002:808:808::1]", "mcp.internal.example", "a_b.example", "xn--bcher-kva.example", "1.example",
    "metadata.example",
]  # fmt: skip


@pytest.mark.parametrize("host", NEVER)
@pytest.mark.parametrize("allow_private", [True, False])
def test_addresses_that_are_never_contacted(host: str, allow_private: bool) -> None:
    with pytest.raises((AddressRefused, ValidationFailed)):
        check_url(f"http://{host}/latest/meta-data/", allow_private)


@pytest.mark.parametrize("host", PRIVATE)
def test_addresses_that_need_permission(host: str) -> None:
    with pytest.raises(AddressRefused, match="allow_private"):
        check_url(f"https://{host}:8443/mcp", False)
    check_url(f"https://{host}:8443/mcp", True)


@pytest.mark.parametrize("host", PUBLIC)
@pytest.mark.parametrize("allow_private", [True, False])
def test_addresses_that_anybody_may_contact(host: str, allow_private: bool) -> None:
    check_url(f"https://{host}/", allow_private)


@pytest.mark.parametrize("host", ["①⑥⑨.②⑤④.169.254", "１６９.２５４.１６９.２５４", "169.254.169.254."])
def test_disguised_digits_are_read_as_digits(host: str) -> None:
    assert canonical_host(host) == "169.254.169.254"


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_inside_an_ipv6_address_is_judged_as_itself(address: IPv4Address) -> None:
    number = int(address)
    forms = [IPv6Address(0xFFFF << 32 | number), IPv6Address((0x64FF9B << 96) | number),
             IPv6Address(0x2002 << 112 | number << 80 | 1)]  # fmt: skip
    for form in forms:
        assert address in embedded(form)
        assert bool(never(form)) == bool(never(address))
        assert is_private(form) == is_private(address)


@given(st.ip_addresses(), st.booleans())
def test_every_address_is_public_or_permitted_or_refused(address: IPv4Address | IPv6Address, allow: bool) -> None:
    if never(address) or (not allow and is_private(address)):
        with pytest.raises(AddressRefused):
            check_address(address, allow)
        return
    check_address(address, allow)
    assert not (address.is_link_local)
    assert not (address.is_multicast)
    assert not (address.is_unspecified)
    assert allow or address.is_global or embedded(address)


@given(st.text(max_size=30), st.booleans())
def test_whatever_stands_as_host_is_refused_or_canonical(host: str, allow: bool) -> None:
    try:
        text = canonical_host(host)
    except EnterpriseError:
        return
    assert text == text.lower() == canonical_host(text)
    assert text.isascii()
    try:
        ip_address(text)
    except ValueError:
        with pytest.raises(OSError, match=r"illegal|inval"):
            socket.inet_aton(text)  # no name is also an address to the system's parser


def test_what_a_name_leads_to() -> None:
    assert permitted(["8.8.8.8", "8.8.8.8", "1.1.1.1"], False) == ["8.8.8.8", "1.1.1.1"]
    assert permitted(["10.0.0.1", "8.8.8.8"], False) == ["8.8.8.8"]
    assert permitted(["10.0.0.1", "8.8.8.8"], True) == ["10.0.0.1", "8.8.8.8"]
    with pytest.raises(AddressRefused, match="allow_private"):
        permitted(["10.0.0.1"], False)
    for bad in (["8.8.8.8", "169.254.169.254"], ["fe80::1%eth0"], ["8.8.8.8", "::ffff:169.254.169.254"]):
        with pytest.raises(AddressRefused):
            permitted(bad, True)
    with pytest.raises(UpstreamRefused):
        permitted([], True)


async def test_resolving() -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return {"good.test": ["8.8.8.8"], "bad.test": ["100.100.100.200"]}[host]

    assert await resolve("good.test", 80, allow_private=False, resolver=resolver) == ["8.8.8.8"]
    assert await resolve("1.1.1.1", 80, allow_private=False, resolver=resolver) == ["1.1.1.1"]  # nobody is asked
    with pytest.raises(AddressRefused):
        await resolve("bad.test", 80, allow_private=True, resolver=resolver)
    with pytest.raises(AddressRefused):
        await resolve("metadata.google.internal", 80, allow_private=True, resolver=resolver)
    assert "127.0.0.1" in await resolve("localhost", 80, allow_private=True)
    with pytest.raises(UpstreamRefused, match="cannot be resolved"):
        await lookup("no-such-name.invalid", 80)
