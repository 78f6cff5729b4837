"""How do we speak to the outside? Drivers behind the ports of `catalog`, loaded by name, never imported from above.

* `stores/`: one module a database. Each exports `create(url) -> Store`; `gateway.runtime` finds it by the URL's scheme.
* `upstreams/`: `mcp_stdio`, MCP servers as supervised child processes.
* `enterprise_hook`: a client of our own checks door, for agents written in Python; exported at the package's root.
* `openclaw_plugin/`: the same for OpenClaw: a plugin in plain JavaScript, shipped as data (docs/openclaw.md).

Rules of the floor: import only `catalog` and `policies.resilience`; turn every driver's exception into one of
`catalog.errors` here; import the driver inside the module that needs it, so that a missing extra is a clear error
and not a broken start.
"""
