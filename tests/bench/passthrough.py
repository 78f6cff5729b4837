"""(a) What anybody would write first: aiohttp's web.Application in front of its ClientSession, nothing judged."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import ClientSession, TCPConnector, web

SKIP = {"host", "content-length", "transfer-encoding", "connection", "keep-alive"}


async def main(upstream: str) -> None:
    session = ClientSession(connector=TCPConnector(limit=100), auto_decompress=False)

    async def forward(request: web.Request) -> web.Response:
        body = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in SKIP}
        async with session.request(request.method, upstream, headers=headers, data=body) as answer:
            data = await answer.read()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in SKIP}
            return web.Response(status=answer.status, body=data, headers=kept)

    app = web.Application()
    app.router.add_route("*", "/mcp/{server}", forward)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
