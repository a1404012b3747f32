"""The service: volumes behind a Gate, on sockets, from start to clean stop.

Invariants:

* A socket file has mode 0600 before anything can connect to it, and is removed at the stop.
* A connection gets a `Session` of its own; what goes wrong on it ends it and nothing else.
* `stop` closes the doors first, then the connections, then flushes and closes the volumes and the
  state: what was acknowledged is on disk when it returns.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import capnp

from capstore.backers.node import Volume
from capstore.backers.store import ObjectStore
from capstore.backers.workers import in_worker
from capstore.schema.errors import Busy, InternalError, InvalidArgument, StorageError, from_os_error
from capstore.schema.limits import (
    CONNECTIONS_MAX,
    HANDSHAKE_SECONDS_MAX,
    MESSAGE_BYTES_MAX,
    MESSAGE_NESTING_MAX,
)
from capstore.service.authority import Authority
from capstore.service.gate import GateServer
from capstore.service.loop import kj_loop_running
from capstore.service.session import MeteredTransport, Session, TicketTable
from capstore.service.shares import Kept, StandingShare, keep_shares
from capstore.service.state import StateDirectory
from capstore.service.transport import protocol_with
from capstore.service.uri import CapabilityURI

log = logging.getLogger("capstore.service")

_BYTES_PER_WORD = 8
_LOOK_SECONDS = 1.0
_SAVE_TURNS = 10
_HANG_UP_SECONDS = 1.0
_HANG_UP_LOOKS = 20
_CALLS_END_SECONDS = 10.0
_CALLS_END_LOOKS = 500


# What a service serves under a name: a tree, or objects.
Served = Volume | ObjectStore


class Service:
    """A running service; made by `start`."""

    def __init__(self, volumes: Mapping[str, Served], state: StateDirectory, software: str) -> None:
        self._volumes = dict(volumes)
        self._state = state
        self._software = software
        self._authority = Authority(self._volumes, state.references, state.owner_key)
        self._tickets: TicketTable = {}
        self._sessions: dict[Session, capnp.TwoPartyServer | None] = {}
        self._numbers = itertools.count(1)
        self._listeners: list[asyncio.Server] = []
        self._sockets: list[tuple[Path, int]] = []
        self._addresses: list[CapabilityURI] = []
        self._ending: list[Session] = []

    def __repr__(self) -> str:
        return (
            f"<Service of {', '.join(self._volumes)}: {len(self._listeners)} listeners, "
            f"{len(self._sessions)} sessions>"
        )

    # Listening ---------------------------------------------------------------------------------

    async def listen_unix(self, path: Path) -> None:
        """Listens on the unix socket `path` with mode 0600.

        A socket file that nobody listens on is replaced.  Raises `Busy` where somebody does,
        `InvalidArgument` for a path too long, and what stands for an OSError.
        """
        try:
            bound, full_path, inode = await in_worker(lambda: _bind_unix(path))
        except OSError as error:
            raise from_os_error(error, f'the socket "{path.name}"') from error
        self._sockets.append((full_path, inode))
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_unix_server(self._protocol, sock=bound))
        self._addresses.append(CapabilityURI("", socket=str(full_path)))

    async def listen_tls(self, host: str, port: int) -> None:
        """Listens on TCP with TLS 1.3; `port` 0 takes a free one.

        Raises `Busy` for a port in use and what stands for any other OSError.
        """
        key = await in_worker(self._state.service_key)
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(
                self._protocol,
                host,
                port,
                ssl=key.server_context(),
                ssl_handshake_timeout=HANDSHAKE_SECONDS_MAX,
            )
        except OSError as error:
            raise from_os_error(error, f"listening on {host}:{port}") from error
        self._listeners.append(listener)
        port = listener.sockets[0].getsockname()[1]
        self._addresses.append(CapabilityURI("", host=host, port=port, fingerprint=key.fingerprint))

    def owner_uris(self) -> list[tuple[str, CapabilityURI]]:
        """For each volume and each address: the volume's name and the URI of all of it."""
        return [
            (name, uri)
            for name in self._volumes
            for uri in self.uris(self._authority.owner_token(name))
        ]

    def uris(self, token: str) -> list[CapabilityURI]:
        """The URIs of what `token` stands for, one for each address."""
        return [address.with_token(token) for address in self._addresses]

    def volume(self, name: str) -> Volume:
        """A served volume.  Raises KeyError."""
        volume = self._volumes[name]
        if not isinstance(volume, Volume):
            raise KeyError(name)
        return volume

    @property
    def sessions(self) -> list[Session]:
        """The connections there are, oldest first."""
        return list(self._sessions)

    # Connections -------------------------------------------------------------------------------

    def _protocol(self) -> Any:
        """The asyncio protocol of a new connection."""
        session = Session(next(self._numbers), self._authority, self._tickets)
        return protocol_with(
            lambda transport: MeteredTransport(transport, session),
            lambda stream: self._serve(session, stream),
        )

    async def _serve(self, session: Session, stream: capnp.AsyncIoStream) -> None:
        """Serves one connection to its end."""
        if len(self._sessions) >= CONNECTIONS_MAX:
            log.warning("over %d connections: one more is refused", CONNECTIONS_MAX)
            return
        self._sessions[session] = None
        try:
            rpc = capnp.TwoPartyServer(
                stream,
                bootstrap=GateServer(session, self._software),
                traversal_limit_in_words=MESSAGE_BYTES_MAX // _BYTES_PER_WORD,
                nesting_limit=MESSAGE_NESTING_MAX,
            )
            self._sessions[session] = rpc
            await rpc.on_disconnect()
        except capnp.KjException as error:
            log.info("%r ended: %s", session, error.description)
        finally:
            del self._sessions[session]
            session.close()

    async def watch_connections(self) -> None:
        """Cuts off peers that take nothing, and saves what waits; runs until it is cancelled."""
        for turn in itertools.count(1):
            await asyncio.sleep(_LOOK_SECONDS)
            if turn % _SAVE_TURNS == 0:
                with suppress(StorageError):  # it was logged, and is tried again
                    await self._authority.commit()
            for session in self.sessions:
                if session.transport is not None:
                    session.transport.look()

    # Stopping ----------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Stops in order; see the module's invariants.

        Raises the first failure, when everything else has been closed all the same.
        """
        self._close_doors()
        await self._hang_up()
        closings = [volume.close for volume in self._volumes.values()] + [self._authority.commit]
        failures = []
        for close in closings:
            try:
                await close()
            except StorageError as error:
                failures.append(error)
            except Exception:
                log.exception("a bug at the stop")
                failures.append(InternalError("the service has a bug; see its log"))
        self._state.close()
        if failures:
            raise failures[0]

    def _close_doors(self) -> None:
        for listener in self._listeners:
            listener.close()
        for path, inode in self._sockets:
            with suppress(OSError):
                if path.lstat().st_ino == inode:
                    path.unlink()

    async def _calls_to_end(self) -> None:
        """Waits for calls that were cancelled and cannot stop at once: a change in a worker."""
        for _ in range(_CALLS_END_LOOKS):
            if not any(session.calls_in_flight for session in self._ending):
                return
            await asyncio.sleep(_CALLS_END_SECONDS / _CALLS_END_LOOKS)
        log.warning("calls are still under way; the volumes are closed under them")

    async def _hang_up(self) -> None:
        """Ends the connections; answers that wait get a moment to be taken."""
        self._ending = self.sessions
        transports = [each.transport for each in self._ending if each.transport is not None]
        for rpc in list(self._sessions.values()):
            if rpc is not None:
                rpc.close()
        for transport in transports:
            transport.close()
        for _ in range(_HANG_UP_LOOKS):
            if not any(transport.unsent_bytes for transport in transports):
                break
            await asyncio.sleep(_HANG_UP_SECONDS / _HANG_UP_LOOKS)
        for transport in transports:
            transport.abort()
        await self._calls_to_end()

    async def prepare(self) -> None:
        """Makes the owner references; to be called once, before listening."""
        await self._authority.ensure_owners()

    async def keep_shares(self, shares: Sequence[StandingShare]) -> list[Kept]:
        """Makes these standing shares, or finds them again, and ends all others.

        To be called before listening.  Raises as `capstore.service.shares.keep_shares`.
        """
        return await keep_shares(self._authority, shares)


def start(
    volumes: Mapping[str, Served], state: StateDirectory, *, software: str = "capstore"
) -> AbstractAsyncContextManager[Service]:
    """A running service over `volumes`, by name; it owns them and `state` from here on.

    Leaving the context stops it.  It listens nowhere until told to.
    """
    return _running(volumes, state, software)


@asynccontextmanager
async def _running(
    volumes: Mapping[str, Served], state: StateDirectory, software: str
) -> AsyncIterator[Service]:
    service = Service(volumes, state, software)
    async with kj_loop_running():
        watcher = asyncio.create_task(service.watch_connections())
        try:
            await service.prepare()
            yield service
        finally:
            watcher.cancel()
            await service.stop()


def _bind_unix(path: Path) -> tuple[socket.socket, Path, int]:
    """A bound socket that nobody can connect to yet, the path and inode of its private file."""
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
        inode = path.lstat().st_ino
    except BaseException:
        bound.close()
        raise
    return bound, path, inode


_SOCKET_PATH_BYTES_MAX = 107


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
