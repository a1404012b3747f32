"""The log of CAPOSST1: frames of entries, with the values of those that are short.

Invariants:

* A frame holds whole changes, or a part of a batch whose last frame does not go on.
* What a frame says of an entry is what the table says, but that a value that lies in the frame
  itself is told by its place in the frame's heap, and that an entry says whether there was one
  under its key, and of how many parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from capstore.images import st1
from capstore.images.checksums import crc32c
from capstore.images.frames import Frame, FrameFormat
from capstore.images.records import BLOCK_BYTES, ST1_ENTRY, ST1_FRAME, ST1_PART, blocks_of
from capstore.images.segments import Geometry
from capstore.images.st1_entry import (
    Entry,
    check_entry,
    check_place,
    check_stored_key,
    parts_of,
    seal_entry,
    seal_part,
)
from capstore.schema.errors import Corrupt


def _payload_bytes(header: Any) -> int:
    return int(
        header.entryCount * ST1_ENTRY.size + header.partCount * ST1_PART.size + header.heapBytes
    )


FORMAT: Final = FrameFormat(ST1_FRAME, _payload_bytes)


class PendingFrame:
    """Entries that wait for the next frame; `number` is what they know it by.

    `live` counts the bytes of values in its heap that are not replaced yet.
    """

    __slots__ = ("heap", "live", "number", "parts", "records", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.records: list[bytes] = []
        self.parts: list[bytes] = []
        self.heap = bytearray()
        self.live = 0
        self.size = 0

    def add(
        self, key: bytes, key_sum: int, entry: Entry, value: bytes | None, flags: int, replaced: int
    ) -> Entry:
        """Adds an entry, with its value if that goes with the frame and is not in it already; the
        entry as it is here.

        `flags` are those of the record beside the entry's, `replaced` is how many parts what was
        under the key has."""
        heap = self.heap
        key_at = len(heap)
        heap += key
        if value is not None:
            # As `_replace`, in a fourth of its time.
            version, created, size, kept, checksum, _, _, provenance, _ = entry
            entry = Entry(
                version, created, size, kept, checksum, len(heap), self.number, provenance
            )
            heap += value
            self.size += entry.size
        if entry.frame:
            flags |= st1.IN_FRAME
            self.live += entry.size
        place = entry.place
        if entry.parts:
            place = len(self.parts)
            self.parts += [seal_part(*part) for part in entry.parts]
            self.size += len(entry.parts) * ST1_PART.size
        self.records.append(
            seal_entry(
                entry.version,
                entry.created,
                place,
                key_at,
                entry.size,
                entry.sum,
                len(entry.parts),
                key_sum,
                len(key),
                entry.flags | flags,
                entry.provenance,
                replaced,
            )
        )
        self.size += ST1_ENTRY.size + len(key)
        return entry

    @property
    def heap_at(self) -> int:
        """Where the heap begins in the frame."""
        return ST1_FRAME.size + len(self.records) * ST1_ENTRY.size + len(self.parts) * ST1_PART.size

    @property
    def frame_bytes(self) -> int:
        """How long the frame is, in whole blocks."""
        return blocks_of(ST1_FRAME.size + self.size) * BLOCK_BYTES

    def encoded(self, **header: int) -> bytes:
        """The frame; `header` gives key, epoch, sequence, durable, next and flags."""
        payload = b"".join((*self.records, *self.parts, self.heap))
        head = ST1_FRAME.pack(
            entryCount=len(self.records),
            partCount=len(self.parts),
            heapBytes=len(self.heap),
            payloadSum=crc32c(payload),
            **header,
        )
        size = len(head) + len(payload)
        return b"".join((head, payload, bytes(-size % BLOCK_BYTES)))


class Logged(NamedTuple):
    """What a frame says of a key: None for `entry` is that it is gone.

    `replaces` says whether there was something, `replaced_parts` of how many parts; `in_frame`
    whether the value lies in the frame."""

    key: bytes
    entry: Entry | None
    replaces: bool
    replaced_parts: int
    in_frame: bool
    version: int


def decoded(frame: Frame, geometry: Geometry, segments: int) -> list[Logged]:
    """The changes of a frame, in order.  Raises `Corrupt`."""
    return list(_decoded(frame, geometry, segments))


def _decoded(frame: Frame, geometry: Geometry, segments: int) -> Iterator[Logged]:
    header, payload, at = frame.header, frame.payload, frame.at + ST1_FRAME.size
    parts_at = header.entryCount * ST1_ENTRY.size
    heap_at = parts_at + header.partCount * ST1_PART.size
    table, heap = payload[:parts_at], payload[heap_at:]
    bad = ST1_ENTRY.unsealed(table)
    if len(bad):
        raise Corrupt(
            f"an entry at offset {at + int(bad[0]) * ST1_ENTRY.size} has a wrong checksum"
        )
    part_rows = ST1_PART.unpack_all(payload[parts_at:heap_at], "a part", at + parts_at)
    heap_place = at + heap_at
    for number, values in enumerate(ST1_ENTRY.rows_of(table)):
        where = at + number * ST1_ENTRY.size
        (version, created, place, key_at, size, value_sum, count, key_sum) = values[:8]
        key_bytes, flags, provenance, _, replaced_parts, _ = values[8:]
        check_entry(size, provenance, key_bytes, where)
        key = heap[key_at : key_at + key_bytes]
        check_stored_key(key, key_sum, where)
        replaces = bool(flags & st1.REPLACES)
        if flags & st1.REMOVED:
            yield Logged(key, None, replaces, replaced_parts, False, version)
            continue
        in_frame = bool(flags & st1.IN_FRAME)
        parts: Sequence[Any] = ()
        if in_frame:
            if place + size > len(heap):
                raise Corrupt(f"the entry at offset {where} has a value that is not there")
            place += heap_place
        elif count:
            if place + count > len(part_rows):
                raise Corrupt(f"the entry at offset {where} has parts that are not there")
            rows = part_rows[place : place + count]
            parts, place = parts_of(rows, size, geometry, segments, where), 0
        else:
            check_place(place, size, geometry, segments, "the entry", where)
        kept = flags & st1.HASHED
        entry = Entry(version, created, size, kept, value_sum, place, 0, provenance, parts)
        yield Logged(key, entry, replaces, replaced_parts, in_frame, version)
