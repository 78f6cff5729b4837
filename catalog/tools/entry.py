"""How a tool's row becomes a `Tool`: three small builders, so that each fact about a tool is written once.

Risk is judged by the most dangerous thing a call of the tool can do, whatever its name says: a tool that lists, edits
*and sends* drafts is a sending tool. Effects are kept in the order of `SideEffect`, each once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, get_args

import msgspec

from ..calls import Tool
from ..profiles import RISKS, Risk, SideEffect

OPENCLAW: Final = "openclaw"
"""Tools of AgenticMail's OpenClaw plugin, `agenticmail_*`."""
MCP: Final = "agenticmail-mcp"
"""Tools of AgenticMail's MCP server."""
REST: Final = "agenticmail-rest"
"""Names of AgenticMail's REST operations that only its MCP server has as tools."""
SHELL: Final = "shell"
"""Commands a person types at AgenticMail's prompt (`/inbox`), without the slash."""
CORE: Final = "openclaw-core"
"""Tools OpenClaw itself brings."""

SIDE_EFFECTS: Final[tuple[SideEffect, ...]] = get_args(SideEffect)

Row = Callable[..., Tool]


def ordered_effects(effects: Iterable[SideEffect]) -> tuple[SideEffect, ...]:
    """The same effects, each once, in the order of `SideEffect`."""
    wanted = frozenset(effects)
    return tuple(effect for effect in SIDE_EFFECTS if effect in wanted)


def strictest(risks: Iterable[Risk]) -> Risk:
    """The highest of some risks; "low" for none."""
    return max(risks, key=RISKS.index, default="low")


def row_of(group: str) -> Row:
    """A builder of tools of one group: `row(id, name, description, skills, risk="low", *side_effects)`."""

    def row(
        tool_id: str, name: str, description: str, skills: tuple[str, ...], risk: Risk = "low", *effects: SideEffect
    ) -> Tool:
        return Tool(
            id=tool_id, name=name, description=description, group=group, skills=skills,
            risk=risk, side_effects=ordered_effects(effects),
        )  # fmt: skip

    return row


def twin(original: Tool, tool_id: str, group: str, description: str = "") -> Tool:
    """The same tool as another client offers it: another id and group, the same skills, risk and side effects."""
    return msgspec.structs.replace(original, id=tool_id, group=group, description=description or original.description)


def merge(first: Tool, second: Tool) -> Tool:
    """One tool for an id that two clients use: the higher risk and the side effects of both.

    Skills are the first's alone. Were they joined, a skill that is granted for the one tool would grant the other.
    """
    return msgspec.structs.replace(
        first,
        risk=strictest((first.risk, second.risk)),
        side_effects=ordered_effects((*first.side_effects, *second.side_effects)),
    )


def by_id(*tools: Tool) -> dict[str, Tool]:
    """Tools by id, in order; `merge` where an id occurs again."""
    index: dict[str, Tool] = {}
    for tool in tools:
        known = index.get(tool.id)
        index[tool.id] = merge(known, tool) if known else tool
    return index
