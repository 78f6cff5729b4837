"""The 38 built-in skills, in ten categories: what a person grants when tool ids are too small a unit.

A skill's tools are read from the tools themselves (`Tool.skills`), so that belonging is written once. Its risk is that
of its most dangerous tool and its side effects are those of all its tools, together with what is declared here for
tools that come from outside. A skill with no tools of its own is granted all the same: a tool of a registered MCP
server that is assigned to it comes with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from .errors import NotFound
from .profiles import Risk, SideEffect
from .tools import TOOL_INDEX
from .tools.entry import ordered_effects, strictest

Category = Literal[
    "communication", "research", "development", "content", "productivity", "system", "ai-ml", "business",
    "iot-smart-home", "custom",
]  # fmt: skip

CATEGORIES: Final[Mapping[Category, str]] = MappingProxyType({
    "communication": "Communication",
    "research": "Research",
    "development": "Development",
    "content": "Content",
    "productivity": "Productivity",
    "system": "System",
    "ai-ml": "AI/ML",
    "business": "Business",
    "iot-smart-home": "IoT/Smart Home",
    "custom": "Custom",
})  # fmt: skip
"""Category -> its name for people, in the order to show them."""

FieldType = Literal["string", "number", "boolean", "select", "secret"]


class ConfigField(msgspec.Struct, frozen=True, kw_only=True):
    """A setting the skill needs. `options` are the choices of a "select", in order; empty for the other types.
    A "secret" is encrypted at rest and never shown again."""

    name: str
    type: FieldType
    required: bool = False
    options: tuple[str, ...] = ()
    description: str = ""


class Skill(msgspec.Struct, frozen=True, kw_only=True):
    """A skill as people grant it. `tools` are ids of `TOOL_INDEX`, in the catalog's order."""

    id: str
    name: str
    category: Category
    description: str
    tools: tuple[str, ...] = ()
    config_fields: tuple[ConfigField, ...] = ()
    risk: Risk = "low"
    side_effects: tuple[SideEffect, ...] = ()


def _tools_by_skill() -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for tool in TOOL_INDEX.values():
        for skill in tool.skills:
            found.setdefault(skill, []).append(tool.id)
    return {skill: tuple(ids) for skill, ids in found.items()}


_TOOLS: Final = _tools_by_skill()


def _skill(
    skill_id: str, name: str, category: Category, description: str, *fields: ConfigField,
    risk: Risk = "low", effects: tuple[SideEffect, ...] = (),
) -> Skill:  # fmt: skip
    """`risk` and `effects` say what is to be expected of tools from outside; the known tools' are added."""
    ids = _TOOLS.get(skill_id, ())
    tools = [TOOL_INDEX[tool_id] for tool_id in ids]
    return Skill(
        id=skill_id, name=name, category=category, description=description, tools=ids, config_fields=fields,
        risk=strictest((risk, *(tool.risk for tool in tools))),
        side_effects=ordered_effects((*effects, *(effect for tool in tools for effect in tool.side_effects))),
    )  # fmt: skip


def _text(name: str, description: str, *, required: bool = False) -> ConfigField:
    return ConfigField(name=name, type="string", required=required, description=description)


def _secret(name: str, description: str, *, required: bool = False) -> ConfigField:
    return ConfigField(name=name, type="secret", required=required, description=description)


def _number(name: str, description: str) -> ConfigField:
    return ConfigField(name=name, type="number", description=description)


def _flag(name: str, description: str) -> ConfigField:
    return ConfigField(name=name, type="boolean", description=description)


def _choice(name: str, options: tuple[str, ...], description: str, *, required: bool = False) -> ConfigField:
    return ConfigField(name=name, type="select", required=required, options=options, description=description)


_OUTSIDE = "Its tools come from registered MCP servers."

_COMMUNICATION = (
    _skill(
        "email-management", "Email Management", "communication",
        "Read, search, write, send and tidy mail through AgenticMail.",
        _text("address", "The agent's mail address."),
        _text("signature", "Text that closes each message."),
        _choice("default_folder", ("INBOX", "Archive", "Sent"), "Folder that is shown first."),
    ),
    _skill(
        "sms-phone", "SMS & Phone", "communication", "Send and read text messages, read codes, make telephone calls.",
        _choice("provider", ("google-voice", "46elks", "twilio"), "Who carries messages and calls."),
        _text("phone_number", "The agent's number, with country code."),
        _secret("auth_token", "The provider's token or password."),
    ),
    _skill(
        "calendar", "Calendar", "communication", f"Read and plan appointments, invite people. {_OUTSIDE}",
        _choice("provider", ("google", "microsoft", "caldav"), "Where the calendar is kept.", required=True),
        _text("calendar_id", "Which calendar; the account's own when empty."),
        _secret("credentials", "The account's token.", required=True),
        risk="medium", effects=("sends-message", "deletes-data", "network-request"),
    ),
    _skill(
        "messaging", "Messaging", "communication", "Write in chats and conversations, and to other agents.",
        _choice("channel", ("telegram", "slack", "discord", "whatsapp"), "The channel used when none is named."),
        _secret("bot_token", "The channel's token."),
    ),
)  # fmt: skip

_RESEARCH = (
    _skill(
        "web-search", "Web Search", "research", "Search the web and X.",
        _choice("engine", ("brave", "google", "bing", "duckduckgo"), "Search engine."),
        _secret("api_key", "The engine's key."),
        _number("max_results", "Results a search."),
    ),
    _skill(
        "web-browsing", "Web Browsing", "research", "Read pages, and drive a browser.",
        _flag("headless", "Run the browser without a window."),
        _text("user_agent", "How the browser names itself."),
    ),
    _skill(
        "news-monitoring", "News Monitoring", "research", "Follow subjects in news and posts.",
        _text("topics", "Subjects, with commas between."),
        _number("interval_minutes", "Minutes from one look to the next."),
    ),
    _skill(
        "academic-research", "Academic Research", "research", "Find and read papers.",
        _choice("source", ("arxiv", "semantic-scholar", "pubmed", "crossref"), "Where to look first."),
        _secret("api_key", "The source's key."),
    ),
)  # fmt: skip

_DEVELOPMENT = (
    _skill(
        "code-execution", "Code Execution", "development", "Run commands and code, here and in a remote sandbox.",
        _text("working_directory", "Where commands start."),
        _number("timeout_seconds", "Longest run of a command."),
    ),
    _skill(
        "git-github", "Git & GitHub", "development",
        "Publish work as pull requests. Local git runs through Code Execution.",
        _text("repository", "Repository as owner/name."),
        _secret("token", "GitHub token."),
    ),
    _skill(
        "database", "Database", "development", "Query and change tables: AgenticMail's storage and registered servers.",
        _text("connection_url", "Address of the database, without credentials."),
        _secret("password", "The account's password."),
        _flag("read_only", "Ask for a read-only connection."),
    ),
    _skill(
        "api-integration", "API Integration", "development", "Call HTTP interfaces of other systems.",
        _text("base_url", "Where the interface begins."),
        _choice("auth", ("none", "bearer", "basic", "header"), "How a call is authenticated."),
        _secret("credential", "Token or password."),
    ),
)  # fmt: skip

_CONTENT = (
    _skill(
        "writing", "Writing", "content", "Write and revise documents.",
        _choice("tone", ("formal", "casual", "professional", "friendly"), "Tone of a text."),
        _text("language", "Language of a text, as a tag such as en or de."),
    ),
    _skill(
        "image-generation", "Image Generation", "content", "Make, edit and understand images.",
        _text("model", "Model that makes images."),
        _secret("api_key", "The provider's key."),
    ),
    _skill(
        "audio-tts", "Audio/TTS", "content", "Speak texts, make music, edit sound.",
        _text("voice", "Voice that is used when none is named."),
        _secret("api_key", "The provider's key."),
    ),
    _skill(
        "video-processing", "Video Processing", "content", "Make, edit and understand video.",
        _text("model", "Model that makes video."),
        _number("max_seconds", "Longest video that is made."),
    ),
)  # fmt: skip

_PRODUCTIVITY = (
    _skill(
        "task-management", "Task Management", "productivity", "Keep goals, claim tasks and hand in their results.",
        _text("project", "Project that tasks are filed under."),
    ),
    _skill(
        "note-taking", "Note Taking", "productivity", "Write notes that last beyond a session.",
        _text("notebook", "Where notes are filed."),
    ),
    _skill(
        "file-management", "File Management", "productivity", "List, read, write and patch files.",
        _text("root_directory", "Folder the files are in; hold the agent to it with an argument rule."),
    ),
    _skill(
        "spreadsheets", "Spreadsheets", "productivity", "Work on tables, import and export them.",
        _choice("provider", ("storage", "google-sheets", "excel"), "Where tables are kept."),
        _secret("credentials", "The account's token."),
    ),
    _skill(
        "scheduling", "Scheduling", "productivity", "Plan mail, reminders and work that happens later by itself.",
        _text("timezone", "Time zone that plans are understood in, as an IANA name."),
    ),
)  # fmt: skip

_SYSTEM = (
    _skill(
        "system-administration", "System Administration", "system",
        "Set up and control OpenClaw, AgenticMail, their accounts and machines.",
        _text("host", "Machine that is administered."),
        _secret("master_key", "AgenticMail's master key."),
    ),
    _skill(
        "docker", "Docker", "system",
        f"Build and run containers. {_OUTSIDE} The docker command itself runs through Code Execution.",
        _text("docker_host", "Where the Docker engine listens."),
        _text("registry", "Registry that images come from."),
        risk="high", effects=("runs-code", "modifies-files", "deletes-data", "network-request"),
    ),
    _skill(
        "network", "Network", "system", "Make services reachable and examine the network.",
        _text("allowed_hosts", "Hosts that may be examined, with commas between."),
    ),
    _skill(
        "security", "Security", "system", "Manage stored credentials and check how things are secured.",
        _choice("vault", ("openclaw", "1password", "hashicorp-vault"), "Where credentials are kept."),
        _secret("vault_token", "The vault's token."),
    ),
)  # fmt: skip

_AI = (
    _skill(
        "model-inference", "Model Inference", "ai-ml", "Ask models about images and video.",
        _choice("provider", ("anthropic", "openai", "google", "custom"), "Who runs the model."),
        _text("model", "Model that is asked."),
        _secret("api_key", "The provider's key."),
    ),
    _skill(
        "knowledge-base", "RAG/Knowledge Base", "ai-ml", "Search what is known, by meaning.",
        _text("knowledge_base_id", "Which knowledge base is searched."),
        _number("max_results", "Passages a search."),
    ),
    _skill(
        "agent-orchestration", "Agent Orchestration", "ai-ml", "Start, task, watch and stop other agents.",
        _number("max_agents", "Agents at work at a time."),
    ),
    _skill(
        "memory", "Memory", "ai-ml", "Remember and find again what was learned.",
        _number("max_entries", "Entries that are kept."),
    ),
    _skill("sessions", "Sessions", "ai-ml", "List, read, search and arrange sessions."),
)  # fmt: skip

_BUSINESS = (
    _skill(
        "crm", "CRM", "business", "Keep contacts: AgenticMail's, and a CRM's through a registered MCP server.",
        _choice("provider", ("agenticmail", "hubspot", "salesforce", "pipedrive"), "Where contacts are kept."),
        _secret("api_key", "The CRM's key."),
        effects=("network-request",),
    ),
    _skill(
        "analytics", "Analytics", "business", "Compute figures from tables and data.",
        _text("dataset", "Data that figures are computed from."),
    ),
    _skill(
        "billing", "Billing", "business",
        "Domains and their payment through AgenticMail; invoices through registered MCP servers.",
        _choice("provider", ("stripe", "paypal", "chargebee"), "Who bills."),
        _secret("api_key", "The provider's key."),
        _number("amount_ceiling", "Highest amount; enforce it with an argument rule."),
        effects=("financial", "network-request"),
    ),
    _skill(
        "hr", "HR", "business", f"Employees, absences and applications. {_OUTSIDE}",
        _choice("provider", ("bamboohr", "personio", "workday"), "Where employees are kept.", required=True),
        _secret("api_key", "The provider's key.", required=True),
        risk="high", effects=("network-request", "accesses-secrets"),
    ),
)  # fmt: skip

_HOME = (
    _skill(
        "home-automation", "Home Automation", "iot-smart-home", "Control lights, heating and other devices.",
        _text("hub_url", "Where the hub answers."),
        _secret("hub_token", "The hub's token."),
    ),
    _skill(
        "camera-surveillance", "Camera/Surveillance", "iot-smart-home", "Look through cameras.",
        _text("camera_url", "Where the camera answers, without credentials."),
        _secret("camera_password", "The camera's password."),
    ),
    _skill(
        "media-playback", "Media Playback", "iot-smart-home", "Show and play media on devices.",
        _text("device", "Device that is used when none is named."),
        _number("volume", "Volume in percent."),
    ),
)  # fmt: skip

_CUSTOM = (
    _skill(
        "custom-tools", "Custom Tools", "custom",
        "Tools of your own: those of a registered MCP server that are not assigned to another skill.",
        _text("server", "Registered MCP server the tools come from."),
    ),
)  # fmt: skip

BUILTIN_SKILLS: Final[tuple[Skill, ...]] = (
    *_COMMUNICATION, *_RESEARCH, *_DEVELOPMENT, *_CONTENT, *_PRODUCTIVITY, *_SYSTEM, *_AI, *_BUSINESS, *_HOME, *_CUSTOM,
)  # fmt: skip
"""38 skills, by category in the order of `CATEGORIES`."""

SKILL_INDEX: Final[Mapping[str, Skill]] = MappingProxyType({skill.id: skill for skill in BUILTIN_SKILLS})


def get_skill(skill_id: str) -> Skill:
    """The built-in skill of this id. NotFound, naming it, when there is none."""
    skill = SKILL_INDEX.get(skill_id)
    if skill is None:
        raise NotFound(f"There is no skill {skill_id!r}.", skill=skill_id)
    return skill


def get_tools_by_skill(skill_id: str) -> list[str]:
    """Ids of the tools that a skill grants, in the catalog's order. NotFound for an unknown skill."""
    return list(get_skill(skill_id).tools)
