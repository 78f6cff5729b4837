"""A permission profile as data: what one agent (or many) may do. Types only; `policies` gives them meaning.

Defaults deny: an empty Profile allows no tool at all.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

Risk = Literal["low", "medium", "high", "critical"]
RISKS: Final[tuple[Risk, ...]] = ("low", "medium", "high", "critical")

SideEffect = Literal[
    "sends-email", "sends-message", "sends-sms", "posts-social", "runs-code", "modifies-files", "deletes-data",
    "network-request", "controls-device", "accesses-secrets", "financial",
]  # fmt: skip
"""The eleven of the seed's catalog (`enums.side_effects`)."""

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Glob = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
"""A tool id, or a pattern where `*` stands for any run of characters and `?` for one. Case-sensitive."""


class _Spec(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class SkillRule(_Spec, kw_only=True, frozen=True):
    """Which skills' tools are granted: those listed, or all but those listed."""

    mode: Literal["allowlist", "blocklist"] = "allowlist"
    list: tuple[Name, ...] = ()


class ToolRule(_Spec, kw_only=True, frozen=True):
    """Tools granted or refused by id or glob. A deny beats every allow; an allow here beats a missing skill only."""

    allow: tuple[Glob, ...] = ()
    deny: tuple[Glob, ...] = ()


Operator = Literal[
    "equals", "not_equals", "one_of", "not_one_of", "matches", "contains", "max", "min", "max_length",
    "domain_in", "domain_not_in", "path_within", "command_in", "present", "absent",
]  # fmt: skip


class ArgumentRule(_Spec, kw_only=True, frozen=True):
    """A condition on a call's arguments; a call of a matching tool that does not meet it is denied.

    `field` is a path into the arguments: `to`, `message.recipients`, `items[*].price`; `*` visits every element.
    Where it finds lists, every element must meet the condition. A missing field passes unless `required`.
    `values` are the operator's operands: domains, prefixes, commands, a number, an RE2-style expression.
    """

    name: Name
    tools: tuple[Glob, ...]
    field: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    op: Operator
    values: tuple[str | int | float | bool, ...] = ()
    required: bool = False


class ApprovalRule(_Spec, kw_only=True, frozen=True):
    """Which calls a person must approve first."""

    risks: tuple[Risk, ...] = ()
    side_effects: tuple[SideEffect, ...] = ()
    tools: tuple[Glob, ...] = ()


class RateLimit(_Spec, kw_only=True, frozen=True):
    """Ceilings per minute, hour and day, 0 for none; `tools` empty: all of the agent's calls together."""

    per_minute: Annotated[int, msgspec.Meta(ge=0)] = 0
    per_hour: Annotated[int, msgspec.Meta(ge=0)] = 0
    per_day: Annotated[int, msgspec.Meta(ge=0)] = 0
    tools: tuple[Glob, ...] = ()


class Window(_Spec, kw_only=True, frozen=True):
    """A weekly window in local time of `timezone` (IANA name). `start`/`end` are HH:MM; an end before the start crosses
    midnight."""

    days: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    start: Annotated[str, msgspec.Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$(?!\n)")] = "00:00"
    end: Annotated[str, msgspec.Meta(pattern=r"^(([01]\d|2[0-3]):[0-5]\d|24:00)$(?!\n)")] = "24:00"
    timezone: Name = "UTC"


class Profile(_Spec, kw_only=True, frozen=True):
    """Everything a profile says. Combined by `policies.snapshot`; every part must agree before a call may happen."""

    name: str = ""
    description: str = ""
    skills: SkillRule = SkillRule()
    tools: ToolRule = ToolRule()
    max_risk: Risk = "low"
    blocked_side_effects: tuple[SideEffect, ...] = ()
    allow_unknown: bool = False
    argument_rules: tuple[ArgumentRule, ...] = ()
    approval: ApprovalRule = ApprovalRule()
    rate_limits: tuple[RateLimit, ...] = ()
    schedule: tuple[Window, ...] = ()
    allowed_ips: tuple[str, ...] = ()
