"""The tools as one organisation sees them: the built-in index, and what its own servers brought.

Where both know an id (an upstream that speaks for a product of the catalog), the built-in facts win unless a person
corrected the record: a server's own annotations are its claim and may not lower a risk that was reviewed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..catalog.calls import Tool
from ..catalog.records import TOOLS, UPSTREAMS, ToolRecord, Upstream
from ..catalog.store import MAX_PAGE, Query, Store
from .permissions import unknown_tool

MAX_TOOLS: Final = 20_000
"""Tools of one organisation kept in memory, absent ones included: agents choose the names that are asked for."""


class _Hints(msgspec.Struct):
    annotations: Any = None


_hints: Final = msgspec.json.Decoder(_Hints).decode


def runs_once(record: ToolRecord) -> bool:
    """Whether a tool must not run twice: a person said so, or else the server does. Silence says nothing: MCP's default
    (not idempotent) is no reason to answer a second, meant call with the first one's result."""
    if record.repeats or record.kind != "tool" or not record.definition:
        return record.repeats == "once"
    try:
        annotations = _hints(record.definition).annotations
    except msgspec.MsgspecError:
        return False
    hints = annotations if isinstance(annotations, dict) else {}
    return hints.get("idempotentHint") is False and hints.get("readOnlyHint") is not True


class _Table:
    """What was read for one organisation since the last change. `tools` holds None for what no record names."""

    __slots__ = ("complete", "holds", "tools")

    def __init__(self) -> None:
        self.tools: dict[str, Tool] = {}
        self.holds: dict[str, bool] = {}
        self.complete = False


class Catalog:
    """Tool facts by organisation. `load` and `load_all` read what is current; `lookup` never waits and answers from
    what was last read (for lists, which only show; decisions use `load`)."""

    def __init__(self, builtin: Mapping[str, Tool], store: Store) -> None:
        self._builtin = builtin
        self._store = store
        self._tables: dict[str, _Table] = {}
        self._last: dict[str, _Table] = {}

    def invalidate(self) -> None:
        """Forget what was read: the next `load` asks the store. A read under way files its result with the old ones."""
        self._last.update({org: table for org, table in self._tables.items() if table.complete})
        self._tables = {}

    def lookup(self, org: str, tool_id: str) -> Tool:
        """One tool from memory: what the last `load_all` (or `load`) saw, else the built-in one, else unknown."""
        for tables in (self._tables, self._last):
            table = tables.get(org)
            tool = table.tools.get(tool_id) if table is not None else None
            if tool is not None:
                return tool
            if table is not None and table.complete:
                break
        return self._builtin.get(tool_id) or unknown_tool(tool_id)

    async def load(self, org: str, tool_id: str) -> Tool:
        """One tool as it stands now. Raises StoreError."""
        table = self._tables.setdefault(org, _Table())
        tool = table.tools.get(tool_id)
        if tool is not None:
            return tool
        if table.complete:
            return self._builtin.get(tool_id) or unknown_tool(tool_id)
        page = await self._store.find(Query(TOOLS, "tool_id", {"org": org, "tool_id": tool_id}, limit=1))
        if page.records:
            tool = await self._merged(table, page.records[0])
        else:
            tool = self._builtin.get(tool_id) or unknown_tool(tool_id)
        if len(table.tools) >= MAX_TOOLS:
            table.tools.clear()
            table.complete = False
        table.tools[tool_id] = tool
        return tool

    async def load_all(self, org: str) -> None:
        """Read every tool of an organisation, once per change. Raises StoreError."""
        table = self._tables.setdefault(org, _Table())
        if table.complete:
            return
        cursor = ""
        while True:
            page = await self._store.find(Query(TOOLS, "by_org", {"org": org}, limit=MAX_PAGE, cursor=cursor))
            for record in page.records:
                table.tools[record.tool_id] = await self._merged(table, record)
            cursor = page.cursor
            if not cursor:
                break
        table.complete = len(table.tools) <= MAX_TOOLS

    async def _merged(self, table: _Table, record: ToolRecord) -> Tool:
        changed = record.pin != record.seen
        held = changed and await self._holds(table, record.org, record.upstream)
        builtin = self._builtin.get(record.tool_id)
        if builtin is not None and not record.corrected:
            return msgspec.structs.replace(builtin, upstream=record.upstream, pin_held=held, once=runs_once(record))
        return Tool(
            id=record.tool_id, name=record.name, description=record.title or record.name, group=record.upstream,
            skills=record.skills, risk=record.risk, side_effects=record.side_effects, upstream=record.upstream,
            pin_held=held, once=runs_once(record),
        )  # fmt: skip

    async def _holds(self, table: _Table, org: str, upstream: str) -> bool:
        """Whether an upstream's policy holds changed tools. A changed tool of a vanished upstream is held."""
        holds = table.holds.get(upstream)
        if holds is None:
            page = await self._store.find(Query(UPSTREAMS, "name", {"org": org, "name": upstream}, limit=1))
            record: Upstream | None = page.records[0] if page.records else None
            holds = table.holds[upstream] = record is None or record.pin_policy == "hold"
        return holds
