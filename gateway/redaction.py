"""What of a call's arguments is kept in the journal: their JSON, secrets masked, long values cut.

* A value is masked when the name it stands under says that it is a secret (`password`, `api_key`, `Authorization` ...),
  also in a pair like `{"name": "Authorization", "value": ...}`; and a string when it begins like a credential.
* Strings are cut at `STRING_MAX` characters, the whole at `TEXT_MAX`; arguments above `READ_MAX` bytes are not read.

Names and beginnings are all that is looked at: a password inside a sentence is kept. The digest in the record is of the
arguments as received, so nothing is lost for proof. The usual call has a few plain values under names seen before, and
costs one look-up a name.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from ..catalog.calls import Call

STRING_MAX: Final = 1024
TEXT_MAX: Final = 8192
READ_MAX: Final = 64 * 1024
MASK: Final = "[redacted]"
_DEPTH_MAX: Final = 32
_MEMO_MAX: Final = 4096

_PARTS: Final = (
    "password", "passwd", "passphrase", "passcode", "secret", "token", "apikey", "accesskey", "privatekey",
    "signingkey", "encryptionkey", "authorization", "credential", "cookie", "bearer", "sessionid", "connectionstring",
)  # fmt: skip
_WHOLE: Final = frozenset(("pass", "pwd", "auth", "pin", "otp", "cvv", "cvc", "ssn", "jwt", "iban", "cardnumber"))
_HARMLESS: Final = frozenset(
    ("maxtokens", "maxoutputtokens", "maxcompletiontokens", "tokencount", "tokentype", "pagetoken", "nextpagetoken")
)
_CREDENTIAL: Final = (
    "Bearer ", "bearer ", "Basic ", "basic ", "ek_", "ak_", "sk-", "sk_", "ghp_", "gho_", "github_pat_", "glpat-",
    "xoxb-", "xoxp-", "AKIA", "eyJ", "-----BEGIN",
)  # fmt: skip
_BEGINNINGS: Final = frozenset(start[:3] for start in _CREDENTIAL)
_NOT_A_LETTER: Final = re.compile(r"[^a-z0-9]")

_encode: Final = msgspec.json.Encoder().encode
_plain: set[str] = set()
"""Names that were looked at and are no secret's. Bounded: callers choose names."""


def is_secret(name: str) -> bool:
    """Whether a field of this name holds a secret."""
    bare = _NOT_A_LETTER.sub("", name.lower())
    if bare in _WHOLE:
        return True
    return bare not in _HARMLESS and any(part in bare for part in _PARTS)


def kept_arguments(call: Call) -> str:
    """What the record keeps of a call's arguments. Never raises for what a caller sent."""
    raw = call.raw
    size = len(raw) if type(raw) is bytes else len(memoryview(raw))
    if size > READ_MAX:
        return f"[{size} bytes, not kept]"
    try:
        args = call.args
        # Written anew rather than as received: what is kept is what was looked at (a name may stand there twice).
        text = _encode(args if is_plain(args) else _masked(args, 0)).decode()
    except (ValueError, TypeError, OverflowError, RecursionError):
        # msgspec.DecodeError is a ValueError; an integer beyond 64 bits is read but cannot be written.
        return f"[{size} bytes, not readable]"
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}[+{len(text) - TEXT_MAX} characters]"


def is_plain(args: dict[str, Any]) -> bool:
    """Whether the arguments may be kept as they are, at one look: scalars under known names."""
    plain = _plain
    if "value" in args:  # half of a pair whose other half may name a secret
        return False
    for name, value in args.items():
        if name not in plain:
            return False
        kind = type(value)
        if kind is str:
            if len(value) > STRING_MAX or (value[:3] in _BEGINNINGS and value.startswith(_CREDENTIAL)):
                return False
        elif kind is dict or kind is list:
            return False
    return True


def _masked(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        if value.startswith(_CREDENTIAL):
            return MASK
        return value if len(value) <= STRING_MAX else f"{value[:STRING_MAX]}[+{len(value) - STRING_MAX} characters]"
    if isinstance(value, dict | list) and depth >= _DEPTH_MAX:
        return "[too deep]"
    if isinstance(value, list):
        return [_masked(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return _masked_object(value, depth)
    return value


def _masked_object(value: dict[str, Any], depth: int) -> dict[str, Any]:
    named = any(isinstance(value.get(label), str) and is_secret(value[label]) for label in ("name", "key", "header"))
    kept = {}
    for name, item in value.items():
        if _known_plain(name) and not (named and name == "value"):
            kept[name] = _masked(item, depth + 1)
        else:
            kept[name] = MASK
    return kept


def _known_plain(name: str) -> bool:
    if name in _plain:
        return True
    if is_secret(name):
        return False
    if len(_plain) < _MEMO_MAX and len(name) <= 128:
        _plain.add(name)
    return True
