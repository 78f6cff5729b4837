"""AgenticMail Enterprise: a policy-enforcing gateway between AI agents and their tools.

The public API, loaded lazily (PEP 562): `import agenticmail_enterprise` costs no more than this file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: public name -> module that has it
_EXPORTS = {
    "ALL_TOOLS": "catalog.tools",
    "BUILTIN_SKILLS": "catalog.skills",
    "PRESET_PROFILES": "catalog.presets",
    "get_tools_by_skill": "catalog.skills",
    "Profile": "catalog.profiles",
    "generate_openclaw_tool_policy": "policies.toolpolicy",
    "PermissionEngine": "policies.permissions",
    "CircuitBreaker": "policies.resilience",
    "create_enterprise_hook": "adapters.enterprise_hook",
}

if TYPE_CHECKING:
    from .adapters.enterprise_hook import create_enterprise_hook
    from .catalog.presets import PRESET_PROFILES
    from .catalog.profiles import Profile
    from .catalog.skills import BUILTIN_SKILLS, get_tools_by_skill
    from .catalog.tools import ALL_TOOLS
    from .policies.permissions import PermissionEngine
    from .policies.resilience import CircuitBreaker
    from .policies.toolpolicy import generate_openclaw_tool_policy

__all__ = [
    "ALL_TOOLS",
    "BUILTIN_SKILLS",
    "PRESET_PROFILES",
    "CircuitBreaker",
    "PermissionEngine",
    "Profile",
    "__version__",
    "create_enterprise_hook",
    "generate_openclaw_tool_policy",
    "get_tools_by_skill",
]


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
