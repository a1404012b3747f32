"""Listening sockets, and who comes in by them.

Invariants: one connection is taken in a turn of the loop, so that who comes does not hold up who is
there.  When descriptors run out somebody is asked to make room, and listening goes on.  Nobody can
connect to a unix socket before its file has mode 0600, and in the end that file is removed, and no
other that has its name by then.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from capstore.schema.errors import Busy, InvalidArgument
from capstore.schema.limits import KIB

log = logging.getLogger("capstore.service")

_BACKLOG: Final = 1024
_FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_FULL_SECONDS: Final = 0.05
_TLS_BUFFER_BYTES: Final = 32 * KIB
# sun_path, without its NUL.
_SOCKET_PATH_BYTES_MAX: Final = 107


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
        for family, kind, protocol, _, address in dict.fromkeys(found):
            # Only of a socket that says it is TCP does asyncio switch Nagle's algorithm off, which
            # holds answers back until those before were acknowledged, and that takes up to 40 ms.
            one = socket.socket(family, kind, protocol)
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


# Unix sockets ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SocketFile:
    """The file of a bound socket: its path, the directory it is in, held open, and its inode."""

    path: Path
    folder: int
    inode: int

    def remove(self) -> None:
        """Removes the file, if it still is the one that was made."""
        with suppress(OSError):
            if os.lstat(self.path.name, dir_fd=self.folder).st_ino == self.inode:
                os.unlink(self.path.name, dir_fd=self.folder)
        os.close(self.folder)


def bind_unix(path: Path) -> tuple[socket.socket, SocketFile]:
    """A bound socket that nobody can connect to yet, and its file, which has mode 0600.

    A socket file that nobody listens on is replaced.  Raises `Busy` where somebody does, and where
    there is a file that is no socket; `InvalidArgument` for a path too long; OSError.
    """
    path = path.absolute()
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES_MAX:
        raise InvalidArgument(
            f"the path of a unix socket has at most {_SOCKET_PATH_BYTES_MAX} bytes; this one has "
            f"{len(os.fsencode(path))}"
        )
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
        # Until listen() nobody can connect, so nobody does with the mode that umask gave.
        path.chmod(0o600)
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        file = SocketFile(path, folder, path.lstat().st_ino)
    except BaseException:
        bound.close()
        raise
    return bound, file


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Busy(f'"{path.name}" is there and is no socket')
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise Busy(f'another service listens on "{path.name}"')
