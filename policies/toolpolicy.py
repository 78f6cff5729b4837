"""OpenClaw's own allow and deny list from skills, for its `openclaw.json` (`tools.allow`, `tools.deny`).

A second line of defence inside OpenClaw: the gateway judges the calls, and what an agent may not use is not even shown
to its model. Two facts of OpenClaw shape the answer (docs.openclaw.ai/tools): a deny beats an allow, and an allow list
that names nothing OpenClaw has loaded is ignored with a warning. So every known tool that is not granted is denied by
name, and where nothing is granted the deny list says `*`, since an empty allow list would leave other plugins' tools
open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..catalog.errors import FieldError, ValidationFailed
from ..catalog.skills import SKILL_INDEX
from ..catalog.tools import OPENCLAW_SIDE

EVERY_TOOL: Final = "*"


def generate_openclaw_tool_policy(skills: Sequence[str]) -> dict[str, list[str]]:
    """`{"allow": [...], "deny": [...]}`: sorted ids of OpenClaw's side only, together all of them, none in both.

    Risk and side effects do not matter here; they are the profile's. ValidationFailed names each unknown skill by its
    place in `skills` ("/0", ...); also when `skills` is one string, whose letters would be taken for ids.
    """
    if isinstance(skills, str):
        raise ValidationFailed([("", "type", "Skills are a list of ids, not one string.")])
    unknown: list[FieldError] = [
        (f"/{place}", "unknown_skill", f"There is no skill {skill!r}.")
        for place, skill in enumerate(skills)
        if skill not in SKILL_INDEX
    ]
    if unknown:
        raise ValidationFailed(unknown, " ".join(message for _, _, message in unknown))
    granted = frozenset(skills)
    allow = sorted(tool.id for tool in OPENCLAW_SIDE if granted.intersection(tool.skills))
    deny = sorted({tool.id for tool in OPENCLAW_SIDE}.difference(allow))
    return {"allow": allow, "deny": deny if allow else [EVERY_TOOL, *deny]}
