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
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import capnp

from capstore.backers.node import Volume
from capstore.backers.store import ObjectStore
from capstore.backers.workers import in_worker
from capstore.schema.errors import InternalError, StorageError, from_os_error
from capstore.schema.limits import (
    HANDSHAKE_SECONDS_MAX,
    MESSAGE_BYTES_MAX,
    MESSAGE_NESTING_MAX,
)
from capstore.service.admission import Admission, peer_of
from capstore.service.authority import Authority
from capstore.service.commons import Totals, Turns
from capstore.service.dispatch import harmless
from capstore.service.gate import GateServer
from capstore.service.inlet import Inlet
from capstore.service.listening import Door, SocketFile, bind_unix, bound_tcp
from capstore.service.loop import kj_loop_running
from capstore.service.observing import Observers
from capstore.service.session import Session, TicketTable
from capstore.service.shares import Kept, StandingShare, keep_shares
from capstore.service.state import StateDirectory
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

    def __init__(
        self,
        volumes: Mapping[str, Served],
        state: StateDirectory,
        software: str,
        observers: Observers | None = None,
    ) -> None:
        self._volumes = dict(volumes)
        self._observers = observers
        self._state = state
        self._software = software
        audited = observers is not None and observers.audit is not None
        self._authority = Authority(
            self._volumes, state.references, state.owner_key, audited=audited
        )
        self._tickets: TicketTable = {}
        self._sessions: dict[Session, capnp.TwoPartyServer | None] = {}
        self._numbers = itertools.count(1)
        self._admission = Admission(self._displaced)
        self._totals = Totals()
        self._turns = Turns()
        self._attending: dict[Session, asyncio.Task[None]] = {}
        self._doors: list[Door] = []
        self._sockets: list[SocketFile] = []
        self._addresses: list[CapabilityURI] = []
        self._ending: list[Session] = []

    def __repr__(self) -> str:
        return (
            f"<Service of {', '.join(self._volumes)}: {len(self._doors)} doors, "
            f"{len(self._sessions)} sessions>"
        )

    # Listening ---------------------------------------------------------------------------------

    async def listen_unix(self, path: Path) -> None:
        """Listens on the unix socket `path` with mode 0600.

        A socket file that nobody listens on is replaced.  Raises `Busy` where somebody does,
        `InvalidArgument` for a path too long, and what stands for an OSError.
        """
        try:
            bound, file = await in_worker(lambda: bind_unix(path))
        except OSError as error:
            raise from_os_error(error, f'the socket "{path.name}"') from error
        self._sockets.append(file)
        self._open(bound, None)
        self._addresses.append(CapabilityURI("", socket=str(file.path)))

    async def listen_tls(self, host: str, port: int) -> None:
        """Listens on TCP with TLS 1.3; `port` 0 takes a free one.

        Raises `Busy` for a port in use and what stands for any other OSError.
        """
        keys = await in_worker(self._state.service_keys)
        context = keys.server_context()
        try:
            sockets = await bound_tcp(host, port)
            doors = [self._open(bound, context) for bound in sockets]
        except OSError as error:
            raise from_os_error(error, f"listening on {host}:{port}") from error
        port = doors[0].port
        self._addresses.append(
            CapabilityURI("", host=host, port=port, fingerprint=keys.current.fingerprint)
        )

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
    def volumes(self) -> list[tuple[str, Served]]:
        """What is served, by name."""
        return list(self._volumes.items())

    @property
    def reference_count(self) -> int:
        """How many references are saved."""
        return self._authority.reference_count

    def label_of(self, reference_id: int) -> str | None:
        """The label of a saved reference; None where there is none."""
        return self._authority.label_of(reference_id)

    @property
    def sessions(self) -> list[Session]:
        """The connections there are, oldest first."""
        return list(self._sessions)

    # Connections -------------------------------------------------------------------------------

    def _open(self, bound: socket.socket, context: ssl.SSLContext | None) -> Door:
        door = Door(bound, lambda connection: self._come(connection, context), self._make_room)
        self._doors.append(door)
        return door

    def _make_room(self) -> None:
        self._admission.make_room()

    def _displaced(self) -> None:
        if self._observers is not None:
            with harmless("displaced"):
                self._observers.displaced()

    def _come(self, connection: socket.socket, context: ssl.SSLContext | None) -> None:
        """Lets a connection in, or not."""
        session = Session(
            next(self._numbers), self._authority, self._tickets, self._totals, self._turns
        )
        session.observer = self._observers
        try:
            admitted = self._admission.admits(session, peer_of(connection))
        except OSError:
            connection.close()  # it is gone already
            return
        if not admitted:
            log.warning("%r is refused: there are too many connections", session)
            connection.close()
            if self._observers is not None:
                with harmless("refused"):
                    self._observers.refused("connections")
            return
        self._totals.connections = self._admission.count
        self._sessions[session] = None
        attending = asyncio.create_task(self._attend(session, connection, context))
        self._attending[session] = attending
        session.on_make_room = attending.cancel

    async def _attend(
        self, session: Session, connection: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        """A connection from its handshake to its end."""
        inlet = Inlet(session, self._turns, self._serve)
        is_connected = False
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: inlet,
                connection,
                ssl=context,
                ssl_handshake_timeout=None if context is None else HANDSHAKE_SECONDS_MAX,
            )
            is_connected = True
            if self._observers is not None:
                with harmless("connected"):
                    self._observers.connected(session)
            await inlet.gone
        except (OSError, EOFError) as error:
            log.info("%r ended in its handshake: %s", session, error)
            # asyncio keeps it in a frame of its traceback: a circle, with the buffers of TLS in it.
            error.with_traceback(None)
        finally:
            self._admission.leaves(session)
            self._totals.connections = self._admission.count
            del self._sessions[session], self._attending[session]
            session.close()
            if is_connected and self._observers is not None:
                with harmless("disconnected"):
                    self._observers.disconnected(session)

    async def _serve(self, session: Session, stream: capnp.AsyncIoStream) -> None:
        """Serves RPC on a connection to its end."""
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

    async def watch_connections(self) -> None:
        """Cuts off peers that take nothing, and saves what waits; runs until it is cancelled."""
        for turn in itertools.count(1):
            await asyncio.sleep(_LOOK_SECONDS)
            if turn % _SAVE_TURNS == 0:
                with suppress(StorageError):  # it was logged, and is tried again
                    await self._authority.commit()
            self._turns.look()
            self._look()

    def _look(self) -> None:
        # Not in the loop above, which would keep the last one until it looks again.
        for session in self.sessions:
            if session.transport is not None:
                session.transport.look()

    # Stopping ----------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Stops in order; see the module's invariants.

        Raises the first failure, when everything else has been closed all the same.
        """
        await self._close_doors()
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

    async def _close_doors(self) -> None:
        while self._doors:
            await self._doors.pop().close()
        while self._sockets:
            self._sockets.pop().remove()

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
        for session in self._ending:
            session.make_room()
        for transport in transports:
            transport.abort()
        if self._attending:
            await asyncio.wait(self._attending.values(), timeout=_HANG_UP_SECONDS)
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
    volumes: Mapping[str, Served],
    state: StateDirectory,
    *,
    software: str = "capstore",
    observers: Observers | None = None,
) -> AbstractAsyncContextManager[Service]:
    """A running service over `volumes`, by name; it owns them, `state` and `observers` from here
    on.

    Leaving the context stops it.  It listens nowhere until told to.
    """
    return _running(volumes, state, software, observers)


@asynccontextmanager
async def _running(
    volumes: Mapping[str, Served],
    state: StateDirectory,
    software: str,
    observers: Observers | None,
) -> AsyncIterator[Service]:
    service = Service(volumes, state, software, observers)
    if observers is not None:
        observers.begin(service)
    async with kj_loop_running():
        watcher = asyncio.create_task(service.watch_connections())
        try:
            await service.prepare()
            yield service
        finally:
            watcher.cancel()
            try:
                await service.stop()
            finally:
                if observers is not None:
                    await observers.close()
