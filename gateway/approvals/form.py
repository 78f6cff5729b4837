"""A held call as it is stored, shown and sent: one canonical form, sealed at rest, and what people are shown of it.

The form is the call: org, agent, tool, the tool's pin, arguments, policy version. What an approver sees is made from
the stored form and nothing else; what is sent later is the same form opened again, its digest checked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import unicodedata
from typing import Any, Final

import msgspec

from ...catalog.approvals import Approval, Change
from ...catalog.errors import RecordTooLarge, SecretError, ValidationFailed
from ..vault import Aad, Vault
from .canonical import NotCanonical, canonical, digest_of

MAX_FORM: Final = 1024 * 1024
"""Bytes of a canonical form. What is larger cannot be approved, since nobody could look at it."""

MAX_RESULT: Final = 1024 * 1024
MAX_CHANGES: Final = 200


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """`name` is the tool's own name at its upstream, `tool` the id that rules speak of."""

    org: str
    agent: str
    upstream: str
    kind: str
    name: str
    tool: str
    pin: str
    policy: str
    policy_version: int
    arguments: dict[str, Any]
    v: int = 1


def not_canonical(error: ValueError) -> ValidationFailed:
    sentence = f"This cannot be held for approval: {error}."
    return ValidationFailed([("/arguments", "not_canonical", sentence)], sentence)


def write(form: Form) -> bytes:
    """The canonical bytes of a form. ValidationFailed when it has none, RecordTooLarge."""
    try:
        data = canonical(msgspec.structs.asdict(form))
    except NotCanonical as error:
        raise not_canonical(error) from None
    if len(data) > MAX_FORM:
        raise RecordTooLarge(f"A call held for approval has at most {MAX_FORM} bytes.", limit=MAX_FORM)
    return data


def twin_of(org: str, agent: str, door: str, tool: str, arguments: dict[str, Any]) -> str:
    """What tells the same call made again: no pin and no policy version, which may change in between."""
    return digest_of(canonical([org, agent, door, tool, arguments]))


def aad(org: str, approval_id: str, column: str) -> Aad:
    return (org, "approval", column, approval_id)


def seal(vault: Vault, data: bytes, org: str, approval_id: str, column: str) -> str:
    return vault.seal(data.decode(), aad(org, approval_id, column))


def read(vault: Vault, approval: Approval, *, asked: bool = False) -> Form:
    """The form of a held call: as it stands now, or as the agent `asked`. SecretError when it was tampered with."""
    edited = asked and approval.sealed_asked
    column, sealed, digest = (
        ("sealed_asked", approval.sealed_asked, approval.asked_digest)
        if edited
        else ("sealed", approval.sealed, approval.digest)
    )
    data = vault.open(sealed, aad(approval.org, approval.id, column)).encode()
    if digest_of(data) != digest:
        raise SecretError("A held call is not what was approved: its digest differs.")
    return msgspec.json.decode(data, type=Form)


# -- what people are shown ---------------------------------------------------------------------------------------
OPEN, CLOSE = "⟦", "⟧"
"""Stand around a drawn character. Themselves drawn where a text has them, so that drawing can be undone."""

_DRAWN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that show nothing, or change how what follows is shown."""

_BLANK: Final = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5\u180b\u180c\u180d\u180f")
"""Letters and marks that look like nothing."""


def drawn(text: str) -> str:
    """A text with everything invisible written out: `⟦U+202E RIGHT-TO-LEFT OVERRIDE⟧`. Line feeds and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_draw, text))


def _draw(char: str) -> str:
    if char in "\n\t":
        return char
    selector = "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
    odd_space = unicodedata.category(char) == "Zs" and char != " "
    if char in {OPEN, CLOSE} or char in _BLANK or selector or odd_space or unicodedata.category(char) in _DRAWN:
        name = unicodedata.name(char, "")
        return f"{OPEN}U+{ord(char):04X}{' ' + name if name else ''}{CLOSE}"
    return char


def shown(value: Any) -> Any:
    """A JSON value with every text drawn, keys included. Nothing is left out or cut."""
    if isinstance(value, str):
        return drawn(value)
    if isinstance(value, dict):
        return {drawn(key): shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    return value


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """An attachment in the arguments: `sha256` is of its decoded content. `path` is a JSON Pointer."""

    path: str
    name: str
    type: str
    size: int
    sha256: str


_CONTENT: Final = ("content", "data", "base64", "content_base64", "blob")
_NAMES: Final = ("filename", "name", "fileName")
_TYPES: Final = ("contentType", "content_type", "mimeType", "type")


def attachments(arguments: dict[str, Any]) -> list[Attachment]:
    """Everything under a key `attachments`, with size and hash of what it holds."""
    found: list[Attachment] = []
    _look(arguments, "", found)
    return found


def _look(value: Any, path: str, found: list[Attachment]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            where = f"{path}/{_token(key)}"
            if key == "attachments" and isinstance(item, list):
                found += [
                    _attachment(entry, f"{where}/{place}")
                    for place, entry in enumerate(item)
                    if isinstance(entry, dict)
                ]
            else:
                _look(item, where, found)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _look(item, f"{path}/{place}", found)


def _attachment(entry: dict[str, Any], path: str) -> Attachment:
    content = next((entry[key] for key in _CONTENT if isinstance(entry.get(key), str)), "")
    data = content.encode()
    if entry.get("encoding", "base64") == "base64":
        try:
            data = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            data = content.encode()

    def first(keys: tuple[str, ...]) -> str:
        return next((drawn(entry[key]) for key in keys if isinstance(entry.get(key), str)), "")

    return Attachment(
        path=path, name=first(_NAMES), type=first(_TYPES), size=len(data), sha256=hashlib.sha256(data).hexdigest()
    )


# -- differences -------------------------------------------------------------------------------------------------
class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One place where two versions of the arguments differ; UNSET where there is nothing."""

    path: str
    before: Any = msgspec.UNSET
    after: Any = msgspec.UNSET


def differences(before: Any, after: Any, path: str = "") -> list[Difference]:
    """Where two JSON values differ, as deep down as can be said."""
    if isinstance(before, dict) and isinstance(after, dict):
        found: list[Difference] = []
        for key in sorted(before.keys() | after.keys()):
            where = f"{path}/{_token(key)}"
            if key not in after:
                found.append(Difference(path=where, before=before[key]))
            elif key not in before:
                found.append(Difference(path=where, after=after[key]))
            else:
                found += differences(before[key], after[key], where)
        return found
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [one for place, (old, new) in pairs for one in differences(old, new, f"{path}/{place}")]
    return [] if canonical(before) == canonical(after) else [Difference(path=path, before=before, after=after)]


def recorded(found: list[Difference]) -> tuple[Change, ...]:
    """Differences as a decision keeps them: places and digests; the values are in the sealed forms."""

    def digest(value: Any) -> str:
        return "" if value is msgspec.UNSET else digest_of(canonical(value))

    return tuple(
        Change(path=one.path, before=digest(one.before), after=digest(one.after)) for one in found[:MAX_CHANGES]
    )


def _token(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
