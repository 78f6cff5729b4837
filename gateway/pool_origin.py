"""Where a pool connects to: one URL, taken apart once. And `build_head`, the only way a request head is made."""

from __future__ import annotations

import functools
import re
import ssl
from collections.abc import Iterable
from typing import Final

from ..catalog.errors import BadRequest, SettingsError
from .addresses import DEFAULT_PORTS, TARGET, canonical_host, split_url

HOP_BY_HOP_REQUEST: Final = frozenset({
    b"connection", b"expect", b"http2-settings", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
    b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
})  # fmt: skip
"""Headers of one hop (RFC 9110, 7.6.1), which the pool alone may decide. `Expect` is among them because the pool
writes head and body in one piece."""

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_DIGITS: Final = re.compile(rb"[0-9]{1,19}")
_ONCE: Final = (b"host", b"content-length")


class Origin:
    """An upstream's scheme, host, port and base path, with everything that every request repeats built once.

    `host` is lower case, in ASCII (IDNA), IPv6 without brackets. `base_path` has no slash at its end ("" for the
    root); `query` is the URL's own query without `?`. `target` is base path and query as a request target. `host_line`
    is the whole `Host: ...\\r\\n`.
    """

    __slots__ = ("base_path", "host", "host_line", "port", "query", "scheme", "target", "url")

    def __init__(self, scheme: str, host: str, port: int, base_path: str = "", query: str = "") -> None:
        self.scheme = scheme
        self.host = host
        self.port = port
        self.base_path = base_path.rstrip("/")
        self.query = query
        self.target = (base_path or "/") + (f"?{query}" if query else "")
        authority = f"[{host}]" if ":" in host else host
        if port != DEFAULT_PORTS[scheme]:
            authority = f"{authority}:{port}"
        self.host_line = b"Host: %s\r\n" % authority.encode("ascii")
        self.url = f"{scheme}://{authority}{self.target}"

    @classmethod
    def parse(cls, url: str) -> Origin:
        """An http or https URL without user, password or fragment. Raises ValidationFailed (path `/url`),
        AddressRefused for a host in a form that is only used to disguise an address."""
        parts = split_url(url)
        host = canonical_host(parts.hostname or "")
        return cls(parts.scheme, host, parts.port or DEFAULT_PORTS[parts.scheme], parts.path or "/", parts.query)

    @property
    def secure(self) -> bool:
        return self.scheme == "https"

    def __repr__(self) -> str:
        return f"<Origin {self.scheme} {self.host}:{self.port}>"


@functools.lru_cache(maxsize=32)
def tls_context(verify: bool = True, ca_file: str | None = None) -> ssl.SSLContext:
    """A client context for HTTP/1.1 only. Cached: loading the system's authorities takes milliseconds.

    Raises SettingsError when `ca_file` cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"The certificate authorities in {ca_file} cannot be read: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def build_head(method: str, target: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A request's head, ending with the blank line. `headers` are written in their order and case; the caller gives
    Host and, with a body, Content-Length.

    Raises BadRequest for anything that could be read as a second header or a second request: a name that is no token,
    CR, LF, NUL or another control character in a value, a hop-by-hop header, Host or Content-Length twice.
    """
    if _TOKEN.fullmatch(method.encode("ascii", "replace")) is None:
        raise BadRequest("The method is not a token.")
    if TARGET.fullmatch(target) is None:
        raise BadRequest("The request target holds characters that must be encoded as %XX.")
    lines = [b"%s %s HTTP/1.1\r\n" % (method.encode(), target.encode())]
    lines.extend(check_headers(headers))
    lines.append(b"\r\n")
    return b"".join(lines)


def check_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The headers as lines, each with its CRLF. Raises BadRequest as `build_head` does."""
    lines = []
    once: set[bytes] = set()
    for name, value in headers:
        lower = name.lower()
        if _TOKEN.fullmatch(name) is None:
            raise BadRequest("A header's name is not a token.", header=name.decode("latin-1"))
        if _VALUE.fullmatch(value) is None:
            raise BadRequest("A header's value holds control characters.", header=name.decode("latin-1"))
        if lower in HOP_BY_HOP_REQUEST:
            raise BadRequest("This header belongs to one hop and is not passed on.", header=name.decode("latin-1"))
        if lower in _ONCE:
            if lower in once or (lower == b"content-length" and _DIGITS.fullmatch(value) is None):
                raise BadRequest("This header is sent once, with one value.", header=name.decode("latin-1"))
            once.add(lower)
        lines.append(b"%s: %s\r\n" % (name, value))
    return lines
