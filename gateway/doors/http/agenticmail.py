"""What an AgenticMail body may hold, and what rules see of it.

AgenticMail hands fields to a mail library that opens local files for objects (`{"path": "/etc/passwd"}`) where texts
belong, and that reads addresses more generously than a rule could. So every field is held to its type, and addresses
are read by the strict grammar and forwarded in the one spelling that was judged.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from ....catalog.errors import FieldError, ValidationFailed
from ....catalog.routes import Route
from ....policies.addresses import BadAddress, canonical

ADDRESSES: Final = ("to", "cc", "bcc", "replyTo")
RECIPIENTS: Final = ("to", "cc", "bcc")
SEND: Final = ("POST", "/mail/send")
DRAFT_SEND: Final = ("POST", "/drafts/{id}/send")
TEMPLATE_SEND: Final = ("POST", "/templates/{id}/send")

_MESSAGE: Final = frozenset({
    "to", "cc", "bcc", "replyTo", "subject", "text", "html", "attachments", "inReplyTo", "references", "wake",
    "allowSensitive",
})  # fmt: skip
_MAIL: Final[dict[tuple[str, str], frozenset[str]]] = {
    SEND: _MESSAGE,
    ("POST", "/drafts"): _MESSAGE,
    ("PUT", "/drafts/{id}"): _MESSAGE | {"id"},
    DRAFT_SEND: frozenset({"id", "wake"}),
    ("POST", "/scheduled"): _MESSAGE | {"sendAt"},
    TEMPLATE_SEND: frozenset({"id", "to", "cc", "bcc", "variables", "wake"}),
    ("POST", "/gateway/test"): frozenset({"to"}),
}
"""Routes whose arguments become a mail -> the documented ones. Others (raw, envelope, headers ...) are refused."""

_TEXTS: Final = frozenset({"subject", "text", "html", "inReplyTo", "sendAt"})
_ATTACHMENT: Final = frozenset({"filename", "contentType", "encoding", "content"})
_ENCODINGS: Final = frozenset({"base64", "utf-8", "utf8"})
STRUCTURED: Final = frozenset({
    "metadata", "variables", "conditions", "actions", "payload", "outputSchema", "result", "policy", "columns",
    "column", "rows", "where", "set", "operations", "params", "purchase", "summary",
})  # fmt: skip
"""Fields that are objects, or lists of them. Everywhere else an object would be read as something else than data."""

DERIVED: Final = frozenset({"recipients"})


def shape(route: Route, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with addresses in canonical form. Raises ValidationFailed with every fault."""
    faults: list[FieldError] = []
    allowed = _MAIL.get((route.method, route.path))
    shaped = dict(arguments)
    for name, value in arguments.items():
        if name in DERIVED or (allowed is not None and name not in allowed):
            faults.append((f"/{name}", "unknown", f"{name} is no documented argument of this route."))
        elif allowed is not None and name in ADDRESSES:
            shaped[name] = _addresses(name, value, faults)
        elif allowed is not None and name == "attachments":
            _attachments(value, faults)
        elif allowed is not None and name in _TEXTS:
            if not isinstance(value, str | None):
                faults.append((f"/{name}", "type", f"{name} must be a string."))
        elif name not in STRUCTURED and not _plain(value):
            faults.append((f"/{name}", "type", f"{name} must not hold an object."))
    if faults:
        raise ValidationFailed(faults)
    return shaped


def judged(route: Route, shaped: dict[str, Any]) -> dict[str, Any]:
    """What rules see: the arguments, `recipients` (every address that mail goes to, plain, each once), and the size of
    each attachment in bytes."""
    if (route.method, route.path) not in _MAIL:
        return shaped
    seen = dict(shaped)
    addresses: dict[str, None] = {}
    for name in RECIPIENTS:
        value = shaped.get(name)
        for text in [value] if isinstance(value, str) else value or ():
            addresses.update(dict.fromkeys(address for _, address in canonical(text)))
    seen["recipients"] = list(addresses)
    if shaped.get("attachments"):
        seen["attachments"] = [{**part, "size": _size(part)} for part in shaped["attachments"]]
    return seen


def _plain(value: Any) -> bool:
    if isinstance(value, list):
        return not any(isinstance(inner, list | dict) for inner in value)
    return not isinstance(value, dict)


def _addresses(name: str, value: Any, faults: list[FieldError]) -> Any:
    if value is None:
        return None
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        faults.append((f"/{name}", "type", f"{name} must be an address, or a list of them."))
        return value
    try:
        spelt = [", ".join(_spelt(*found) for found in canonical(text)) for text in texts if text or name == "to"]
    except BadAddress as error:
        faults.append((f"/{name}", "address", f"{name} is not what it must be: {error}."))
        return value
    if isinstance(value, str):
        return spelt[0] if spelt else value
    return spelt


def _spelt(name: str, address: str) -> str:
    return f'"{name}" <{address}>' if name else address


def _attachments(value: Any, faults: list[FieldError]) -> None:
    if value is None:
        return
    if not isinstance(value, list):
        faults.append(("/attachments", "type", "attachments must be a list."))
        return
    for place, part in enumerate(value):
        at = f"/attachments/{place}"
        if not isinstance(part, dict) or not all(isinstance(inner, str) for inner in part.values()):
            faults.append((at, "type", "An attachment is an object whose members are strings."))
            continue
        faults += [
            (f"{at}/{name}", "unknown", f"{name} is no documented member of an attachment.")
            for name in sorted(part.keys() - _ATTACHMENT)
        ]
        if "content" not in part:
            faults.append((f"{at}/content", "required", "content is missing."))
        if part.get("encoding", "utf-8") not in _ENCODINGS:
            faults.append((f"{at}/encoding", "invalid", "The encoding is base64 or utf-8."))
        elif _size(part) < 0:
            faults.append((f"{at}/content", "invalid", "The content is not base64."))
        if not part.get("filename", "x").isprintable() or not part.get("contentType", "x").isprintable():
            faults.append((at, "invalid", "filename and contentType must be printable."))


def _size(part: dict[str, Any]) -> int:
    """Bytes of an attachment's content; -1 when it cannot be decoded."""
    content: str = part.get("content", "")
    if part.get("encoding") != "base64":
        return len(content.encode())
    try:
        return len(base64.b64decode("".join(content.split()), validate=True))
    except (binascii.Error, ValueError):
        return -1


def complete(route: Route, shaped: dict[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
    """The arguments with what AgenticMail keeps of the message, held to the same rules as what an agent writes. Raises
    ValidationFailed: a draft that was made past the gateway may hold anything."""
    if not sent:
        return shaped
    faults: list[FieldError] = []
    whole = {**sent, **shaped}
    for name in ADDRESSES:
        if name in sent and name not in shaped:
            whole[name] = _addresses(name, sent[name], faults)
    faults += [
        (f"/{name}", "type", f"{name} must be a string.")
        for name in sorted(_TEXTS & sent.keys())
        if not isinstance(sent[name], str)
    ]
    if "attachments" in sent:
        _attachments(sent["attachments"], faults)
    if faults:
        raise ValidationFailed(faults)
    return whole
