"""The tools that upstreams offer, as the organisation knows them: risk, side effects, skills, and the pin.

A listing is a claim of the server. First sight is pinned; from then on a definition that changed is noted, and held or
flagged by the upstream's policy. Until a person accepts it, a changed definition may raise the known risk, never lower
it, and title and description stay as they were approved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, cast

import msgspec
import structlog

from ..catalog.errors import Conflict, FieldError, NotFound, Stale, ValidationFailed
from ..catalog.ids import new_id
from ..catalog.profiles import Risk, SideEffect
from ..catalog.records import TOOLS, ToolKind, ToolRecord, Upstream
from ..catalog.skills import SKILL_INDEX
from ..catalog.store import MAX_PAGE, Insert, Query, Replace, Store, Write
from ..catalog.tools import TOOL_INDEX
from ..catalog.tools.entry import ordered_effects, strictest
from .changes import ATTEMPTS, ROOM, Changes
from .doors.mcpfacts import LISTS, governed_id

log = structlog.get_logger()

KINDS: Final[Mapping[str, ToolKind]] = {
    "tools": "tool", "resources": "resource", "resourceTemplates": "template", "prompts": "prompt",
}  # fmt: skip
"""The key of a list in MCP's results -> what its entries are."""

FIELDS: Final[Mapping[ToolKind, tuple[str, str]]] = {
    KINDS[key]: (field, prefix) for key, field, prefix in LISTS.values()
}
"""Kind -> the field that identifies an entry, the prefix of its governed id."""

PINNED: Final = (
    "name", "title", "description", "inputSchema", "outputSchema", "annotations", "uri", "uriTemplate", "mimeType",
    "arguments",
)  # fmt: skip
"""What a pin covers: all that tells a model what a thing does and how to call it."""

MAX_ID: Final = 1000
"""Bytes of a tool's id. Stores hold keys of up to 1024."""

MAX_DEFINITION: Final = 128 * 1024
"""Bytes of one definition. Below DynamoDB's 400 KB an item, with room for the rest."""

MAX_LISTED: Final = 5_000
MAX_FAULTS: Final = 20
CUSTOM: Final = ("custom-tools",)


Offered = Mapping[str, Sequence[dict[str, Any]]]
"""Entries of `tools/list`, `resources/list`, `resources/templates/list`, `prompts/list` as they came, by the key of
their list (`KINDS`)."""


class Definition(msgspec.Struct, frozen=True):
    """One entry that can be governed."""

    kind: ToolKind
    name: str
    raw: dict[str, Any]


class Correction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a person says about a tool. What is left out stays; `accept_pin` approves the definition last seen.
    `repeats`: `once` for a tool that must not run twice, whose repeats then get the first result."""

    risk: Risk | msgspec.UnsetType = msgspec.UNSET
    side_effects: tuple[SideEffect, ...] | msgspec.UnsetType = msgspec.UNSET
    skills: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=38)] | msgspec.UnsetType = msgspec.UNSET
    accept_pin: bool = False
    repeats: Literal["safe", "once"] | msgspec.UnsetType = msgspec.UNSET


class Facts(msgspec.Struct, frozen=True):
    """What is believed of a tool."""

    risk: Risk
    side_effects: tuple[SideEffect, ...]
    skills: tuple[str, ...] = CUSTOM


def tool_id(upstream: str, kind: ToolKind, name: str) -> str:
    """The id that rules speak of: `files__read_file`, `files__resource:file:///a`, `files__prompt:greet`."""
    return governed_id(upstream, FIELDS[kind][1], name)


def infer(annotations: object) -> tuple[Risk, tuple[SideEffect, ...]]:
    """(risk, side effects) of an MCP tool from its annotations. Anything that is not a boolean counts as absent.

    Absent hints take MCP's defaults, which are the worst case: not read-only, destructive, open world.
    """
    hints = annotations if isinstance(annotations, Mapping) else {}
    effects: list[SideEffect] = []
    risk: Risk
    if hints.get("readOnlyHint") is True:
        risk = "low"
    elif hints.get("destructiveHint") is False:
        risk = "medium"
    else:
        risk = "high"
        effects.append("deletes-data")
    if hints.get("openWorldHint") is not False:
        effects.append("network-request")
    return risk, ordered_effects(effects)


def facts_of(definition: Definition, catalog: str) -> Facts:
    """What to believe of a definition: the catalog where the upstream speaks for it, else the server's own hints."""
    if definition.kind != "tool":
        return Facts("low", ())  # reading a resource or a prompt acts on nothing
    known = TOOL_INDEX.get(definition.name) if catalog == "agenticmail" else None
    if known is not None:
        return Facts(known.risk, known.side_effects, known.skills)
    return Facts(*infer(definition.raw.get("annotations")))


def pin_of(raw: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the canonical JSON of what a pin covers."""
    covered = {field: raw[field] for field in PINNED if field in raw}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ToolsRegistry:
    """One per worker; `Registry.tools`."""

    def __init__(self, store: Store, changes: Changes) -> None:
        self._store = store
        self._changes = changes

    async def all(self, org: str, upstream: str) -> list[ToolRecord]:
        """Every tool known of an upstream (by name), gone ones included, oldest first."""
        records: list[ToolRecord] = []
        cursor = ""
        while True:
            where = {"org": org, "upstream": upstream}
            page = await self._store.find(Query(TOOLS, "by_upstream", where, limit=MAX_PAGE, cursor=cursor))
            records += page.records
            cursor = page.cursor
            if not cursor:
                return records

    async def tool(self, org: str, upstream: str, record_id: str) -> ToolRecord:
        """One tool of an upstream (by name) by its record's id. NotFound."""
        found: ToolRecord | None = await self._store.get(TOOLS, org, record_id)
        if found is None or found.upstream != upstream:
            raise NotFound(f"There is no tool {record_id!r} of upstream {upstream!r}.")
        return found

    async def correct(
        self, upstream: Upstream, record_id: str, correction: Correction, version: int | None = None
    ) -> ToolRecord:
        """Say what is true of a tool, accept its changed definition, or both. ValidationFailed, NotFound, Stale."""
        record = await self.tool(upstream.org, upstream.name, record_id)
        if version is not None and record.version != version:
            raise Stale
        if correction.accept_pin:
            _accept(record, upstream.catalog)
        if not isinstance(correction.skills, msgspec.UnsetType):
            record.skills = _known_skills(correction.skills)
            record.corrected = True
        if not isinstance(correction.risk, msgspec.UnsetType):
            record.risk, record.corrected = correction.risk, True
        if not isinstance(correction.side_effects, msgspec.UnsetType):
            record.side_effects, record.corrected = ordered_effects(correction.side_effects), True
        if not isinstance(correction.repeats, msgspec.UnsetType):
            record.repeats = correction.repeats
        record.updated_at = self._changes.now()
        return cast(ToolRecord, (await self._changes.commit(Replace(TOOLS, record)))[0])

    # -- listings ------------------------------------------------------------------------------------------------
    async def record_listing(self, org: str, upstream: Upstream, offered: Offered, *, whole: bool = True) -> int:
        """Bring what is known of an upstream up to what it offers; how many records that changed. Raises StoreError.

        `whole`: `offered` is complete for the kinds it names, so what is missing there is marked as gone. Two workers
        may record one listing at once: whoever is second finds nothing left to do. Entries that no rule could name
        safely are left out (and logged), so calls to them are denied.
        """
        definitions, faults = _governable(upstream.name, offered)
        if faults:
            log.warning("tools_refused", upstream=upstream.name, count=len(faults), first=faults[:MAX_FAULTS])
        kinds = {kind for key, kind in KINDS.items() if whole and key in offered}
        for attempt in range(1, ATTEMPTS + 1):
            writes = await self._difference(org, upstream, definitions, kinds)
            try:
                for start in range(0, len(writes), ROOM):
                    await self._changes.commit(*writes[start : start + ROOM])
            except (Stale, Conflict):
                if attempt == ATTEMPTS:
                    raise
            else:
                break
        return len(writes)

    async def _difference(
        self, org: str, upstream: Upstream, definitions: Mapping[str, Definition], kinds: Collection[ToolKind]
    ) -> list[Write]:
        known = {record.tool_id: record for record in await self.all(org, upstream.name)}
        writes: list[Write] = []
        now = self._changes.now()
        for identifier, definition in definitions.items():
            record = known.get(identifier)
            if record is None:
                writes.append(Insert(TOOLS, _first_sight(org, upstream, definition, identifier, now)))
            elif _seen_again(record, definition, upstream.catalog, now):
                writes.append(Replace(TOOLS, record))
        for identifier, record in known.items():
            if record.kind in kinds and identifier not in definitions and not record.gone:
                record.gone, record.updated_at = True, now
                writes.append(Replace(TOOLS, record))
        return writes


def _governable(upstream: str, offered: Offered) -> tuple[dict[str, Definition], list[str]]:
    """Definitions by tool id, and what is wrong with those that no rule could name safely."""
    definitions: dict[str, Definition] = {}
    faults: list[str] = []
    for key, kind in KINDS.items():
        for raw in offered.get(key, ()):
            name = raw.get(FIELDS[kind][0]) if isinstance(raw, dict) else None
            fault = _fault_of(upstream, kind, name, raw)
            identifier = tool_id(upstream, kind, str(name))
            if not fault and identifier in definitions:
                fault = "is listed twice"
            if not fault and len(definitions) >= MAX_LISTED:
                fault = f"is beyond the {MAX_LISTED} entries that are read"
            if fault:
                faults.append(f"{kind} {str(name)[:100]!r} {fault}")
            else:
                definitions[identifier] = Definition(kind, str(name), raw)
    return definitions, faults


def _fault_of(upstream: str, kind: ToolKind, name: object, raw: dict[str, Any]) -> str:
    if not isinstance(name, str) or not name:
        return "has no name"
    if not name.isprintable():
        return "has control or invisible characters in its name"
    if len(tool_id(upstream, kind, name).encode()) > MAX_ID:
        return "has too long a name"
    if kind == "tool" and name.startswith(tuple(prefix for _, prefix in FIELDS.values() if prefix)):
        return "has the name of another kind of thing"  # it would share that one's id
    if len(_encoded(raw)) > MAX_DEFINITION:
        return f"is described in more than {MAX_DEFINITION} bytes"
    return ""


def _encoded(raw: dict[str, Any]) -> bytes:
    return msgspec.json.encode(raw)


def _text(raw: Mapping[str, Any], field: str) -> str:
    value = raw.get(field)
    return value if isinstance(value, str) else ""


def _first_sight(org: str, upstream: Upstream, definition: Definition, identifier: str, now: int) -> ToolRecord:
    pin = pin_of(definition.raw)
    facts = facts_of(definition, upstream.catalog)
    return ToolRecord(
        org=org, id=new_id("tool"), created_at=now, updated_at=now, upstream=upstream.name, kind=definition.kind,
        name=definition.name, tool_id=identifier, title=_text(definition.raw, "title"),
        description=_text(definition.raw, "description"), definition=_encoded(definition.raw).decode(),
        risk=facts.risk, side_effects=facts.side_effects, skills=facts.skills, pin=pin, seen=pin,
    )  # fmt: skip


def _seen_again(record: ToolRecord, definition: Definition, catalog: str, now: int) -> bool:
    """Bring a record up to date with what is offered now. False when nothing changed."""
    pin = pin_of(definition.raw)
    facts = facts_of(definition, catalog)
    believed = Facts(record.risk, record.side_effects, record.skills)
    if record.corrected:
        facts = believed
    elif pin != record.pin:  # not approved: it may warn of more, never of less
        effects = ordered_effects((*believed.side_effects, *facts.side_effects))
        facts = Facts(strictest((believed.risk, facts.risk)), effects, believed.skills)
    if record.seen == pin and not record.gone and facts == believed:
        return False
    record.gone = False
    record.seen = pin
    record.definition = _encoded(definition.raw).decode()
    record.risk, record.side_effects, record.skills = facts.risk, facts.side_effects, facts.skills
    record.updated_at = now
    return True


def _accept(record: ToolRecord, catalog: str) -> None:
    """Approve the definition last seen: it is the pin from now on, and is believed where nobody corrected it."""
    raw = cast(dict[str, Any], msgspec.json.decode(record.definition or b"{}"))
    record.pin = record.seen
    record.title, record.description = _text(raw, "title"), _text(raw, "description")
    if not record.corrected:
        facts = facts_of(Definition(record.kind, record.name, raw), catalog)
        record.risk, record.side_effects, record.skills = facts.risk, facts.side_effects, facts.skills


def _known_skills(skills: tuple[str, ...]) -> tuple[str, ...]:
    faults: list[FieldError] = [
        (f"/skills/{place}", "unknown_skill", f"There is no skill {skill!r}.")
        for place, skill in enumerate(skills)
        if skill not in SKILL_INDEX
    ]
    if faults:
        raise ValidationFailed(faults)
    return tuple(dict.fromkeys(skills))
