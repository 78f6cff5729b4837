"""What a hook's call really does. OpenClaw wraps calls (Tool Search, code mode); policy is about the call inside.

| what the hook sees | what is judged |
| --- | --- |
| `tool_call {id, args}` (Tool Search) | the tool that `id` names, with `args` |
| `tool_search`, `tool_describe`, `wait` | nothing of its own: they find tools, or go on with a program |
| `tool_search_code`, and `exec` of kind `code_mode_exec` | `code_execution`: it is a program, not the shell `exec` |

A program's own tool calls reach the hook one by one and are each judged when they do. OpenClaw names a tool of its
catalog `source:owner:name` (`mcp:mail:mail__send_mail`), or `name` alone.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ...catalog.errors import ValidationFailed

OPENCLAW: Final = "openclaw"
CALL_TOOL: Final = "tool_call"
CARRIERS: Final = frozenset({"tool_search", "tool_describe", "wait"})
PROGRAMS: Final = frozenset({"tool_search_code"})
PROGRAM_KIND: Final = "code_mode_exec"
PROGRAM_TOOL: Final = "code_execution"
_PREFIXES: Final = ("openclaw:", "mcp:", "client:")


class Inner(msgspec.Struct, frozen=True):
    """`carrier`: it only carries others. `wrapped`: the hook will see the call inside by itself, too."""

    tool: str
    args: dict[str, Any]
    carrier: bool = False
    wrapped: bool = False


def unwrap(tool: str, args: dict[str, Any], runtime: str, kind: str) -> Inner:
    """The call inside a hook's call; the call itself where nothing is wrapped. Raises ValidationFailed for a wrapper
    that holds no call."""
    if runtime != OPENCLAW:
        return Inner(tool, args)
    if kind == PROGRAM_KIND or tool in PROGRAMS:
        return Inner(PROGRAM_TOOL, args, wrapped=True)
    if tool in CARRIERS:
        return Inner(tool, args, carrier=True)
    if tool != CALL_TOOL:
        return Inner(tool, args)
    name = args.get("id")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ValidationFailed([("/args/id", "required", "tool_call names the tool to be called in its id.")])
    name = name.strip()
    if name.startswith(_PREFIXES):
        name = name.split(":", 2)[-1]
    inner = args.get("args")
    if inner is None:  # OpenClaw repairs the calls of weak models, which put the arguments beside the id
        inner = {key: value for key, value in args.items() if key not in {"id", "args"}}
    if not isinstance(inner, dict):
        raise ValidationFailed([("/args/args", "invalid", "The arguments of the call inside are an object.")])
    return Inner(name, inner, wrapped=True)
