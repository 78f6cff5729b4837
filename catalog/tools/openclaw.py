"""The 63 tools of AgenticMail's OpenClaw plugin. Its MCP server and its shell offer most of them under other names.

Facts: AgenticMail's published tool list and the REST routes each tool calls. Where a route can do more than the tool's
name says, the route counts: batch deletion expunges, drafts can be sent, a rule deletes later mail by itself, the
account routes answer with API keys, and setting up a domain can buy one.
"""

from __future__ import annotations

from typing import Final

from ..calls import Tool
from .entry import OPENCLAW, row_of

_row = row_of(OPENCLAW)

_MAIL = ("email-management",)
_MAIL_LATER = ("email-management", "scheduling")
_CONTACTS = ("email-management", "crm")
_IDENTITY = ("email-management", "agent-orchestration")
_AGENT_TALK = ("messaging", "agent-orchestration")
_TASKS = ("task-management", "agent-orchestration")
_ACCOUNTS = ("agent-orchestration", "system-administration")
_ADMIN = ("system-administration",)
_MONEY = ("system-administration", "billing")
_SMS = ("sms-phone",)
_TABLES = ("database", "spreadsheets", "analytics")

_READING: Final = (
    _row("agenticmail_inbox", "Inbox", "List the newest messages of the inbox.", _MAIL),
    _row("agenticmail_read", "Read email", "Read one message in full.", _MAIL),
    _row(
        "agenticmail_search",
        "Search email",
        "Search messages; on request also in the owner's connected mailbox.",
        _MAIL,
        "low",
        "network-request",
    ),
    _row("agenticmail_digest", "Inbox digest", "List the inbox with a preview of each message.", _MAIL),
    _row("agenticmail_folders", "List folders", "List the mail folders.", _MAIL),
    _row("agenticmail_list_folder", "List folder", "List the messages of one folder.", _MAIL),
    _row("agenticmail_batch_read", "Read several", "Read several messages in full.", _MAIL),
    _row("agenticmail_wait_for_email", "Wait for email", "Wait until a message arrives.", _MAIL),
    _row(
        "agenticmail_check_messages",
        "Check messages",
        "Show unread messages of people and other agents.",
        ("email-management", "messaging"),
    ),
    _row(
        "agenticmail_import_relay",
        "Import from relay",
        "Copy a message from the owner's own mailbox into the agent's inbox.",
        _MAIL,
        "medium",
        "network-request",
    ),
    _row("agenticmail_pending_emails", "Held emails", "List own mail that waits for the owner's approval.", _MAIL),
)

_SENDING: Final = (
    _row("agenticmail_send", "Send email", "Send a new message.", _MAIL, "high", "sends-email"),
    _row("agenticmail_reply", "Reply", "Answer a message, its recipients taken from it.", _MAIL, "high", "sends-email"),
    _row("agenticmail_forward", "Forward", "Send a received message on to others.", _MAIL, "high", "sends-email"),
    _row(
        "agenticmail_template_send",
        "Send template",
        "Send a message made from a stored template.",
        _MAIL,
        "high",
        "sends-email",
    ),
    _row(
        "agenticmail_schedule",
        "Scheduled emails",
        "Schedule a message, list or cancel scheduled ones; the server sends them later by itself.",
        _MAIL_LATER,
        "high",
        "sends-email",
        "deletes-data",
    ),
    _row(
        "agenticmail_drafts",
        "Drafts",
        "List, write, change, delete and send drafts.",
        _MAIL,
        "high",
        "sends-email",
        "deletes-data",
    ),
    _row(
        "agenticmail_test_email",
        "Send test email",
        "Send a test message to any address.",
        ("email-management", "system-administration"),
        "high",
        "sends-email",
    ),
)

_TIDYING: Final = (
    _row("agenticmail_move", "Move email", "Move a message to another folder.", _MAIL),
    _row("agenticmail_mark_read", "Mark read", "Mark a message as read.", _MAIL),
    _row("agenticmail_mark_unread", "Mark unread", "Mark a message as unread.", _MAIL),
    _row("agenticmail_create_folder", "Create folder", "Create a mail folder.", _MAIL),
    _row("agenticmail_batch_move", "Move several", "Move several messages to another folder.", _MAIL),
    _row("agenticmail_batch_mark_read", "Mark several read", "Mark several messages as read.", _MAIL),
    _row("agenticmail_batch_mark_unread", "Mark several unread", "Mark several messages as unread.", _MAIL),
    _row("agenticmail_spam", "Spam", "List spam, score a message, report it or take the report back.", _MAIL),
    _row("agenticmail_delete", "Delete email", "Move a message to the trash.", _MAIL, "medium", "deletes-data"),
    _row(
        "agenticmail_batch_delete",
        "Delete several",
        "Expunge several messages; they cannot be brought back.",
        _MAIL,
        "high",
        "deletes-data",
    ),
    _row("agenticmail_contacts", "Contacts", "List, add and delete contacts.", _CONTACTS, "medium", "deletes-data"),
    _row("agenticmail_tags", "Tags", "List, create, set and delete tags.", _MAIL, "medium", "deletes-data"),
    _row("agenticmail_signatures", "Signatures", "List, add and delete signatures.", _MAIL, "medium", "deletes-data"),
    _row("agenticmail_templates", "Templates", "List, add and delete templates.", _MAIL, "medium", "deletes-data"),
    _row(
        "agenticmail_rules",
        "Mail rules",
        "List, add and delete rules; a rule moves or deletes later mail by itself.",
        _MAIL,
        "medium",
        "deletes-data",
    ),
)

_AGENTS: Final = (
    _row("agenticmail_list_agents", "List agents", "List the other agents of this server.", _AGENT_TALK),
    _row(
        "agenticmail_message_agent",
        "Message agent",
        "Send a message to another agent of this server.",
        _AGENT_TALK,
        "medium",
        "sends-message",
    ),
    _row(
        "agenticmail_call_agent",
        "Call agent",
        "Give another agent a task, wake it and wait for its result.",
        _TASKS,
        "medium",
        "sends-message",
    ),
    _row("agenticmail_check_tasks", "Check tasks", "List tasks received or given.", _TASKS),
    _row("agenticmail_claim_task", "Claim task", "Take a task that was assigned to this agent.", _TASKS),
    _row("agenticmail_complete_task", "Complete task", "Claim a task and hand in its result at once.", _TASKS),
    _row("agenticmail_submit_result", "Submit result", "Hand in the result of a claimed task.", _TASKS),
    _row(
        "agenticmail_whoami",
        "Who am I",
        "Show this agent's account; the server's answer holds the agent's API key.",
        _IDENTITY,
        "medium",
        "accesses-secrets",
    ),
    _row(
        "agenticmail_update_metadata",
        "Update metadata",
        "Change this agent's metadata: its sender name and how mail reaches it.",
        _IDENTITY,
        "medium",
    ),
    _row(
        "agenticmail_create_account",
        "Create account",
        "Create an agent account; the answer holds its API key.",
        _ACCOUNTS,
        "high",
        "accesses-secrets",
    ),
    _row(
        "agenticmail_delete_agent",
        "Delete agent",
        "Delete an agent account and its mail.",
        _ACCOUNTS,
        "critical",
        "deletes-data",
        "accesses-secrets",
    ),
    _row(
        "agenticmail_cleanup",
        "Clean up agents",
        "List inactive agent accounts and delete them.",
        _ACCOUNTS,
        "high",
        "deletes-data",
    ),
    _row("agenticmail_deletion_reports", "Deletion reports", "Show reports of deleted accounts.", _ACCOUNTS),
)

_SERVER: Final = (
    _row("agenticmail_status", "Server status", "Show whether the mail server is well.", _ADMIN),
    _row("agenticmail_gateway_status", "Mail gateway status", "Show how mail reaches the internet.", _ADMIN),
    _row("agenticmail_setup_guide", "Setup guide", "Explain the ways of connecting to the internet.", _ADMIN),
    _row(
        "agenticmail_setup_relay",
        "Set up relay",
        "Connect an existing mailbox with its password.",
        _ADMIN,
        "critical",
        "network-request",
        "accesses-secrets",
    ),
    _row(
        "agenticmail_setup_domain",
        "Set up domain",
        "Connect a domain with a provider token, buying it on request.",
        _MONEY,
        "critical",
        "network-request",
        "accesses-secrets",
        "financial",
    ),
    _row(
        "agenticmail_setup_gmail_alias",
        "Gmail alias",
        "Prepare a Gmail alias and explain how to add it, value by value.",
        _ADMIN,
        "medium",
    ),
    _row("agenticmail_setup_payment", "Payment setup", "Explain how to add a payment method.", _MONEY),
    _row(
        "agenticmail_purchase_domain",
        "Find domain",
        "Search available domains and prices; the purchase itself is part of setting up a domain.",
        _MONEY,
        "medium",
        "network-request",
    ),
    _row(
        "agenticmail_storage",
        "Storage",
        "The agent's own tables: 28 actions from queries and raw SQL to dropping them.",
        _TABLES,
        "high",
        "deletes-data",
    ),
)

_TEXTING: Final = (
    _row("agenticmail_sms_send", "Send SMS", "Send a text message.", _SMS, "high", "sends-sms"),
    _row("agenticmail_sms_messages", "SMS messages", "List received and sent text messages.", _SMS),
    _row(
        "agenticmail_sms_check_code",
        "Check code",
        "Read the newest one-time code that came by text message.",
        _SMS,
        "medium",
        "accesses-secrets",
    ),
    _row("agenticmail_sms_read_voice", "Read Google Voice", "Explain how to read messages in Google Voice.", _SMS),
    _row("agenticmail_sms_record", "Record SMS", "Record a text message that was read elsewhere.", _SMS),
    _row("agenticmail_sms_parse_email", "Parse SMS email", "Read a text message out of a forwarded email.", _SMS),
    _row(
        "agenticmail_sms_setup",
        "Set up SMS",
        "Connect a telephone number with its credentials.",
        _SMS,
        "high",
        "accesses-secrets",
    ),
    _row("agenticmail_sms_config", "SMS settings", "Show the connected telephone number.", _SMS),
)

OPENCLAW_TOOLS: Final[tuple[Tool, ...]] = (*_SENDING, *_READING, *_TIDYING, *_AGENTS, *_SERVER, *_TEXTING)
"""63 tools, sending ones first."""
