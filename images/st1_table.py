"""The table of a CAPOSST1 generation, read in place through a cache of verified pages.

Invariants:

* Opening reads the head; pages are read when they are needed, and checked before they are kept.
* Entries ascend by their keys.
* Memory is `CACHED_PAGES_MAX` pages, whatever the table holds.
* What is not at hand is `WouldWait` in a thread that is `WITHOUT_WAITING`.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from capstore.images import ro1, st1
from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice, read_checked
from capstore.images.records import ST1_ENTRY, ST1_PART, ST1_TABLE
from capstore.images.segments import Geometry
from capstore.images.st1_entry import (
    Entry,
    Part,
    check_entry,
    check_place,
    check_stored_key,
    parts_of,
)
from capstore.images.st1_index import PARTITION_SLOTS, PROBES_MAX, SLOT_BYTES, slots_for
from capstore.images.waiting import read_at_hand
from capstore.schema import layout
from capstore.schema.errors import Corrupt

MAGIC: Final = int(layout.st1TableMagic)
CACHED_PAGES_MAX: Final = 4096
NUMBER_BYTES: Final = 4
_ALIGNMENT: Final = 64
_SLOT: Final = struct.Struct("<I")
_values_at = ST1_ENTRY.values_at


class Counts(NamedTuple):
    """What there is: entries, how many of them are names, parts, and bytes of keys."""

    entries: int = 0
    names: int = 0
    parts: int = 0
    heap: int = 0


class Sections(NamedTuple):
    """Where a table's sections begin, counted from its first byte, and where it ends.

    What is in front of the entries has its own checksum, the rest has one for each page.
    """

    entries: int
    parts: int
    heap: int
    slots: int
    end: int


@dataclass(frozen=True, slots=True)
class Head:
    """What a table says of itself.

    `runs` are the segments it lies in, in order, `usage` the live bytes of every segment, `sums`
    those of its pages; `sequence` is that of the last frame it holds, `version` the last that was
    given.
    """

    sequence: int
    version: int
    counts: Counts
    slots: int
    runs: Sequence[int]
    usage: Sequence[int]
    sums: Sequence[int]
    page_bytes: int
    sections: Sections


def body_bytes(counts: Counts) -> int:
    """What the sections behind the head take, at most."""
    return (
        counts.entries * ST1_ENTRY.size
        + counts.parts * ST1_PART.size
        + counts.heap
        + slots_for(counts.entries) * SLOT_BYTES
        + 2 * _ALIGNMENT
    )


def sections_of(runs: int, usage: int, pages: int, counts: Counts, slots: int) -> Sections:
    """Where the sections of a table are."""
    entries = _aligned(ST1_TABLE.size + (runs + usage + pages) * NUMBER_BYTES)
    parts = entries + counts.entries * ST1_ENTRY.size
    heap = parts + counts.parts * ST1_PART.size
    first_slot = _aligned(heap + counts.heap)
    return Sections(entries, parts, heap, first_slot, first_slot + slots * SLOT_BYTES)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def plan(geometry: Geometry, counts: Counts, usage: int) -> tuple[int, int, Sections]:
    """How many runs and pages a table takes that tells of `usage` segments, and its sections."""
    size, page = geometry.segment_bytes, st1.page_bytes_of(geometry.segment_bytes)
    slots = slots_for(counts.entries)
    runs = pages = 1
    while True:
        sections = sections_of(runs, usage, pages, counts, slots)
        needed = (-(-sections.end // size), -(-sections.end // page))
        if needed <= (runs, pages):
            return runs, pages, sections
        runs, pages = max(runs, needed[0]), max(pages, needed[1])


def segments_for(geometry: Geometry, counts: Counts, usage: int) -> int:
    """How many segments a table takes, at most, in a region of `usage` segments."""
    size = geometry.segment_bytes
    page = st1.page_bytes_of(size)
    body = body_bytes(counts) + ST1_TABLE.size + usage * NUMBER_BYTES
    # Each page and each run is one number in the head.
    body += (body // page + body // size + 4) * NUMBER_BYTES + NUMBER_BYTES * (body // page // 1024)
    return -(-body // size)


def pack_head(head: Head) -> tuple[bytes, int]:
    """The bytes in front of the sections, and the checksum of the record among them."""
    values = (*head.runs, *head.usage, *head.sums)
    numbers = struct.pack(f"<{len(values)}I", *values)
    record = ST1_TABLE.pack(
        magic=MAGIC,
        sequence=head.sequence,
        version=head.version,
        entryCount=head.counts.entries,
        nameCount=head.counts.names,
        partCount=head.counts.parts,
        heapBytes=head.counts.heap,
        slotCount=head.slots,
        runCount=len(head.runs),
        usageCount=len(head.usage),
        pageCount=len(head.sums),
        pageBytes=head.page_bytes,
        headSum=crc32c(numbers),
    )
    return (record + numbers).ljust(head.sections.entries, b"\0"), crc32c(record)


def read_head(
    device: BlockDevice, geometry: Geometry, segments: int, superblock: st1.Superblock
) -> Head:
    """The head that the superblock points to.  Raises `Corrupt`."""
    first = geometry.of_lba(superblock.table_lba)
    at = geometry.start(first)
    where = f"the table at offset {at}"
    raw = read_checked(device, at, geometry.segment_bytes, "the table")
    record = ST1_TABLE.unpack(raw, "the table", at)
    if (
        record.magic != MAGIC
        or crc32c(raw[: ST1_TABLE.size]) != superblock.table_sum
        or geometry.lba(first) != superblock.table_lba
    ):
        raise Corrupt(f"{where} is not the one that the superblock means")
    counts = Counts(record.entryCount, record.nameCount, record.partCount, record.heapBytes)
    sections = sections_of(
        record.runCount, record.usageCount, record.pageCount, counts, record.slotCount
    )
    size = geometry.segment_bytes
    if (
        not 0 < record.runCount <= min(segments, (size - ST1_TABLE.size) // NUMBER_BYTES)
        or record.usageCount > geometry.count_max
        or record.pageBytes != st1.page_bytes_of(size)
        or record.slotCount != slots_for(counts.entries)
        or counts.names > counts.entries
        or sections.end > record.runCount * size
        or record.pageCount != -(-sections.end // record.pageBytes)
    ):
        raise Corrupt(f"{where} has counts that cannot be")
    runs = _numbers(raw, ST1_TABLE.size, record.runCount)
    if runs[0] != first or len(set(runs)) != len(runs) or max(runs) >= segments:
        raise Corrupt(f"{where} does not say where it is")
    front = bytearray(raw)
    for run in runs[1 : -(-sections.entries // size)]:
        front += device.read(geometry.start(run), size)
    count = record.runCount + record.usageCount + record.pageCount
    end = ST1_TABLE.size + count * NUMBER_BYTES
    if crc32c(bytes(front[ST1_TABLE.size : end])) != record.headSum:
        raise Corrupt(f"{where} has a wrong checksum")
    numbers = _numbers(front, ST1_TABLE.size, count)
    usage = numbers[len(runs) : len(runs) + record.usageCount]
    # The end of the region may have been cut off since, where nothing was live.
    if any(live > size for live in usage) or any(usage[segments:]):
        raise Corrupt(f"{where} has counts that cannot be")
    return Head(
        sequence=record.sequence,
        version=record.version,
        counts=counts,
        slots=record.slotCount,
        runs=runs,
        usage=usage[:segments],
        sums=numbers[len(runs) + record.usageCount :],
        page_bytes=record.pageBytes,
        sections=sections,
    )


def _numbers(raw: bytes | bytearray, at: int, count: int) -> list[int]:
    return list(struct.unpack_from(f"<{count}I", raw, at))


class Table:
    """The table whose head is `head`."""

    def __init__(self, device: BlockDevice, geometry: Geometry, segments: int, head: Head) -> None:
        self.head = head
        self._device = device
        self._geometry = geometry
        self._segments = segments
        self._pages: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._page_bytes = head.page_bytes
        self._shift = head.page_bytes.bit_length() - 1
        self._inside = head.page_bytes - 1
        self._slot_mask = head.slots - 1
        self._home_mask = min(head.slots, PARTITION_SLOTS) - 1
        self._entries_at, self._parts_at, self._heap_at, self._slots_at, _ = head.sections

    def __repr__(self) -> str:
        return f"<Table {self.head.counts.entries} entries>"

    @property
    def entries(self) -> int:
        """How many entries there are."""
        return self.head.counts.entries

    # Bytes ---------------------------------------------------------------------------------------

    def place(self, offset: int) -> int:
        """Where in the image the byte `offset` of the table is."""
        run, inside = divmod(offset, self._geometry.segment_bytes)
        return self._geometry.start(self.head.runs[run]) + inside

    def _page(self, number: int) -> bytes:
        """A page that was not in the cache.  Raises `Corrupt`."""
        buffer = bytearray(self._page_bytes)
        place = self.place(number << self._shift)
        read_at_hand(self._device, place, memoryview(buffer))
        page = bytes(buffer)
        self._check(number, page, place)
        with self._lock:
            self._pages[number] = page
            if len(self._pages) > CACHED_PAGES_MAX:
                del self._pages[next(iter(self._pages))]
        return page

    def _check(self, number: int, page: bytes, place: int) -> None:
        start = number << self._shift
        used = page[max(0, self._entries_at - start) : self.head.sections.end - start]
        if crc32c(used) != self.head.sums[number]:
            raise Corrupt(f"the table's page at offset {place} has a wrong checksum")

    def check_pages(self) -> Iterator[tuple[int, str]]:
        """The offset of each page that is damaged, with what is wrong; for who verifies."""
        for number in range(self._entries_at >> self._shift, len(self.head.sums)):
            place = self.place(number << self._shift)
            try:
                self._check(number, self._device.read(place, self._page_bytes), place)
            except Corrupt as error:
                yield place, error.message

    def _bytes(self, at: int, length: int) -> bytes:
        """A part of the table, through the cache."""
        number, inside = at >> self._shift, at & self._inside
        page = self._pages.get(number) or self._page(number)
        if inside + length <= self._page_bytes:
            return page[inside : inside + length]
        pieces = [page[inside:]]
        length -= len(pieces[0])
        while length > 0:
            number += 1
            page = self._pages.get(number) or self._page(number)
            pieces.append(page[:length])
            length -= self._page_bytes
        return b"".join(pieces)

    # Entries -------------------------------------------------------------------------------------

    def find(self, key: bytes, key_sum: int) -> Entry | None:
        """What is under a key.  Raises `Corrupt`."""
        row = self._find(key, key_sum)
        return None if row is None else self.entry(row)

    def find_key(self, key: bytes) -> Entry | None:
        """As `find`."""
        return self.find(key, crc32c(key))

    def row_of(self, key: bytes) -> int | None:
        """The row of a key.  Raises `Corrupt`."""
        return self._find(key, crc32c(key))

    def _find(self, key: bytes, key_sum: int) -> int | None:
        head = self.head
        if not head.slots:
            return None
        pages, shift, inside, mask = self._pages, self._shift, self._inside, self._home_mask
        home = key_sum & mask
        partition = key_sum & self._slot_mask & ~mask
        for step in range(min(PROBES_MAX, mask + 1)):
            at = self._slots_at + (partition | (home + step) & mask) * SLOT_BYTES
            page = pages.get(at >> shift) or self._page(at >> shift)
            (number,) = _SLOT.unpack_from(page, at & inside)
            if not number:
                return None
            if number > head.counts.entries:
                raise Corrupt(f"the table's slot at offset {self.place(at)} leads nowhere")
            at = self._entries_at + (number - 1) * ST1_ENTRY.size
            page = pages.get(at >> shift) or self._page(at >> shift)
            values = _values_at(page, at & inside)
            row = int(number) - 1
            if values[_KEY_SUM] == key_sum and self._key(values, row) == key:
                return row
        row = self.bisect(key)
        return row if row < head.counts.entries and self.key(row) == key else None

    def _values(self, row: int) -> tuple[int, ...]:
        at = self._entries_at + row * ST1_ENTRY.size
        page = self._pages.get(at >> self._shift) or self._page(at >> self._shift)
        return _values_at(page, at & self._inside)

    def _key(self, values: tuple[int, ...], row: int) -> bytes:
        at, length = values[_KEY_AT], values[_KEY_BYTES]
        if at + length > self.head.counts.heap:
            raise Corrupt(f"the entry at offset {self.where(row)} has a key that is not there")
        return self._bytes(self._heap_at + at, length)

    def where(self, row: int) -> int:
        """Where in the image the record of a row is."""
        return self.place(self._entries_at + row * ST1_ENTRY.size)

    def key(self, row: int) -> bytes:
        """The key of a row.  Raises `Corrupt`."""
        return self._key(self._values(row), row)

    def entry(self, row: int) -> Entry:
        """The entry of a row.  Raises `Corrupt`."""
        return self._decoded(self._values(row), row)

    def pair(self, row: int) -> tuple[bytes, Entry]:
        """The key and the entry of a row.  Raises `Corrupt`."""
        values = self._values(row)
        return self._key(values, row), self._decoded(values, row)

    def _decoded(self, values: tuple[int, ...], row: int) -> Entry:
        (version, created, place, _, size, value_sum, part_count) = values[:7]
        flags, provenance = values[9:11]
        if part_count:
            return self._long_entry(values, row)
        geometry = self._geometry
        segment = (place - geometry.begin) // geometry.segment_bytes
        if not (
            0 <= segment < self._segments
            and (place + size - 1 - geometry.begin) // geometry.segment_bytes <= segment
            and provenance in _KNOWN
        ):
            where = self.where(row)
            check_entry(size, provenance, values[8], where)
            check_place(place, size, geometry, self._segments, "the entry", where)
        return Entry(version, created, size, flags, value_sum, place, 0, provenance)

    def _long_entry(self, values: tuple[int, ...], row: int) -> Entry:
        (version, created, first, _, size, value_sum, count) = values[:7]
        where = self.where(row)
        check_entry(size, values[10], values[8], where)
        if first + count > self.head.counts.parts:
            raise Corrupt(f"the entry at offset {where} has parts that are not there")
        raw = self._bytes(self._parts_at + first * ST1_PART.size, count * ST1_PART.size)
        rows = ST1_PART.unpack_all(raw, "a part", self.place(self._parts_at))
        parts = parts_of(rows, size, self._geometry, self._segments, where)
        return Entry(version, created, size, values[9], value_sum, 0, 0, values[10], parts)

    def bisect(self, key: bytes) -> int:
        """The first row whose key is not less than `key`."""
        low, high = 0, self.head.counts.entries
        while low < high:
            middle = (low + high) // 2
            if self.key(middle) < key:
                low = middle + 1
            else:
                high = middle
        return low

    # Rows, many at a time, for whoever copies tables ---------------------------------------------

    def rows(self, first: int, count: int) -> bytes:
        """The records of so many rows.  Raises `Corrupt`."""
        return self._bytes(self._entries_at + first * ST1_ENTRY.size, count * ST1_ENTRY.size)

    def part_rows(self, first: int, count: int) -> list[Part]:
        """So many parts; raises `Corrupt`."""
        if first + count > self.head.counts.parts:
            raise Corrupt("the table has parts that are not there")
        at = self._parts_at + first * ST1_PART.size
        raw = self._bytes(at, count * ST1_PART.size)
        rows = ST1_PART.unpack_all(raw, "a part", self.place(at))
        return [Part(row.place, row.offset, row.length, row.sum) for row in rows]

    def keys(self, raw: bytes, first: int) -> list[bytes]:
        """The keys of the rows `raw`, which begin with the row `first`.  Raises `Corrupt`."""
        spans = [(values[_KEY_AT], values[_KEY_BYTES]) for values in ST1_ENTRY.rows_of(raw)]
        if not spans:
            return []
        begin, end = spans[0][0], spans[-1][0] + spans[-1][1]
        length = sum(length for _, length in spans)
        if end > self.head.counts.heap or end - begin != length:
            raise Corrupt(f"the entry at offset {self.where(first)} has no keys in a row")
        heap = self._bytes(self._heap_at + begin, length)
        return [heap[at - begin : at - begin + length] for at, length in spans]

    def check_keys(self, raw: bytes, first: int, keys: Sequence[bytes]) -> None:
        """Raises `Corrupt` unless the keys are what rows say, and ascend."""
        before = self.key(first - 1) if first else b""
        for row, (values, key) in enumerate(zip(ST1_ENTRY.rows_of(raw), keys, strict=True), first):
            check_stored_key(key, values[_KEY_SUM], self.where(row))
            if key <= before:
                raise Corrupt(f"the entry at offset {self.where(row)} is not in order")
            before = key


_FIELDS = [field.name for field in ST1_ENTRY.fields]
_KEY_AT: Final = _FIELDS.index("keyAt")
_KEY_SUM: Final = _FIELDS.index("keySum")
_KEY_BYTES: Final = _FIELDS.index("keyBytes")
_KNOWN: Final = frozenset(ro1.PROVENANCES)
