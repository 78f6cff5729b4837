"""AgenticMail's tools beside the 167: telephone calls, Telegram, media, memory, worker control, tool discovery.

Twenty-six of them both clients offer, the OpenClaw plugin with the prefix `agenticmail_`; thirteen only the MCP server
has. Facts: the tool list and routes of AgenticMail 0.9.64. What counts is what a route takes: the media tools take
paths on the server, voice cloning takes the path of the interpreter to start, a telephone call is billed.
"""

from __future__ import annotations

from typing import Final

from ..calls import Tool
from .agenticmail_mcp import PLUGIN_PREFIX
from .entry import MCP, OPENCLAW, REST, row_of, twin

_row = row_of(OPENCLAW)
_mcp = row_of(MCP)

_PHONE = ("sms-phone",)
_CHAT = ("messaging",)
_IMAGES = ("image-generation",)
_SOUND = ("audio-tts",)
_VIDEO = ("video-processing",)
_MEDIA = ("image-generation", "audio-tts", "video-processing")
_MEMORY = ("memory", "note-taking")
_WORKERS = ("agent-orchestration", "system-administration")
_DISCOVERY = ("custom-tools",)

_CALLING = (
    _row(
        "agenticmail_call_phone",
        "Call by telephone",
        "Let a voice agent call a number and talk to whoever answers; the call is billed.",
        _PHONE,
        "high",
        "sends-message",
        "network-request",
        "financial",
    ),
    _row("agenticmail_phone_capabilities", "Telephone abilities", "Show what the telephone line can do.", _PHONE),
    _row(
        "agenticmail_phone_transport_setup",
        "Set up telephone",
        "Connect a telephone provider with its credentials.",
        _PHONE,
        "high",
        "network-request",
        "accesses-secrets",
    ),
    _row("agenticmail_call_status", "Call status", "Show calls and how they went.", _PHONE),
    _row("agenticmail_call_transcript", "Call transcript", "Read what was said in a call.", _PHONE),
    _row("agenticmail_call_cancel", "Cancel call", "Cancel a call that was ordered.", _PHONE, "medium"),
    _row("agenticmail_call_open_queries", "Open questions", "List what a running call asks its operator.", _PHONE),
    _row(
        "agenticmail_call_answer_query",
        "Answer a call's question",
        "Answer in the operator's place; a running call says it to the other party.",
        _PHONE,
        "high",
        "sends-message",
    ),
)

_TELEGRAM = (
    _row("agenticmail_telegram_config", "Telegram settings", "Show the connected Telegram bot.", _CHAT),
    _row(
        "agenticmail_telegram_setup",
        "Set up Telegram",
        "Connect a Telegram bot with its token.",
        _CHAT,
        "high",
        "network-request",
        "accesses-secrets",
    ),
    _row("agenticmail_telegram_send", "Send Telegram", "Send a Telegram message.", _CHAT, "high", "sends-message"),
    _row("agenticmail_telegram_messages", "Telegram messages", "List Telegram messages.", _CHAT),
    _row(
        "agenticmail_telegram_poll", "Fetch Telegram", "Fetch new Telegram messages.", _CHAT, "low", "network-request"
    ),
)

_EDITING = (
    _row("agenticmail_media_capabilities", "Media abilities", "Show which media tools work here.", _MEDIA),
    _row("agenticmail_media_info", "Media facts", "Show length, size and format of a media file.", _MEDIA),
    _row("agenticmail_media_tts_voices", "Voices", "List the voices of text to speech.", _SOUND),
    _row(
        "agenticmail_media_tts",
        "Text to speech",
        "Speak a text into an audio file, by way of an online service.",
        _SOUND,
        "low",
        "modifies-files",
        "network-request",
    ),
    _row(
        "agenticmail_media_image_edit",
        "Edit image",
        "Read an image file by path and write an edited one.",
        _IMAGES,
        "medium",
        "modifies-files",
    ),
    _row(
        "agenticmail_media_video_edit",
        "Edit video",
        "Read video files by path and write an edited one.",
        _VIDEO,
        "medium",
        "modifies-files",
    ),
    _row(
        "agenticmail_media_audio_edit",
        "Edit audio",
        "Read audio files by path and write an edited one.",
        _SOUND,
        "medium",
        "modifies-files",
    ),
    _row(
        "agenticmail_media_video_understand",
        "Understand video",
        "Take frames and speech out of a video file.",
        (*_VIDEO, "model-inference"),
        "medium",
        "modifies-files",
    ),
    _row(
        "agenticmail_media_voice_clone",
        "Clone voice",
        "Speak a text in a sample's voice; the call names the Python interpreter to start.",
        _SOUND,
        "critical",
        "runs-code",
        "modifies-files",
    ),
)

_REMEMBERING = (
    _row(
        "agenticmail_memory",
        "Memory",
        "Set, find and delete entries of the agent's lasting memory.",
        _MEMORY,
        "medium",
        "deletes-data",
    ),
    _row("agenticmail_memory_reflect", "Reflect", "Write an insight into the agent's lasting memory.", _MEMORY),
    _row("agenticmail_memory_context", "Memory digest", "Read the memory's most relevant entries.", ("memory",)),
    _row("agenticmail_memory_stats", "Memory figures", "Show how much the memory holds.", ("memory",)),
)

_BOTH = (*_CALLING, *_TELEGRAM, *_EDITING, *_REMEMBERING)

_MCP_ONLY = (
    _mcp(
        "broadcast_email",
        "Broadcast email",
        "Send one message to many, as one call of the server for each.",
        ("email-management",),
        "high",
        "sends-email",
    ),
    _mcp("save_thread_memory", "Save thread memory", "Write down where a mail thread stands.", _MEMORY),
    _mcp("get_thread_id", "Thread id", "Tell the id under which a thread is remembered.", ("memory",)),
    _mcp(
        "setup_operator_email",
        "Set operator's address",
        "Choose the address that alerts for the operator go to.",
        ("system-administration",),
        "high",
        "sends-email",
    ),
    _mcp("stop_agent", "Stop agent", "Stop waking an agent.", _WORKERS, "high"),
    _mcp("resume_agent", "Resume agent", "Wake a stopped agent again.", _WORKERS, "high"),
    _mcp("check_activity", "Check activity", "Show which agents work at the moment.", _WORKERS),
    _mcp("tail_worker", "Worker log", "Read the log of any agent's worker, arguments and answers.", _WORKERS, "medium"),
    _mcp("skill_list", "List playbooks", "List the playbooks for telephone calls.", _DISCOVERY),
    _mcp("skill_search", "Search playbooks", "Search the playbooks for telephone calls.", _DISCOVERY),
    _mcp("skill_load", "Load playbook", "Read one playbook in full.", _DISCOVERY),
    _mcp("request_tools", "Find tools", "List tools that `invoke` can run.", _DISCOVERY),
    _mcp(
        "invoke",
        "Invoke tool",
        "Run any other tool of this server by name; judged as the worst of them.",
        ("system-administration",),
        "critical",
        "sends-email",
        "sends-message",
        "sends-sms",
        "runs-code",
        "modifies-files",
        "deletes-data",
        "network-request",
        "accesses-secrets",
        "financial",
    ),
)

_REST_ONLY = (
    "check_activity", "get_thread_id", "resume_agent", "save_thread_memory", "setup_operator_email", "stop_agent",
    "tail_worker",
)  # fmt: skip

CURRENT_REST_TOOLS: Final[tuple[Tool, ...]] = tuple(
    twin(tool, PLUGIN_PREFIX + tool.id, REST) for tool in _MCP_ONLY if tool.id in _REST_ONLY
)
"""7 tools that the REST door calls by the plugin's kind of name, though the plugin does not offer them."""

CURRENT_PLUGIN_TOOLS: Final[tuple[Tool, ...]] = _BOTH
"""26 tools of the OpenClaw plugin."""

CURRENT_MCP_TOOLS: Final[tuple[Tool, ...]] = (
    *(twin(tool, tool.id.removeprefix(PLUGIN_PREFIX), MCP) for tool in _BOTH),
    *_MCP_ONLY,
)
"""39 tools of the MCP server: the same 26, and 13 of its own."""
