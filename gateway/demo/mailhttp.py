"""The demo's mail server over streamable HTTP: `POST /mcp`, answers in plain JSON, no sessions, loopback only."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from ..doors import mcpfacts as mcp
from .mailserver import MAX_LINE, MailServer, RpcFault, read_json, write_json

HOSTS: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""Names under which it may be addressed: a web page that maps a name of its own to loopback (rebinding) is refused."""


def application(server: MailServer) -> web.Application:
    app = web.Application(client_max_size=MAX_LINE)

    async def post(request: web.Request) -> web.Response:
        if not _at_home(request):
            return web.Response(status=403, text="This host is not served here.")
        if request.content_type != "application/json":
            return web.Response(status=415, text="The body is application/json.")
        try:
            message = read_json(await request.read())
            _check_headers(request, message)
        except RpcFault as fault:
            return _answer({"jsonrpc": "2.0", "id": None, "error": fault.error}, status=400)
        answer = await asyncio.to_thread(server.handle, message)
        if answer is None:
            return web.Response(status=202)
        modern = isinstance(message, dict) and _modern_version(message) is not None
        return _answer(answer, status=_status(answer) if modern else 200)

    app.router.add_post("/mcp", post)
    return app


def _at_home(request: web.Request) -> bool:
    host, colon, port = request.host.rpartition(":")
    name = host if colon and port.isdigit() else request.host
    origin = request.headers.get("Origin")
    return name in HOSTS and (origin is None or origin == f"http://{request.host}")


def _modern_version(message: dict[str, Any]) -> Any:
    """The revision in a request's own envelope, or None without one."""
    params = message.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    return meta.get(mcp.META_VERSION) if isinstance(meta, dict) else None


def _check_headers(request: web.Request, message: Any) -> None:
    """At 2026-07-28 headers repeat what the body says; before, a revision in the header must be a known one.

    Raises RpcFault."""
    version = request.headers.get("MCP-Protocol-Version")
    inside = _modern_version(message) if isinstance(message, dict) else None
    if inside is None:
        if version is not None and version not in {*mcp.HANDSHAKE, mcp.MODERN}:
            raise RpcFault(mcp.INVALID_REQUEST, f"The revision {version!r} is not spoken here.")
        return
    method, params = message.get("method"), message["params"]
    field = mcp.NAMED.get(method) if isinstance(method, str) else None
    named = mcp.header_value(request.headers.get("Mcp-Name", "")) if field else None
    if version != inside or request.headers.get("Mcp-Method") != method or (field and named != params.get(field)):
        raise RpcFault(mcp.HEADER_MISMATCH, "The headers do not say what the body says.")


def _status(answer: Any) -> int:
    error = answer.get("error") if isinstance(answer, dict) else None
    return mcp.STATUS_OF.get(error["code"], 200) if error else 200


def _answer(answer: Any, *, status: int) -> web.Response:
    return web.Response(status=status, body=write_json(answer), content_type="application/json")


def serve_http(server: MailServer, port: int) -> None:
    """Serve until SIGINT or SIGTERM. Prints the URL as its first line of output."""
    try:
        asyncio.run(_serve(server, port))
    except web.GracefulExit:
        return


async def _serve(server: MailServer, port: int) -> None:
    runner = web.AppRunner(application(server), access_log=None, handle_signals=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}/mcp", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
