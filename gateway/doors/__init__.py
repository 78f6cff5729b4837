"""The doors: where a protocol is read into a `Call`, and a verdict is written back in the protocol's own words.

* `jsonrpc`: strict reading of JSON-RPC bodies; what two readers could read differently is refused.
* `mcpfacts`: the protocol's methods, headers and error codes as tables, both eras.
* `mcp`: `/mcp/{server}`, transparent: everything passes as it is; calls and reads are judged, lists filtered.
* `lists`, `sse`: filtering of list results, in plain JSON and inside event streams.
* `stdio`: the same door in front of a child process; `stdio_siblings`: one of another worker.
* `aggregate`: `/mcp`, all servers an agent may use behind one endpoint, tools named `server__tool`. `aggregate_calls`,
  `aggregate_lists`: its calls and lists; `aggregate_streams`, `aggregate_session`: its streams.
* `watch`: what servers tell of changes, heard once for all agents. `siblings`: requests that belong to another worker.
* `http/`: `/http/{upstream}/*` and `/api/agenticmail/*`: REST requests as governed calls, and routes as MCP tools.
* `checks`: `/api/engine/check-permission` and the outcome report, for tools an agent runs itself.
  `wrapped`: OpenClaw's wrapped calls by what is inside. `checks_open`, `checks_holds`: decisions that wait for a
  report, and held calls that wait for an approval.
* `hooks`: signs of life of the hooks that ask the checks door.
* `openclaw`: `/tools/invoke`, OpenClaw's own endpoint behind ours.
* `refusals`: one place that turns a verdict or an error into what a model can act on.

Rule of the folder: a door reads and writes; `policies.chain` decides, `gateway.proxy` forwards and records.
"""
