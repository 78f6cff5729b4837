"""Making connections: resolve, check, connect to the very address that was checked, and TLS."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable

from ..catalog.errors import UpstreamRefused
from .addresses import Resolver, resolve
from .pool_connection import Connection, Owner
from .pool_origin import Origin

RESOLVED_FOR = 10.0
"""Seconds for which a name's addresses are used without asking again."""

GOODBYE = 2.0
"""Seconds to wait for the server's TLS goodbye when an idle connection is closed."""


class Dialler:
    """Opens connections to one origin. Addresses are judged at each resolution, whoever resolved them."""

    def __init__(
        self, origin: Origin, *, resolver: Resolver, allow_private: bool, context: ssl.SSLContext | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._origin = origin
        self._resolver = resolver
        self._allow_private = allow_private
        self._context = context
        self._clock = clock
        self._addresses: list[str] = []
        self._resolved_at = float("-inf")

    async def dial(self, owner: Owner, seconds: float) -> Connection:
        """A connection, idle, within so many seconds.

        Raises UpstreamRefused (AddressRefused when no address may be contacted).
        """
        origin = self._origin
        end = self._clock() + seconds
        reached = ""
        try:
            async with asyncio.timeout(seconds):
                addresses = await self._resolve()
                for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
                    reached = address
                    try:
                        async with asyncio.timeout(max(0.0, end - self._clock()) / left):
                            return await self._connect(owner, address)
                    except (OSError, TimeoutError):
                        if left == 1:
                            raise
        except ssl.SSLCertVerificationError as error:
            raise UpstreamRefused(
                f"The upstream's certificate is not accepted: {error.verify_message}.",
                host=origin.host,
                address=reached,
            ) from error
        except TimeoutError as error:
            self._resolved_at = float("-inf")
            raise UpstreamRefused(
                f"The upstream did not accept a connection within {seconds:.3g} s.", host=origin.host, address=reached
            ) from error
        except OSError as error:  # ssl.SSLError too
            self._resolved_at = float("-inf")
            raise UpstreamRefused(
                f"The upstream cannot be connected to: {error}.", host=origin.host, address=reached
            ) from error
        raise UpstreamRefused(f"The name {origin.host} has no address.")

    async def _resolve(self) -> list[str]:
        if self._clock() - self._resolved_at > RESOLVED_FOR:
            origin = self._origin
            self._addresses = await resolve(
                origin.host, origin.port, allow_private=self._allow_private, resolver=self._resolver
            )
            self._resolved_at = self._clock()
        return self._addresses

    async def _connect(self, owner: Owner, address: str) -> Connection:
        loop = asyncio.get_running_loop()
        context = self._context
        conn = Connection(owner, loop, tls=context is not None)
        try:
            if context is None:
                await loop.create_connection(lambda: conn, address, self._origin.port)
            else:
                await loop.create_connection(
                    lambda: conn,
                    address,
                    self._origin.port,
                    ssl=context,
                    server_hostname=self._origin.host,
                    ssl_shutdown_timeout=GOODBYE,
                )
        except BaseException:
            conn.kill()
            raise
        return conn
