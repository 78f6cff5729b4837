"""One operation, one declaration: its name, who may do it, what it takes and gives, what it leaves in the audit.

`@operation(...)` turns an async function into an `Operation`, which is data: the router, the checks of role and scope,
the OpenAPI document, the audit trail and the tests all read it. Nothing about an operation stands anywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import Any, Final, Literal, Protocol

import msgspec

from ..catalog.calls import Principal
from ..catalog.errors import BadRequest, EnterpriseError, Forbidden, PreconditionFailed
from ..catalog.records import Role
from ..catalog.store import Store
from ..gateway.accounts import Accounts
from ..gateway.hookwatch import HookWatch
from ..gateway.metrics import Metrics
from ..gateway.registry import Registry
from ..gateway.scopes import ROLE_SCOPES, SCOPES, covers
from ..gateway.settings import Settings
from ..gateway.vault import Vault

Method = Literal["GET", "POST", "PUT", "DELETE"]
Handler = Callable[..., Awaitable[Any]]
"""`async (ctx)`, `(ctx, body)`, `(ctx, query)` or `(ctx, body, query)`, by what the operation declares."""

_ETAG: Final = re.compile(r'(W/)?"[\x21\x23-\x7e]*"')


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A request that works, word for word: the docs show it and a test sends it."""

    path: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    body: Any = msgspec.UNSET


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """`path` has `{name}` for variable segments. `scope` "" with `public`: no key is asked for. `audit` names the entry
    that a mutation leaves. `served_by` "gateway": one of its doors answers, here it is only described; "document": the
    OpenAPI document."""

    name: str
    method: Method
    path: str
    summary: str
    description: str
    tag: str
    scope: str
    role: Role
    returns: Any
    handler: Handler | None
    example: Example
    body: Any = None
    query: type[msgspec.Struct] | None = None
    listing: bool = False
    status: int = 200
    audit: str = ""
    errors: tuple[type[EnterpriseError], ...] = ()
    public: bool = False
    served_by: Literal["admin", "gateway", "document"] = "admin"


def operation(
    method: Method, path: str, *, tag: str, scope: str = "", role: Role = "viewer", returns: Any, example: Example,
    body: Any = None, query: type[msgspec.Struct] | None = None, listing: bool = False, status: int = 200,
    audit: str = "", errors: tuple[type[EnterpriseError], ...] = (), public: bool = False,
) -> Callable[[Handler], Operation]:  # fmt: skip
    """Declare an operation. The function's name is its id, its docstring the summary (first line) and description.

    Raises ValueError for a declaration that contradicts itself, at import: an unknown scope, a scope that the role
    does not have, a mutation without audit.
    """
    if not public and (scope not in SCOPES or scope not in ROLE_SCOPES[role]):
        raise ValueError(f"{method} {path}: the role {role} does not have the scope {scope!r}")
    if method != "GET" and not audit:
        raise ValueError(f"{method} {path}: a mutation leaves an audit entry; name it, or say {NO_AUDIT!r}")

    def declare(handler: Handler) -> Operation:
        summary, _, description = (handler.__doc__ or "").strip().partition("\n")
        return Operation(
            name=handler.__name__, method=method, path=path, summary=summary,
            description=" ".join(description.split()), tag=tag, scope=scope, role=role, returns=returns,
            handler=handler, example=example, body=body, query=query, listing=listing, status=status,
            audit="" if audit == NO_AUDIT else audit, errors=errors, public=public,
        )  # fmt: skip

    return declare


NO_AUDIT: Final = "-"
"""For a POST that changes nothing."""


def operations_of(*modules: ModuleType) -> tuple[Operation, ...]:
    """The operations that some modules declare, in their order."""
    return tuple(item for module in modules for item in vars(module).values() if isinstance(item, Operation))


# -- what a handler is given -------------------------------------------------------------------------------------
class ListingReport(Protocol):
    """What came of asking an upstream what it offers."""

    @property
    def ok(self) -> bool: ...

    @property
    def error(self) -> str: ...

    @property
    def tools(self) -> int: ...


class Refresher(Protocol):
    """The live upstreams, as far as this module needs them."""

    async def refresh(self, org: str, upstream_id: str) -> ListingReport: ...


class Resolver(Protocol):
    """Who sends a request. Raises Unauthenticated."""

    async def resolve(self, headers: Mapping[str, str], ip: str) -> Principal: ...


class Runtime(Protocol):
    """The parts of the gateway that operations work on."""

    @property
    def settings(self) -> Settings: ...

    @property
    def store(self) -> Store: ...

    @property
    def vault(self) -> Vault: ...

    @property
    def accounts(self) -> Accounts: ...

    @property
    def registry(self) -> Registry: ...

    @property
    def upstreams(self) -> Refresher: ...

    @property
    def identity(self) -> Resolver: ...

    @property
    def hooks(self) -> HookWatch: ...

    @property
    def metrics(self) -> Metrics: ...


class Context:
    """One request, as its handler sees it. `path` holds the variable segments, decoded."""

    __slots__ = ("details", "if_match", "ip", "operation", "path", "principal", "request_id", "resource", "runtime")

    def __init__(
        self, runtime: Runtime, operation: Operation, principal: Principal, path: dict[str, str], *, request_id: str,
        ip: str = "", if_match: str | None = None,
    ) -> None:  # fmt: skip
        self.runtime = runtime
        self.operation = operation
        self.principal = principal
        self.path = path
        self.request_id = request_id
        self.ip = ip
        self.if_match = if_match
        self.resource = path.get("id", "")
        self.details: dict[str, str] = {}

    @property
    def org(self) -> str:
        """The organisation of the key, in which everything happens. Never from a path or a body."""
        return self.principal.org

    @property
    def store(self) -> Store:
        return self.runtime.store

    def require(self, scope: str) -> None:
        """A scope that this very request needs besides the operation's. Raises Forbidden."""
        if not covers(self.principal.scopes, scope):
            raise Forbidden(f"This API key lacks the scope {scope}.", scope=scope)

    def match(self, version: int | str) -> bool:
        """Hold `If-Match` against the version that is stored; whether there was one. Raises PreconditionFailed."""
        if self.if_match is None:
            return False
        tags = etags(self.if_match)
        if "*" not in tags and etag(version) not in tags:
            raise PreconditionFailed
        return True


def etag(version: int | str) -> str:
    """The strong entity tag of a version."""
    return f'"{version}"'


def etags(header: str) -> list[str]:
    """The tags of an `If-Match` or `If-None-Match` header; `*` alone stands for any. BadRequest when malformed."""
    if header.strip() == "*":
        return ["*"]
    tags = [tag.strip() for tag in header.split(",")]
    if not all(_ETAG.fullmatch(tag) for tag in tags):
        raise BadRequest('An entity tag is quoted, as the ETag header gave it: "3".')
    return tags


class Listing(msgspec.Struct):
    """One page of a list. `total` None: not counted. `page` None: found by cursor. `next_cursor` "": the last one."""

    items: list[Any]
    limit: int
    total: int | None = None
    page: int | None = None
    next_cursor: str = ""


class Reply(msgspec.Struct):
    """A single object with its version, when it has one, and where it can be found, when it was made."""

    value: Any
    version: int | str | None = None
    location: str = ""
