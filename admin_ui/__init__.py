"""How do people see and change things? The REST API, and what describes it. Pages stand on the same operations.

* `operation`: one declaration makes a handler, its checks, its page in the OpenAPI document and its audit entry.
* `api/`: the operations, one module a subject. `api.OPERATIONS` is the table of all of them.
* `mount`: `create(runtime).handle`, what the gateway's edge calls for every path that is not a hot door.
* `router`: method and path to an operation, exactly as written; 404 and 405 with what would be right.
* `validate`: JSON to typed structs, with every faulty field named in a sentence.
* `paging`: lists by page number or by sealed cursor. `show`: records as the API shows them, never a secret.
* `responses`: the envelope, errors, entity tags, the headers of every answer.
* `patching`: PATCH beside each PUT. `replays`: `Idempotency-Key`. `dryrun`: `?dry_run=true`. `limits`: rates of keys.
* `audit`: who did what, and who was refused.
* `openapi`: the document, made of the table; `examples`: the ids its examples speak of.

* `middleware`: what the gateway's edge does, exported for servers of one's own.

Who may do what stands in `gateway.scopes`. An operation names one scope; a key must hold it (or `*`), a person's role
must have it. Agents' keys hold `gateway:call` and open nothing here. A key with `keys:create` makes lesser keys only:
scopes from its own without `keys:create` and `*`, expiry and addresses within its own.

To add an operation: a typed function under `@operation(...)` in a module of `api/`, with an example. The tests walk the
table: bad JSON, wrong types, no key, no scope, another organisation's ids, and the example itself.

Nothing here decides about calls, and nothing is on the hot path. The tenant is the key's, never the request's.
"""
