"""The 62 tools of AgenticMail's MCP server that its OpenClaw plugin has as well.

Each calls the very routes of its twin, so it has the twin's skills, risk and side effects, whatever it is called.
`complete_task` is the one tool of the 63 that the MCP server does not offer.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ..calls import Tool
from .entry import MCP, twin
from .openclaw import OPENCLAW_TOOLS

PLUGIN_PREFIX: Final = "agenticmail_"

_SAME_NAME = (
    "batch_delete",
    "batch_mark_read",
    "batch_mark_unread",
    "batch_move",
    "batch_read",
    "call_agent",
    "check_messages",
    "check_tasks",
    "claim_task",
    "create_account",
    "create_folder",
    "delete_agent",
    "deletion_reports",
    "list_agents",
    "list_folder",
    "mark_read",
    "mark_unread",
    "message_agent",
    "purchase_domain",
    "setup_gmail_alias",
    "setup_guide",
    "setup_payment",
    "sms_check_code",
    "sms_config",
    "sms_messages",
    "sms_parse_email",
    "sms_read_voice",
    "sms_record",
    "sms_send",
    "sms_setup",
    "storage",
    "submit_result",
    "template_send",
    "update_metadata",
    "wait_for_email",
    "whoami",
)

_OTHER_NAME = {
    "check_gateway_status": "agenticmail_gateway_status",
    "check_health": "agenticmail_status",
    "cleanup_agents": "agenticmail_cleanup",
    "delete_email": "agenticmail_delete",
    "forward_email": "agenticmail_forward",
    "import_relay_email": "agenticmail_import_relay",
    "inbox_digest": "agenticmail_digest",
    "list_folders": "agenticmail_folders",
    "list_inbox": "agenticmail_inbox",
    "manage_contacts": "agenticmail_contacts",
    "manage_drafts": "agenticmail_drafts",
    "manage_pending_emails": "agenticmail_pending_emails",
    "manage_rules": "agenticmail_rules",
    "manage_scheduled": "agenticmail_schedule",
    "manage_signatures": "agenticmail_signatures",
    "manage_spam": "agenticmail_spam",
    "manage_tags": "agenticmail_tags",
    "manage_templates": "agenticmail_templates",
    "move_email": "agenticmail_move",
    "read_email": "agenticmail_read",
    "reply_email": "agenticmail_reply",
    "search_emails": "agenticmail_search",
    "send_email": "agenticmail_send",
    "send_test_email": "agenticmail_test_email",
    "setup_email_domain": "agenticmail_setup_domain",
    "setup_email_relay": "agenticmail_setup_relay",
}

EQUIVALENTS: Final[Mapping[str, str]] = MappingProxyType(
    {**{name: PLUGIN_PREFIX + name for name in _SAME_NAME}, **_OTHER_NAME}
)
"""MCP tool -> the plugin's tool that does the same."""

_PLUGIN = {tool.id: tool for tool in OPENCLAW_TOOLS}

MCP_TOOLS: Final[tuple[Tool, ...]] = tuple(twin(_PLUGIN[plugin], name, MCP) for name, plugin in EQUIVALENTS.items())
"""62 tools."""
