"""Whose address counts: the peer's, unless a trusted proxy vouches for another."""

from __future__ import annotations

import pytest

from agenticmail_enterprise.catalog.errors import SettingsError
from agenticmail_enterprise.gateway.server import forwarded_for, networks

TRUSTED = networks(["10.0.0.0/8", "::1"])


@pytest.mark.parametrize(
    ("peer", "headers", "address"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.66, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.66, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.66", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("::1", ["2001:db8::7"], "2001:db8::7"),
        ("", ["198.51.100.1"], ""),
    ],
)
def test_the_last_address_that_no_trusted_proxy_wrote_for_itself(peer: str, headers: list[str], address: str) -> None:
    assert forwarded_for(peer, headers, TRUSTED) == address


def test_a_network_that_is_none_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="trusted_proxies"):
        networks(["10.0.0.0/33"])
