"""Between pycapnp and asyncio's transports: what asyncio's TLS cannot bear is kept from it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from capstore.service.tls import ServiceKey, pinning_context
from capstore.service.transport import Transport

pytestmark = pytest.mark.anyio

PIECE_BYTES = 1000


class Leaving(asyncio.BufferedProtocol):
    """Closes when the first piece comes in, and aborts when the second one does."""

    def __init__(self) -> None:
        self.buffer = bytearray(PIECE_BYTES)
        self.pieces = 0
        self.failures: list[BaseException] = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = Transport(transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.pieces += 1
        try:
            if self.pieces == 1:
                self.transport.close()
            else:
                self.transport.abort()
        except BaseException as error:
            self.failures.append(error)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)


def joined(context: ssl.SSLContext, data: bytes) -> Callable[[bytes], bytes]:
    """A client's side of TLS without a socket: what turns bytes of the peer into those to be sent,
    `data` together with the end of the handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="a.test")
    is_done = False

    def answer(received: bytes) -> bytes:
        nonlocal is_done
        incoming.write(received)
        if not is_done:
            try:
                client.do_handshake()
            except ssl.SSLWantReadError:
                return outgoing.read()
            is_done = True
            client.write(data)
        return outgoing.read()

    return answer


async def test_aborting_in_the_middle_of_closing() -> None:
    key = ServiceKey.from_pem(ServiceKey.generate_pem())
    loop = asyncio.get_running_loop()
    served: list[Leaving] = []

    def serve() -> Leaving:
        served.append(Leaving())
        return served[-1]

    server = await loop.create_server(serve, "127.0.0.1", 0, ssl=key.server_context())
    async with server:
        answer = joined(pinning_context(key.fingerprint), bytes(3 * PIECE_BYTES))
        host, port = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(answer(b""))
        async with asyncio.timeout(5):
            while data := await reader.read(1 << 16):
                writer.write(answer(data))
            await served[0].lost
        writer.close()
    assert served[0].pieces == 2
    assert not served[0].failures
