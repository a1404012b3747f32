"""How a case of the fuzzer of the wire gets to the service through TLS.

Invariants: half of the cases are good TLS with damaged messages of RPC in it; the others are good
messages in damaged TLS (`capstore.tools.fuzz.wire_records`), which are to get nothing that they
would not get undamaged.  What comes back is looked at as it is on the wire, and as it was meant.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Sequence
from typing import Final

from capstore.service.tls import key_name, pinning_context
from capstore.service.uri import CapabilityURI
from capstore.tools.fuzz import wire_send
from capstore.tools.fuzz.wire_records import Damage
from capstore.tools.fuzz.wire_send import ANSWERED, CLOSED, READ_BYTES, Case, check, read_some
from capstore.tools.fuzz.wire_service import Service

_SHARE: Final = 0.5


def damage_of(seed: int, names: tuple[bytes, ...]) -> Damage | None:
    """What a case does to TLS; None if it leaves it alone and damages what is in it."""
    rng = random.Random(f"tls case {seed}")  # noqa: S311 - no secret
    return Damage(rng, names) if rng.random() < _SHARE else None


def names_of(*fingerprints: str) -> tuple[bytes, ...]:
    """By what name a client asks for each of these keys."""
    return tuple(key_name(fingerprint).encode() for fingerprint in fingerprints)


class Encrypted:
    """Through TLS."""

    name: str = "tls"

    def uris(self, service: Service) -> dict[str, CapabilityURI]:
        """See `Way`."""
        return service.encrypted

    async def send(self, service: Service, case: Case, needles: Sequence[bytes]) -> str:
        """See `Way`."""
        uri = service.encrypted["tree"]
        damage = damage_of(case.seed, names_of(uri.fingerprint or "", service.old_key))
        frames = case.damaged if damage is None else case.good
        return await send(uri, frames, needles, damage)


class _Ended(Exception):
    """The service ended the connection, or TLS did."""


class _Tunnel:
    """TLS over a connection, whose records may be damaged as they leave."""

    def __init__(
        self,
        fingerprint: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        damage: Damage | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._damage = damage
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = pinning_context(fingerprint)
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        # As it came, and as it was meant.
        self.raw, self.plain = bytearray(), bytearray()

    async def _leave(self) -> None:
        """Sends what TLS has to send."""
        data = self._outgoing.read()
        for piece in [data] if self._damage is None else self._damage.sent(data):
            if self._writer.transport.is_closing():
                raise _Ended
            if isinstance(piece, bytes):
                self._writer.write(piece)
                await self._writer.drain()
            else:
                await asyncio.sleep(piece)

    async def _take(self) -> bool:
        """Takes what comes; False if nothing does for a while.  Raises `_Ended`."""
        data = await read_some(self._reader)
        if data is None:
            return False
        if not data:
            raise _Ended
        self.raw += data
        self._incoming.write(data)
        return True

    async def shake_hands(self) -> bool:
        """Whether the handshake came to its end; if not, the service says nothing more."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._leave()
                if not await self._take():
                    return False
            else:
                await self._leave()
                return True

    async def talk(self, data: bytes) -> None:
        """Sends `data`, and takes answers until nothing more comes."""
        self._tls.write(data)
        await self._leave()
        while True:
            self._read()
            if not await self._take():
                return

    def _read(self) -> None:
        try:
            while data := self._tls.read(READ_BYTES):
                self.plain += data
        except ssl.SSLWantReadError:
            return
        raise _Ended

    async def end(self) -> None:
        """Sends no more, and takes what there is to the end of the connection."""
        self._writer.write_eof()
        while data := await self._reader.read(READ_BYTES):
            self.raw += data


async def send(
    uri: CapabilityURI, frames: Sequence[bytes], needles: Sequence[bytes], damage: Damage | None
) -> str:
    """Sends a case through TLS and takes what comes back; returns how it ended.

    Raises `Broken`, TimeoutError after `CASE_SECONDS_MAX` and OSError where nobody listens.
    """
    async with asyncio.timeout(wire_send.CASE_SECONDS_MAX):
        reader, writer = await asyncio.open_connection(uri.host, uri.port, limit=READ_BYTES)
        tunnel = _Tunnel(uri.fingerprint or "", reader, writer, damage)
        outcome = ANSWERED
        try:
            if await tunnel.shake_hands():
                await tunnel.talk(b"".join(frames))
            await tunnel.end()
        except (_Ended, OSError):
            outcome = CLOSED
        finally:
            writer.transport.abort()
    check(tunnel.raw, needles)
    check(tunnel.plain, needles)
    return outcome
