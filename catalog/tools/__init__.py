"""Which tools are known by name, what each can do, and how bad that can be. Data, typed; no rule is made here.

* `ALL_TOOLS`: the 167 of the published catalog, in three groups: `openclaw` (63 tools of AgenticMail's OpenClaw
  plugin), `agenticmail-mcp` (62 tools of its MCP server) and `shell` (42 commands of its prompt).
* `CURRENT_TOOLS`: what exists today beside them: OpenClaw's own 61 (`openclaw-core`), and 72 newer AgenticMail tools.
* `TOOL_INDEX`: every tool by id; what the policy engine, the skills and the API read. 298 entries.
* `OPENCLAW_SIDE`: every tool that an OpenClaw agent can see, for OpenClaw's own allow and deny lists.
* `entry`: how a row becomes a `Tool`; `openclaw`, `agenticmail_mcp`, `shell`, `openclaw_core`, `agenticmail`: rows.

A fact about a tool stands once. The MCP server's `send_email` is the plugin's `agenticmail_send` under another name, so
it is written as its twin and can never be judged more mildly.

Ids are those that clients send, without a prefix of ours, and the 167 have no id in common. Two shell commands share
theirs with tools of OpenClaw: `read` and `openclaw`. The index holds ONE tool for such an id: the highest risk, the
side effects of all, and the skills of the tool that an agent can call (shell commands come last, a person types them).
So no grant of a mail skill ever opens OpenClaw's `read` on the file system.

Risk: low = reads, or changes only the agent's own things reversibly; medium = deletes, writes files or talks within the
house; high = something leaves, is lost for good, or a credential is handled; critical = arbitrary code, or the control
of accounts, machines and money. A tool with several actions is judged by its most dangerous one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ..calls import Tool
from .agenticmail import CURRENT_MCP_TOOLS, CURRENT_PLUGIN_TOOLS, CURRENT_REST_TOOLS
from .agenticmail_mcp import MCP_TOOLS
from .entry import by_id
from .openclaw import OPENCLAW_TOOLS
from .openclaw_core import OPENCLAW_CORE_TOOLS
from .shell import SHELL_COMMANDS

ALL_TOOLS: Final[tuple[Tool, ...]] = (*OPENCLAW_TOOLS, *MCP_TOOLS, *SHELL_COMMANDS)

CURRENT_TOOLS: Final[tuple[Tool, ...]] = (
    *OPENCLAW_CORE_TOOLS,
    *CURRENT_PLUGIN_TOOLS,
    *CURRENT_MCP_TOOLS,
    *CURRENT_REST_TOOLS,
)

TOOL_INDEX: Final[Mapping[str, Tool]] = MappingProxyType(
    by_id(
        *OPENCLAW_TOOLS,
        *MCP_TOOLS,
        *CURRENT_PLUGIN_TOOLS,
        *CURRENT_MCP_TOOLS,
        *CURRENT_REST_TOOLS,
        *OPENCLAW_CORE_TOOLS,
        *SHELL_COMMANDS,
    )
)

OPENCLAW_SIDE: Final[tuple[Tool, ...]] = tuple(
    TOOL_INDEX[tool.id] for tool in (*OPENCLAW_CORE_TOOLS, *OPENCLAW_TOOLS, *CURRENT_PLUGIN_TOOLS)
)

__all__ = ["ALL_TOOLS", "CURRENT_TOOLS", "OPENCLAW_SIDE", "TOOL_INDEX", "Tool"]
