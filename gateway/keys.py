"""API keys: what they look like, and what a key may give to a key it makes.

A key is `ek_`, 43 characters of base62 (256 random bits) and 6 characters of base62 that check them (CRC-32), so that
scanners for leaked keys can tell one from noise without asking us. Only the SHA-256 of all of it is stored: 256 random
bits cannot be guessed, so a slow hash would protect nothing.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import zlib
from typing import Final

import msgspec

from ..catalog.calls import Person, Principal
from ..catalog.errors import FieldError, Forbidden, ValidationFailed
from ..catalog.records import ApiKey, KeyKind
from . import scopes as scope_table

PREFIX: Final = "ek_"
ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RANDOM_CHARS: Final = 43
"""62 ** 43 > 2 ** 256."""

CHECK_CHARS: Final = 6
"""62 ** 6 > 2 ** 32."""

SHOWN_PREFIX: Final = 11
"""Characters of a key that are kept in clear, `ek_` among them: enough to find it, 8 of 43 random ones."""

DEFAULT_DAYS: Final = 90
MAX_NETWORKS: Final = 50


class KeySpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A key that is wanted. `expires_at` in milliseconds, 0: never. An agent's key needs no scopes: it has its one."""

    kind: KeyKind = "agent"
    agent_id: str = ""
    name: str = ""
    scopes: tuple[str, ...] = ()
    allowed_ips: tuple[str, ...] = ()
    expires_at: int = 0


def new_secret() -> str:
    """A new key in clear."""
    body = _base62(secrets.randbits(256), RANDOM_CHARS)
    return f"{PREFIX}{body}{_check(body)}"


def well_formed(key: str) -> bool:
    """Whether a text looks like a key of ours: prefix, length, alphabet, check. It may still be unknown or revoked."""
    body = key[len(PREFIX) : -CHECK_CHARS]
    return (
        key.startswith(PREFIX)
        and len(key) == len(PREFIX) + RANDOM_CHARS + CHECK_CHARS
        and all(char in ALPHABET for char in body)
        and _check(body) == key[-CHECK_CHARS:]
    )


def digest_of(key: str) -> str:
    """What is stored of a key: SHA-256, hex."""
    return hashlib.sha256(key.encode()).hexdigest()


MIN_FOREIGN: Final = 16
"""Characters that a foreign key needs at least: a shorter one could be guessed from its digest."""


def foreign_digest(key: str) -> str:
    """What is stored of a key of another product that stands for an agent here: SHA-256 in hex, of another domain than
    `digest_of`, so that the key opens only the door that looks for such keys."""
    return hashlib.sha256(b"foreign-key\0" + key.encode("utf-8", "replace")).hexdigest()


def _base62(number: int, width: int) -> str:
    chars = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        chars.append(ALPHABET[digit])
    return "".join(reversed(chars))


def _check(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), CHECK_CHARS)


# -- what may be asked for ---------------------------------------------------------------------------------------
def checked(spec: KeySpec, now: int) -> KeySpec:
    """The spec with its networks in canonical form and an agent's scope filled in. ValidationFailed with all faults."""
    faults: list[FieldError] = []
    if len(spec.name) > 128 or not (spec.name.isprintable()):
        faults.append(("/name", "invalid", "A name has at most 128 printable characters."))
    if spec.expires_at and spec.expires_at <= now:
        faults.append(("/expires_at", "past", "This moment has passed; the key would never work."))
    faults += _scope_faults(spec)
    networks = _networks(spec.allowed_ips, faults)
    if faults:
        raise ValidationFailed(faults)
    scopes = (scope_table.CALL,) if spec.kind == "agent" else tuple(dict.fromkeys(spec.scopes))
    return msgspec.structs.replace(spec, scopes=scopes, allowed_ips=networks)


def _scope_faults(spec: KeySpec) -> list[FieldError]:
    if spec.kind == "agent":
        if any(scope != scope_table.CALL for scope in spec.scopes):
            return [("/scopes", "not_for_agents", f"An agent's key holds {scope_table.CALL} and nothing else.")]
        return [] if spec.agent_id else [("/agent_id", "required", "Say which agent the key is for.")]
    faults: list[FieldError] = [
        (f"/scopes/{place}", "unknown_scope", f"There is no scope {scope!r}.")
        for place, scope in enumerate(spec.scopes)
        if scope not in scope_table.SCOPES
    ]
    if not spec.scopes:
        faults.append(("/scopes", "required", "A program's key needs one scope or more."))
    if scope_table.CALL in spec.scopes:
        faults.append(("/scopes", "not_for_programs", "Calls are made with keys that are bound to an agent."))
    if spec.agent_id:
        faults.append(("/agent_id", "not_for_programs", "Only an agent's key names an agent."))
    return faults


def _networks(texts: tuple[str, ...], faults: list[FieldError]) -> tuple[str, ...]:
    if len(texts) > MAX_NETWORKS:
        faults.append(("/allowed_ips", "too_long", f"A key names at most {MAX_NETWORKS} networks."))
        return ()
    found: list[str] = []
    for place, text in enumerate(texts):
        try:
            found.append(str(ipaddress.ip_network(text, strict=False)))
        except ValueError:
            faults.append((f"/allowed_ips/{place}", "invalid", f"{text!r} is no IP address or network (CIDR)."))
    return tuple(found)


# -- what a key may give away ------------------------------------------------------------------------------------
def narrowed(spec: KeySpec, minter: Principal) -> KeySpec:
    """The key that `minter` (a key, or a person) may make where it asks for `spec`: what is left open is taken from
    the minter. A person who may make keys also makes agents' keys: an agent does what its profile says, nothing else.

    Raises Forbidden when the minter may not make keys, or `spec` reaches beyond it.
    """
    if minter.agent_id or not scope_table.covers(minter.scopes, scope_table.KEYS_CREATE):
        raise Forbidden("A key makes keys only with the scope keys:create.", scope=scope_table.KEYS_CREATE)
    own = scope_table.delegable(minter.scopes) | ({scope_table.CALL} if isinstance(minter, Person) else set())
    beyond = [scope for scope in spec.scopes if scope not in own]
    if beyond:
        raise Forbidden("A key cannot give away scopes it does not hold, nor keys:create or *.", scopes=beyond)
    expires_at = spec.expires_at
    if minter.expires_at and not 0 < expires_at <= minter.expires_at:
        if expires_at:
            raise Forbidden("A key cannot make one that outlives it.", expires_at=minter.expires_at)
        expires_at = minter.expires_at
    allowed = spec.allowed_ips or minter.allowed_ips
    if minter.allowed_ips and not all(_within(network, minter.allowed_ips) for network in allowed):
        raise Forbidden("A key cannot make one that works from more addresses than it does.")
    return msgspec.structs.replace(spec, expires_at=expires_at, allowed_ips=allowed)


def _within(network: str, outer: tuple[str, ...]) -> bool:
    inner = ipaddress.ip_network(network, strict=False)
    for text in outer:
        candidate = ipaddress.ip_network(text, strict=False)
        if isinstance(inner, ipaddress.IPv4Network) and isinstance(candidate, ipaddress.IPv4Network):
            if inner.subnet_of(candidate):
                return True
        elif (
            isinstance(inner, ipaddress.IPv6Network)
            and isinstance(candidate, ipaddress.IPv6Network)
            and inner.subnet_of(candidate)
        ):
            return True
    return False


def to_record(spec: KeySpec, org: str, key_id: str, secret: str, *, created_by: str, now: int) -> ApiKey:
    """The record of a key: its digest and what is shown of it."""
    return ApiKey(
        org=org, id=key_id, created_at=now, updated_at=now, digest=digest_of(secret), kind=spec.kind,
        agent_id=spec.agent_id, name=spec.name, prefix=secret[:SHOWN_PREFIX], last4=secret[-4:], scopes=spec.scopes,
        allowed_ips=spec.allowed_ips, expires_at=spec.expires_at, created_by=created_by,
    )  # fmt: skip
