"""Was a browser led to send this? For requests that a cookie vouches for: browsers send those along by themselves.

A browser says from where a request comes (`Sec-Fetch-Site`), and where it does not, which site's page asked for it
(`Origin`). A change must come from a page of this very origin, or from nowhere (typed, a bookmark). `same-site` is
another host of the same domain, and no friend of ours. A cookie with neither header is no browser of this decade.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...catalog.errors import CrossSite

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing here (RFC 9110 section 9.2.1)."""

_OURS: Final = frozenset({"same-origin", "none"})


def check_same_origin(headers: Mapping[str, str], public_url: str = "") -> None:
    """Raises CrossSite unless the request comes from a page of the host that it is sent to, or of `public_url`: a proxy
    in front may send another Host on than the one that the browser knows."""
    site = headers.get("Sec-Fetch-Site")
    origin = headers.get("Origin")
    if site is not None and site.strip().lower() not in _OURS:
        raise CrossSite
    if origin is not None and (not public_url or origin.lower() != public_url.lower()):
        scheme, mark, host = origin.partition("://")
        if not mark or scheme.lower() not in {"http", "https"} or host.lower() != headers.get("Host", "").lower():
            raise CrossSite
    if site is None and origin is None:
        raise CrossSite("A change with a cookie needs the header Sec-Fetch-Site or Origin, as browsers send them.")
