"""How does one call pass? The doors, the hot path, the process around them, and the command line.

Read in this order: `cli/` -> `server` -> `lane` -> `doors/mcp` -> `proxy` -> `policies.chain` -> `pool`.

* `proxy`: THE HOT PATH: judge, write the intent, forward, write the outcome.
* `doors/`: protocols read into a `Call`, verdicts written back. `lane`: repeated request heads are read once.
* `identity`, `keys`, `scopes`: who is calling, and what a key may do. `sessions`: MCP session ids, sealed.
* `pool` and `pool_*`: our own upstream connections; `addresses`: which may be contacted at all.
* `upstreams`, `mcpclient`: the servers behind the gateway, live; the gateway as their client.
* `journal`, `spool`, `streams`, `drain`, `chainverify`, `redaction`: the record that survives any crash.
* `approvals/`: held calls, from the hold to the result; `doors/held`, `doors/once`: how agents get it.
* `people/`: who signs in, with what, and what keeps others out; roles over the scopes of `scopes`.
* `accounts`, `registry`, `tools_registry`, `changes`: what operators manage; `vault`, `passwords`: secrets at rest.
* `retention`: old records go, the rest stays provable. `audit`: who changed what, from the API and the command line.
* `holds`: the port of approvals. `hookwatch`: are the hooks there that should see agents' own tool calls?
* `epochs`: changes made elsewhere are seen within half a second. `metrics` and `metrics_*`, `logs`: what operators see.
* `stores`: adapters by name, and the store that the settings mean.
* `settings`, `settings_load`, `setup`: configuration. `runtime`: the composition root. `server`, `workers`: processes.
* `demo/`: the organisation, agent and mail server of `make run`.

Rules of the floor: adapters and the admin module are found by name; the warm path awaits one thing, the upstream.
"""
