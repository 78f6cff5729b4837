"""What the journal writes of a call, as bytes: its intent before it leaves, its outcome when it has ended.

Most calls of an agent differ from the one before in their id, time and arguments only. A `Draft` holds the rest,
already encoded; what it fills in is byte for byte what encoding the whole `Intent` would give, because objects are
written field by field, in order, without spaces.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final

import msgspec
import structlog

from ..catalog.calls import Call, Verdict
from ..catalog.store import GLOBAL
from .chainverify import Ending, Intent, encode
from .redaction import kept_arguments

ENDING_MAX: Final = 512
"""Bytes of an outcome's frame that are set aside for every open call."""

PLAIN_ENDING: Final = b'{"outcome":"%b","status":200,"duration_us":%d,"upstream_us":%d,"response_bytes":%d%b}'
"""`Ending` with none of its numbers 0, and nothing to add but flags (`FLAGS`)."""

FLAGS: Final = b',"flags":%b'

PLAIN_FLAGS: Final = 60
"""Characters of flags, in ASCII, with which a plain outcome fits its place for certain."""

MAX_DRAFTED: Final = 4096
"""Bytes of arguments up to which a draft is used: the frame then fits, but for the smallest segments."""

MAX_STRINGS: Final = 1024
"""Characters of tool, rule and reason together, for the same reason."""

log = structlog.get_logger(__name__)
_UNSAFE: Final = re.compile(r"[^\w .:/-]", re.ASCII)
_BIG: Final = 2**53


_FILLED: Final = (
    b'%b%b","created_at":%d%b,"at":%d%b,"args_digest":"%b"%b,"request_bytes":%d,"request_id":"%b","trace_id":"%b"}%b'
)


class Draft:
    """The intents of one agent's plain calls of one tool under one verdict, at the transparent door."""

    __slots__ = ("_end", "_line", "_middle", "_start", "verdict")

    def __init__(self, start: bytes, middle: bytes, end: bytes, verdict: Verdict) -> None:
        self._start = start
        self._middle = middle
        self._end = end
        self._line = flag_line(verdict.flags)
        self.verdict = verdict

    @classmethod
    def of(cls, call: Call, verdict: Verdict) -> Draft | None:
        """For the calls that are like this one. None when its strings are too long: such calls are written by
        `intent`."""
        who, tool = call.principal, call.tool
        if len(tool) + len(verdict.reason) + len(verdict.rule) + len(str(verdict.flags)) > MAX_STRINGS:
            return None
        bare = len(encode(Intent("", ""))) - 1
        try:
            start = encode(Intent(who.org or GLOBAL, ""))
            middle = encode(
                Intent("", "", agent=who.agent_id, key=who.key_id, door=call.door, upstream=call.upstream, tool=tool)
            )
            end = encode(
                Intent("", "", effect=verdict.effect, rule=verdict.rule, code=verdict.code, reason=verdict.reason)
            )
        except UnicodeEncodeError:
            return None
        return cls(start[:-2], middle[bare:-1], end[bare:-1], verdict)

    def fill(self, call_id: bytes, at: int, raw: bytes, kept: bytes, request_bytes: int) -> bytes:
        """`at` in microseconds; `raw` the arguments, not empty; `kept` what `quoted` made of those to be kept, or b"".
        The call has no request or trace id but its own."""
        return _FILLED % (
            self._start, call_id, at // 1000, self._middle, at, self._end, sha256(raw).hexdigest().encode(), kept,
            request_bytes, call_id, call_id[-32:], self._line,
        )  # fmt: skip


def flag_line(flags: tuple[str, ...]) -> bytes:
    """What an intent's frame ends in when the verdict has flags: at most `ENDING_MAX` bytes and a line's end."""
    if not flags:
        return b""
    try:
        line = encode(flags)
        if len(line) <= ENDING_MAX:
            return b"\n" + line
    except UnicodeEncodeError:
        log.debug("journal_flags_not_encodable")
    return b"\n" + encode(_fewer(flags))


def quoted(raw: bytes) -> bytes:
    """The arguments, written by our own encoder, as the field that keeps them: JSON in a JSON string."""
    return b',"args":"%b"' % raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def intent(call: Call, verdict: Verdict, request_bytes: int, body_max: int, keep: bool) -> bytes:
    """The bytes of any call's intent, with room in one frame of `body_max` for an outcome and a line of flags.
    `keep`: with its arguments, secrets masked."""
    who, raw, at = call.principal, call.raw, int(call.at * 1e6)
    whole = Intent(
        who.org or GLOBAL, call.id, at // 1000, who.agent_id, who.key_id, call.door, call.upstream, call.tool, at,
        verdict.effect, verdict.rule, verdict.code, verdict.reason, sha256(raw).hexdigest() if raw else "",
        kept_arguments(call) if raw and keep else "", request_bytes, call.request_id, call.trace_id,
    )  # fmt: skip
    try:
        body = encode(whole)
    except (UnicodeEncodeError, OverflowError):
        return _trimmed(whole, body_max)
    return body if len(body) <= body_max - 2 * ENDING_MAX else _trimmed(whole, body_max)


# -- what does not fit -------------------------------------------------------------------------------------------
def ending(whole: Ending) -> bytes:
    """The bytes of an outcome, at most `ENDING_MAX` of them."""
    try:
        body = encode(whole)
        if len(body) <= ENDING_MAX:
            return body
    except (UnicodeEncodeError, OverflowError):
        log.debug("journal_outcome_not_encodable")
    numbers = (whole.status, whole.duration_us, whole.upstream_us, whole.response_bytes)
    status, duration, upstream, size = (max(-_BIG, min(_BIG, number)) for number in numbers)
    return encode(
        Ending(
            _safe(whole.outcome, 16), status, _safe(whole.error, 40), duration, upstream, size, _fewer(whole.flags)
        )
    )  # fmt: skip


def _fewer(flags: tuple[str, ...]) -> tuple[str, ...]:
    return (*(_safe(flag, 24) for flag in flags[:7]), "trimmed")


def _safe(text: str, length: int) -> str:
    return _UNSAFE.sub("?", text[:length])


_FROM_OUTSIDE: Final = ("upstream", "tool", "rule", "code", "reason", "request_id", "trace_id")


def _trimmed(whole: Intent, limit: int) -> bytes:
    """An intent with strings that are too long or no Unicode, made to fit half of `limit` bytes."""
    # A character takes up to 6 bytes in JSON.
    length = min(256, limit // 2 // (len(_FROM_OUTSIDE) * 6))
    texts = {name: getattr(whole, name).encode("utf-8", "backslashreplace").decode()[:length] for name in _FROM_OUTSIDE}
    if whole.args:
        texts["args"] = "[too large, not kept]"
    return encode(msgspec.structs.replace(whole, **texts))
