"""Argument rules: what a profile demands of a call's arguments, compiled per (rules, tool) into one function.

Comes in through the plugin door under the name `argument-rules`, like a stranger's guard; a profile with rules is
denied altogether where the plugin is not active, so that leaving a name out of the settings never opens anything.

Fail-closed: a rule that cannot be compiled, arguments of an unexpected shape, and an object that names a key twice (the
upstream may take the other one) all deny.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final

import msgspec

from ..catalog.calls import AgentView, Call, Tool, Verdict
from ..catalog.plugins import GuardFunction, NoConfig
from ..catalog.profiles import ArgumentRule, Profile
from .fields import Found, Step, Surprise, find, parse
from .operators import OPERATORS, BadRule, Test
from .patterns import compiled
from .verdicts import Match, denied, fault, shown

MAX_COMPILED: Final = 4_096
"""Compiled rule sets kept; past it the table starts afresh."""

Check = Callable[[dict[str, Any]], str | None]
"""arguments -> what is wrong, as the end of a sentence, or None."""

_MISSING: Final = object()
_encode: Final = msgspec.json.Encoder().encode


class CompiledRule:
    """One rule, ready. `rule_id` is what verdicts name; `demand` is what it demands, for people."""

    __slots__ = ("check", "demand", "rule", "rule_id")

    def __init__(self, rule: ArgumentRule) -> None:
        """Raises BadRule."""
        kind = OPERATORS[rule.op]
        try:
            steps = parse(rule.field)
        except ValueError as error:
            raise BadRule(f"the field {rule.field!r} is not a path: {error}") from None
        test = kind.compile(rule.values)
        self.rule = rule
        self.rule_id = f"argument-rules:{rule.name}"
        self.demand = f"the argument {shown(rule.field)!r} must {shown(kind.demand(rule.values))}"
        if rule.op == "absent":
            self.check: Check = _absent(steps)
        elif rule.op == "present":
            self.check = _present(steps)
        else:
            self.check = _condition(steps, test, rule.required)


def _absent(steps: tuple[Step, ...]) -> Check:
    def check(args: dict[str, Any]) -> str | None:
        found = find(args, steps, flatten=False)
        return "it is given" if found.values or found.nulls else None

    return check


def _present(steps: tuple[Step, ...]) -> Check:
    def check(args: dict[str, Any]) -> str | None:
        found = find(args, steps, flatten=False)
        return "it is missing" if found.missing or found.nulls or not found.values else None

    return check


def _condition(steps: tuple[Step, ...], test: Test, required: bool) -> Check:
    def general(args: dict[str, Any]) -> str | None:
        found: Found = find(args, steps)
        for value in found.values:
            problem = test(value)
            if problem is not None:
                return problem
        return "it is missing" if required and (found.missing or found.nulls or not found.values) else None

    if len(steps) > 1 or not isinstance(steps[0], str):
        return general
    key = steps[0]

    def flat(args: dict[str, Any]) -> str | None:
        # One key that holds one plain value: nearly every call. Anything else goes the general way.
        value = args.get(key, _MISSING)
        if value is _MISSING:
            return "it is missing" if required else None
        return general(args) if value is None or type(value) is list else test(value)

    return flat


def names_a_key_twice(raw: bytes, args: dict[str, Any]) -> bool:
    """Whether any object in a JSON text has two members of one name. `args` is its decoded form, which lost one.

    Most clients send what our own encoder would, byte for byte. Otherwise, without backslashes, each string is two
    quotation marks, so their count tells; else the text is parsed once more.
    """
    encoded = _encode(args)
    if encoded == raw:
        return False
    if b"\\" not in raw:
        return raw.count(b'"') != encoded.count(b'"')
    twice = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal twice
        twice = twice or len({key for key, _ in pairs}) != len(pairs)

    json.loads(raw, object_pairs_hook=look)
    return twice


def applicable(profile: Profile, tool_id: str) -> list[ArgumentRule]:
    return [rule for rule in profile.argument_rules if tool_id in compiled(rule.tools)]


def compile_rules(rules: Iterable[ArgumentRule]) -> GuardFunction:
    """One guard for several rules, in their order. Raises BadRule."""
    checks = tuple((rule, rule.check) for rule in map(CompiledRule, rules))

    def check_arguments(call: Call) -> Verdict | None:
        args = call.args
        raw = call.raw
        if raw and not call.exact and names_a_key_twice(raw if type(raw) is bytes else bytes(raw), args):
            because = "its arguments name a key twice, which is ambiguous; send every key once."
            return denied("ARGUMENT_DENIED", "argument-rules", call.principal.agent_name, call.tool, because)
        for rule, check in checks:
            try:
                problem = check(args)
            except Surprise as surprise:
                problem = str(surprise)
            if problem is not None:
                because = f"{rule.demand}, and {problem} (rule {shown(rule.rule.name)}); change it and try again."
                return denied("ARGUMENT_DENIED", rule.rule_id, call.principal.agent_name, call.tool, because)
        return None

    return check_arguments


def broken(rule: ArgumentRule) -> str | None:
    """What is wrong with a rule, None when it compiles."""
    try:
        CompiledRule(rule)
    except BadRule as error:
        return str(error)
    return None


class ArgumentRules:
    """The guard behind `Profile.argument_rules`. Functions are shared by all agents and profiles that say the same."""

    kind: ClassVar[str] = "guard"
    config: ClassVar[type[msgspec.Struct]] = NoConfig

    def __init__(self, config: NoConfig) -> None:
        self._compiled: dict[bytes, GuardFunction] = {}

    async def provision(self) -> None: ...

    async def close(self) -> None:
        self._compiled.clear()

    def compile(self, agent: AgentView, profile: Profile, tool: Tool) -> GuardFunction | None:
        rules = applicable(profile, tool.id)
        if not rules:
            return None
        # Keyed by its JSON: as Python values, a rule about 1 would equal one about true.
        key = _encode(rules)
        guard = self._compiled.get(key)
        if guard is None:
            if len(self._compiled) >= MAX_COMPILED:
                self._compiled.clear()
            guard = self._compiled[key] = self._guard(rules)
        return guard

    def examine(self, agent: AgentView, profile: Profile, tool: Tool, call: Call) -> list[Match]:
        """Every rule about this tool and what it says of these arguments, for explanations."""
        return [_examined(rule, call) for rule in applicable(profile, tool.id)]

    @staticmethod
    def _guard(rules: list[ArgumentRule]) -> GuardFunction:
        try:
            return compile_rules(rules)
        except BadRule as error:
            name = next(rule.name for rule in rules if broken(rule) is not None)
            rule_id, because = f"argument-rules:{name}", f"its argument rule {shown(name)} cannot be compiled: {error}"

        def deny(call: Call) -> Verdict:
            return fault(rule_id, call.principal.agent_name, call.tool, because)

        return deny


def _examined(rule: ArgumentRule, call: Call) -> Match:
    problem = broken(rule)
    if problem is None:
        ready = CompiledRule(rule)
        demand = ready.demand
        try:
            problem = ready.check(call.args)
        except Surprise as surprise:
            problem = str(surprise)
    else:
        demand = "the rule cannot be compiled"
    detail = f"{demand}; {'it does' if problem is None else problem}; {rule.field} = {actual(rule, call)}"
    rule_id = f"argument-rules:{rule.name}"
    return Match(stage="arguments", rule=rule_id, effect="deny" if problem else "allow", matched=True, detail=detail)


def actual(rule: ArgumentRule, call: Call) -> str:
    """The value a rule looked at, as JSON fit for a sentence."""
    try:
        found = find(call.args, parse(rule.field), flatten=False)
    except (Surprise, ValueError):
        return "(cannot be followed)"
    if not found.values:
        return "null" if found.nulls else "(missing)"
    value = found.values[0] if len(found.values) == 1 else found.values
    return shown(_encode(value).decode())
