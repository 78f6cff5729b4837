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
    "ApprovalEngine": "gateway.approvals.engine",
    "HealthMonitor": "policies.resilience",
    "KeyedRateLimiter": "policies.resilience",
    "RateLimiter": "policies.resilience",
    "with_retry": "policies.resilience",
    "audit_logger": "admin_ui.middleware",
    "authenticate": "admin_ui.middleware",
    "cors": "admin_ui.middleware",
    "error_handler": "admin_ui.middleware",
    "rate_limiter": "admin_ui.middleware",
    "request_id": "admin_ui.middleware",
    "request_logger": "admin_ui.middleware",
    "require_role": "admin_ui.middleware",
    "security_headers": "admin_ui.middleware",
    "validate": "admin_ui.middleware",
    "create_enterprise_hook": "adapters.enterprise_hook",
}

if TYPE_CHECKING:
    from .adapters.enterprise_hook import create_enterprise_hook
    from .admin_ui.middleware import (
        audit_logger,
        authenticate,
        cors,
        error_handler,
        rate_limiter,
        request_id,
        request_logger,
        require_role,
        security_headers,
        validate,
    )
    from .catalog.presets import PRESET_PROFILES
    from .catalog.profiles import Profile
    from .catalog.skills import BUILTIN_SKILLS, get_tools_by_skill
    from .catalog.tools import ALL_TOOLS
    from .gateway.approvals.engine import ApprovalEngine
    from .policies.permissions import PermissionEngine
    from .policies.resilience import CircuitBreaker, HealthMonitor, KeyedRateLimiter, RateLimiter, with_retry
    from .policies.toolpolicy import generate_openclaw_tool_policy

__all__ = [
    "ALL_TOOLS",
    "BUILTIN_SKILLS",
    "PRESET_PROFILES",
    "ApprovalEngine",
    "CircuitBreaker",
    "HealthMonitor",
    "KeyedRateLimiter",
    "PermissionEngine",
    "Profile",
    "RateLimiter",
    "__version__",
    "audit_logger",
    "authenticate",
    "cors",
    "create_enterprise_hook",
    "error_handler",
    "generate_openclaw_tool_policy",
    "get_tools_by_skill",
    "rate_limiter",
    "request_id",
    "request_logger",
    "require_role",
    "security_headers",
    "validate",
    "with_retry",
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
