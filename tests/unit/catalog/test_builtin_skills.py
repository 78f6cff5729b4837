"""The 38 skills: complete, typed, and never milder than their tools."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from agenticmail_enterprise.catalog.errors import NotFound
from agenticmail_enterprise.catalog.profiles import RISKS
from agenticmail_enterprise.catalog.skills import (
    BUILTIN_SKILLS,
    CATEGORIES,
    SKILL_INDEX,
    get_skill,
    get_tools_by_skill,
)
from agenticmail_enterprise.catalog.tools import TOOL_INDEX
from agenticmail_enterprise.catalog.tools.entry import SIDE_EFFECTS

EXPECTED = {
    "communication": {"Email Management", "SMS & Phone", "Calendar", "Messaging"},
    "research": {"Web Search", "Web Browsing", "News Monitoring", "Academic Research"},
    "development": {"Code Execution", "Git & GitHub", "Database", "API Integration"},
    "content": {"Writing", "Image Generation", "Audio/TTS", "Video Processing"},
    "productivity": {"Task Management", "Note Taking", "File Management", "Spreadsheets", "Scheduling"},
    "system": {"System Administration", "Docker", "Network", "Security"},
    "ai-ml": {"Model Inference", "RAG/Knowledge Base", "Agent Orchestration", "Memory", "Sessions"},
    "business": {"CRM", "Analytics", "Billing", "HR"},
    "iot-smart-home": {"Home Automation", "Camera/Surveillance", "Media Playback"},
    "custom": {"Custom Tools"},
}
WITHOUT_TOOLS = {"calendar", "docker", "hr"}


def test_there_are_38_skills_in_ten_categories() -> None:
    assert len(BUILTIN_SKILLS) == len(SKILL_INDEX) == 38
    found: dict[str, set[str]] = {}
    for skill in BUILTIN_SKILLS:
        found.setdefault(skill.category, set()).add(skill.name)
    assert found == EXPECTED
    assert list(found) == list(CATEGORIES)


def test_ids_are_kebab_case_and_the_well_known_ones_are_there() -> None:
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", id_) for id_ in SKILL_INDEX)
    assert {"email-management", "web-search", "crm", "knowledge-base", "sms-phone", "git-github"} <= set(SKILL_INDEX)


def test_a_skill_has_the_tools_that_name_it() -> None:
    for skill in BUILTIN_SKILLS:
        assert skill.tools == tuple(tool.id for tool in TOOL_INDEX.values() if skill.id in tool.skills)


def test_side_effects_and_risk_cover_those_of_all_tools() -> None:
    for skill in BUILTIN_SKILLS:
        tools = [TOOL_INDEX[tool] for tool in skill.tools]
        union = {effect for tool in tools for effect in tool.side_effects}
        assert union <= set(skill.side_effects), skill.id
        assert skill.side_effects == tuple(e for e in SIDE_EFFECTS if e in skill.side_effects), skill.id
        assert all(RISKS.index(skill.risk) >= RISKS.index(tool.risk) for tool in tools), skill.id


def test_only_skills_that_declare_for_outside_tools_say_more_than_their_tools() -> None:
    more = {
        skill.id
        for skill in BUILTIN_SKILLS
        if set(skill.side_effects) != {e for tool in skill.tools for e in TOOL_INDEX[tool].side_effects}
    }
    assert more == {"calendar", "docker", "crm", "hr"}


def test_a_skill_without_tools_says_where_they_come_from() -> None:
    assert {skill.id for skill in BUILTIN_SKILLS if not skill.tools} == WITHOUT_TOOLS
    for id_ in WITHOUT_TOOLS:
        skill = get_skill(id_)
        assert "registered MCP servers" in skill.description
        assert skill.config_fields
        assert skill.side_effects


def test_config_fields_are_typed_and_named_once() -> None:
    for skill in BUILTIN_SKILLS:
        assert max(Counter(field.name for field in skill.config_fields).values(), default=1) == 1, skill.id
        for field in skill.config_fields:
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", field.name)
            assert field.type in ("string", "number", "boolean", "select", "secret")
            assert (field.type == "select") == bool(field.options), (skill.id, field.name)
            assert field.description.endswith("."), (skill.id, field.name)


def test_whatever_is_a_credential_is_a_secret() -> None:
    telling = re.compile(r"(token|key|password|credentials?)$")
    for skill in BUILTIN_SKILLS:
        for field in skill.config_fields:
            assert bool(telling.search(field.name)) == (field.type == "secret"), (skill.id, field.name)


def test_tools_of_a_skill_are_a_list_of_ones_own() -> None:
    tools = get_tools_by_skill("email-management")
    assert {"agenticmail_send", "agenticmail_inbox", "agenticmail_reply", "send_email", "inbox"} <= set(tools)
    tools.clear()
    assert get_tools_by_skill("email-management")


def test_a_small_skill_does_not_bring_the_shell() -> None:
    with_exec = {skill.id for skill in BUILTIN_SKILLS if "exec" in skill.tools}
    assert with_exec == {"code-execution", "system-administration"}


@pytest.mark.parametrize("unknown", ["agenticmail", "Email Management", "EMAIL-MANAGEMENT", "", "email-management "])
def test_an_unknown_skill_is_named_in_the_refusal(unknown: str) -> None:
    for ask in (get_skill, get_tools_by_skill):
        with pytest.raises(NotFound) as refusal:
            ask(unknown)
        assert repr(unknown) in refusal.value.message
        assert refusal.value.details == {"skill": unknown}
