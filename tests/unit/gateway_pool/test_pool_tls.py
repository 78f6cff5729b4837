"""TLS: verified by default, for the name in the URL, HTTP/1.1 only; and the same promises as without."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import pytest
import trustme

from agenticmail_enterprise.catalog.errors import SettingsError, UpstreamBroken, UpstreamRefused
from agenticmail_enterprise.gateway.pool import Origin, Pool, tls_context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, name: str = "localhost") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def client_context(authority: trustme.CA, tmp_path: Any) -> ssl.SSLContext:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return tls_context(True, str(path))


async def test_calls_over_tls_share_a_connection(
    serve: Any, make_pool: Any, kit: Any, authority: Any, tmp_path: Any
) -> None:
    seen: list[Any] = []
    big = b"x" * 3_000_000

    async def script(peer: Any) -> None:
        tls = peer.writer.get_extra_info("ssl_object")
        seen.append((tls.selected_alpn_protocol(), tls.version()))
        while (got := await peer.request()) is not None:
            await peer.send(kit.ok(big if b"GET" in got else b"ok"))

    context = server_context(authority)
    names: list[str] = []
    context.sni_callback = lambda sock, name, ctx: names.append(name)
    pool = make_pool(await serve(script, context), tls=client_context(authority, tmp_path))
    for _ in range(3):
        assert (await pool.send(*kit.request(), timeout=30)).body == b"ok"
    answer = await pool.send(*kit.request("GET", b""), timeout=30)
    assert await answer.read(10**7) == big
    assert (await pool.send(*kit.request(body=big), timeout=30)).body == b"ok"
    assert seen == [("http/1.1", "TLSv1.3")]
    assert names == ["localhost"]
    assert pool.stats.created == 1


@pytest.mark.parametrize("name", ["other.test", "localhost"])
async def test_an_unknown_authority_or_another_name_is_refused(
    serve: Any, make_pool: Any, kit: Any, authority: Any, tmp_path: Any, name: str
) -> None:
    upstream = await serve(kit.answering(kit.ok()), server_context(authority, name))
    tls = client_context(authority, tmp_path) if name == "other.test" else None  # None: the system's authorities
    pool = make_pool(upstream, tls=tls)
    with pytest.raises(UpstreamRefused, match="certificate is not accepted") as refusal:
        await pool.send(*kit.request(), timeout=30)
    assert refusal.value.unsent
    assert upstream.requests == []
    unverified = make_pool(upstream, verify_tls=False)
    assert (await unverified.send(*kit.request(), timeout=30)).body == b"ok"


async def test_the_server_does_not_speak_tls(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    upstream = await serve(script)
    pool = make_pool(f"https://localhost:{upstream.port}/")
    with pytest.raises(UpstreamRefused, match="cannot be connected to"):
        await pool.send(*kit.request(), timeout=30)


async def test_a_handshake_that_hangs_ends_at_the_connect_timeout(serve: Any, make_pool: Any, kit: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.reader.read()

    upstream = await serve(script)
    pool = make_pool(f"https://localhost:{upstream.port}/", connect_timeout=0.05)
    with pytest.raises(UpstreamRefused, match="did not accept"):
        await pool.send(*kit.request(), timeout=30)
    assert pool.stats.open == 0
    await kit.until(lambda: upstream.open == 0)


async def test_a_post_that_crossed_the_close_is_sent_again_over_tls_too(
    serve: Any, make_pool: Any, kit: Any, authority: Any, tmp_path: Any
) -> None:
    """The server goes away without a word of TLS: its socket is closed under it."""
    got: list[bytes] = []
    peers: list[Any] = []

    async def script(peer: Any) -> None:
        peers.append(peer)
        while (data := await peer.request()) is not None:
            got.append(data)
            await peer.send(kit.ok())

    pool = make_pool(await serve(script, server_context(authority)), tls=client_context(authority, tmp_path))
    await pool.send(*kit.request(), timeout=30)
    await asyncio.sleep(0.01)  # session tickets have come
    conn = pool._idle[-1]
    server = socket.socket(fileno=socket.dup(peers[0].writer.get_extra_info("socket").fileno()))
    peers[0].writer.transport.abort()
    await asyncio.sleep(0.005)
    assert pool.stats.idle == 1
    conn.idle_since = pool.clock() + 60  # nobody looks before using it
    server.close()
    assert (await pool.send(*kit.request(), timeout=30)).body == b"ok"
    assert (len(got), pool.stats.resent) == (2, 1)


async def test_a_post_that_reached_the_servers_machine_is_not_sent_again_over_tls(
    serve: Any, make_pool: Any, kit: Any, authority: Any, tmp_path: Any
) -> None:
    """Acknowledged and never read: the server's kernel answers the close with a reset."""
    got: list[bytes] = []
    peers: list[Any] = []

    async def script(peer: Any) -> None:
        peers.append(peer)
        while (data := await peer.request()) is not None:
            got.append(data)
            await peer.send(kit.ok())

    pool = make_pool(await serve(script, server_context(authority)), tls=client_context(authority, tmp_path))
    await pool.send(*kit.request(), timeout=30)
    await asyncio.sleep(0.01)
    server = socket.socket(fileno=socket.dup(peers[0].writer.get_extra_info("socket").fileno()))
    peers[0].writer.transport.abort()
    await asyncio.sleep(0.005)
    call = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
    await asyncio.sleep(0.02)
    server.close()
    with pytest.raises(UpstreamBroken):
        await call
    assert (len(got), pool.stats.resent, len(peers)) == (1, 0, 1)


async def test_a_post_that_was_read_is_not_sent_again_over_tls(
    serve: Any, make_pool: Any, kit: Any, authority: Any, tmp_path: Any
) -> None:
    got: list[bytes] = []

    async def script(peer: Any) -> None:
        while (data := await peer.request()) is not None:
            got.append(data)
            if len(got) > 1:
                return
            await peer.send(kit.ok())

    pool = make_pool(await serve(script, server_context(authority)), tls=client_context(authority, tmp_path))
    await pool.send(*kit.request(), timeout=30)
    with pytest.raises(UpstreamBroken):
        await pool.send(*kit.request(), timeout=30)
    assert len(got) == 2


async def test_a_caller_that_leaves_during_the_handshake_leaves_nothing(
    serve: Any, make_pool: Any, kit: Any, authority: Any
) -> None:
    async def script(peer: Any) -> None:
        await peer.reader.read()

    upstream = await serve(script)
    pool = make_pool(f"https://localhost:{upstream.port}/")
    call = asyncio.ensure_future(pool.send(*kit.request(), timeout=30))
    await kit.until(lambda: upstream.open == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert pool._taken == 0
    await kit.until(lambda: upstream.open == 0)


def test_an_authority_that_cannot_be_read_is_a_setting_at_fault() -> None:
    with pytest.raises(SettingsError, match="nowhere"):
        tls_context(True, "/nowhere.pem")
    assert tls_context() is tls_context()
    assert tls_context().check_hostname
    assert tls_context().verify_mode is ssl.CERT_REQUIRED
    assert tls_context().minimum_version >= ssl.TLSVersion.TLSv1_2
    assert Pool(Origin.parse("https://x.test/")).origin.secure
