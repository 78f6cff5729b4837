"""What a draft or a template will send: fetched from AgenticMail before the call is judged, and judged as if the agent
had written it into the call."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import quote

import msgspec

from ....catalog.errors import NotFound, UpstreamProtocol
from ....catalog.routes import Route
from .agenticmail import DRAFT_SEND, TEMPLATE_SEND
from .live import HttpLive, Prepared

LOOK_SECONDS: Final = 5.0
MAX_LOOK: Final = 32 * 1024 * 1024
LOOKS_UP: Final = frozenset({DRAFT_SEND, TEMPLATE_SEND})
_STORED: Final = {
    "to": "to_addr", "cc": "cc", "bcc": "bcc", "subject": "subject", "text": "text_body", "html": "html_body",
    "attachments": "attachments", "inReplyTo": "in_reply_to",
}  # fmt: skip
"""Argument -> the column in which AgenticMail keeps it."""

_VARIABLE: Final = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")


def subject_of(route: Route, arguments: dict[str, Any]) -> str:
    """What must not change between judging and sending: the draft that a request is about, "" for none."""
    return f"draft:{arguments['id']}" if route.path.startswith("/drafts/{id}") and route.method != "GET" else ""


async def contents(live: HttpLive, route: Route, arguments: dict[str, Any], credential: str) -> dict[str, Any]:
    """The message's own fields (to, cc, subject, text, html, attachments ...), empty for routes that carry all.

    Raises NotFound when AgenticMail has no such draft or template for this agent, UpstreamError otherwise.
    """
    place = (route.method, route.path)
    if place == DRAFT_SEND:
        return _message(await _look(live, f"/drafts/{quote(arguments['id'], safe='')}", credential))
    if place == TEMPLATE_SEND:
        listed = (await _look(live, "/templates", credential)).get("templates")
        for entry in listed if isinstance(listed, list) else ():
            if isinstance(entry, dict) and entry.get("id") == arguments["id"]:
                return _rendered(_message(entry), arguments.get("variables"))
        raise NotFound("AgenticMail has no such template for this agent.")
    return {}


async def _look(live: HttpLive, target: str, credential: str) -> dict[str, Any]:
    ready = Prepared(Route("GET", target, "look"), target, b"")
    answer = await live.pool.send(
        live.request(ready, b"Accept: application/json\r\n", credential), b"", timeout=LOOK_SECONDS, replayable=True
    )
    try:
        body = answer.body if answer.body is not None else await answer.read(MAX_LOOK)
    finally:
        answer.close()
    if answer.status == 404:
        raise NotFound("AgenticMail has no such draft or template for this agent.")
    if answer.status != 200:
        raise UpstreamProtocol(
            f"AgenticMail answered {answer.status} when asked what would be sent, so it cannot be judged.",
            status=answer.status,
        )
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise UpstreamProtocol("AgenticMail did not say what would be sent, so it cannot be judged.") from None


def _message(stored: dict[str, Any]) -> dict[str, Any]:
    found = {name: stored[column] for name, column in _STORED.items() if stored.get(column) is not None}
    attachments = found.get("attachments")
    if isinstance(attachments, str):
        try:
            found["attachments"] = msgspec.json.decode(attachments) if attachments else []
        except msgspec.MsgspecError:
            raise UpstreamProtocol("The draft's attachments cannot be read, so they cannot be judged.") from None
    for name in ("to", "cc", "bcc"):  # columns hold one text, or a list as JSON
        value = found.get(name)
        if isinstance(value, str) and value.startswith("["):
            try:
                found[name] = msgspec.json.decode(value)
            except msgspec.MsgspecError:
                raise UpstreamProtocol("The draft's addresses cannot be read, so they cannot be judged.") from None
        if value == "":
            del found[name]
    return found


def _rendered(message: dict[str, Any], variables: Any) -> dict[str, Any]:
    """`{{name}}` filled in. A name that has no value stays as it stands."""
    values = variables if isinstance(variables, dict) else {}

    def fill(match: re.Match[str]) -> str:
        value = values.get(match[1])
        return match[0] if value is None else str(value)

    return {
        name: _VARIABLE.sub(fill, value) if isinstance(value, str) and name in {"subject", "text", "html"} else value
        for name, value in message.items()
    }
