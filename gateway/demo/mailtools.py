"""What the demo's mail server offers, as tables: five tools, two resources, a template, a prompt.

A tool's arguments are checked against its own schema, strictly: unknown names, wrong types and odd characters are
faults that the model is told of, and nothing is done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from .mailbox import ID, Mailbox, MailFault

Args = dict[str, Any]
Schema = dict[str, Any]

MAIL_ID: Final[Schema] = {
    "type": "string", "pattern": f"^{ID.pattern}$", "maxLength": 64,
    "description": "The id of a mail, as the lists give it.",
}  # fmt: skip
ADDRESS: Final[Schema] = {
    "type": "string", "maxLength": 254,
    "pattern": r"^[A-Za-z0-9._%+-]{1,64}@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}$",
    "description": "One address, without a name: dana@customer.test",
}  # fmt: skip
SUBJECT: Final[Schema] = {
    "type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[^\x00-\x1f\x7f]*$", "description": "One line.",
}  # fmt: skip
TEXT: Final[Schema] = {"type": "string", "maxLength": 100_000, "description": "The mail itself, plain text."}
QUERY: Final[Schema] = {
    "type": "string", "minLength": 1, "maxLength": 200, "description": "Words to be found as they are, case aside.",
}  # fmt: skip


def takes(**properties: Schema) -> Schema:
    """A schema of arguments: all of them needed, and no others."""
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


def gives(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


STRING: Final[Schema] = {"type": "string"}
HEAD: Final[Schema] = gives(**dict.fromkeys(("id", "from", "to", "subject", "date"), STRING))
MAILS: Final[Schema] = gives(emails={"type": "array", "items": HEAD})
MAIL: Final[Schema] = gives(**dict.fromkeys(("id", "from", "to", "subject", "date", "text"), STRING))


class Tool(NamedTuple):
    """`run` answers with what the tool's `output` schema describes. Raises MailFault."""

    name: str
    title: str
    description: str
    input: Schema
    output: Schema
    hints: dict[str, bool]
    run: Callable[[Mailbox, Args], dict[str, Any]]


READS: Final = {"readOnlyHint": True, "openWorldHint": False}


def _delete(mailbox: Mailbox, args: Args) -> dict[str, Any]:
    mailbox.delete(args["id"])
    return {"deleted": args["id"]}


TOOLS: Final = (
    Tool(
        "list_inbox", "List the inbox", "List all mails of the inbox: id, sender, subject, date.",
        takes(), MAILS, READS, lambda mailbox, args: {"emails": mailbox.overview()},
    ),
    Tool(
        "read_email", "Read a mail", "Read one mail of the inbox or the outbox.",
        takes(id=MAIL_ID), MAIL, READS, lambda mailbox, args: mailbox.read(args["id"]),
    ),
    Tool(
        "search_emails", "Search the inbox", "Find mails of the inbox by words in sender, subject or text.",
        takes(query=QUERY), MAILS, READS, lambda mailbox, args: {"emails": mailbox.search(args["query"])},
    ),
    Tool(
        "send_email", "Send a mail", "Send a plain-text mail to one address.",
        takes(to=ADDRESS, subject=SUBJECT, text=TEXT), gives(id=STRING, path=STRING),
        {"readOnlyHint": False, "destructiveHint": False, "idempotentHint": False, "openWorldHint": True},
        lambda mailbox, args: mailbox.send(args["to"], args["subject"], args["text"]),
    ),
    Tool(
        "delete_email", "Delete a mail", "Delete one mail of the inbox. It cannot be brought back.",
        takes(id=MAIL_ID), gives(deleted=STRING),
        {"readOnlyHint": False, "destructiveHint": True, "idempotentHint": True, "openWorldHint": False}, _delete,
    ),
)  # fmt: skip
BY_NAME: Final = {tool.name: tool for tool in TOOLS}

RESOURCES: Final = {
    "mail://inbox": ("inbox", "The mails of the inbox, without their text."),
    "mail://outbox": ("outbox", "The mails that were sent, without their text."),
}
"""uri -> (name, description). The name is the box."""

MESSAGE_URI: Final = "mail://message/"

PROMPT: Final = {
    "name": "draft_reply",
    "title": "Draft a reply",
    "description": "Draft a reply to a mail, without sending it.",
    "arguments": [{"name": "id", "description": "The id of the mail.", "required": True}],
}


def describe(tool: Tool) -> dict[str, Any]:
    """A tool as `tools/list` shows it."""
    return {
        "name": tool.name, "title": tool.title, "description": tool.description, "inputSchema": tool.input,
        "outputSchema": tool.output, "annotations": {"title": tool.title, **tool.hints},
    }  # fmt: skip


def faults(schema: Schema, args: Args) -> list[str]:
    """Everything that is wrong with `args`, one sentence each. Knows the few words of JSON Schema used above."""
    properties = schema["properties"]
    found = [f"{name!r} is missing." for name in schema["required"] if name not in args]
    found += [f"{name!r} is not an argument of this tool." for name in args if name not in properties]
    for name, rule in properties.items():
        if name in args:
            fault = _fault(rule, args[name])
            found += [f"{name!r} {fault}."] if fault else []
    return found


def _fault(rule: Schema, value: Any) -> str:
    if not isinstance(value, str):
        return "must be a string"
    if len(value) < rule.get("minLength", 0):
        return "must not be empty"
    if len(value) > rule["maxLength"]:
        return f"may have at most {rule['maxLength']} characters"
    pattern = rule.get("pattern")
    if pattern is not None and not re.fullmatch(pattern.removeprefix("^").removesuffix("$"), value):
        return f"is not valid ({rule['description']})"
    return ""


def call(mailbox: Mailbox, tool: Tool, args: Args) -> dict[str, Any]:
    """A `tools/call` result; a fault of any kind is one with `isError`, which the model reads and can act on."""
    wrong = faults(tool.input, args)
    if wrong:
        return _told(" ".join(wrong), is_error=True)
    try:
        answer = tool.run(mailbox, args)
    except MailFault as fault:
        return _told(str(fault), is_error=True)
    except OSError as error:
        return _told(f"The mail folder could not be used: {error.strerror}.", is_error=True)
    return _told(json.dumps(answer, ensure_ascii=False)) | {"structuredContent": answer}


def _told(text: str, *, is_error: bool = False) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "isError": is_error}


def resource_text(mailbox: Mailbox, uri: str) -> tuple[str, str]:
    """Media type and text of a resource. Raises MailFault when there is none, OSError."""
    if uri in RESOURCES:
        return "application/json", json.dumps(mailbox.overview(RESOURCES[uri][0]), ensure_ascii=False)
    if uri.startswith(MESSAGE_URI):
        return "text/plain", mailbox.read(uri.removeprefix(MESSAGE_URI))["text"]
    raise MailFault(f"There is no resource {uri!r}.")


def prompt_text(mailbox: Mailbox, mail_id: str) -> str:
    """Raises MailFault, OSError."""
    mail = mailbox.read(mail_id)
    return (
        f"Draft a short, friendly reply to this mail. Do not send it.\n\nFrom: {mail['from']}\n"
        f"Subject: {mail['subject']}\n\n{mail['text']}"
    )
