"""Whatever is sent to `/tools/invoke` or by a hook has one reading, or is refused with its faults; nothing else."""

from __future__ import annotations

import string
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticmail_enterprise.catalog.errors import ValidationFailed
from agenticmail_enterprise.gateway.doors.openclaw import ALIASES, FIELDS, understood
from agenticmail_enterprise.gateway.doors.wrapped import CARRIERS, unwrap

WORDS = st.sampled_from(["message", "Message", "cron", "CRON", "exec", " exec", "exec\n", "\u202eexec", "", "x" * 600])
NAMES = st.one_of(WORDS, st.text(alphabet=string.ascii_letters + "_ ", max_size=12))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
BODIES = st.dictionaries(st.sampled_from([*sorted(FIELDS), "Tool", "extra"]), JSON, max_size=6) | JSON


@settings(max_examples=400, deadline=None)
@given(BODIES)
def test_a_body_is_understood_or_refused(body: Any) -> None:
    try:
        one = understood(body)
    except ValidationFailed:
        return
    assert isinstance(body, dict)
    assert body.keys() <= FIELDS
    assert one.tool == one.tool.strip()
    assert one.tool.isprintable()
    given_names = {name for name in (body.get("tool"), body.get("name")) if name}
    assert len(given_names) == 1
    assert one.tool in {ALIASES.get(name, name) for name in given_names}
    # What is judged holds whatever OpenClaw will make of what it is sent: its own merge of `action` changes nothing.
    sent = msgspec.json.decode(one.encoded())
    merged = (
        sent["args"]
        if "action" in sent["args"] or not sent.get("action")
        else {**sent["args"], "action": sent["action"]}
    )
    assert merged == one.judged
    assert not body.get("dryRun")
    again = understood(sent)
    assert (again.tool, again.judged, again.session_key, again.agent_id) == (
        one.tool,
        one.judged,
        one.session_key,
        one.agent_id,
    )


@settings(max_examples=300, deadline=None)
@given(NAMES | st.sampled_from([*sorted(CARRIERS), "tool_call", "tool_search_code"]), st.dictionaries(st.sampled_from(["id", "args", "x"]), JSON, max_size=3),
       st.sampled_from(["", "openclaw"]), st.sampled_from(["", "code_mode_exec", "other"]))  # fmt: skip
def test_a_wrapper_never_hides_a_tool(tool: str, args: dict[str, Any], runtime: str, kind: str) -> None:
    try:
        inner = unwrap(tool, args, runtime, kind)
    except ValidationFailed:
        assert (runtime, tool) == ("openclaw", "tool_call")
        return
    assert isinstance(inner.args, dict)
    if not runtime:
        assert (inner.tool, inner.args, inner.wrapped, inner.carrier) == (tool, args, False, False)
    elif kind == "code_mode_exec" or tool == "tool_search_code":
        assert inner.tool == "code_execution"
    elif inner.carrier:
        assert tool in CARRIERS
    elif tool == "tool_call":
        assert inner.tool
        assert inner.tool == inner.tool.strip()
        assert args["id"].strip().endswith(inner.tool)
