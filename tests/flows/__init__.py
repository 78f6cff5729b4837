"""Whole stories over real sockets: a gateway, an agent, a server behind it.

* `house`: `House`, a gateway in this process on a free port, with agents and upstreams made to order.
* `servers`: MCP servers of the tests' own: one that behaves and counts, and ones that misbehave in one way each.
"""
