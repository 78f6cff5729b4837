"""Plugins: found by entry point, activated by name only, configured strictly, closed in reverse."""

from importlib.metadata import EntryPoint

import msgspec
import pytest

from agenticmail_enterprise.catalog.errors import PluginError
from agenticmail_enterprise.catalog.plugins import ENTRY_POINT_GROUP, Guard, NoConfig
from agenticmail_enterprise.catalog.records import CallRecord
from agenticmail_enterprise.policies.limits import RateLimits
from agenticmail_enterprise.policies.pluginhost import PluginHost, available
from agenticmail_enterprise.policies.rules import ArgumentRules


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    host: str = ""
    port: int = 0


class Typed(msgspec.Struct, forbid_unknown_fields=True):
    limit: int = 3
    targets: tuple[Inner, ...] = ()


def quiet(self, agent, profile, tool):
    return None


def test_our_own_come_through_the_same_door():
    """By the entry points that the package declares, as it is installed here."""
    found = available()
    assert found["argument-rules"].load() is ArgumentRules
    assert found["rate-limits"].load() is RateLimits
    host = PluginHost(("argument-rules", "rate-limits"), config={"rate-limits": {"max_counters": 5}})
    assert [active.name for active in host.guards] == ["argument-rules", "rate-limits"]
    assert all(not active.foreign and isinstance(active.plugin, Guard) for active in host.guards)


def test_what_is_installed_but_not_named_is_not_even_loaded():
    bomb = EntryPoint("bomb", "no_such_module_at_all:Bomb", ENTRY_POINT_GROUP)
    host = PluginHost(points=[bomb])
    assert host.guards == []
    assert "bomb" not in host
    assert list(available([bomb])) == ["bomb"]


def test_guards_that_charge_run_last_whatever_the_settings_say(kit):
    host = PluginHost(("rate-limits", "late", "argument-rules"), points=kit.points(kit.guard("late", None)))
    assert [active.name for active in host.guards] == ["late", "argument-rules", "rate-limits"]


class TestWhatStopsTheStart:
    def fails(self, kit, *plugins, guards=(), config=None, gates=()):
        with pytest.raises(PluginError) as caught:
            PluginHost(guards, gates, config=config, points=kit.points(*plugins))
        return caught.value

    def test_an_unknown_name_lists_what_there_is(self, kit):
        error = self.fails(kit, kit.guard("mine", None), guards=("mien",))
        assert "'mien'" in error.message
        assert "argument-rules, mine, rate-limits" in error.message

    def test_a_name_that_two_packages_claim(self, kit):
        error = self.fails(kit, kit.guard("twin", None), kit.guard("twin", None), guards=("twin",))
        assert "several packages claim" in error.message

    def test_a_stranger_cannot_take_the_name_of_one_of_ours(self, kit):
        host = PluginHost(("rate-limits",), points=kit.points(kit.guard("rate-limits", None)))
        assert isinstance(host.guards[0].plugin, RateLimits)

    def test_a_name_given_twice(self, kit):
        assert "twice" in self.fails(kit, guards=("rate-limits", "rate-limits")).message

    def test_a_misspelt_key_is_named_by_its_path(self, kit):
        error = self.fails(kit, guards=("rate-limits",), config={"rate-limits": {"max_counter": 5}})
        assert error.details["path"] == "plugins.config.rate-limits.max_counter"
        assert "Did you mean 'max_counters'?" in error.message

    def test_a_misspelt_key_deep_inside(self, kit):
        plugin = kit.plugin("deep", "guard", compile=quiet, config=Typed)
        error = self.fails(kit, plugin, guards=("deep",), config={"deep": {"targets": [{"host": "a"}, {"hots": "b"}]}})
        assert error.details["path"] == "plugins.config.deep.targets[1].hots"

    def test_a_value_of_the_wrong_type(self, kit):
        plugin = kit.plugin("deep", "guard", compile=quiet, config=Typed)
        error = self.fails(kit, plugin, guards=("deep",), config={"deep": {"targets": [{"port": "80"}]}})
        assert error.message == "plugins.config.deep.targets[0].port: Expected `int`, got `str`."

    def test_options_for_a_plugin_that_is_not_active(self, kit):
        error = self.fails(kit, guards=("rate-limits",), config={"rate-limit": {}})
        assert "Did you mean 'rate-limits'?" in error.message

    def test_the_wrong_kind(self, kit):
        assert "plugins.guards, not gates" in self.fails(kit, gates=("rate-limits",)).message

    @pytest.mark.parametrize(
        ("name", "kind", "methods", "complaint"),
        [
            ("a", "guardian", {"compile": quiet}, "no class with a kind"),
            ("b", "guard", {}, "no method 'compile'"),
            ("c", "guard", {"compile": quiet, "close": lambda self: None}, "close must be async"),
            ("d", "guard", {"compile": quiet, "config": dict}, "no config Struct"),
            ("e", "guard", {"compile": quiet, "config": type("Loose", (msgspec.Struct,), {})}, "no config Struct"),
            ("f", "guard", {"compile": quiet, "__init__": lambda self: None}, "could not be made"),
        ],
    )
    def test_a_class_that_keeps_no_promise(self, kit, name, kind, methods, complaint):
        assert complaint in self.fails(kit, kit.plugin(name, kind, **methods), guards=(name,)).message

    def test_an_async_compile(self, kit):
        async def compile(self, agent, profile, tool): ...

        assert "must not be async" in self.fails(kit, kit.plugin("g", "guard", compile=compile), guards=("g",)).message

    def test_a_module_that_cannot_be_imported(self):
        with pytest.raises(PluginError, match="could not be loaded"):
            PluginHost(("bomb",), points=[EntryPoint("bomb", "no_such_module_at_all:Bomb", ENTRY_POINT_GROUP)])


class TestLife:
    def told(self, kit, name, log, fail=""):
        async def provision(self):
            log.append(f"+{name}")
            if fail == "provision":
                raise OSError("no route")

        async def close(self):
            log.append(f"-{name}")
            if fail == "close":
                raise OSError("stuck")

        return kit.plugin(name, "guard", compile=quiet, provision=provision, close=close)

    async def test_set_up_in_order_and_closed_in_reverse(self, kit):
        log = []
        host = kit.host(self.told(kit, "a", log), self.told(kit, "b", log), ours=())
        await host.provision()
        await host.close()
        await host.close()
        assert log == ["+a", "+b", "-b", "-a"]

    async def test_one_that_cannot_be_set_up_stops_the_start_and_the_others_are_closed(self, kit):
        log = []
        host = kit.host(
            self.told(kit, "a", log), self.told(kit, "b", log, "provision"), self.told(kit, "c", log), ours=()
        )
        with pytest.raises(PluginError, match="'b' could not be set up: OSError: no route"):
            await host.provision()
        assert log == ["+a", "+b", "-a"]

    async def test_one_that_cannot_be_closed_is_counted(self, kit):
        log = []
        host = kit.host(self.told(kit, "a", log), self.told(kit, "b", log, "close"), ours=())
        await host.provision()
        await host.close()
        assert log[-2:] == ["-b", "-a"]
        assert host.faults == {"b": 1}

    async def test_nobody_watches_when_there_are_no_strangers(self, kit):
        host = kit.host()
        await host.provision()
        assert host.watchdog._thread is None
        await host.close()


async def test_observers_are_told_and_their_faults_counted(kit):
    seen = []

    def fail(self, record):
        raise ValueError("no")

    def hang(self, record):
        while True:
            pass

    host = kit.host(
        kit.plugin("bad", "observer", observe=fail), kit.plugin("stuck", "observer", observe=hang),
        kit.plugin("good", "observer", observe=lambda self, record: seen.append(record.id)), ours=(), guard_timeout=0.25,
    )  # fmt: skip
    await host.provision()
    for number in range(3):
        host.observe(CallRecord(org="o", id=f"dec_{number}"))
    await host.close()
    assert seen == ["dec_0", "dec_1", "dec_2"]
    assert host.faults == {"bad": 3, "stuck": 3}


def test_no_config_means_no_options(kit):
    assert NoConfig.__struct_config__.forbid_unknown_fields
    with pytest.raises(PluginError, match=r"plugins\.config\.argument-rules\.x is not a known key"):
        PluginHost(("argument-rules",), config={"argument-rules": {"x": 1}})
