"""What a governed call costs, as ratios within one run. `make bench` prints them; nothing here is a test.

* `run`: starts everything, measures, prints one figure a line.
* `upstream`: a fixed MCP answer over raw asyncio and httptools, so that the server behind costs as little as it can.
* `passthrough`: (a) the plain aiohttp pass-through, `web.Application` + `ClientSession`.
* `gateway`: (b) and (d), our own worker with a database made for the run.
* `load`: the client of all of them: keep-alive connections, one request at a time on each, raw asyncio.
"""
