"""Whose domain a message goes to: e-mail addresses read by a strict grammar. What mail programs read differently is
refused, never guessed: a guess here is a way around the rule.

Accepted: `a@b.c`; `Name <a@b.c>`; `"Last, First" <a@b.c>`; several, separated by commas. Refused: comments, quoted
local parts, groups, source routes (`a%b@c`, `b!a@c`), address literals, line breaks, display names that hold an
address, empty entries, local parts and domains outside ASCII unless the domain is a well-formed international name
that survives the way to its ASCII form and back unchanged (full-width letters, ideographic dots and the like do
not) and mixes no alphabets that look alike.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MAX_TEXT: Final = 65_536
MAX_ADDRESS: Final = 320
"""64 for the local part, 255 for the domain and the sign between (RFC 5321 section 4.5.3.1)."""

_CONFUSABLE: Final = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "COPTIC", "CHEROKEE"})
"""Alphabets with letters that look alike: one label may use one of them."""

_LOCAL: Final = re.compile(r"[A-Za-z0-9_+='&~-]+(?:\.[A-Za-z0-9_+='&~-]+)*")
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NAME: Final = re.compile(r"""[^<>@"(),:;\[\]\\]*|"[^<>@"\\]*" *""")


class BadAddress(ValueError):
    """This is no address by the strict grammar; the message says why."""


def domain_of(domain: str) -> str:
    """The canonical form of a domain: lower-case ASCII (A-labels), no trailing dot. Raises BadAddress."""
    if domain.endswith("."):
        domain = domain[:-1]
    lowered = domain.lower()
    if not lowered.isascii():
        lowered = _to_ascii(lowered)
    labels = lowered.split(".")
    if len(lowered) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadAddress("its domain is not a host name")
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        raise BadAddress("its domain is a number, not a host name")
    for label in labels:
        if label.startswith("xn--"):
            _check_punycode(label)
    return lowered


def _to_ascii(domain: str) -> str:
    try:
        ascii_form = domain.encode("idna").decode("ascii")
        if ascii_form.encode("ascii").decode("idna") != domain:
            raise BadAddress("its domain has look-alike characters")
    except UnicodeError:
        raise BadAddress("its domain is not a valid international name") from None
    return ascii_form.lower()


def _check_punycode(label: str) -> None:
    """An A-label must be the one and only spelling of what it stands for: `xn--` over plain ASCII is a disguise."""
    try:
        decoded = label.encode("ascii").decode("idna")
        canonical = not decoded.isascii() and decoded.encode("idna").decode("ascii") == label
    except UnicodeError:
        canonical = False
    if not canonical:
        raise BadAddress("its domain has a malformed xn-- label")
    scripts = {unicodedata.name(character, "").partition(" ")[0] for character in decoded if character.isalpha()}
    if len(scripts & _CONFUSABLE) > 1:
        raise BadAddress("its domain has look-alike characters of several alphabets")


def domains(text: str) -> list[str]:
    """The canonical domain of every address in a string. Raises BadAddress; a string without any address is one,
    too."""
    if len(text) > MAX_TEXT:
        raise BadAddress("the list of addresses is too long")
    if not text.isprintable():
        raise BadAddress("it has control characters or line breaks")
    return [_one(part) for part in _split(text)]


def canonical(text: str) -> list[tuple[str, str]]:
    """(display name, address) of every address in a string, the domain in canonical form; "" for no name. Raises
    BadAddress."""
    if len(text) > MAX_TEXT:
        raise BadAddress("the list of addresses is too long")
    if not text.isprintable():
        raise BadAddress("it has control characters or line breaks")
    found: list[tuple[str, str]] = []
    for part in _split(text):
        domain = _one(part)
        name, opened, address = part.strip(" ").removesuffix(">").rpartition("<")
        if not opened:
            name, address = "", part.strip(" ")
        name = name.strip(" ").strip('"').strip(" ")
        if "=?" in name:
            raise BadAddress("its display name is an encoded word")
        found.append((name, f"{address.rpartition('@')[0]}@{domain}"))
    return found


def _split(text: str) -> list[str]:
    """At the commas outside quotes."""
    if '"' not in text:
        return text.split(",")
    parts, start, quoted = [], 0, False
    for at, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            parts.append(text[start:at])
            start = at + 1
    if quoted:
        raise BadAddress("a quotation mark is not closed")
    return [*parts, text[start:]]


def _one(text: str) -> str:
    text = text.strip(" ")
    if text.endswith(">"):
        name, opened, text = text[:-1].rpartition("<")
        if not opened or _NAME.fullmatch(name) is None:
            raise BadAddress("its display name holds characters that mail programs read differently")
    local, at, domain = text.rpartition("@")
    if not at or len(text) > MAX_ADDRESS or len(local) > 64 or _LOCAL.fullmatch(local) is None:
        raise BadAddress("it is not one plain e-mail address")
    return domain_of(domain)
