"""OpenClaw's allow and deny list: complete, disjoint, and closed when nothing is granted."""

from __future__ import annotations

import pytest

from agenticmail_enterprise.catalog.errors import ValidationFailed
from agenticmail_enterprise.catalog.skills import BUILTIN_SKILLS, SKILL_INDEX
from agenticmail_enterprise.catalog.tools import OPENCLAW_SIDE, TOOL_INDEX
from agenticmail_enterprise.policies.toolpolicy import generate_openclaw_tool_policy

OPENCLAW_IDS = {tool.id for tool in OPENCLAW_SIDE}
WITH_OPENCLAW_TOOLS = [skill.id for skill in BUILTIN_SKILLS if OPENCLAW_IDS & set(skill.tools)]


def test_mail_and_search_allow_just_their_tools() -> None:
    policy = generate_openclaw_tool_policy(["email-management", "web-search"])
    assert set(policy) == {"allow", "deny"}
    assert {"agenticmail_send", "agenticmail_inbox", "web_search", "x_search"} <= set(policy["allow"])
    assert {"exec", "write", "read", "message", "agenticmail_sms_send"} <= set(policy["deny"])


@pytest.mark.parametrize("skill", WITH_OPENCLAW_TOOLS)
def test_the_lists_are_sorted_disjoint_and_together_all_of_openclaws_side(skill: str) -> None:
    policy = generate_openclaw_tool_policy([skill])
    for ids in policy.values():
        assert ids == sorted(set(ids))
    assert not set(policy["allow"]) & set(policy["deny"])
    assert set(policy["allow"]) | set(policy["deny"]) == OPENCLAW_IDS
    assert set(policy["allow"]) == OPENCLAW_IDS & set(SKILL_INDEX[skill].tools)


def test_names_of_other_clients_never_appear() -> None:
    policy = generate_openclaw_tool_policy([skill.id for skill in BUILTIN_SKILLS])
    assert {TOOL_INDEX[id_].group for id_ in policy["allow"]} == {"openclaw", "openclaw-core"}
    assert not {"send_email", "inbox"} & {*policy["allow"], *policy["deny"]}


def test_all_skills_allow_all_tools() -> None:
    policy = generate_openclaw_tool_policy(tuple(SKILL_INDEX))
    assert policy == {"allow": sorted(OPENCLAW_IDS), "deny": []}


@pytest.mark.parametrize("skills", [[], ["hr"], ["calendar", "docker"]])
def test_an_empty_allow_list_would_open_openclaw_so_everything_is_denied(skills: list[str]) -> None:
    assert generate_openclaw_tool_policy(skills) == {"allow": [], "deny": ["*", *sorted(OPENCLAW_IDS)]}


def test_naming_a_skill_twice_or_in_another_order_changes_nothing() -> None:
    once = generate_openclaw_tool_policy(["memory", "web-search"])
    assert generate_openclaw_tool_policy(["web-search", "memory", "web-search"]) == once


def test_each_unknown_skill_is_named_with_its_place() -> None:
    with pytest.raises(ValidationFailed) as refusal:
        generate_openclaw_tool_policy(["memory", "Memory", "", "agenticmail"])
    assert [field["path"] for field in refusal.value.details["fields"]] == ["/1", "/2", "/3"]
    assert "'Memory'" in refusal.value.message
    assert "'agenticmail'" in refusal.value.message


def test_one_string_is_not_taken_for_a_list_of_letters() -> None:
    with pytest.raises(ValidationFailed):
        generate_openclaw_tool_policy("email-management")
