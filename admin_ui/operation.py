"""One operation, one declaration: its name, who may do it, what it takes and gives, what it leaves in the audit.

`@operation(...)` turns an async function into an `Operation`, which is data: the router, the checks of role and scope,
the OpenAPI document, the audit trail and the tests all read it. Nothing about an operation stands anywhere else.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, Final, Literal, Protocol

import msgspec

from ..catalog.calls import Person, Principal
from ..catalog.errors import BadRequest, EnterpriseError, Forbidden, PreconditionFailed
from ..catalog.records import Role
from ..catalog.store import Store
from ..gateway.accounts import Accounts
from ..gateway.approvals.engine import ApprovalEngine
from ..gateway.hookwatch import HookWatch
from ..gateway.metrics import Metrics
from ..gateway.people.service import People
from ..gateway.registry import Registry
from ..gateway.scopes import SCOPES, admit, least_role
from ..gateway.settings import Settings
from ..gateway.vault import Vault

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Handler = Callable[..., Awaitable[Any]]
"""`async (ctx)`, `(ctx, body)`, `(ctx, query)` or `(ctx, body, query)`, by what the operation declares."""

_ETAG: Final = re.compile(r'(W/)?"[\x21\x23-\x7e]*"')


Current = Callable[["Context", Mapping[str, Any]], Awaitable[tuple[Any, int | str]]]
"""`async (ctx, patch)`: the body that a PUT would take to change nothing, and the version of what is stored."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A request that works, word for word: the docs show it and a test sends it."""

    path: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    body: Any = msgspec.UNSET
    headers: Mapping[str, str] = {}


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """`path` has `{name}` for variable segments. `scope` "" with `public`: no key is asked for; with `person`: whoever
    is signed in may, whatever their role, about themselves. `audit` names the entry that a mutation leaves. `current`:
    how a PUT's present body is found, from which its PATCH is made. `precondition`: without If-Match it is refused
    (428); `careful`: its PATCH is. `once`: fields of the answer that are shown this once, and null when it is given
    again. `download`: the answer is a file, of one of the content types in `returns`. `served_by` "gateway": one of its
    doors answers, here it is only described; "document": the OpenAPI document."""

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
    current: Current | None = None
    precondition: bool = False
    careful: bool = False
    once: tuple[str, ...] = ()
    served_by: Literal["admin", "gateway", "document"] = "admin"
    person: bool = False
    download: bool = False

    @property
    def repeatable(self) -> bool:
        """Whether it takes `dry_run` and `Idempotency-Key`. What signs people in, or is about their own credentials,
        does not: a stored answer would be somebody's, and trying it would be doing it."""
        return bool(self.audit) and bool(self.scope) and self.method != "GET"


def operation(
    method: Method, path: str, *, tag: str, scope: str = "", role: Role = "viewer", returns: Any, example: Example,
    body: Any = None, query: type[msgspec.Struct] | None = None, listing: bool = False, status: int = 200,
    audit: str = "", errors: tuple[type[EnterpriseError], ...] = (), public: bool = False, person: bool = False,
    download: bool = False, current: Current | None = None, precondition: bool = False, careful: bool = False,
    once: tuple[str, ...] = (),
) -> Callable[[Handler], Operation]:  # fmt: skip
    """Declare an operation. The function's name is its id, its docstring the summary (first line) and description.

    Raises ValueError for a declaration that contradicts itself, at import: an unknown scope, a role that is not the
    first to have the scope, a mutation without audit.
    """
    if (public or person) == bool(scope):
        raise ValueError(f"{method} {path}: name a scope, or say public or person")
    if scope and (scope not in SCOPES or role != least_role(scope)):
        raise ValueError(f"{method} {path}: {role} is not the first role that has the scope {scope!r}")
    if method != "GET" and not audit:
        raise ValueError(f"{method} {path}: a mutation leaves an audit entry; name it, or say {NO_AUDIT!r}")

    def declare(handler: Handler) -> Operation:
        summary, _, description = (handler.__doc__ or "").strip().partition("\n")
        return Operation(
            name=handler.__name__, method=method, path=path, summary=summary,
            description=" ".join(description.split()), tag=tag, scope=scope, role=role, returns=returns,
            handler=handler, example=example, body=body, query=query, listing=listing, status=status,
            audit="" if audit == NO_AUDIT else audit, errors=errors, public=public, person=person, download=download,
            current=current, precondition=precondition, careful=careful, once=once,
        )  # fmt: skip

    return declare


NO_AUDIT: Final = "-"
"""For a POST that changes nothing."""


def operations_of(*modules: ModuleType) -> tuple[Operation, ...]:
    """The operations that some modules declare, in their order; behind a PUT that says what it changes, its PATCH."""
    from .patching import patched

    declared = [item for module in modules for item in vars(module).values() if isinstance(item, Operation)]
    return tuple(each for item in declared for each in ((item, patched(item)) if item.current else (item,)))


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

    @property
    def approvals(self) -> ApprovalEngine: ...

    @property
    def people(self) -> People: ...


Note = Callable[[str, str, str], Awaitable[None]]
"""`async (action, org, resource)`: put something on the audit besides, or after, the operation itself."""


async def _unheard(action: str, org: str, resource: str) -> None:
    """Where there is no audit trail (an operation run by hand)."""


class Context:
    """One request, as its handler sees it. `path` holds the variable segments, decoded. `about`: in whose organisation
    a refusal is put on record, where nobody is signed in yet."""

    __slots__ = ("about", "details", "headers", "if_match", "ip", "note", "operation", "path", "principal",
                 "read_here", "request_id", "resource", "runtime")  # fmt: skip

    def __init__(
        self, runtime: Runtime, operation: Operation, principal: Principal, path: dict[str, str], *, request_id: str,
        ip: str = "", if_match: str | None = None, headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.about = ""
        self.headers = headers
        self.note: Note = _unheard
        self.runtime = runtime
        self.operation = operation
        self.principal = principal
        self.path = path
        self.request_id = request_id
        self.ip = ip
        self.if_match = if_match
        #: The version in `if_match` was read by us, not named by the client.
        self.read_here = False
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
        admit(self.principal, scope)

    @property
    def person(self) -> Person:
        """Who is signed in. Forbidden for a key."""
        if not isinstance(self.principal, Person):
            raise Forbidden("This is for people who signed in, not for API keys.")
        return self.principal

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
    cookies: tuple[str, ...] = ()


class Download(msgspec.Struct):
    """A file, written as it is made. `parts` may raise before its first part, not after."""

    parts: AsyncIterator[bytes]
    content_type: str
    filename: str
