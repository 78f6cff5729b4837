"""Passwords of people: Argon2id in a thread, a few at a time.

One hash takes 64 MiB and over 100 ms of CPU by design, so it never runs on the event loop, and no more than `at_once`
run together: many sign-ins at once must not become an outage.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from ..catalog.errors import FieldError, ValidationFailed

MIN_LENGTH: Final = 12
MAX_LENGTH: Final = 256
"""Longer ones cost time and add nothing: Argon2 reads all of it."""

GENERATED_BYTES: Final = 18

COMMON: Final = frozenset({
    "123456789012", "1234567890123", "12345678901234", "password1234", "password12345", "passwordpassword",
    "qwertyuiop12", "qwertyuiop123", "qwertyuiopasdf", "adminadminadmin", "administrator", "administrator1",
    "letmeinletmein", "changemechangeme", "iloveyouiloveyou", "correcthorsebatterystaple",
})  # fmt: skip
"""The most guessed ones that are long enough; compared in lower case."""


def generate() -> str:
    """A password of 24 characters with 144 bits of randomness."""
    return secrets.token_urlsafe(GENERATED_BYTES)


def check_strength(password: str, path: str = "/password") -> None:
    """Raises ValidationFailed for a password that is too short, too long or among the first to be guessed."""
    error: FieldError | None = None
    if len(password) < MIN_LENGTH:
        error = (path, "too_short", f"A password has at least {MIN_LENGTH} characters.")
    elif len(password) > MAX_LENGTH:
        error = (path, "too_long", f"A password has at most {MAX_LENGTH} characters.")
    elif password.lower() in COMMON or len(set(password)) < 4:
        error = (path, "too_common", "This password is among the first that are guessed. Choose another.")
    if error is not None:
        raise ValidationFailed([error], error[2])


class Passwords:
    """Hashes and verifies. `hasher` holds the costs; the default is argon2-cffi's (RFC 9106, low-memory profile)."""

    def __init__(self, hasher: PasswordHasher | None = None, at_once: int = 2) -> None:
        self._hasher = hasher or PasswordHasher()
        self._slots = asyncio.Semaphore(at_once)

    async def hash(self, password: str) -> str:
        """The hash in PHC format. ValidationFailed when the password is too weak."""
        check_strength(password)
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def verify(self, hashed: str, password: str) -> bool:
        """Whether the password is the one. False too for an unreadable or empty hash, and beyond `MAX_LENGTH`."""
        if not hashed or len(password) > MAX_LENGTH:
            return False
        async with self._slots:
            return await asyncio.to_thread(self._verify, hashed, password)

    def _verify(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (VerificationError, InvalidHashError):
            return False

    def is_outdated(self, hashed: str) -> bool:
        """True when the hash was made with other costs than today's, and should be made anew at the next sign-in."""
        try:
            return self._hasher.check_needs_rehash(hashed)
        except InvalidHashError:
            return True
