"""Verdicts made ahead, and the sentences in them. A reason is written for the agent that reads it: one sentence that
names the agent and the tool, says what stood in the way, and what to do instead.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Final, Literal, get_args

import msgspec

from ..catalog.calls import Code, Verdict
from ..catalog.records import Effect

CODES: Final = frozenset(get_args(Code))
MAX_SHOWN: Final = 120
"""Characters of a foreign string (tool id, agent name) that a sentence repeats."""


class Finding(msgspec.Struct, frozen=True):
    """What a rule says, before it is said to anyone in particular: `because` continues "x may not call y: ...".

    Shared by all agents of a profile; `spoken` makes one agent's Verdict of it.
    """

    effect: Effect
    rule: str
    code: Code
    because: str
    flags: tuple[str, ...] = ()


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """One rule's part in an explanation. `matched`: it speaks about this very call. `effect` is what it says of it
    ("none": nothing); `detail` holds the actual values."""

    stage: str
    rule: str
    effect: Literal["allow", "deny", "hold", "none"]
    matched: bool
    detail: str = ""


def shown(text: str) -> str:
    """A foreign string fit for a sentence: printable, and not longer than MAX_SHOWN."""
    if len(text) > MAX_SHOWN:
        text = text[: MAX_SHOWN - 3] + "..."
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def sentence(agent: str, tool: str, because: str, effect: Effect = "deny") -> str:
    yet = " yet" if effect == "hold" else ""
    return f"{shown(agent) or 'This agent'} may not call {shown(tool)}{yet}: {because}"


def spoken(finding: Finding, agent: str, tool: str) -> Verdict:
    """A deny or hold as it is told to one agent."""
    reason = sentence(agent, tool, finding.because, finding.effect)
    return Verdict(finding.effect, finding.rule, finding.code, reason, 0.0, finding.flags)


@lru_cache(maxsize=4096)
def allowed(rule: str, flags: tuple[str, ...] = ()) -> Verdict:
    """THE allow verdict of a rule: one object for everybody it allows, so that the warm path makes none."""
    return Verdict("allow", rule, "ALLOWED", f"Allowed by {shown(rule)}.", 0.0, flags)


def denied(
    code: Code, rule: str, agent: str, tool: str, because: str, *, retry_after: float = 0.0, flags: tuple[str, ...] = ()
) -> Verdict:
    return Verdict("deny", rule, code, sentence(agent, tool, because), retry_after, flags)


def fault(rule: str, agent: str, tool: str, because: str) -> Verdict:
    """The deny that stands for anything broken on the decision path."""
    return denied(
        "POLICY_ERROR",
        rule,
        agent,
        tool,
        f"{because}; nothing was called, and whoever runs the gateway must look into it.",
    )


def is_objection(answer: Any) -> bool:
    """Whether a plugin's answer is a sound deny or hold. Everything else is nonsense: msgspec does not check the types
    of a Struct that is built in code, so a stranger's verdict is checked field by field before it reaches the
    record."""
    return (
        type(answer) is Verdict
        and answer.effect in {"deny", "hold"}
        and answer.code in CODES
        and answer.code != "ALLOWED"
        and isinstance(answer.rule, str)
        and isinstance(answer.reason, str)
        and type(answer.retry_after) in {int, float}
        and math.isfinite(answer.retry_after)
        and isinstance(answer.flags, tuple)
        and all(isinstance(flag, str) for flag in answer.flags)
    )
