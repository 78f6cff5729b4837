"""The 61 tools OpenClaw itself brings (2026.9.6), in the order of its own groups.

A tool that hands work to a machine is judged by what the work can do: `exec` and `terminal` reach files, the network
and everything the account may delete. Tools which take a URL make a network request, also where their name does not
say so (`pdf`, `view_image`).
"""

from __future__ import annotations

from typing import Final

from ..calls import Tool
from .entry import CORE, row_of

_row = row_of(CORE)

_FILES = ("file-management",)
_TEXT = ("file-management", "writing")
_CODE = ("code-execution",)
_SHELL = ("code-execution", "system-administration")
_SEARCH = ("web-search", "news-monitoring", "academic-research")
_FETCH = ("web-browsing", "news-monitoring", "academic-research", "api-integration")
_MEMORY = ("memory", "knowledge-base")
_SESSIONS = ("sessions",)
_TALK = ("messaging",)
_AGENTS = ("agent-orchestration", "sessions")
_TASKS = ("task-management",)
_GIT = ("git-github",)
_PLANS = ("scheduling",)
_ADMIN = ("system-administration",)
_NODES = ("home-automation", "camera-surveillance")

_FS = (
    _row("ls", "List directory", "List the entries of a directory.", _FILES),
    _row("read", "Read file", "Read a file.", _TEXT),
    _row("write", "Write file", "Create or overwrite a file.", _TEXT, "medium", "modifies-files"),
    _row("edit", "Edit file", "Make exact changes in a file.", _TEXT, "medium", "modifies-files"),
    _row(
        "apply_patch",
        "Apply patch",
        "Change, create and delete files by a patch.",
        (*_FILES, "code-execution"),
        "medium",
        "modifies-files",
        "deletes-data",
    ),
)

_RUNTIME = (
    _row(
        "exec",
        "Run command",
        "Run a shell command.",
        _SHELL,
        "critical",
        "runs-code",
        "modifies-files",
        "deletes-data",
        "network-request",
    ),
    _row("process", "Processes", "Watch, feed and stop running commands.", _SHELL, "high", "runs-code"),
    _row(
        "code_execution",
        "Remote analysis",
        "Run code in a remote sandbox.",
        (*_CODE, "analytics"),
        "high",
        "runs-code",
        "network-request",
    ),
    _row("secrets", "Secrets", "Ask for and manage stored credentials.", ("security",), "high", "accesses-secrets"),
)

_WEB = (
    _row("web_search", "Web search", "Search the web.", _SEARCH, "low", "network-request"),
    _row("web_fetch", "Fetch page", "Read a page of the web.", _FETCH, "low", "network-request"),
    _row("x_search", "Search X", "Search posts on X.", ("web-search", "news-monitoring"), "low", "network-request"),
)

_REMEMBERING = (
    _row("memory_search", "Search memory", "Search memory files by meaning.", _MEMORY),
    _row("memory_get", "Read memory", "Read memory files.", _MEMORY),
)

_CONVERSING = (
    _row("sessions", "Session settings", "Label, pin, group and archive sessions.", _SESSIONS),
    _row("sessions_list", "List sessions", "List visible sessions with previews.", _SESSIONS),
    _row("sessions_history", "Session history", "Read a session's history.", _SESSIONS),
    _row("sessions_search", "Search sessions", "Search past transcripts.", _SESSIONS),
    _row("conversations_list", "List conversations", "List outside conversations by address.", _TALK),
    _row("conversations_send", "Send to conversation", "Write to people outside.", _TALK, "high", "sends-message"),
    _row(
        "conversations_turn",
        "Ask in conversation",
        "Write to people outside and wait for their answer.",
        _TALK,
        "high",
        "sends-message",
    ),
    _row("sessions_send", "Send to session", "Run another session or agent.", _AGENTS, "medium", "sends-message"),
    _row("sessions_spawn", "Spawn session", "Start a sub-agent or a work session.", _AGENTS, "medium"),
    _row(
        "github_identity_status",
        "GitHub identity",
        "Show the GitHub identity and whether its credentials work.",
        _GIT,
        "low",
        "network-request",
    ),
    _row(
        "github_publish",
        "Publish to GitHub",
        "Publish the work as a draft pull request.",
        _GIT,
        "high",
        "network-request",
    ),
    _row("agents_wait", "Wait for agents", "Wait for sub-agents' results.", ("agent-orchestration",)),
    _row("sessions_yield", "Yield", "End the turn to receive sub-agents' results.", _AGENTS),
    _row("subagents", "Sub-agents", "List and cancel background work.", _AGENTS, "medium"),
    _row("session_status", "Session status", "Show the session's state, model and usage.", _SESSIONS),
    _row("suggest_task", "Suggest task", "Suggest follow-up work for the operator to approve.", _TASKS),
    _row("dismiss_task", "Withdraw suggestion", "Withdraw a suggested task.", _TASKS),
)

_UI = (
    _row(
        "browser",
        "Browser",
        "Drive a web browser: navigate, click, type, run script.",
        ("web-browsing",),
        "high",
        "runs-code",
        "network-request",
    ),
    _row("screen", "Operator's screen", "Drive the operator's web page.", _ADMIN, "high", "controls-device"),
    _row("theme", "Theme", "Choose or make an appearance.", _SESSIONS),
    _row("dashboard", "Dashboard", "Read and arrange the session's dashboard.", _SESSIONS),
    _row(
        "terminal",
        "Operator's terminal",
        "Type into shared terminals.",
        _SHELL,
        "critical",
        "runs-code",
        "modifies-files",
        "deletes-data",
        "network-request",
    ),
    _row("portal", "Portal", "Make a local web application reachable.", ("network",), "high", "network-request"),
    _row(
        "canvas",
        "Canvas",
        "Show pages on a device's screen and run script in them.",
        ("media-playback",),
        "high",
        "runs-code",
        "network-request",
        "controls-device",
    ),
    _row("show_widget", "Show widget", "Show an interactive widget in chat.", _SESSIONS),
)

_MESSAGING = (_row("message", "Send message", "Send messages on chat channels.", _TALK, "high", "sends-message"),)

_AUTOMATION = (
    _row("heartbeat_respond", "Answer heartbeat", "Report the outcome of a regular check.", _PLANS),
    _row(
        "automations",
        "Automations",
        "Plan, change and delete reminders and work that runs later by itself.",
        _PLANS,
        "medium",
        "deletes-data",
    ),
    _row(
        "gateway",
        "OpenClaw gateway",
        "Update and configure OpenClaw.",
        _ADMIN,
        "critical",
        "runs-code",
        "modifies-files",
        "network-request",
    ),
    _row(
        "plugins",
        "Plugins",
        "Install, manage and reload plugins.",
        _ADMIN,
        "critical",
        "runs-code",
        "modifies-files",
        "network-request",
    ),
    _row(
        "openclaw",
        "OpenClaw setup",
        "Have OpenClaw set up and repaired.",
        _ADMIN,
        "critical",
        "runs-code",
        "modifies-files",
        "network-request",
    ),
)

_DEVICES = (
    _row(
        "nodes",
        "Devices",
        "Use paired devices: camera, place, commands.",
        _NODES,
        "high",
        "runs-code",
        "controls-device",
    ),
    _row(
        "computer",
        "Computer",
        "Control the desktop of this or a paired computer.",
        _ADMIN,
        "critical",
        "runs-code",
        "controls-device",
    ),
    _row("mobile_ui", "Telephone screen", "Control a paired Android application.", _ADMIN, "high", "controls-device"),
)

_PLANNING = (
    _row("agents_list", "List agents", "List the agents that can be started.", _AGENTS),
    _row("get_goal", "Read goal", "Read the goal of this thread.", _TASKS),
    _row("create_goal", "Set goal", "Set the goal of this thread.", _TASKS),
    _row("update_goal", "Update goal", "Complete or block the goal.", _TASKS),
    _row("progress_card", "Progress", "Keep the session's progress card.", _TASKS),
    _row("ask_user", "Ask", "Ask the agent's own user and wait for the answer.", _TASKS),
    _row(
        "skill_workshop",
        "Skill workshop",
        "Write instructions that agents follow later.",
        ("custom-tools",),
        "high",
        "modifies-files",
    ),
)

_MEDIA = (
    _row(
        "view_image",
        "View image",
        "Understand an image, by path or URL.",
        ("image-generation", "model-inference"),
        "low",
        "network-request",
    ),
    _row("image_generate", "Make image", "Make an image.", ("image-generation",), "low", "network-request"),
    _row("music_generate", "Make music", "Make music.", ("audio-tts",), "low", "network-request"),
    _row("video_generate", "Make video", "Make a video.", ("video-processing",), "low", "network-request"),
    _row("tts", "Text to speech", "Speak a text.", ("audio-tts",), "low", "network-request"),
    _row(
        "pdf",
        "Read PDF",
        "Read a PDF, by path or URL.",
        ("file-management", "writing", "academic-research"),
        "low",
        "network-request",
    ),
)

OPENCLAW_CORE_TOOLS: Final[tuple[Tool, ...]] = (
    *_FS,
    *_RUNTIME,
    *_WEB,
    *_REMEMBERING,
    *_CONVERSING,
    *_UI,
    *_MESSAGING,
    *_AUTOMATION,
    *_DEVICES,
    *_PLANNING,
    *_MEDIA,
)
"""61 tools."""
