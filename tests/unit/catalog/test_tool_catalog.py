"""The catalog of tools: all 167 are there, none is judged more mildly than what it can do."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from agenticmail_enterprise.catalog.profiles import RISKS
from agenticmail_enterprise.catalog.skills import SKILL_INDEX
from agenticmail_enterprise.catalog.tools import ALL_TOOLS, CURRENT_TOOLS, OPENCLAW_SIDE, TOOL_INDEX
from agenticmail_enterprise.catalog.tools.agenticmail_mcp import EQUIVALENTS, MCP_TOOLS
from agenticmail_enterprise.catalog.tools.entry import SIDE_EFFECTS, by_id, row_of

EVERY = (*ALL_TOOLS, *CURRENT_TOOLS)

# SHA-256 of the published ids of each group, sorted, one a line.
PUBLISHED = {
    "openclaw": (63, "860ac007d4130e62381bd22045c4cdf71e33ddc75f13d19713a0b1e77cc07e96"),
    "agenticmail-mcp": (62, "27ee4d82468c1a922e9f1dc77960115e92d31ef15be5823671559e325cfa5de5"),
    "shell": (42, "85a45d8f184a594574817c639e98f1267aa1274f32c5995d444d9324ce628f45"),
}
CURRENT_CORE = (61, "20f9af4bc6f24d7cb28e5a439fd8f4b2c69b8c082d9c577823b59d1b8bf24b7f")

SENDING = {"sends-email", "sends-message", "sends-sms", "posts-social"}


def digest(ids: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


@pytest.mark.parametrize("group", PUBLISHED)
def test_each_group_holds_exactly_the_published_ids(group: str) -> None:
    ids = [tool.id for tool in ALL_TOOLS if tool.group == group]
    assert (len(ids), digest(ids)) == PUBLISHED[group]


def test_the_three_groups_are_all_and_their_ids_are_unambiguous() -> None:
    assert Counter(tool.group for tool in ALL_TOOLS) == {"openclaw": 63, "agenticmail-mcp": 62, "shell": 42}
    assert len({tool.id for tool in ALL_TOOLS}) == 167


def test_openclaws_own_tools_are_the_current_ones() -> None:
    ids = [tool.id for tool in CURRENT_TOOLS if tool.group == "openclaw-core"]
    assert (len(ids), digest(ids)) == CURRENT_CORE


def test_newer_agenticmail_tools_stand_beside_the_167() -> None:
    newer = [tool for tool in CURRENT_TOOLS if tool.group != "openclaw-core"]
    assert Counter(tool.group for tool in newer) == {"openclaw": 26, "agenticmail-mcp": 39, "agenticmail-rest": 7}
    assert not {tool.id for tool in newer} & {tool.id for tool in ALL_TOOLS}


def test_every_tool_has_a_name_a_description_and_skills_that_exist() -> None:
    for tool in EVERY:
        assert tool.name, tool.id
        assert tool.description.endswith("."), tool.id
        assert tool.skills, tool.id
        assert set(tool.skills) <= set(SKILL_INDEX), tool.id
        assert len(set(tool.skills)) == len(tool.skills), tool.id


def test_risk_and_side_effects_are_of_the_closed_lists_and_in_order() -> None:
    for tool in EVERY:
        assert tool.risk in RISKS, tool.id
        assert tool.side_effects == tuple(e for e in SIDE_EFFECTS if e in tool.side_effects), tool.id
        assert tool.known


def test_the_index_holds_every_id_once_under_its_own_name() -> None:
    assert set(TOOL_INDEX) == {tool.id for tool in EVERY}
    assert all(key == tool.id for key, tool in TOOL_INDEX.items())
    assert len(TOOL_INDEX) == 167 + 133 - 2


def test_the_index_never_judges_an_id_more_mildly_than_any_tool_of_that_id() -> None:
    for tool in EVERY:
        judged = TOOL_INDEX[tool.id]
        assert RISKS.index(judged.risk) >= RISKS.index(tool.risk), tool.id
        assert set(judged.side_effects) >= set(tool.side_effects), tool.id


def test_two_ids_are_shared_and_a_mail_skill_never_opens_the_file_system() -> None:
    shared = {id_ for id_, times in Counter(tool.id for tool in EVERY).items() if times > 1}
    assert shared == {"read", "openclaw"}
    assert TOOL_INDEX["read"].skills == ("file-management", "writing")
    assert "read" not in SKILL_INDEX["email-management"].tools
    assert TOOL_INDEX["openclaw"].group == "openclaw-core"
    assert TOOL_INDEX["openclaw"].risk == "critical"


def test_merging_keeps_the_strictest_whatever_comes_first() -> None:
    mild = row_of("one")("x", "X", "Mild.", ("memory",), "low", "network-request")
    harsh = row_of("two")("x", "X", "Harsh.", ("security",), "critical", "runs-code")
    for pair in ((mild, harsh), (harsh, mild)):
        merged = by_id(*pair)["x"]
        assert merged.risk == "critical"
        assert merged.side_effects == ("runs-code", "network-request")
        assert merged.skills == pair[0].skills


def test_the_index_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TOOL_INDEX["exec"] = TOOL_INDEX["read"]  # type: ignore[index]


def test_an_mcp_tool_is_judged_as_the_plugin_tool_it_is_a_twin_of() -> None:
    plugin = {tool.id: tool for tool in ALL_TOOLS if tool.group == "openclaw"}
    assert set(EQUIVALENTS.values()) == set(plugin) - {"agenticmail_complete_task"}
    for tool in MCP_TOOLS:
        original = plugin[EQUIVALENTS[tool.id]]
        assert (tool.risk, tool.side_effects, tool.skills) == (original.risk, original.side_effects, original.skills)


@pytest.mark.parametrize(
    "tool_id",
    [
        "agenticmail_send", "agenticmail_reply", "agenticmail_forward", "agenticmail_template_send",
        "agenticmail_schedule", "agenticmail_drafts", "agenticmail_test_email", "send_email", "reply_email",
        "forward_email", "template_send", "manage_scheduled", "manage_drafts", "send_test_email", "broadcast_email",
        "send", "reply", "forward", "drafts", "schedule", "pending",
    ],
)  # fmt: skip
def test_whatever_sends_mail_says_so_and_is_a_high_risk(tool_id: str) -> None:
    tool = TOOL_INDEX[tool_id]
    assert "sends-email" in tool.side_effects
    assert tool.risk == "high"


@pytest.mark.parametrize(
    "tool_id",
    [
        "agenticmail_delete", "agenticmail_batch_delete", "agenticmail_delete_agent", "agenticmail_cleanup",
        "agenticmail_drafts", "agenticmail_schedule", "agenticmail_contacts", "agenticmail_tags",
        "agenticmail_signatures", "agenticmail_templates", "agenticmail_rules", "agenticmail_storage",
        "agenticmail_memory", "delete_email", "batch_delete", "delete_agent", "cleanup_agents", "manage_contacts",
        "manage_tags", "manage_rules", "storage", "memory", "delete", "trash", "deleteagent", "apply_patch", "exec",
    ],
)  # fmt: skip
def test_whatever_can_delete_says_so(tool_id: str) -> None:
    tool = TOOL_INDEX[tool_id]
    assert "deletes-data" in tool.side_effects
    assert tool.risk != "low"


@pytest.mark.parametrize(
    ("tool_id", "risk", "effects"),
    [
        ("exec", "critical", {"runs-code", "modifies-files", "deletes-data", "network-request"}),
        ("terminal", "critical", {"runs-code", "modifies-files", "deletes-data", "network-request"}),
        ("update", "critical", {"runs-code", "modifies-files", "network-request"}),
        ("setup_email_domain", "critical", {"network-request", "accesses-secrets", "financial"}),
        ("call_phone", "high", {"sends-message", "network-request", "financial"}),
        ("sms_send", "high", {"sends-sms"}),
        ("sms_check_code", "medium", {"accesses-secrets"}),
        ("agenticmail_whoami", "medium", {"accesses-secrets"}),
        ("create_account", "high", {"accesses-secrets"}),
        ("agents", "high", {"accesses-secrets"}),
        ("media_voice_clone", "critical", {"runs-code", "modifies-files"}),
        ("computer", "critical", {"runs-code", "controls-device"}),
        ("write", "medium", {"modifies-files"}),
        ("web_fetch", "low", {"network-request"}),
        ("read", "low", set()),
        ("agenticmail_inbox", "low", set()),
    ],
)
def test_what_a_tool_can_do_is_what_the_catalog_says(tool_id: str, risk: str, effects: set[str]) -> None:
    assert TOOL_INDEX[tool_id].risk == risk
    assert set(TOOL_INDEX[tool_id].side_effects) == effects


def test_nothing_leaves_the_house_as_a_low_risk() -> None:
    for tool in TOOL_INDEX.values():
        if SENDING & set(tool.side_effects):
            assert tool.risk != "low", tool.id


def test_code_money_devices_and_secrets_are_never_a_low_risk() -> None:
    grave = {"runs-code", "financial", "controls-device", "accesses-secrets", "deletes-data"}
    for tool in TOOL_INDEX.values():
        if grave & set(tool.side_effects):
            assert tool.risk != "low", tool.id
        if "runs-code" in tool.side_effects:
            assert tool.risk in ("high", "critical"), tool.id


def test_invoke_can_do_whatever_any_tool_of_its_server_can() -> None:
    server = [tool for tool in EVERY if tool.group == "agenticmail-mcp"]
    invoke = TOOL_INDEX["invoke"]
    assert set(invoke.side_effects) == {effect for tool in server for effect in tool.side_effects}
    assert invoke.risk == "critical"


def test_openclaws_side_is_its_own_tools_and_the_plugins() -> None:
    assert {tool.group for tool in OPENCLAW_SIDE} == {"openclaw", "openclaw-core"}
    assert len({tool.id for tool in OPENCLAW_SIDE}) == 61 + 63 + 26


def test_the_public_name_is_the_same_tuple() -> None:
    import agenticmail_enterprise

    assert agenticmail_enterprise.ALL_TOOLS is ALL_TOOLS
