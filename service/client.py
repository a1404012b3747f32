"""Connecting to a service with nothing but a capability URI.

Invariants: the key in the URI is verified before a byte of RPC is sent; the URI appears in no
error; what a connection opened is closed when its context is left, whatever happened inside.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import capnp

from capstore.backers.node import NodeKind, OpenFlags
from capstore.schema import wire
from capstore.schema.errors import (
    Denied,
    Disconnected,
    InvalidArgument,
    ReadOnly,
    from_os_error,
)
from capstore.schema.limits import HANDSHAKE_SECONDS_MAX
from capstore.service.loop import kj_loop_running
from capstore.service.remote import Directory, File, Held, ReferenceControl, answer_of
from capstore.service.remote_store import Restored, restored
from capstore.service.transport import Transport, protocol_with
from capstore.service.uri import CapabilityURI


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """What a service says of itself to anybody; `limits` by name."""

    protocol_version: int
    software: str
    limits: Mapping[str, int]


class Connection:
    """An open connection; it belongs to the event loop it was made on."""

    def __init__(self, uri: CapabilityURI, rpc: capnp.TwoPartyClient) -> None:
        self.uri = uri
        self._rpc = rpc
        self._gate = Held(rpc.bootstrap().cast_as(wire.Gate))

    def __repr__(self) -> str:
        return f"<Connection {self.uri!r}>"

    async def restore(self, token: str) -> Restored:
        """What was saved under `token`.  Raises `Denied`, `NotFound`, `Unsupported`."""
        return restored(await answer_of(self._gate.raw.restore(token)))

    async def root(self) -> Restored:
        """What the URI stands for, its path included.  Raises as `restore` and `Directory.at`."""
        top = await self.restore(self.uri.token)
        if not self.uri.path:
            return top
        if not isinstance(top, Directory):
            raise Denied("the URI stands for no directory, so it has no path below it")
        return await node_at(top, self.uri.path)

    async def reference(self, token: str) -> ReferenceControl:
        """Control over the saved reference of `token`.  Raises `Denied`."""
        return ReferenceControl((await answer_of(self._gate.raw.reference(token))).reference)

    async def info(self) -> ServiceInfo:
        """Version, software and limits of the service."""
        info = (await answer_of(self._gate.raw.info())).info
        return ServiceInfo(
            info.protocolVersion,
            info.software,
            {limit.name: limit.value for limit in info.limits},
        )

    async def disconnected(self) -> None:
        """Returns when the connection is gone."""
        await self._rpc.on_disconnect()


async def node_at(top: Directory, path: tuple[str, ...]) -> Directory | File:
    """The directory or file at `path` below `top`; a file is open for as much as `top` allows.

    Raises `NotFound`, `NotDirectory`, `Unsupported` (a link or special node).
    """
    parent = await top.at(path[:-1])
    entry = await parent.lookup(path[-1])
    if entry.stat.kind is NodeKind.DIRECTORY:
        return await parent.sub(path[-1])
    try:
        return await parent.open(path[-1], OpenFlags.WRITE)
    except (ReadOnly, Denied):
        return await parent.open(path[-1])


@asynccontextmanager
async def open_connection(uri: str | CapabilityURI) -> AsyncIterator[Connection]:
    """A connection to the service of `uri`.

    Raises `InvalidArgument` for what is no URI, and `Disconnected` where nobody answers or the
    service has another key.
    """
    if isinstance(uri, str):
        uri = CapabilityURI.parse(uri)
    async with kj_loop_running():
        stream, transport = await _stream_to(uri)
        rpc = capnp.TwoPartyClient(stream)
        try:
            yield Connection(uri, rpc)
        finally:
            rpc.close()
            stream.close()
            # TLS would wait for the peer's farewell, and leave the socket to whoever ends the loop.
            await asyncio.sleep(0)
            transport.abort()
            await asyncio.sleep(0)


async def _stream_to(uri: CapabilityURI) -> tuple[capnp.AsyncIoStream, Transport]:
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS_MAX):
            return await _connected(uri)
    except ssl.SSLCertVerificationError as error:
        raise Disconnected("the service has another key than the URI says") from error
    except TimeoutError:
        raise Disconnected(f"no answer within {HANDSHAKE_SECONDS_MAX} seconds") from None
    except UnicodeError:
        raise InvalidArgument("the URI names no host") from None
    except (OSError, asyncio.IncompleteReadError) as error:
        reason = from_os_error(error).message if isinstance(error, OSError) else "closed"
        raise Disconnected(f"cannot connect to the service: {reason}") from error


async def _connected(uri: CapabilityURI) -> tuple[capnp.AsyncIoStream, Transport]:
    """Raises OSError."""
    streams: list[capnp.AsyncIoStream] = []
    protocol = protocol_with(Transport, streams.append)
    loop = asyncio.get_running_loop()
    if uri.socket is not None:
        await loop.create_unix_connection(lambda: protocol, uri.socket)
        return streams[0], protocol.transport
    # cryptography takes a quarter of the time that capstore takes to import.
    from capstore.service.tls import key_name, pinning_context

    fingerprint = uri.fingerprint or ""
    context = pinning_context(fingerprint)
    try:
        await loop.create_connection(lambda: protocol, uri.host or "", uri.port, ssl=context)
    except ssl.SSLCertVerificationError:
        # The service may have the key of this URI among its old ones.
        protocol = protocol_with(Transport, streams.append)
        await loop.create_connection(
            lambda: protocol,
            uri.host or "",
            uri.port,
            ssl=context,
            server_hostname=key_name(fingerprint),
        )
    return streams[0], protocol.transport


@asynccontextmanager
async def connect(uri: str | CapabilityURI) -> AsyncIterator[Restored]:
    """What `uri` stands for, over a connection that lives as long as the context.

    Raises `InvalidArgument`, `Disconnected`, `Denied` for a token that gives nothing, `NotFound`.
    """
    async with open_connection(uri) as connection:
        yield await connection.root()
