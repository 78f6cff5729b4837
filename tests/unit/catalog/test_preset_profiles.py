"""The five presets do what their names promise, over every tool in the catalog.

`reached` below is a second, plain reading of what a profile grants, so that the presets are not measured with the
engine that enforces them.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import msgspec
import pytest

from agenticmail_enterprise.catalog.calls import Tool
from agenticmail_enterprise.catalog.errors import NotFound
from agenticmail_enterprise.catalog.presets import PRESET_PROFILES, get_preset
from agenticmail_enterprise.catalog.profiles import RISKS, Profile
from agenticmail_enterprise.catalog.skills import SKILL_INDEX
from agenticmail_enterprise.catalog.tools import TOOL_INDEX
from agenticmail_enterprise.policies.permissions import PermissionEngine

LEAVING = {"sends-email", "sends-message", "sends-sms", "posts-social"}
IDS = [preset.id for preset in PRESET_PROFILES]


def matches(tool_id: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(tool_id, pattern) for pattern in patterns)


def granted(profile: Profile, tool: Tool) -> bool:
    listed = bool(set(tool.skills) & set(profile.skills.list))
    by_skill = listed if profile.skills.mode == "allowlist" else not listed
    return (by_skill or matches(tool.id, profile.tools.allow)) and not matches(tool.id, profile.tools.deny)


def reached(preset_id: str) -> dict[str, Tool]:
    profile = get_preset(preset_id).profile
    return {
        tool.id: tool
        for tool in TOOL_INDEX.values()
        if granted(profile, tool)
        and RISKS.index(tool.risk) <= RISKS.index(profile.max_risk)
        and not set(tool.side_effects) & set(profile.blocked_side_effects)
    }


def asks(profile: Profile, tool: Tool) -> bool:
    rule = profile.approval
    return (
        tool.risk in rule.risks
        or bool(set(tool.side_effects) & set(rule.side_effects))
        or matches(tool.id, rule.tools)
    )  # fmt: skip


def effects_of(tools: dict[str, Tool]) -> set[str]:
    return {effect for tool in tools.values() for effect in tool.side_effects}


def test_there_are_five_with_the_risks_of_their_names() -> None:
    assert [(preset.id, preset.risk) for preset in PRESET_PROFILES] == [
        ("research-assistant", "low"),
        ("customer-support", "medium"),
        ("developer", "high"),
        ("full-access", "critical"),
        ("sandbox", "low"),
    ]


@pytest.mark.parametrize(
    ("preset_id", "about"), [("research-assistant", 25), ("customer-support", 35), ("developer", 45), ("sandbox", 10)]
)
def test_each_reaches_about_as_many_tools_as_promised(preset_id: str, about: int) -> None:
    assert abs(len(reached(preset_id)) - about) <= 3, sorted(reached(preset_id))


@pytest.mark.parametrize("preset_id", IDS)
def test_whatever_is_riskier_than_the_label_waits_for_a_person(preset_id: str) -> None:
    preset = get_preset(preset_id)
    for tool in reached(preset_id).values():
        if RISKS.index(tool.risk) > RISKS.index(preset.risk):
            assert asks(preset.profile, tool), tool.id


@pytest.mark.parametrize("preset_id", IDS)
def test_a_preset_names_only_skills_and_tools_that_exist_and_can_be_reached(preset_id: str) -> None:
    profile = get_preset(preset_id).profile
    assert set(profile.skills.list) <= set(SKILL_INDEX)
    assert set(profile.tools.allow) <= set(reached(preset_id))
    assert len(set(profile.tools.allow)) == len(profile.tools.allow)
    assert set(profile.tools.deny) <= set(TOOL_INDEX)


@pytest.mark.parametrize("preset_id", IDS)
def test_a_limit_is_set_on_calls_and_names_tools_that_exist(preset_id: str) -> None:
    limits = get_preset(preset_id).profile.rate_limits
    assert limits[0].tools == ()
    assert 0 < limits[0].per_minute < limits[0].per_hour < limits[0].per_day
    for limit in limits[1:]:
        assert limit.tools
        assert limit.per_hour
        assert set(limit.tools) <= set(reached(preset_id))


def test_research_sends_nothing_and_writes_only_notes() -> None:
    tools = reached("research-assistant")
    assert effects_of(tools) == {"network-request"}
    assert {tool.risk for tool in tools.values()} == {"low"}
    assert {"web_search", "web_fetch", "read", "pdf", "memory_search", "memory_reflect"} <= set(tools)
    assert not {"exec", "write", "edit", "browser"} & set(tools)
    notes = {"agenticmail_get_thread_id", "agenticmail_save_thread_memory"}
    assert not {id_ for id_ in tools if "mail" in id_ and not id_.startswith("agenticmail_memory_")} - notes


def test_support_can_send_but_asks_before_anything_leaves() -> None:
    preset = get_preset("customer-support")
    tools = reached(preset.id)
    leaving = {id_ for id_, tool in tools.items() if LEAVING & set(tool.side_effects)}
    assert {"agenticmail_send", "agenticmail_reply", "send_email", "reply_email", "template_send"} <= leaving
    assert all(asks(preset.profile, tools[id_]) for id_ in leaving)
    assert effects_of(tools) <= {"sends-email", "sends-message", "network-request"}


def test_support_reads_mail_and_looks_things_up_without_asking() -> None:
    preset = get_preset("customer-support")
    tools = reached(preset.id)
    for id_ in ("agenticmail_inbox", "list_inbox", "agenticmail_search", "web_search", "memory_search"):
        assert not asks(preset.profile, tools[id_])


def test_support_limits_what_leaves_to_fifty_an_hour() -> None:
    preset = get_preset("customer-support")
    limit = preset.profile.rate_limits[1]
    leaving = {id_ for id_, tool in reached(preset.id).items() if LEAVING & set(tool.side_effects)}
    assert limit.per_hour == 50
    assert set(limit.tools) == leaving


def test_a_developer_has_code_git_database_and_web_but_no_mail() -> None:
    preset = get_preset("developer")
    tools = reached(preset.id)
    wanted = {"exec", "process", "write", "edit", "apply_patch", "github_publish", "storage", "web_fetch", "browser"}
    assert wanted <= set(tools)
    assert not effects_of(tools) & (LEAVING | {"controls-device", "financial", "accesses-secrets"})
    assert {id_ for id_, tool in tools.items() if asks(preset.profile, tool)} == {"exec", "terminal"}


def test_full_access_reaches_everything_and_the_unknown() -> None:
    preset = get_preset("full-access")
    assert set(reached(preset.id)) == set(TOOL_INDEX)
    assert preset.profile.allow_unknown
    assert not any(asks(preset.profile, tool) for tool in TOOL_INDEX.values())
    leaving = {id_ for id_, tool in TOOL_INDEX.items() if LEAVING & set(tool.side_effects)}
    assert leaving <= set(preset.profile.rate_limits[1].tools)


def test_the_sandbox_has_no_effect_at_all_and_blocks_every_one() -> None:
    tools = reached("sandbox")
    assert effects_of(tools) == set()
    assert {tool.risk for tool in tools.values()} == {"low"}
    assert len(get_preset("sandbox").profile.blocked_side_effects) == 11


def test_a_tool_that_somebody_registers_under_no_skill_reaches_nobody_but_full_access() -> None:
    stranger = Tool(id="crm__delete_all", skills=("custom-tools",), risk="low")
    assert [preset.id for preset in PRESET_PROFILES if granted(preset.profile, stranger)] == ["full-access"]
    assert [preset.id for preset in PRESET_PROFILES if preset.profile.allow_unknown] == ["full-access"]


@pytest.mark.parametrize("preset_id", IDS)
def test_the_engine_that_enforces_a_preset_reads_it_the_same_way(preset_id: str) -> None:
    profile = get_preset(preset_id).profile
    engine = PermissionEngine(TOOL_INDEX)
    answers = {id_: engine.check_permission(profile, id_) for id_ in TOOL_INDEX}
    tools = reached(preset_id)
    held = {id_ for id_, tool in tools.items() if asks(profile, tool)}
    assert {id_ for id_, answer in answers.items() if answer.requires_approval} == held
    assert {id_ for id_, answer in answers.items() if answer.allowed} == set(tools) - held
    assert engine.check_permission(profile, "nobody_registered_this").allowed == (preset_id == "full-access")


@pytest.mark.parametrize("preset_id", IDS)
def test_a_profile_survives_being_stored(preset_id: str) -> None:
    profile = get_preset(preset_id).profile
    assert msgspec.json.decode(msgspec.json.encode(profile), type=Profile) == profile


@pytest.mark.parametrize("unknown", ["", "Sandbox", "root"])
def test_an_unknown_preset_is_named_in_the_refusal(unknown: str) -> None:
    with pytest.raises(NotFound, match=repr(unknown)):
        get_preset(unknown)
