"""Which addresses may be contacted: the guard against requests that reach where they must not (SSRF).

Two classes of address:
* never contacted, whatever is set: link-local ranges and the metadata services of clouds (they hand out credentials to
  whoever asks), the unspecified address, multicast, broadcast and reserved ranges;
* contacted only where `allow_private` is set: everything else that is not globally routable.

An IPv6 address that carries an IPv4 address inside (mapped, compatible, 6to4, NAT64, Teredo, ISATAP) is judged by both.
A host written as `0x7f.1` or `2130706433` is refused as such: nobody has a good reason to write it.
What is resolved is what is connected to: callers connect to an address that `resolve` returned, never to the name.
"""

from __future__ import annotations

import asyncio
import re
import socket
import unicodedata
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from ..catalog.errors import AddressRefused, UpstreamRefused, ValidationFailed

Address = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) -> addresses as text, in the order to try them. Raises UpstreamRefused when there is none."""

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
TARGET: Final = re.compile(r"(?:/|\*\Z)[!-~]*")
"""A request target: a path and query in printable ASCII, or `*`."""

METADATA_HOSTS: Final = frozenset({
    "metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal",
    "metadata.azure.internal", "metadata.azure.com", "metadata.tencentyun.com", "metadata.packet.net",
    "metadata.platformequinix.com", "metadata.nifcloud.internal", "rancher-metadata", "kubernetes.metadata",
})  # fmt: skip
"""Names under which metadata services answer. What they resolve to is refused too; this is the earlier, clearer no."""

NEVER: Final[tuple[tuple[IPv4Network | IPv6Network, str], ...]] = (
    (IPv4Network("169.254.0.0/16"), "link-local and cloud metadata"),
    (IPv4Network("100.100.100.200/32"), "Alibaba Cloud metadata"),
    (IPv4Network("168.63.129.16/32"), "Azure platform service"),
    (IPv4Network("192.0.0.192/32"), "Oracle Cloud metadata"),
    (IPv4Network("0.0.0.0/8"), "unspecified"),
    (IPv4Network("224.0.0.0/4"), "multicast"),
    (IPv4Network("240.0.0.0/4"), "reserved"),
    (IPv6Network("fe80::/10"), "link-local"),
    (IPv6Network("fec0::/10"), "site-local, deprecated"),
    (IPv6Network("fd00:ec2::/32"), "AWS metadata"),
    (IPv6Network("fd20:ce::/32"), "Google Cloud metadata"),
    (IPv6Network("fd00:42::42/128"), "Scaleway metadata"),
    (IPv6Network("fd00:c1::/32"), "Oracle Cloud metadata"),
    (IPv6Network("ff00::/8"), "multicast"),
    (IPv6Network("::/128"), "unspecified"),
    (IPv6Network("100::/64"), "discard"),
)
"""Refused whatever is set, with the reason. Sources: the clouds' documentation of their instance metadata services;
IANA's special-purpose address registries."""

_NAT64: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE: Final = IPv6Network("::/96")
_TRANSLATED: Final = (_NAT64[0], IPv6Network("2002::/16"), IPv6Network("2001::/32"), IPv6Network("::ffff:0:0/96"))
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMERIC: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+))*")


def check_url(url: str, allow_private: bool) -> None:
    """May an upstream have this URL? Looks at the text only; names are judged again each time they are resolved.

    Raises ValidationFailed (path `/url`) when it is no http(s) URL, AddressRefused when its host may not be contacted.
    """
    check_host(canonical_host(split_url(url).hostname or ""), allow_private)


def split_url(url: str) -> SplitResult:
    """`url` in parts, or ValidationFailed."""
    if not url.isprintable() or " " in url or "\\" in url:
        raise _invalid("characters", "A URL holds no spaces, backslashes or control characters.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _invalid("format", f"This is not a URL: {error}.") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise _invalid("scheme", "The URL begins with http:// or https://.")
    if "@" in parts.netloc:
        raise _invalid("credentials", "A URL holds no user or password; put credentials in the upstream's secrets.")
    if parts.fragment:
        raise _invalid("fragment", "A URL that is called has no fragment.")
    if not parts.hostname or port == 0:
        raise _invalid("host", "The URL names a host, and a port from 1 to 65535 if any.")
    if any(TARGET.fullmatch(part) is None for part in (parts.path or "/", "/" + parts.query)):
        raise _invalid("characters", "Path and query hold printable ASCII without spaces; encode the rest as %XX.")
    return parts


def _invalid(code: str, sentence: str) -> ValidationFailed:
    return ValidationFailed([("/url", code, sentence)], sentence)


def canonical_host(host: str) -> str:
    """`host` in lower case ASCII, without a final dot, as it will be resolved. IPv6 without brackets.

    Raises ValidationFailed for what is no host, AddressRefused for an IPv4 address in another form than four decimal
    numbers, and for an IPv6 address with a zone.
    """
    text = unicodedata.normalize("NFKC", host).lower().rstrip(".")
    if ":" in text:
        return _canonical_v6(text)
    try:
        text = text.encode("idna").decode("ascii").rstrip(".")
    except UnicodeError:
        raise _bad_host() from None
    if _NUMERIC.fullmatch(text):
        return _canonical_v4(text)
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise _bad_host()
    return text


def _canonical_v4(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise AddressRefused(
            "Write an IPv4 address as four decimal numbers without leading zeros.", host=text
        ) from None


def _canonical_v6(text: str) -> str:
    if "%" in text:
        raise AddressRefused("An address with a zone is link-local, and is never contacted.", host=text)
    try:
        return str(IPv6Address(text))
    except ValueError:
        raise _bad_host() from None


def _bad_host() -> ValidationFailed:
    return _invalid("host", "The URL's host is neither a name nor an address.")


def check_host(host: str, allow_private: bool) -> Address | None:
    """A canonical host: refused by name or as a literal address, else its address or None for a name that must be
    resolved first. Raises AddressRefused."""
    if host in METADATA_HOSTS:
        raise AddressRefused(f"{host} is a cloud metadata service and is never contacted.", host=host)
    if not allow_private and (host == "localhost" or host.endswith(".localhost")):
        raise AddressRefused(f"{host} is this machine; set allow_private to permit it.", host=host)
    try:
        address = ip_address(host)
    except ValueError:
        return None
    check_address(address, allow_private)
    return address


def check_address(address: Address, allow_private: bool) -> None:
    """Raises AddressRefused when `address` may not be contacted."""
    reason = never(address)
    if reason:
        raise AddressRefused(f"{address} is never contacted ({reason}).", address=str(address))
    if not allow_private and is_private(address):
        raise AddressRefused(
            f"{address} is not a public address; set allow_private on the upstream to permit it.", address=str(address)
        )


def never(address: Address) -> str:
    """Why this address is refused whatever is set; "" when it is not."""
    for form in (address, *embedded(address)):
        for network, reason in NEVER:
            if form.version == network.version and form in network:
                return reason
    return ""


def is_private(address: Address) -> bool:
    """Not reachable from everywhere: private, loopback, shared or documentation ranges."""
    inner_private = any(not form.is_global for form in embedded(address))
    if any(network.version == address.version and address in network for network in _TRANSLATED):
        return inner_private  # the packet goes to the address inside
    return inner_private or not address.is_global


def embedded(address: Address) -> list[IPv4Address]:
    """The IPv4 addresses that an IPv6 address carries, by every scheme that it could belong to."""
    if isinstance(address, IPv4Address):
        return []
    number = int(address)
    low = number & 0xFFFFFFFF
    found: list[int] = []
    if address.ipv4_mapped is not None or (address in _COMPATIBLE and low > 1) or address in _NAT64[0]:
        found.append(low)
    elif address in _NAT64[1]:  # RFC 8215: the operator chooses where the address stands; RFC 6052 has these places
        found += [low, _rfc6052(number, 48), _rfc6052(number, 56), _rfc6052(number, 64)]
    elif address.sixtofour is not None:
        found.append(int(address.sixtofour))
    elif address.teredo is not None:
        found += [int(part) for part in address.teredo]
    if (number >> 32) & 0xFDFFFFFF == 0x5EFE:  # ISATAP: ...:0[2]00:5efe:a.b.c.d
        found.append(low)
    return [IPv4Address(value) for value in found]


def _rfc6052(number: int, prefix: int) -> int:
    """The IPv4 address after a prefix of so many bits; bits 64 to 71 are skipped (RFC 6052, 2.2)."""
    before = 64 - prefix
    after = 32 - before
    high = (number >> 64) & ((1 << before) - 1)
    rest = (number & ((1 << 56) - 1)) >> (56 - after)
    return (high << after) | rest


def permitted(found: Iterable[str], allow_private: bool) -> list[str]:
    """What of a name's addresses may be contacted, in their order. A name that also leads to an address of the first
    class is refused as a whole: that is an attack, not a network with two sides. Raises AddressRefused."""
    kept: list[str] = []
    refusal: AddressRefused | None = None
    for text in found:
        if "%" in text:
            raise AddressRefused(f"{text} is never contacted (link-local).", address=text)
        address = ip_address(text)
        try:
            check_address(address, allow_private)
        except AddressRefused as error:
            if never(address):
                raise
            refusal = refusal or error
        else:
            kept.append(text)
    if not kept:
        raise refusal or UpstreamRefused("The upstream's name has no address.")
    return list(dict.fromkeys(kept))


async def lookup(host: str, port: int) -> list[str]:
    """The system's resolver, in its order. Raises UpstreamRefused when the name has no address."""
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        raise UpstreamRefused(f"The name {host} cannot be resolved: {error}", host=host) from error
    return [str(info[4][0]) for info in infos]


async def resolve(host: str, port: int, *, allow_private: bool, resolver: Resolver = lookup) -> list[str]:
    """The addresses of a canonical host that may be connected to, at least one.

    Raises AddressRefused, or UpstreamRefused when the name cannot be resolved.
    """
    literal = check_host(host, allow_private)
    if literal is not None:
        return [str(literal)]
    return permitted(await resolver(host, port), allow_private)
