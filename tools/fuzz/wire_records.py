"""What happens to the records of TLS on their way: damaged, forged, cut, repeated, late.

Invariants: all chance comes from the number of the case; the records themselves are as fresh as TLS
makes them, so a case is the same in what is done to which record, and not in its bytes.  At the
first thing that `ends` them, no more records follow.

The format is that of RFC 8446: records in 5.1, the ClientHello in 4.1.2, its extensions in 4.2.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from typing import Final

_HEAD: Final = struct.Struct(">BHH")
CHANGE, ALERT, HANDSHAKE, DATA, HEARTBEAT = 20, 21, 22, 23, 24
_HELLO: Final = 1
_TYPES: Final = (0, CHANGE, ALERT, HANDSHAKE, DATA, HEARTBEAT, 25, 128, 255)
_VERSIONS: Final = (0, 0x0002, 0x0300, 0x0301, 0x0303, 0x0304, 0x7F1C, 0xFFFF)
_LENGTHS: Final = (0, 1, 255, 1 << 14, (1 << 14) + 1, (1 << 14) + 256, (1 << 14) + 257, 0xFFFF)
_NUMBERS: Final = (0, 1, 2, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF)
_PAUSES: Final = (0.001, 0.005, 0.03)
_PIECES_MAX: Final = 40
# What stands in a ClientHello before its extensions: type, length, version, random.
_HELLO_HEAD: Final = _HEAD.size + 4 + 2 + 32
# Extensions: server_name, supported_groups, signature_algorithms, ALPN, pre_shared_key, early_data,
# supported_versions, cookie, psk_key_exchange_modes, post_handshake_auth, key_share, and two more.
_EXTENSIONS: Final = (0, 10, 13, 16, 41, 42, 43, 44, 45, 49, 51, 0x0A0A, 0xFF01)
_PLAIN: Final = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"SSH-2.0-x\r\n",
    b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + b"\x01" * 37,
    struct.pack("<II", 0, 2) + b"\0" * 16,
)

# What is sent, one piece after the other, and for how many seconds nothing is.
Sent = list[bytes | float]


class Damage:
    """What a case does to the records of a connection; see the module's invariants."""

    def __init__(self, rng: random.Random, names: tuple[bytes, ...] = ()) -> None:
        self.rng = rng
        # Names of services that a ClientHello may ask for.
        self.names = names
        self.is_ended = False
        self._index = 0
        self._plan: dict[int, list[Mutator]] = {}
        for _ in range(rng.choice((1, 1, 2, 3))):
            self._plan.setdefault(rng.choice(_WHICH), []).append(rng.choice(MUTATORS))

    def sent(self, data: bytes) -> Sent:
        """What becomes of records that TLS would send now."""
        sent: Sent = []
        for record in records_of(data):
            if self.is_ended:
                break
            pieces: Sent = [record]
            for mutator in self._plan.get(self._index, ()):
                pieces = [
                    done
                    for piece in pieces
                    for done in (mutator(self, piece) if isinstance(piece, bytes) else (piece,))
                ]
            sent += pieces
            self._index += 1
        return sent


Mutator = Callable[[Damage, bytes], Sent]
# Which records: the ClientHello most of all, then the end of the handshake, and what follows it.
_WHICH: Final = (0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 6)


def records_of(data: bytes) -> Iterator[bytes]:
    """The records of a stream, and what is left at its end."""
    at = 0
    while at < len(data):
        end = len(data)
        if end - at >= _HEAD.size:
            end = min(end, at + _HEAD.size + _HEAD.unpack_from(data, at)[2])
        yield data[at:end]
        at = end


def record(kind: int, body: bytes, version: int = 0x0303) -> bytes:
    """A record; of a body that is too long the length is wrong."""
    return _HEAD.pack(kind, version, len(body) & 0xFFFF) + body


def _put(data: bytes, at: int, form: str, value: int) -> bytes:
    size = struct.calcsize(form)
    if at < 0 or at + size > len(data):
        return data
    return data[:at] + struct.pack(form, value) + data[at + size :]


# Of any record ----------------------------------------------------------------------------------


def _flip(damage: Damage, data: bytes) -> Sent:
    changed = bytearray(data)
    for _ in range(damage.rng.choice((1, 1, 2, 8))):
        if changed:
            changed[damage.rng.randrange(len(changed))] ^= 1 << damage.rng.randrange(8)
    return [bytes(changed)]


def _head(damage: Damage, data: bytes) -> Sent:
    at, form, values = damage.rng.choice(
        ((0, ">B", _TYPES), (1, ">H", _VERSIONS), (3, ">H", _LENGTHS), (3, ">H", _NUMBERS))
    )
    return [_put(data, at, form, damage.rng.choice(values))]


def _cut(damage: Damage, data: bytes) -> Sent:
    """The rest of the connection never comes."""
    damage.is_ended = True
    return [data[: damage.rng.randrange(len(data) + 1)]]


def _shorten(damage: Damage, data: bytes) -> Sent:
    """A whole record with less in it."""
    if len(data) <= _HEAD.size:
        return [data]
    kind, version, _ = _HEAD.unpack_from(data)
    return [record(kind, data[_HEAD.size : damage.rng.randrange(_HEAD.size, len(data))], version)]


def _drop(damage: Damage, data: bytes) -> Sent:
    return []


def _repeat(damage: Damage, data: bytes) -> Sent:
    return [data] * damage.rng.choice((2, 2, 3, 30))


def _again_without_end(damage: Damage, data: bytes) -> Sent:
    damage.is_ended = True
    return [data] * 500


def _pieces(damage: Damage, data: bytes) -> Sent:
    """The bytes come little by little."""
    step = max(1, len(data) // damage.rng.randint(2, _PIECES_MAX))
    pause = damage.rng.choice(_PAUSES)
    sent: Sent = []
    for at in range(0, len(data), step):
        sent += [data[at : at + step], pause]
    return sent


def _fragments(damage: Damage, data: bytes) -> Sent:
    """The body in records of their own, as TLS allows for a handshake."""
    if len(data) <= _HEAD.size:
        return [data]
    kind, version, _ = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    step = max(1, len(body) // damage.rng.choice((2, 5, 100)))
    parts = (record(kind, body[at : at + step], version) for at in range(0, len(body), step))
    return [b"".join(parts)]


def _late(damage: Damage, data: bytes) -> Sent:
    return [damage.rng.choice(_PAUSES) * 5, data]


def _before(damage: Damage, data: bytes) -> Sent:
    """Something else comes first: garbage, another protocol, a record that is out of place."""
    rng = damage.rng
    forged = rng.choice(
        (
            rng.randbytes(rng.choice((1, 5, 64, 1000))),
            rng.choice(_PLAIN),
            record(rng.choice(_TYPES), rng.randbytes(rng.choice((0, 1, 2, 64)))),
            record(ALERT, bytes((rng.choice((1, 2)), rng.choice((0, 10, 40, 90, 255))))),
            record(CHANGE, b"\1") * rng.choice((1, 2, 40)),
            record(DATA, b"") * rng.choice((1, 40)),
            record(HANDSHAKE, bytes((rng.randrange(25), 0, 0, rng.choice((0, 1, 255))))),
            record(HANDSHAKE, b"\1\xff\xff\xff" + bytes(16_000)) * rng.choice((1, 4)),
            record(HEARTBEAT, b"\1\xff\xff"),
        )
    )
    return [forged, data]


# Of a ClientHello -------------------------------------------------------------------------------


def extensions_of(data: bytes) -> list[tuple[int, int]]:
    """Where the extensions of a ClientHello begin, and their type; none if it is none."""
    found: list[tuple[int, int]] = []
    try:
        if data[0] != HANDSHAKE or data[_HEAD.size] != _HELLO:
            return []
        at = _HELLO_HEAD
        at += 1 + data[at]
        at += 2 + int.from_bytes(data[at : at + 2], "big")
        at += 1 + data[at]
        at += 2
        while at + 4 <= len(data):
            kind, size = struct.unpack_from(">HH", data, at)
            found.append((at, kind))
            at += 4 + size
    except IndexError:
        return []
    return found


def with_extensions(data: bytes, body: bytes) -> bytes:
    """A ClientHello with other extensions, and lengths that are right."""
    begin = extensions_of(data)[0][0]
    hello = data[_HEAD.size + 4 : begin - 2] + struct.pack(">H", len(body) & 0xFFFF) + body
    kind, version, _ = _HEAD.unpack_from(data)
    return record(kind, bytes((_HELLO,)) + len(hello).to_bytes(3, "big") + hello, version)


def _extension(damage: Damage, data: bytes) -> Sent:
    """A number in an extension: its type, its length, or one within."""
    places = extensions_of(data)
    if not places:
        return [data]
    at, _ = damage.rng.choice(places)
    value = damage.rng.choice((*_NUMBERS, *_EXTENSIONS))
    return [_put(data, at + damage.rng.choice((0, 2, 4, 6, 8)), ">H", value)]


def _extensions(damage: Damage, data: bytes) -> Sent:
    """Extensions that are left out, twice there, in another order, or new."""
    places = [at for at, _ in extensions_of(data)]
    if not places:
        return [data]
    rng = damage.rng
    parts = [data[at:end] for at, end in zip(places, [*places[1:], len(data)], strict=True)]
    what = rng.randrange(4)
    if what == 0:
        del parts[rng.randrange(len(parts))]
    elif what == 1:
        parts.insert(rng.randrange(len(parts)), rng.choice(parts))
    elif what == 2:
        rng.shuffle(parts)
    else:
        body = rng.randbytes(rng.choice((0, 2, 40, 8000)))
        parts.append(struct.pack(">HH", rng.choice(_EXTENSIONS), len(body)) + body)
    return [with_extensions(data, b"".join(parts))]


def _name(damage: Damage, data: bytes) -> Sent:
    """A name of the service that is asked for (RFC 6066, 3)."""
    rng = damage.rng
    places = extensions_of(data)
    if not places:
        return [data]
    name = rng.choice(
        (
            *damage.names,
            b"",
            b"localhost",
            b"\xff\xfe",
            b"a\0b",
            b"xn--a-ecp.ru",
            "ü".encode(),
            b"." * 20,
            b"a" * rng.choice((64, 255, 256, 5000)),
            rng.randbytes(20),
        )
    )
    entry = struct.pack(">BH", rng.choice((0, 0, 0, 1)), len(name)) + name
    body = struct.pack(">H", len(entry)) + entry
    kept = b"".join(
        data[at:end]
        for (at, kind), end in zip(places, [*(at for at, _ in places[1:]), len(data)], strict=True)
        if kind
    )
    return [with_extensions(data, struct.pack(">HH", 0, len(body)) + body + kept)]


MUTATORS: Final[tuple[Mutator, ...]] = (
    _flip, _flip, _head, _cut, _shorten, _drop, _repeat, _again_without_end, _pieces, _fragments,
    _late, _before, _before, _extension, _extension, _extensions, _name,
)  # fmt: skip
