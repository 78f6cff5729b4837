"""One-time codes that change with time: RFC 6238 over RFC 4226, as every authenticator app speaks it (SHA-1, 6 digits,
30 seconds)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import Final
from urllib.parse import quote

DIGITS: Final = 6
PERIOD: Final = 30
DRIFT: Final = 1
"""Steps before and after the present one that are taken: clocks differ, people type slowly (RFC 6238 section 5.2)."""

SECRET_BYTES: Final = 20
"""RFC 4226 section 4, R6: 160 bits."""


def new_secret() -> str:
    """A new secret in base32, as apps take it."""
    return base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode()


def code_at(secret: str, step: int) -> str:
    """The code of a time step (UNIX seconds // 30)."""
    mac = hmac.digest(base64.b32decode(secret), step.to_bytes(8, "big"), hashlib.sha1)
    offset = mac[-1] & 0x0F
    number = int.from_bytes(mac[offset : offset + 4], "big") & 0x7FFFFFFF
    return f"{number % 10**DIGITS:0{DIGITS}}"


def step_of(seconds: float) -> int:
    """The time step of a moment."""
    return int(seconds) // PERIOD


def matching_step(secret: str, code: str, now: float, last: int) -> int | None:
    """The step whose code was given, None when it is none of the present ones, or not later than `last`: a code is
    taken once, and none from before it after that (RFC 6238 section 5.2)."""
    present = step_of(now)
    found: int | None = None
    for step in range(present - DRIFT, present + DRIFT + 1):
        if hmac.compare_digest(code_at(secret, step).encode(), code.encode("utf-8", "replace")) and step > last:
            found = step
    return found


def uri(secret: str, account: str, issuer: str) -> str:
    """The text of the QR code that authenticator apps read."""
    label = f"{quote(issuer, safe='')}:{quote(account, safe='@')}"
    return (
        f"otpauth://totp/{label}?secret={secret}&issuer={quote(issuer, safe='')}"
        f"&algorithm=SHA1&digits={DIGITS}&period={PERIOD}"
    )
