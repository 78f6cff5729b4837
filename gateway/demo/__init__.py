"""What does it look like when it works? A demo organisation with a real agent and a real MCP server, on one machine.

`agenticmail-enterprise demo` (and `make run`) puts these together and goes on serving:

* `mailserver` (with `mailtools`, `mailbox`, `mailhttp`): an MCP server with mail-like tools that writes to a local
  folder and touches no network. It stands behind the gateway as the upstream `mail`, as a child process that speaks
  stdio.
* `scenery`: the organisation, the agent `support-bot`, its profile and its keys; made on the first run, found again on
  later ones. Keys are new each time and the ones before are revoked: no key of an earlier demo still works.
* `agent`: the agent, a process of its own on the official MCP client. It is told where to go and what to try on
  standard input, and says what happened on standard output, one JSON object a line. It knows nothing of the gateway
  but its URL. `actor` is that process, seen from the gateway's.
* `play`: starts gateway and agent side by side and follows each call: the reason of the one that is denied, what would
  allow it, and the record of all.
* `stage`: what the spectator sees of it, people in colours and programs in one JSON object.
"""
