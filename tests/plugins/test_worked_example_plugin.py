"""The worked example of docs/plugins.md: the text in the document is the code that runs here, entry points, settings and all."""

import json
import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from agenticmail_enterprise.adapters.stores.memory import create
from agenticmail_enterprise.catalog.calls import Call, Principal, Tool
from agenticmail_enterprise.catalog.errors import PluginError
from agenticmail_enterprise.catalog.plugins import ENTRY_POINT_GROUP, Gate, Guard, Observer
from agenticmail_enterprise.catalog.profiles import ArgumentRule, Profile, RateLimit, SkillRule
from agenticmail_enterprise.catalog.records import AGENTS, PROFILES, Agent, CallRecord, ProfileRecord
from agenticmail_enterprise.catalog.store import Insert
from agenticmail_enterprise.gateway.settings import Settings
from agenticmail_enterprise.policies.catalogue import Catalog
from agenticmail_enterprise.policies.chain import Chain
from agenticmail_enterprise.policies.pluginhost import PluginHost, available

HERE = Path(__file__).parent
DOCUMENT = (HERE.parents[1] / "docs" / "plugins.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
(SOURCE,) = [text for language, text in BLOCKS if language == "python"]
PACKAGE, SETTINGS = [tomllib.loads(text) for language, text in BLOCKS if language == "toml"]

TOOLS = {
    "send_email": Tool(id="send_email", skills=("mail",), risk="low", side_effects=("sends-email",)),
    "write_file": Tool(id="write_file", skills=("mail",), risk="low", side_effects=("modifies-files",)),
    "read_file": Tool(id="read_file", skills=("mail",), risk="low"),
}
PROFILE = Profile(
    skills=SkillRule(list=("mail",)), rate_limits=(RateLimit(per_minute=50),),
    argument_rules=(ArgumentRule(name="r", tools=("send_*",), field="to", op="domain_in", values=("acme.test",)),),
)  # fmt: skip


@pytest.fixture
def points(monkeypatch):
    """As if the example were installed: its module on the path, its declared entry points beside ours."""
    monkeypatch.syspath_prepend(HERE)
    declared = PACKAGE["project"]["entry-points"][ENTRY_POINT_GROUP]
    return [*available().values(), *(EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in declared.items())]


@pytest.fixture
def calendar(tmp_path):
    path = tmp_path / "freeze.json"
    path.write_text('{"frozen": false}')
    return path


@pytest.fixture
async def host(points, calendar):
    plugins = json.loads(json.dumps(SETTINGS["plugins"]))
    plugins["config"]["acme-freeze"]["calendar"] = str(calendar)
    made = PluginHost(plugins["guards"], plugins["gates"], plugins["observers"], plugins["config"], points=points)
    await made.provision()
    yield made
    await made.close()


@pytest.fixture
async def ask(host):
    store = create()
    await store.open()
    await store.migrate()
    await store.commit(
        Insert(AGENTS, Agent(org="org1", id="agt1", name="mail-bot", profile_id="prf1")),
        Insert(PROFILES, ProfileRecord(org="org1", id="prf1", spec=PROFILE)),
    )
    chain = Chain(store, Catalog(TOOLS, store), host)
    principal = Principal("org1", "agt1", "mail-bot", "key1")

    async def put(tool, **args):
        call = Call(principal, tool, json.dumps(args).encode(), id="dec_1", at=1_767_614_400.0)
        return chain.decide(call) or await chain.settle(call)

    yield put
    await store.close()


def test_the_documented_source_is_the_tested_source():
    assert (HERE / "acme_policies.py").read_text() == SOURCE


def test_the_documented_settings_are_settings():
    import msgspec

    settings = msgspec.convert({"plugins": SETTINGS["plugins"]}, Settings)
    assert settings.plugins.gates == ("acme-freeze",)
    assert f"guard_timeout` ({settings.plugins.guard_timeout} s)" in DOCUMENT
    assert f"gate_timeout` ({settings.plugins.gate_timeout:g} s)" in DOCUMENT


async def test_each_keeps_the_promise_of_its_kind(host):
    by_name = {active.name: active.plugin for active in (*host.guards, *host.gates, *host.observers)}
    assert isinstance(by_name["acme-no-markers"], Guard)
    assert isinstance(by_name["acme-freeze"], Gate)
    assert isinstance(by_name["acme-tally"], Observer)
    assert [active.name for active in host.guards] == ["argument-rules", "acme-no-markers", "rate-limits"]


async def test_the_guard(ask):
    for _ in range(2):  # cold, then warm
        assert (await ask("send_email", to="a@acme.test", body="hello")).allowed
        verdict = await ask("send_email", to="a@acme.test", body="-----BEGIN PRIVATE KEY-----")
        assert (verdict.code, verdict.rule) == ("PLUGIN_DENIED", "acme-no-markers")
        assert (await ask("send_email", to="a@acme.test", body="ACME INTERNAL")).code == "PLUGIN_DENIED"
        assert (await ask("read_file", path="ACME INTERNAL")).allowed
        assert (await ask("send_email", to="a@evil.test", body="ACME INTERNAL")).code == "ARGUMENT_DENIED"


async def test_the_gate(ask, calendar, host):
    assert (await ask("write_file", path="a")).allowed
    calendar.write_text('{"frozen": true}')
    verdict = await ask("write_file", path="a")
    assert (verdict.effect, verdict.rule, verdict.retry_after) == ("deny", "acme-freeze", 3600.0)
    assert (await ask("send_email", to="a@acme.test")).allowed
    calendar.write_text("not json")
    assert (await ask("write_file", path="a")).code == "POLICY_ERROR"
    assert host.faults == {"acme-freeze": 1}


async def test_the_observer(host):
    for effect in ("allow", "allow", "deny"):
        host.observe(CallRecord(org="org1", id="dec_1", effect=effect))
    assert host.observers[0].plugin.seen == {"allow": 2, "deny": 1}


async def test_what_stops_the_start(points, tmp_path):
    with pytest.raises(PluginError) as caught:
        PluginHost(gates=("acme-freeze",), config={"acme-freeze": {"calender": "x"}}, points=points)
    assert caught.value.message in DOCUMENT
    host = PluginHost(
        gates=("acme-freeze",), config={"acme-freeze": {"calendar": str(tmp_path / "none")}}, points=points
    )
    with pytest.raises(PluginError, match="could not be set up"):
        await host.provision()
