"""The 42 commands of AgenticMail's interactive shell (`/inbox`, `/send`, ...), listed without the slash.

A person types them, with the server's master key behind the prompt; some therefore do more than the agent's tool of
that name: `/agents` also creates accounts and prints their keys, `/pending` also approves held mail, which sends it,
and `/exit` stops the server for everybody. A command that does just what a tool does takes that tool's judgement.
"""

from __future__ import annotations

from typing import Final

from ..calls import Tool
from .entry import SHELL, row_of, twin
from .openclaw import OPENCLAW_TOOLS

_row = row_of(SHELL)
_plugin = {tool.id: tool for tool in OPENCLAW_TOOLS}


def _like(command: str, tool_id: str, description: str) -> Tool:
    return twin(_plugin[tool_id], command, SHELL, description)


_MAIL = ("email-management",)
_PROMPT = ("sessions",)
_ADMIN = ("system-administration",)

_MAIL_COMMANDS = (
    _like("inbox", "agenticmail_inbox", "Show an agent's inbox."),
    _like("sent", "agenticmail_list_folder", "Show sent messages."),
    _like("send", "agenticmail_send", "Send a message as an agent."),
    _like("read", "agenticmail_read", "Read a message by its number."),
    _row("save", "Save attachments", "Write attachments to disk.", _MAIL, "medium", "modifies-files"),
    _like("delete", "agenticmail_delete", "Delete a message by its number."),
    _like("search", "agenticmail_search", "Search messages by keyword."),
    _like("reply", "agenticmail_reply", "Answer a message."),
    _like("forward", "agenticmail_forward", "Send a message on to others."),
    _like("folders", "agenticmail_create_folder", "List, create and browse mail folders."),
    _like("trash", "agenticmail_delete", "Move a message to the trash."),
    _like("archive", "agenticmail_move", "Move a message to the archive."),
    _like("unread", "agenticmail_mark_unread", "Mark a message as unread."),
    _row("thread", "Thread", "Show a conversation from its first message.", _MAIL),
    _like("contacts", "agenticmail_contacts", "List, add and delete contacts."),
    _like("drafts", "agenticmail_drafts", "List, write, delete and send drafts."),
    _like("signature", "agenticmail_signatures", "List, add and delete signatures."),
    _like("templates", "agenticmail_templates", "List, add and delete templates."),
    _like("schedule", "agenticmail_schedule", "Schedule a message, list or cancel scheduled ones."),
    _like("tag", "agenticmail_tags", "Manage tags and tag messages."),
    _like("spam", "agenticmail_spam", "List spam, report it, score a message."),
    _like("rules", "agenticmail_rules", "List, add and delete mail rules."),
    _row(
        "pending",
        "Held emails",
        "List held mail; approve it, which sends it, or discard it.",
        _MAIL,
        "high",
        "sends-email",
        "deletes-data",
    ),
    _like("digest", "agenticmail_digest", "Show the inbox with previews."),
    _like("relay", "agenticmail_import_relay", "Search the owner's own mailbox and import messages."),
)

_AGENT_COMMANDS = (
    _like("agents", "agenticmail_create_account", "List agents or create one; a new agent's API key is printed."),
    _like("deleteagent", "agenticmail_delete_agent", "Delete an agent; its mail is archived first."),
    _like("deletions", "agenticmail_deletion_reports", "Show reports of deleted agents."),
    _row("switch", "Switch agent", "Act as another agent from now on.", _PROMPT, "medium", "accesses-secrets"),
    _like("name", "agenticmail_update_metadata", "Set the sender name that mail shows."),
    _like("tasks", "agenticmail_check_tasks", "Show tasks received or given."),
    _like("msg", "agenticmail_message_agent", "Send a message to another agent."),
    _row("chat", "Chat", "Talk with the OpenClaw agent of this machine.", ("messaging",), "medium", "sends-message"),
    _like("assign", "agenticmail_call_agent", "Give an agent a task."),
)

_SERVER_COMMANDS = (
    _row("help", "Help", "List the commands.", _PROMPT),
    _row("clear", "Clear", "Clear the screen.", _PROMPT),
    _like("status", "agenticmail_status", "Show whether server and mail are well."),
    _like("setup", "agenticmail_setup_domain", "Connect a mailbox or a domain, with its credentials."),
    _row(
        "sms",
        "SMS",
        "Show and send text messages; connect, change or disable the number.",
        ("sms-phone",),
        "high",
        "sends-sms",
        "accesses-secrets",
    ),
    _row("openclaw", "OpenClaw", "Start OpenClaw's terminal program in a new window.", _ADMIN, "high", "runs-code"),
    _row(
        "update",
        "Update",
        "Download and install the newest version.",
        _ADMIN,
        "critical",
        "runs-code",
        "modifies-files",
        "network-request",
    ),
    _row("exit", "Exit", "Stop the mail server and leave.", _ADMIN, "high"),
)

SHELL_COMMANDS: Final[tuple[Tool, ...]] = (*_MAIL_COMMANDS, *_AGENT_COMMANDS, *_SERVER_COMMANDS)
"""42 commands."""
