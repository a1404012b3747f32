"""Listening sockets, and who comes in by them.

Invariants: one connection is taken in a turn of the loop, so that who comes does not hold up who is
there.  When descriptors run out somebody is asked to make room, and listening goes on.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from capstore.schema.limits import KIB

log = logging.getLogger("capstore.service")

_BACKLOG: Final = 1024
_FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_FULL_SECONDS: Final = 0.05
_TLS_BUFFER_BYTES: Final = 32 * KIB


class Door:
    """A bound socket, listened on until it is closed.

    `come` gets each connection, and owns it; `make_room` is to close one that can be spared.
    """

    def __init__(
        self,
        bound: socket.socket,
        come: Callable[[socket.socket], None],
        make_room: Callable[[], object],
    ) -> None:
        bound.setblocking(False)
        bound.listen(_BACKLOG)
        self._socket = bound
        self._come = come
        self._make_room = make_room
        self._listening = asyncio.create_task(self._listen())

    def __repr__(self) -> str:
        return f"<Door {self._socket.getsockname()!r}>"

    @property
    def port(self) -> int:
        """Of a TCP socket."""
        return int(self._socket.getsockname()[1])

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._socket)
            except OSError as error:
                # Others than these are of a connection that is gone already.
                if error.errno in _FULL:
                    log.warning("no descriptors are left for another connection")
                    self._make_room()
                    await asyncio.sleep(_FULL_SECONDS)
            else:
                self._come(connection)
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Listens no more."""
        self._listening.cancel()
        with suppress(asyncio.CancelledError):
            await self._listening
        self._socket.close()


def keep_tls_buffers_small() -> None:
    """Lets a TLS connection of this process take 32 KiB to read into, instead of asyncio's 256.

    asyncio takes it zeroed, and for as long as the connection lasts; it has no setting but this.
    """
    SSLProtocol.max_size = _TLS_BUFFER_BYTES


async def bound_tcp(host: str, port: int) -> list[socket.socket]:
    """A bound socket for each address of `host`; `port` 0 takes a free one.  Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            one = socket.socket(family, socket.SOCK_STREAM)
            bound.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
    except BaseException:
        for one in bound:
            one.close()
        raise
    return bound
