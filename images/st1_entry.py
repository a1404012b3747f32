"""What CAPOSST1 holds under a key, in memory and as records.

Invariants: what `entry_of` and `part_of` return lies inside segments that are there; a key is one
of a space, and not empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from capstore.images import ro1, st1
from capstore.images.checksums import crc32c
from capstore.images.records import ST1_ENTRY, ST1_PART
from capstore.images.segments import Geometry
from capstore.schema.errors import Corrupt
from capstore.schema.limits import OBJECT_BYTES_MAX
from capstore.schema.nodes import Provenance
from capstore.schema.objects import ObjectStat


class Part(NamedTuple):
    """`length` bytes of a longer object, from `offset` on; they are at `place` in the image."""

    place: int
    offset: int
    length: int
    sum: int


class Entry(NamedTuple):
    """What is under a key.

    With one part or none, the value is `size` bytes at `place`, with the CRC32C `sum`; `frame` is 0
    if that is an offset in the image, else the number of the frame in whose heap it is one.
    Longer ones have `parts`.  `provenance` is a number of the schema's.
    """

    version: int
    created: int
    size: int
    flags: int
    sum: int
    place: int
    frame: int
    provenance: int
    parts: Sequence[Part] = ()

    @property
    def is_hashed(self) -> bool:
        """Whether its key is the SHA-256 of its value."""
        return bool(self.flags & st1.HASHED)


WALL_CLOCK: Final = ro1.PROVENANCE_CODES[Provenance.WALL_CLOCK]

# Values of the fields of an entry, in the order of their offsets, all of them and those that are
# not given by who packs one.
FIELDS: Final = tuple(field.name for field in ST1_ENTRY.fields)
seal_entry: Final[Callable[..., bytes]] = ST1_ENTRY.sealer(
    "version",
    "created",
    "place",
    "keyAt",
    "size",
    "sum",
    "partCount",
    "keySum",
    "keyBytes",
    "flags",
    "provenance",
    "replacedParts",
)
seal_part: Final[Callable[..., bytes]] = ST1_PART.sealer("place", "offset", "length", "sum")


def stat_of(key: bytes, entry: Entry) -> ObjectStat:
    """What is known of an entry, under the key of an object."""
    return ObjectStat(
        key, entry.size, entry.version, entry.created, ro1.PROVENANCES[entry.provenance]
    )


def check_place(
    place: int, length: int, geometry: Geometry, segments: int, what: str, at: int
) -> None:
    """Raises `Corrupt` unless a value lies in one segment that is there; `what` at `at` says so."""
    segment = geometry.at(place)
    inside = 0 <= segment < segments and geometry.at(place + max(length, 1) - 1) == segment
    if not inside:
        raise Corrupt(f"{what} at offset {at} has a value where none can be")


def check_entry(size: int, provenance: int, key_bytes: int, where: int) -> None:
    """Raises `Corrupt` for what no entry has."""
    if size > OBJECT_BYTES_MAX or provenance not in ro1.PROVENANCES:
        raise Corrupt(f"the entry at offset {where} has values that cannot be")
    if not 1 < key_bytes <= st1.STORED_KEY_BYTES_MAX:
        raise Corrupt(f"the entry at offset {where} has no key")


def check_stored_key(key: bytes, key_sum: int, where: int) -> None:
    """Raises `Corrupt` unless `key` is what the entry at `where` says, and one of a space."""
    if crc32c(key) != key_sum or key[:1] not in (st1.OBJECTS, st1.NAMES):
        raise Corrupt(f"the entry at offset {where} has a key that is damaged")


def parts_of(
    rows: Sequence[Any], size: int, geometry: Geometry, segments: int, where: int
) -> list[Part]:
    """The parts of the entry at `where`, whose records are `rows`.  Raises `Corrupt`."""
    parts: list[Part] = []
    at = 0
    for row in rows:
        if row.offset != at or not 0 < row.length <= st1.part_bytes_of(geometry.segment_bytes):
            raise Corrupt(f"the entry at offset {where} has parts that do not fit together")
        check_place(row.place, row.length, geometry, segments, "the entry", where)
        parts.append(Part(row.place, row.offset, row.length, row.sum))
        at += row.length
    if at != size:
        raise Corrupt(f"the entry at offset {where} has parts that do not fit together")
    return parts
