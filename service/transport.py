"""What stands between pycapnp and an asyncio transport, at either end of a connection.

Invariants:

* What pycapnp writes in one turn of the loop leaves in one system call, in order: a message is two
  pieces at least, and calls that were sent together travel together.  Nothing is held back over a
  turn, nor more than `_PASS_BYTES`.
* It has the methods that pycapnp calls, and no others.

pycapnp's own ways to connect and to listen keep the protocol, hence the transport, to themselves;
`protocol_with` does what they do, and puts ours in its place.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import capnp

# Above this a joined copy would cost more than a system call.
_PASS_BYTES = 32 * 1024
# The kernel takes a whole window of answers, so that the peer has something to read while the
# next is made.  Where TCP sizes its buffers itself, it is left to.
_SEND_BUFFER_BYTES = 1024 * 1024


class Transport:
    """An asyncio transport that gathers small writes; see the module's invariants."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._call_soon = asyncio.get_running_loop().call_soon
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._is_closing = False
        endpoint = transport.get_extra_info("socket")
        if endpoint is not None and endpoint.family == socket.AF_UNIX:
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

    def write(self, data: bytes) -> None:
        """Sends `data`, at the latest in the next turn of the loop."""
        if len(data) > _PASS_BYTES:
            self.flush()
            self.pass_on(data)
            return
        if not self._gathered:
            self._call_soon(self.flush)
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes > _PASS_BYTES:
            self.flush()

    def flush(self) -> None:
        """Sends what was gathered."""
        if self._gathered:
            gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
            self.pass_on(b"".join(gathered))

    def pass_on(self, data: bytes) -> None:
        """Gives `data` to the transport."""
        self._transport.write(data)

    def get_extra_info(self, name: str) -> Any:
        """What asyncio's transport knows of the connection."""
        return self._transport.get_extra_info(name)

    @property
    def unsent_bytes(self) -> int:
        """What the kernel has not taken yet."""
        return int(self._transport.get_write_buffer_size()) + self._gathered_bytes

    def resume_reading(self) -> None:
        """Reads on."""
        self._transport.resume_reading()

    def pause_reading(self) -> None:
        """Reads no more for now."""
        self._transport.pause_reading()

    def is_closing(self) -> bool:
        """Whether it is closed or about to be."""
        return bool(self._transport.is_closing())

    def can_write_eof(self) -> bool:
        """Whether `write_eof` works."""
        return bool(self._transport.can_write_eof())

    def write_eof(self) -> None:
        """Ends the writing side."""
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Closes in order; closing again does nothing.

        asyncio's TLS transport takes a second close for the end, and could not be aborted then.
        """
        if not self._transport.is_closing():
            self.flush()
        # Whoever is told of what left may have closed it meanwhile.
        if not self._transport.is_closing():
            self._is_closing = True
            try:
                self._transport.close()
            finally:
                self._is_closing = False

    def abort(self) -> None:
        """Closes at once; what waits is dropped."""
        if self._is_closing:
            # asyncio's TLS hands on what has come before it closes; who is told, and aborts it
            # then, would leave it in a state from which it cannot close ("cannot switch state").
            self._call_soon(self._transport.abort)
        else:
            self._transport.abort()


def protocol_with(
    transport: Callable[[Any], Transport], connected: Callable[[capnp.AsyncIoStream], Any]
) -> Any:
    """A pycapnp protocol, for asyncio, whose transport is what `transport` makes of asyncio's.

    `connected` gets the stream when the connection is made; a coroutine it returns runs as a task,
    and the connection is closed when that ends.
    """

    def made(stream: capnp.AsyncIoStream) -> Any:
        protocol.transport = transport(protocol.transport)
        return connected(stream)

    protocol = capnp.AsyncIoStream._connect(made)
    return protocol
