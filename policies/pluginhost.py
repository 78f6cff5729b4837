"""Finds, configures, provisions and closes plugins. Activated by name in the settings and in no other way: a package
that is merely installed is listed by `available` and never loaded.

A plugin is loaded from its entry point, given its own table of the settings as its typed config, then provisioned in
running order and closed in reverse. What does not fit stops the start with a PluginError that names the wrong key.
Guards that count what they let pass say `charges = True` and run after all others, whatever the order of the names.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import re
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import msgspec
import structlog

from ..catalog.calls import AgentView, Tool
from ..catalog.errors import PluginError
from ..catalog.plugins import ENTRY_POINT_GROUP, GateFunction, GuardFunction
from ..catalog.profiles import Profile
from ..catalog.records import CallRecord
from .watchdog import FAULTS, Ward, Watchdog

METHODS: Final[dict[str, tuple[str, ...]]] = {
    "guard": ("compile", "provision", "close"),
    "gate": ("compile", "provision", "close"),
    "observer": ("observe", "provision", "close"),
}
OURS: Final = __name__.rpartition(".")[0] + "."
PROVISION_SECONDS: Final = 30.0
CLOSE_SECONDS: Final = 10.0

_UNKNOWN_KEY: Final = re.compile(r"Object contains unknown field `(?P<key>.*?)`(?: - at `\$\.?(?P<path>.*)`)?")
_WRONG_VALUE: Final = re.compile(r"(?P<why>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_log: Final = structlog.get_logger(__name__)


class Active:
    """One plugin in use. `foreign`: not the gateway's own, so its functions run under watch."""

    __slots__ = ("charges", "foreign", "kind", "name", "plugin", "ward")

    def __init__(self, name: str, kind: str, plugin: Any, foreign: bool) -> None:
        self.name = name
        self.kind = kind
        self.plugin = plugin
        self.foreign = foreign
        self.charges = getattr(plugin, "charges", False) is True
        self.ward = Ward(name)


def available(points: Iterable[EntryPoint] | None = None) -> dict[str, EntryPoint]:
    """Every installed plugin by name. Where several distributions claim one name, ours wins; strangers' are left
    out, so
    that asking for the name fails. Loads nothing."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP) if points is None else points:
        if point.group == ENTRY_POINT_GROUP:
            found.setdefault(point.name, {})[point.value] = point
    chosen: dict[str, EntryPoint] = {}
    for name, by_value in sorted(found.items()):
        ours = [point for point in by_value.values() if is_ours(point)]
        if ours or len(by_value) == 1:
            chosen[name] = ours[0] if ours else next(iter(by_value.values()))
    return chosen


def is_ours(point: EntryPoint) -> bool:
    return point.value.startswith(OURS)


class PluginHost:
    """The active plugins of one process."""

    def __init__(
        self,
        guards: Iterable[str] = (),
        gates: Iterable[str] = (),
        observers: Iterable[str] = (),
        config: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        guard_timeout: float = 0.25,
        cooldown: float = 30.0,
        points: Iterable[EntryPoint] | None = None,
    ) -> None:
        """Load and configure, without I/O. Raises PluginError. `points` replaces what is installed (tests,
        embedding)."""
        config = config or {}
        wanted = [*((n, "guard") for n in guards), *((n, "gate") for n in gates), *((n, "observer") for n in observers)]
        installed = available(points)
        _check_names([name for name, _ in wanted], config)
        self._active = [_load(name, kind, installed, config.get(name, {})) for name, kind in wanted]
        of = {kind: [active for active in self._active if active.kind == kind] for kind in METHODS}
        self.guards = sorted(of["guard"], key=lambda active: active.charges)
        self.gates = of["gate"]
        self.observers = of["observer"]
        self.watchdog = Watchdog(guard_timeout, cooldown)
        self.faults: Counter[str] = Counter()
        """Faults by plugin: answers that were none, exceptions, time-outs; observers' too."""
        self._logged: set[tuple[str, str]] = set()
        self._provisioned: list[Active] = []

    def __contains__(self, name: str) -> bool:
        return any(active.name == name for active in self._active)

    async def provision(self) -> None:
        """Set every plugin up, in order, on the thread that will run them. Raises PluginError, after closing those
        that were set up."""
        if any(active.foreign for active in self._active):
            self.watchdog.start()
        for active in self._active:
            try:
                async with asyncio.timeout(PROVISION_SECONDS):
                    await active.plugin.provision()
            except Exception as error:
                await self.close()
                raise PluginError(
                    f"The plugin {active.name!r} could not be set up: {_why(error)}", plugin=active.name
                ) from error
            self._provisioned.append(active)

    async def close(self) -> None:
        """Close in reverse order. One that fails is counted and does not keep the others from being closed."""
        while self._provisioned:
            active = self._provisioned.pop()
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await active.plugin.close()
            except Exception as error:  # noqa: BLE001 - counted; the others must still be closed
                self.note_fault(active.name, error)
        self.watchdog.close()

    # -- in use ------------------------------------------------------------------------------------------------------
    def compile_guard(
        self, active: Active, agent: AgentView, profile: Profile, tool: Tool, *, peek: bool = False
    ) -> GuardFunction | None:
        """A guard's function, under watch when it is a stranger's. `peek`: one that charges nothing, None where there
        is none such. Raises PluginError when the plugin does."""
        make = active.plugin.compile
        if peek and active.charges:
            make = getattr(active.plugin, "peek", None)
            if make is None:
                return None
        function: GuardFunction | None = self._compiled(active, make, agent, profile, tool)
        if function is None or not active.foreign:
            return function
        if inspect.iscoroutinefunction(function):
            raise PluginError(f"The guard {active.name!r} compiled to a coroutine function; guards do not await.")
        return self.watchdog.guarded(active.ward, function)

    def compile_gate(self, active: Active, agent: AgentView, profile: Profile, tool: Tool) -> GateFunction | None:
        """A gate's function. Raises PluginError when the plugin does."""
        function: GateFunction | None = self._compiled(active, active.plugin.compile, agent, profile, tool)
        return function

    def _compiled(self, active: Active, make: Any, agent: AgentView, profile: Profile, tool: Tool) -> Any:
        try:
            if active.foreign:
                function = self.watchdog.run(active.ward, lambda: make(agent, profile, tool))
            else:
                function = make(agent, profile, tool)
        except FAULTS as error:
            self.note_fault(active.name, error)
            raise PluginError(f"The plugin {active.name!r} could not be compiled: {_why(error)}") from error
        if function is not None and not callable(function):
            self.note_fault(active.name, TypeError("compile returned no function"))
            raise PluginError(f"The plugin {active.name!r} compiled to something that is no function.")
        return function

    def observe(self, record: CallRecord) -> None:
        """Tell every observer of a finished call. Never raises; faults are counted."""
        for active in self.observers:
            try:
                if active.foreign:
                    self.watchdog.guarded(active.ward, active.plugin.observe)(record)
                else:
                    active.plugin.observe(record)
            except FAULTS as error:
                self.note_fault(active.name, error)

    def note_fault(self, name: str, error: BaseException) -> None:
        """Count a fault; log the first of its kind from each plugin, so that a failing guard cannot flood the log."""
        self.faults[name] += 1
        kind = (name, type(error).__name__)
        if kind not in self._logged and len(self._logged) < 1_000:
            self._logged.add(kind)
            # The plain traceback: one with local variables would write arguments of calls into the log.
            trace = "".join(traceback.format_exception(error, limit=-8))
            _log.error("plugin fault", plugin=name, error=_why(error), trace=trace)


def _check_names(names: list[str], config: Mapping[str, Any]) -> None:
    doubled = [name for name, times in Counter(names).items() if times > 1]
    if doubled:
        raise PluginError(f"The plugin {doubled[0]!r} is named twice in the settings.", plugin=doubled[0])
    for name in config:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Active plugins: {', '.join(names) or 'none'}."
            raise PluginError(
                f"plugins.config.{name} configures a plugin that is not active.{hint}", path=f"plugins.config.{name}"
            )


def _load(name: str, kind: str, installed: Mapping[str, EntryPoint], table: Mapping[str, Any]) -> Active:
    point = installed.get(name)
    if point is None:
        listed = ", ".join(installed) or "none"
        raise PluginError(
            f"There is no plugin {name!r}, or several packages claim that name. Available: {listed}.", plugin=name
        )
    try:
        kept = point.load()
    except Exception as error:
        raise PluginError(f"The plugin {name!r} could not be loaded: {_why(error)}", plugin=name) from error
    _check_class(name, kind, kept)
    config = _configured(name, kept.config, table)
    try:
        plugin = kept(config)
    except Exception as error:
        raise PluginError(f"The plugin {name!r} could not be made: {_why(error)}", plugin=name) from error
    return Active(name, kind, plugin, foreign=not is_ours(point))


def _check_class(name: str, kind: str, kept: Any) -> None:
    own = getattr(kept, "kind", None)
    if not isinstance(kept, type) or own not in METHODS:
        raise PluginError(f"The plugin {name!r} is no class with a kind of {', '.join(METHODS)}.", plugin=name)
    if own != kind:
        raise PluginError(f"The plugin {name!r} is a {own}; name it under plugins.{own}s, not {kind}s.", plugin=name)
    for method in METHODS[kind]:
        function = getattr(kept, method, None)
        if not callable(function):
            raise PluginError(f"The {kind} {name!r} has no method {method!r}.", plugin=name)
        if inspect.iscoroutinefunction(function) is not (method in {"provision", "close"}):
            must = "must" if method in {"provision", "close"} else "must not"
            raise PluginError(f"The {kind} {name!r}: {method} {must} be async.", plugin=name)
    config = getattr(kept, "config", None)
    if not (
        isinstance(config, type)
        and issubclass(config, msgspec.Struct)
        and config.__struct_config__.forbid_unknown_fields
    ):
        raise PluginError(f"The {kind} {name!r} has no config Struct with forbid_unknown_fields=True.", plugin=name)


def _configured(name: str, config: type[msgspec.Struct], table: Mapping[str, Any]) -> msgspec.Struct:
    try:
        return msgspec.convert(dict(table), config)
    except msgspec.ValidationError as error:
        text = str(error)
    unknown = _UNKNOWN_KEY.fullmatch(text)
    if unknown is not None:
        path = ".".join(part for part in ("plugins.config", name, unknown["path"], unknown["key"]) if part)
        near = difflib.get_close_matches(unknown["key"], config.__struct_encode_fields__, 1)
        raise PluginError(f"{path} is not a known key." + (f" Did you mean {near[0]!r}?" if near else ""), path=path)
    wrong = _WRONG_VALUE.fullmatch(text)
    path, why = f"plugins.config.{name}", text
    if wrong is not None:
        path, why = ".".join(part for part in (path, wrong["path"]) if part), wrong["why"]
    raise PluginError(f"{path}: {why}.", path=path)


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
