"""How do we speak to MCP servers that are programs and not addresses? Child processes behind a small port.

* `mcp_stdio`: `create(command, args, cwd, env, name=...) -> StdioUpstream`.
  `StdioUpstream.open_session(on_message, on_close) -> StdioSession`: one child process a session, because an MCP stdio
  server knows one client, and because one agent's crash must not be another's.
* `mux`: `StdioMux`, many requests over one child: ids, progress tokens, subscription ids, cancellations are remapped.
  Loaded by name; the door from above. `remap`: the rewriting, as pure functions.
* `process`: one child: own session and process group, lines out, back-pressure in, the protocol's order of ending it.
  `spawning`: how it is started with no file of ours but its pipes, and how its end is heard of.
* `childenv`: what a child may know: a short list of variables and what was configured, never the gateway's secrets.
* `lines`: bounded splitting of stdout, the bounded ring of stderr.
* `backoff`: when a new child may be started after others died early.
* `warden`: a small process that ends our children when the gateway is killed with -9; `wardenproc` is its program.

Laws of the folder:

1. No shell: an argument list, and a command that was found before anything is started.
2. A child never outlives its session: close stdin, 2 s, SIGTERM, 2 s, SIGKILL, always to the whole process group.
   A grandchild that leaves the group (setsid) escapes all of it but the end of its stdin; a container holds those too.
3. Everything a child sends is bounded: a line, the ring of stderr, what waits to be read by it.
4. A message that cannot have been read by a child fails as `UpstreamRefused` or a class of it (`unsent` is True);
   one that may have been fails as `UpstreamBroken` or `UpstreamTimeout`, and is never sent again from here.
"""
