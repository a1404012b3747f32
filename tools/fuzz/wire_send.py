"""How a case of the fuzzer of the wire gets to the service, and what is seen of what comes back.

Invariants: a case is sent whole; then, when nothing comes back for a while, the sending side is
closed, and the service is to end the connection.  Nothing that came back is left unlooked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from capstore.schema.limits import KIB
from capstore.service.uri import CapabilityURI
from capstore.tools.fuzz.wire_service import Service

CASE_SECONDS_MAX: Final = 20.0
READ_BYTES: Final = 256 * KIB
QUIET_SECONDS: Final = 0.02
_AROUND: Final = 100

# How a connection ended: by the client, who got what it asked for, or by the service.
ANSWERED: Final = "answered"
CLOSED: Final = "closed"


class Broken(Exception):
    """What a case found wrong."""


def check(got: bytes | bytearray, needles: Sequence[bytes]) -> None:
    """Raises `Broken` for an answer that holds one of `needles`."""
    for needle in needles:
        if needle in got:
            at = got.index(needle)
            shown = bytes(got[max(0, at - _AROUND) : at + _AROUND])
            raise Broken(f"the answer tells of the service: {needle!r}\n{shown!r}")


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent: the messages of a session as a client sends them, or damaged."""

    seed: int
    good: Sequence[bytes]
    damaged: Sequence[bytes]


class Way(Protocol):
    """A way to the service; `name` is what cases that go it are called."""

    name: str

    def uris(self, service: Service) -> dict[str, CapabilityURI]:
        """How the client beside goes it, by volume."""

    async def send(self, service: Service, case: Case, needles: Sequence[bytes]) -> str:
        """Sends a case and takes what comes back; returns how it ended.

        Raises `Broken`, TimeoutError after `CASE_SECONDS_MAX` and OSError where nobody listens.
        """


class Plain:
    """Through the unix socket."""

    name: str = "wire"

    def uris(self, service: Service) -> dict[str, CapabilityURI]:
        """See `Way`."""
        return service.uris

    async def send(self, service: Service, case: Case, needles: Sequence[bytes]) -> str:
        """See `Way`."""
        return await send(service.socket, case.damaged, needles)


async def send(socket: str, frames: Sequence[bytes], needles: Sequence[bytes]) -> str:
    """Sends a case to a unix socket and takes what comes back; returns how it ended.

    Raises `Broken`, TimeoutError after `CASE_SECONDS_MAX` and OSError where nobody listens.
    """
    async with asyncio.timeout(CASE_SECONDS_MAX):
        reader, writer = await asyncio.open_unix_connection(socket, limit=READ_BYTES)
        outcome = ANSWERED
        got = bytearray()
        try:
            writer.write(b"".join(frames))
            while (data := await read_some(reader)) is not None:
                if not data:
                    outcome = CLOSED
                    break
                got += data
            if outcome == ANSWERED and writer.can_write_eof():
                writer.write_eof()
                while data := await reader.read(READ_BYTES):
                    got += data
        except OSError:
            outcome = CLOSED
        finally:
            writer.transport.abort()
    check(got, needles)
    return outcome


async def read_some(reader: asyncio.StreamReader) -> bytes | None:
    """What comes, empty at the end; None if nothing does for `QUIET_SECONDS`."""
    try:
        return await asyncio.wait_for(reader.read(READ_BYTES), QUIET_SECONDS)
    except TimeoutError:
        return None
