"""One child, many callers: JSON-RPC ids and what is tied to them, rewritten and restored. Pure functions on bytes.

Only the values that must change are written anew; all others, the caller's own id too, stay byte for byte as they were
(numbers keep their spelling, objects their order).
"""

from __future__ import annotations

from typing import Final

import msgspec

from ...catalog import errors

Fields = dict[str, msgspec.Raw]

SUBSCRIPTION_ID: Final = "io.modelcontextprotocol/subscriptionId"
"""In `_meta` of what a `subscriptions/listen` yields (revision 2026-07-28): the id of the request that listens."""

LISTEN: Final = "subscriptions/listen"
PROGRESS: Final = "notifications/progress"

_fields: Final = msgspec.json.Decoder(Fields).decode
_text: Final = msgspec.json.Decoder(str).decode
_number: Final = msgspec.json.Decoder(int).decode
_batch: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_id: Final = msgspec.json.Decoder(str | int).decode
_encode: Final = msgspec.json.Encoder().encode


class Outgoing(msgspec.Struct, frozen=True):
    """A request under its new id: what to write, and what was replaced. `token` is None without a progress token."""

    line: bytes
    method: str
    id: msgspec.Raw
    token: msgspec.Raw | None


def readdress(message: bytes, own: int) -> Outgoing:
    """`message` with the id `own`, and `own` for its progress token if it has one. Raises BadRequest."""
    try:
        fields = _fields(message)
        method = _text(fields["method"])
        original = fields["id"]
        _id(original)
        params = _fields(fields["params"]) if "params" in fields else {}
        meta = _fields(params["_meta"]) if "_meta" in params else {}
        token = meta.get("progressToken")
        if token is not None:
            _id(token)
    except (msgspec.MsgspecError, KeyError, UnicodeError, RecursionError) as error:
        raise errors.BadRequest(f"This is not a JSON-RPC request: {error}") from None
    fields["id"] = _raw(own)
    if token is not None:
        meta["progressToken"] = _raw(own)
        params["_meta"] = msgspec.Raw(_encode(meta))
        fields["params"] = msgspec.Raw(_encode(params))
    return Outgoing(_encode(fields), method, msgspec.Raw(bytes(original)), _copy(token))


def split(line: bytes) -> list[Fields]:
    """The messages on a line: one, or a batch (revision 2025-03-26). Raises msgspec.MsgspecError."""
    if line.lstrip().startswith(b"["):
        return [_fields(part) for part in _batch(line)]
    return [_fields(line)]


def join(fields: Fields) -> bytes:
    return _encode(fields)


def own_id(value: msgspec.Raw | None) -> int | None:
    """The number under which one of our requests runs, or None for any other value."""
    try:
        return _number(value) if value is not None else None
    except msgspec.MsgspecError:
        return None


def method_of(fields: Fields) -> str:
    """The method; "" for a response. Raises msgspec.MsgspecError when the method is no string."""
    method = fields.get("method")
    return _text(method) if method is not None else ""


def subscription_of(holder: Fields) -> int | None:
    """The listening request that `holder` (params of a notification, or a result) belongs to."""
    if "_meta" not in holder:
        return None
    return own_id(_fields(holder["_meta"]).get(SUBSCRIPTION_ID))


def owner_of(fields: Fields, method: str) -> int | None:
    """The request that a notification belongs to: by its progress token, or as an event of a subscription."""
    if "params" not in fields:
        return None
    params = _fields(fields["params"])
    return own_id(params.get("progressToken")) if method == PROGRESS else subscription_of(params)


def restore_notification(fields: Fields, method: str, sent: Outgoing) -> bytes:
    """As its caller must see it: with the caller's own token, or own id."""
    params = _fields(fields["params"])
    if method == PROGRESS:
        if sent.token is not None:
            params["progressToken"] = sent.token
    else:
        _restore_subscription(params, sent.id)
    fields["params"] = msgspec.Raw(_encode(params))
    return _encode(fields)


def restore_response(fields: Fields, sent: Outgoing) -> bytes:
    """As its caller must see it: with the caller's own id, in the same bytes."""
    fields["id"] = sent.id
    if sent.method == LISTEN and "result" in fields:
        result = _fields(fields["result"])
        if subscription_of(result) is not None:
            _restore_subscription(result, sent.id)
            fields["result"] = msgspec.Raw(_encode(result))
    return _encode(fields)


def _restore_subscription(holder: Fields, original: msgspec.Raw) -> None:
    meta = _fields(holder["_meta"])
    meta[SUBSCRIPTION_ID] = original
    holder["_meta"] = msgspec.Raw(_encode(meta))


def _raw(number: int) -> msgspec.Raw:
    return msgspec.Raw(b"%d" % number)


def _copy(value: msgspec.Raw | None) -> msgspec.Raw | None:
    """Without the message it was cut from, which it would keep in memory."""
    return msgspec.Raw(bytes(value)) if value is not None else None
