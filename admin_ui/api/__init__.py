"""The operations, one module a subject. `OPERATIONS` is the table that everything else reads.

* `agents`: agents and their permission profiles. `keys`: API keys. `upstreams`: servers and their tools.
* `engine`: the catalog, OpenClaw's tool policy, statistics; and the checks door, which the gateway answers itself.
* `approvals`: held calls and decisions about them. `approval_policies`: who is asked, grants, notification channels.
* `auth`: signing in and out, passwords. `security`: one's own second factor and sign-ins. `users`: people.
* `hooks`: hooks in agents' own runtimes: their signs of life, and which are expected.
* `company`: the organisation's settings, and how much there is of everything.
* `history`: calls. `audit_log`: who changed what, and who was refused. `meta`: the OpenAPI document.

An operation is an async function under `@operation(...)`. It takes `(ctx)`, then its body, then its query, as far as it
declares them; it returns a `Reply`, a `Listing` or None, and raises errors of `catalog.errors`. It works in `ctx.org`
and in no other organisation, whatever a path or a body says.
"""

from __future__ import annotations

from typing import Final

from ..operation import Operation, operations_of
from . import (
    agents,
    approval_policies,
    approvals,
    audit_log,
    auth,
    company,
    engine,
    history,
    hooks,
    keys,
    meta,
    security,
    upstreams,
    users,
)

OPERATIONS: Final[tuple[Operation, ...]] = operations_of(
    agents, keys, upstreams, engine, approvals, approval_policies, hooks, auth, security, users, company, history,
    audit_log, meta,
)  # fmt: skip
