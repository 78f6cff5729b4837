"""One tool against one profile: the fixed order, its codes, and reasons an agent can act on."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticmail_enterprise.catalog.calls import Tool
from agenticmail_enterprise.catalog.profiles import RISKS, ApprovalRule, Profile, SkillRule, ToolRule
from agenticmail_enterprise.policies.permissions import ALL_SIDE_EFFECTS, PermissionEngine, judge, unknown_tool

MAIL = Tool(id="send_email", skills=("email-management", "crm"), risk="medium", side_effects=("sends-email",))
GRANTED = Profile(skills=SkillRule(list=("email-management",)), max_risk="medium")


def change(profile, **fields):
    return msgspec.structs.replace(profile, **fields)


def test_an_empty_profile_allows_nothing():
    verdict = judge(Profile(), MAIL, "mail-bot")
    assert (verdict.effect, verdict.code, verdict.rule) == ("deny", "TOOL_NOT_GRANTED", "default-deny")


def test_a_skill_grants_its_tools():
    verdict = judge(GRANTED, MAIL, "mail-bot")
    assert (verdict.effect, verdict.code, verdict.rule) == ("allow", "ALLOWED", "skill:email-management")


def test_the_allow_verdict_is_one_object_for_everybody():
    other = change(GRANTED, name="another")
    assert judge(GRANTED, MAIL, "a") is judge(other, MAIL, "b")


def test_a_blocklist_grants_all_but_and_one_blocked_skill_loses_the_tool():
    assert judge(Profile(skills=SkillRule(mode="blocklist"), max_risk="medium"), MAIL).allowed
    blocked = Profile(skills=SkillRule(mode="blocklist", list=("crm",)), max_risk="medium")
    assert judge(blocked, MAIL).code == "TOOL_NOT_GRANTED"
    no_skill = msgspec.structs.replace(MAIL, skills=())
    assert judge(Profile(skills=SkillRule(mode="blocklist"), max_risk="medium"), no_skill).code == "TOOL_NOT_GRANTED"


def test_allow_by_name_beats_a_missing_skill_only():
    allowed = Profile(tools=ToolRule(allow=("send_*",)), max_risk="medium")
    assert judge(allowed, MAIL).rule == "profile.tools.allow:send_*"
    assert judge(change(allowed, max_risk="low"), MAIL).code == "RISK_TOO_HIGH"
    assert judge(change(allowed, blocked_side_effects=("sends-email",)), MAIL).code == "SIDE_EFFECT_BLOCKED"
    assert (
        judge(change(allowed, tools=ToolRule(allow=("send_email",), deny=("*email",))), MAIL).rule
        == "profile.tools.deny:*email"
    )


class TestUnknownTools:
    """Nobody registered them: denied, and if not, then counted as the worst that there is."""

    def test_are_denied(self):
        assert judge(GRANTED, unknown_tool("x")).code == "TOOL_UNKNOWN"
        everything = Profile(skills=SkillRule(mode="blocklist"), max_risk="critical")
        assert judge(everything, unknown_tool("x")).code == "TOOL_UNKNOWN"

    def test_may_be_allowed_by_name_or_altogether(self):
        for profile in (Profile(tools=ToolRule(allow=("x",))), Profile(allow_unknown=True)):
            assert judge(profile, unknown_tool("x")).code == "RISK_TOO_HIGH"
            verdict = judge(change(profile, max_risk="critical"), unknown_tool("x"))
            assert verdict.allowed
            assert verdict.flags == ("unknown-tool",)

    def test_have_every_side_effect_until_someone_knows_better(self):
        for effect in ALL_SIDE_EFFECTS:
            profile = Profile(allow_unknown=True, max_risk="critical", blocked_side_effects=(effect,))
            assert judge(profile, unknown_tool("x")).code == "SIDE_EFFECT_BLOCKED"

    def test_are_still_denied_by_name(self):
        profile = Profile(allow_unknown=True, max_risk="critical", tools=ToolRule(deny=("x",)))
        assert judge(profile, unknown_tool("x")).code == "TOOL_DENIED"

    def test_never_pass_by_a_skill(self):
        disguised = msgspec.structs.replace(MAIL, known=False)
        assert judge(GRANTED, disguised).code == "TOOL_UNKNOWN"


class TestApproval:
    @pytest.mark.parametrize(
        ("rule", "named"),
        [
            (ApprovalRule(risks=("medium",)), "profile.approval.risks:medium"),
            (ApprovalRule(side_effects=("sends-email",)), "profile.approval.side_effects:sends-email"),
            (ApprovalRule(tools=("send_*",)), "profile.approval.tools:send_*"),
        ],
    )
    def test_holds_and_says_that_nobody_can_be_asked_yet(self, rule, named):
        verdict = judge(change(GRANTED, approval=rule), MAIL, "mail-bot")
        assert (verdict.effect, verdict.code, verdict.rule) == ("hold", "APPROVAL_REQUIRED", named)
        assert "mail-bot may not call send_email yet" in verdict.reason
        assert "a person must approve" in verdict.reason
        assert "a person must" in verdict.reason

    def test_comes_last(self):
        profile = Profile(approval=ApprovalRule(tools=("*",)))
        assert judge(profile, MAIL).code == "TOOL_NOT_GRANTED"
        assert judge(change(GRANTED, max_risk="low", approval=ApprovalRule(tools=("*",))), MAIL).code == "RISK_TOO_HIGH"

    def test_a_changed_description_is_held(self):
        verdict = judge(GRANTED, msgspec.structs.replace(MAIL, pin_held=True))
        assert (verdict.effect, verdict.code, verdict.flags) == ("hold", "PIN_CHANGED", ("pin-changed",))


def test_reasons_name_agent_and_tool_in_one_printable_sentence():
    nasty = unknown_tool("evil\r\n\x00tool" + "x" * 500)
    for profile in (Profile(), GRANTED, Profile(allow_unknown=True)):
        reason = judge(profile, nasty, "mail-bot\x1b[31m").reason
        assert reason.isprintable()
        assert "mail-bot" in reason
        assert "evil" in reason
        assert len(reason) < 500


def test_the_engine_is_a_library():
    engine = PermissionEngine({"send_email": MAIL})
    granted = engine.check_permission(GRANTED, "send_email")
    assert (granted.allowed, granted.requires_approval, granted.code) == (True, False, "ALLOWED")
    held = engine.check_permission(change(GRANTED, approval=ApprovalRule(tools=("*",))), "send_email")
    assert (held.allowed, held.requires_approval, held.code) == (False, True, "APPROVAL_REQUIRED")
    denied = engine.check_permission(GRANTED, "rm")
    assert (denied.allowed, denied.requires_approval, denied.code) == (False, False, "TOOL_UNKNOWN")
    assert "rm" in denied.reason


EFFECTS = st.sets(st.sampled_from(ALL_SIDE_EFFECTS), max_size=3).map(tuple)
GLOBS = st.lists(st.sampled_from(["a", "b", "a*", "*", "?"]), max_size=2).map(tuple)
SKILLS = st.sets(st.sampled_from(["s", "t"]), max_size=2).map(tuple)
TOOLS = st.builds(
    Tool, id=st.sampled_from(["a", "b", "ab"]), skills=SKILLS, risk=st.sampled_from(RISKS), side_effects=EFFECTS,
    known=st.booleans(),
)  # fmt: skip
PROFILES = st.builds(
    Profile,
    skills=st.builds(SkillRule, mode=st.sampled_from(["allowlist", "blocklist"]), list=SKILLS),
    tools=st.builds(ToolRule, allow=GLOBS, deny=GLOBS), max_risk=st.sampled_from(RISKS), blocked_side_effects=EFFECTS,
    allow_unknown=st.booleans(), approval=st.builds(ApprovalRule, tools=GLOBS, side_effects=EFFECTS),
)  # fmt: skip


@given(PROFILES, TOOLS)
def test_nothing_passes_against_a_limit_of_the_profile(profile, tool):
    verdict = judge(profile, tool)
    if verdict.allowed:
        assert RISKS.index(tool.risk) <= RISKS.index(profile.max_risk)
        assert not set(tool.side_effects) & set(profile.blocked_side_effects)
        assert not set(tool.side_effects) & set(profile.approval.side_effects)
        assert "*" not in profile.tools.deny
        assert tool.id not in profile.tools.deny


@given(PROFILES, TOOLS)
def test_denying_more_never_opens_anything(profile, tool):
    before = judge(profile, tool)
    stricter = change(
        profile, tools=ToolRule(allow=profile.tools.allow, deny=(*profile.tools.deny, "a")), max_risk="low"
    )
    after = judge(stricter, tool)
    assert before.allowed or not after.allowed
