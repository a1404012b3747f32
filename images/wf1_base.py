"""The tables of a CAPOSWF1 checkpoint, read in place through a cache of verified pages.

Invariants:

* Opening reads the head; pages are read when they are needed, and every record in a page is checked
  before the page is kept.
* Nodes ascend by their ids, the entries of a directory by the bytes of their names.
* Memory is `CACHED_PAGES_MAX` pages and a few times `CACHED_RECORDS_MAX` decoded records, whatever
  the checkpoint holds.
* In a thread that is `WITHOUT_WAITING`, what is not at hand is `WouldWait`, and nothing else.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from capstore.images import wf1
from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice, read_checked
from capstore.images.records import (
    BLOCK_BYTES,
    WF1_CHECKPOINT,
    WF1_ENTRY,
    WF1_EXTENT,
    WF1_NODE,
    Record,
)
from capstore.images.segments import Geometry
from capstore.images.waiting import WITHOUT_WAITING, WouldWait, read_at_hand
from capstore.images.wf1_codec import (
    check_extents,
    decoded_name,
    extent_of,
    node_of,
    text_place,
)
from capstore.images.wf1_content import Extent
from capstore.images.wf1_state import GONE, Counts, Node
from capstore.schema import layout
from capstore.schema.errors import Corrupt
from capstore.schema.limits import KIB

MAGIC: Final = int(layout.wf1CheckpointMagic)
PAGE_BYTES: Final = 4 * KIB
CACHED_PAGES_MAX: Final = 4096
# Records that were decoded lately: a search for a name begins with the same ones each time.
CACHED_RECORDS_MAX: Final = 32_768
NUMBER_BYTES: Final = 4
# So many extents are looked at one by one, through the cache.
_FEW: Final = 32
# Guesses before halves: ids that are far from even must not cost more than those.
_GUESSES_MAX: Final = 6


@dataclass(frozen=True, slots=True)
class Head:
    """What a checkpoint says of itself.

    `runs` are the segments it lies in, in order, `usage` the live bytes of every segment;
    `sequence` is that of the last frame it holds.  Tables begin at `starts` (nodes, entries,
    extents, heap), counted from the checkpoint's first byte.
    """

    sequence: int
    next_node: int
    changes: int
    counts: Counts
    runs: Sequence[int]
    usage: Sequence[int]
    starts: tuple[int, int, int, int]

    @property
    def length(self) -> int:
        """How many bytes the checkpoint has."""
        return _paged(self.starts[3] + self.counts.heap)


def _paged(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


def table_starts(runs: int, usage: int, counts: Counts) -> tuple[int, int, int, int]:
    """Where the tables of a checkpoint begin."""
    nodes = _paged(WF1_CHECKPOINT.size + (runs + usage) * NUMBER_BYTES)
    entries = nodes + _paged(counts.nodes * WF1_NODE.size)
    extents = entries + _paged(counts.entries * WF1_ENTRY.size)
    heap = extents + _paged(counts.extents * WF1_EXTENT.size)
    return nodes, entries, extents, heap


def pack_head(
    head: Head,
) -> tuple[bytes, int]:
    """The bytes in front of the tables, and the checksum of the whole of them."""
    numbers = b"".join(n.to_bytes(NUMBER_BYTES, "little") for n in (*head.runs, *head.usage))
    record = WF1_CHECKPOINT.pack(
        magic=MAGIC,
        sequence=head.sequence,
        nextNode=head.next_node,
        changes=head.changes,
        nodeCount=head.counts.nodes,
        entryCount=head.counts.entries,
        extentCount=head.counts.extents,
        heapBytes=head.counts.heap,
        runCount=len(head.runs),
        usageCount=len(head.usage),
        headSum=crc32c(numbers),
    )
    return (record + numbers).ljust(head.starts[0], b"\0"), crc32c(record)


def read_head(
    device: BlockDevice, geometry: Geometry, segments: int, superblock: wf1.Superblock
) -> Head:
    """The head that the superblock points to.  Raises `Corrupt`."""
    first = geometry.of_lba(superblock.checkpoint_lba)
    at = geometry.start(first)
    where = f"the checkpoint at offset {at}"
    raw = read_checked(device, at, geometry.segment_bytes, "the checkpoint")
    record = WF1_CHECKPOINT.unpack(raw, "the checkpoint", at)
    if (
        record.magic != MAGIC
        or crc32c(raw[: WF1_CHECKPOINT.size]) != superblock.checkpoint_sum
        or geometry.lba(first) != superblock.checkpoint_lba
    ):
        raise Corrupt(f"{where} is not the one that the superblock means")
    end = WF1_CHECKPOINT.size + (record.runCount + record.usageCount) * NUMBER_BYTES
    numbers = raw[WF1_CHECKPOINT.size : end]
    if end > len(raw) or crc32c(numbers) != record.headSum:
        raise Corrupt(f"{where} has a wrong checksum")
    values = memoryview(numbers).cast("I").tolist() if numbers else []
    runs, usage = values[: record.runCount], values[record.runCount :]
    counts = Counts(record.nodeCount, record.entryCount, record.extentCount, record.heapBytes)
    head = Head(
        sequence=record.sequence,
        next_node=record.nextNode,
        changes=record.changes,
        counts=counts,
        runs=runs,
        usage=usage,
        starts=table_starts(len(runs), len(usage), counts),
    )
    _check_head(head, first, geometry, segments, where)
    return head


def _check_head(head: Head, first: int, geometry: Geometry, segments: int, where: str) -> None:
    if not head.runs or head.runs[0] != first or len(set(head.runs)) != len(head.runs):
        raise Corrupt(f"{where} does not say where it is")
    if max(head.runs) >= segments or len(head.usage) > segments:
        raise Corrupt(f"{where} names segments that are not there")
    if head.length > len(head.runs) * geometry.segment_bytes:
        raise Corrupt(f"{where} has tables longer than itself")
    if any(live > geometry.segment_bytes for live in head.usage) or not head.counts.nodes:
        raise Corrupt(f"{where} has counts that cannot be")


K = TypeVar("K")
V = TypeVar("V")


class _Cache(Generic[K, V]):
    """What was found lately; forgotten all at once when it is much, which costs less than order.

    Its operations are single ones of a dictionary, so threads need no lock."""

    __slots__ = ("_found", "get")

    def __init__(self) -> None:
        self._found: dict[K, V] = {}
        self.get = self._found.get

    def keep(self, key: K, value: V) -> V:
        """Keeps `value`, and returns it."""
        if len(self._found) >= CACHED_RECORDS_MAX:
            self._found.clear()
        self._found[key] = value
        return value


class Tables:
    """The tables of the checkpoint whose head is `head`; a `Base` for states."""

    def __init__(self, device: BlockDevice, geometry: Geometry, segments: int, head: Head) -> None:
        self.head = head
        self._device = device
        self._geometry = geometry
        self._segments = segments
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._entries = _Cache[tuple[int, int], tuple[str, int]]()
        self._ids = _Cache[int, int]()
        self._ranges = _Cache[int, tuple[int, int]]()
        self._nodes = _Cache[int, Node]()
        self._files = _Cache[int, Any]()
        self._extents = _Cache[int, Extent]()
        self._nodes_at, self._entries_at, self._extents_at, self._heap_at = head.starts

    def __repr__(self) -> str:
        return f"<Tables {self.head.counts.nodes} nodes>"

    # Bytes ---------------------------------------------------------------------------------------

    def place(self, offset: int) -> int:
        """Where in the image the byte `offset` of the checkpoint is."""
        run, inside = divmod(offset, self._geometry.segment_bytes)
        return self._geometry.start(self.head.runs[run]) + inside

    def _page(self, number: int) -> bytes:
        with self._lock:
            page = self._pages.get(number)
            if page is not None:
                self._pages.move_to_end(number)
                return page
        offset = number * PAGE_BYTES
        # A page never crosses from one segment to the next: their lengths are its multiples.
        buffer = bytearray(PAGE_BYTES)
        read_at_hand(self._device, self.place(offset), memoryview(buffer))
        page = bytes(buffer)
        self._check(offset, page)
        with self._lock:
            self._pages[number] = page
            if len(self._pages) > CACHED_PAGES_MAX:
                self._pages.popitem(last=False)
        return page

    def _check(self, offset: int, page: bytes) -> None:
        """Raises `Corrupt` for a record in the page whose seal does not fit."""
        counts = self.head.counts
        for start, count, record in (
            (self._nodes_at, counts.nodes, WF1_NODE),
            (self._entries_at, counts.entries, WF1_ENTRY),
            (self._extents_at, counts.extents, WF1_EXTENT),
        ):
            if start <= offset < start + count * record.size:
                used = min(PAGE_BYTES, start + count * record.size - offset)
                bad = record.unsealed(page[:used])
                if len(bad):
                    at = self.place(offset) + int(bad[0]) * record.size
                    raise Corrupt(f"{record.name} at offset {at} has a wrong checksum")

    def _record(self, record: Record, start: int, number: int) -> Any:
        page, inside = divmod(start + number * record.size, PAGE_BYTES)
        return record.view(self._page(page), inside)

    def _heap(self, at: int, length: int, where: str) -> bytes:
        if at + length > self.head.counts.heap:
            raise Corrupt(f"{where} has a text that is not there")
        first, skip = divmod(self._heap_at + at, PAGE_BYTES)
        last = (self._heap_at + at + length - 1) // PAGE_BYTES
        pages = [self._page(number) for number in range(first, last + 1)]
        return b"".join(pages)[skip : skip + length]

    # Nodes ---------------------------------------------------------------------------------------

    def _find(self, number: int) -> int | None:
        """The row of a node.  Ids are given one after the other, so that a guess is seldom far."""
        if number >= self.head.next_node:
            return None
        low, high = 0, self.head.counts.nodes - 1
        low_id, high_id = self._id(low), self._id(high)
        tries = 0
        while low_id <= number <= high_id:
            guess = (low + high) // 2
            if tries < _GUESSES_MAX:
                guess = low + (number - low_id) * (high - low) // max(1, high_id - low_id)
            tries += 1
            found = self._id(guess)
            if found == number:
                return guess
            if found < number:
                low = guess + 1
                low_id = self._id(low) if low <= high else number + 1
            else:
                high = guess - 1
                high_id = self._id(high) if low <= high else number - 1
        return None

    def _id(self, row: int) -> int:
        number = self._ids.get(row)
        if number is None:
            number = self._ids.keep(row, int(self._record(WF1_NODE, self._nodes_at, row).id))
        return number

    def _node_record(self, number: int) -> Any | None:
        row = self._find(number)
        return None if row is None else self._record(WF1_NODE, self._nodes_at, row)

    def node(self, number: int) -> Node | None:
        node = self._nodes.get(number)
        if node is None:
            record = self._node_record(number)
            node = None if record is None else self._nodes.keep(number, self.decode_node(record))
        return node

    def decode_node(self, record: Any) -> Node:
        """The node of a record.  Raises `Corrupt`."""
        at, length = text_place(record)
        where = f"node {record.id}"
        return node_of(record, self._heap(at, length, where) if length else b"", where)

    # Names ---------------------------------------------------------------------------------------

    def entry(self, row: int, directory: int) -> tuple[str, int]:
        """The name and node of an entry, which has to be one of `directory`.  Raises `Corrupt`."""
        found = self._entries.get((directory, row))
        return found or self._entries.keep((directory, row), self._decode_entry(row, directory))

    def _decode_entry(self, row: int, directory: int) -> tuple[str, int]:
        record = self._record(WF1_ENTRY, self._entries_at, row)
        where = f"entry {row} of the checkpoint"
        if record.directory != directory or record.node < wf1.ROOT:
            raise Corrupt(f"{where} is of another directory")
        raw = self._heap(record.nameAt, record.nameBytes, where)
        return decoded_name(raw, record.nameSum, where), int(record.node)

    def _range(self, directory: int) -> tuple[int, int]:
        found = self._ranges.get(directory)
        return found or self._ranges.keep(directory, self._find_range(directory))

    def _find_range(self, directory: int) -> tuple[int, int]:
        record = self._node_record(directory)
        if record is None or record.kind != wf1.DIRECTORY:
            return 0, 0
        end = record.first + record.count
        if end > self.head.counts.entries:
            raise Corrupt(f"node {directory} has entries behind the end of their table")
        return record.first, end

    def _bisect(self, directory: int, low: int, high: int, name: str) -> int:
        """The first row whose name is not less than `name`."""
        while low < high:
            middle = (low + high) // 2
            if self.entry(middle, directory)[0] < name:
                low = middle + 1
            else:
                high = middle
        return low

    def child(self, directory: int, name: str) -> int:
        low, high = self._range(directory)
        row = self._bisect(directory, low, high, name)
        if row < high:
            found, node = self.entry(row, directory)
            if found == name:
                return node
        return GONE

    def names(self, directory: int, after: str, limit: int) -> Sequence[tuple[str, int]]:
        low, high = self._range(directory)
        if after:
            low = self._bisect(directory, low, high, after)
            if low < high and self.entry(low, directory)[0] == after:
                low += 1
        return [self.entry(row, directory) for row in range(low, min(high, low + limit))]

    # Extents -------------------------------------------------------------------------------------

    def content(self, number: int) -> Sequence[Extent]:
        record = self._node_record(number)
        if record is None or record.kind != wf1.FILE:
            return ()
        return self.extents_of(record)

    def extents_between(self, number: int, start: int, end: int) -> Sequence[Extent]:
        record = self._files.get(number) or self._node_record(number)
        if record is None or record.kind != wf1.FILE:
            return ()
        self._files.keep(number, record)
        low, high = self._extent_rows(record)
        while low < high:
            middle = (low + high) // 2
            if self._extent(middle).end <= start:
                low = middle + 1
            else:
                high = middle
        found: list[Extent] = []
        for row in range(low, self._extent_rows(record)[1]):
            extent = self._extent(row)
            if extent.offset >= end:
                break
            found.append(extent)
        return check_extents(found, record.size, f"node {number}")

    def _extent_rows(self, record: Any) -> tuple[int, int]:
        """The rows of a file's extents.  Raises `Corrupt`."""
        end = record.first + record.count
        if end > self.head.counts.extents:
            raise Corrupt(f"node {record.id} has extents behind the end of their table")
        return record.first, end

    def _extent(self, row: int) -> Extent:
        extent = self._extents.get(row)
        if extent is None:
            record = self._record(WF1_EXTENT, self._extents_at, row)
            extent = self._extents.keep(row, self._decode_extent(record, row))
        return extent

    def _decode_extent(self, record: Any, row: int) -> Extent:
        where = self.place(self._extents_at + row * WF1_EXTENT.size)
        return extent_of(record, where, self._geometry, self._segments)

    def extents_of(self, record: Any) -> Sequence[Extent]:
        """The extents of a file's record.  Raises `Corrupt`."""
        low, high = self._extent_rows(record)
        if high - low <= _FEW:
            found = [self._extent(row) for row in range(low, high)]
        else:
            at = self._extents_at + low * WF1_EXTENT.size
            raw = self._bytes(at, (high - low) * WF1_EXTENT.size)
            rows = WF1_EXTENT.unpack_all(raw, WF1_EXTENT.name, self.place(at))
            found = [self._decode_extent(row, low + n) for n, row in enumerate(rows)]
        return check_extents(found, record.size, f"node {record.id}")

    def records(self) -> Any:
        """The records of all nodes, ascending."""
        for row in range(self.head.counts.nodes):
            yield self._record(WF1_NODE, self._nodes_at, row)

    # Rows, many at a time, for whoever copies tables ---------------------------------------------

    def row_behind(self, number: int) -> int:
        """The first row whose node's id is not less than `number`."""
        low, high = 0, self.head.counts.nodes
        while low < high:
            middle = (low + high) // 2
            if self._id(middle) < number:
                low = middle + 1
            else:
                high = middle
        return low

    def rows(self, record: Record, first: int, count: int) -> bytes:
        """So many records of a table, whose seals were checked.  Raises `Corrupt`."""
        counts = self.head.counts
        start, total = {
            WF1_NODE: (self._nodes_at, counts.nodes),
            WF1_ENTRY: (self._entries_at, counts.entries),
            WF1_EXTENT: (self._extents_at, counts.extents),
        }[record]
        if first + count > total:
            raise Corrupt(f"the checkpoint has no {count} records of {record.name} at {first}")
        at = start + first * record.size
        raw = self._bytes(at, count * record.size)
        bad = record.unsealed(raw)
        if len(bad):
            where = self.place(at + int(bad[0]) * record.size)
            raise Corrupt(f"{record.name} at offset {where} has a wrong checksum")
        return raw

    def heap_bytes(self, at: int, length: int) -> bytes:
        """A part of the heap, unchecked.  Raises `Corrupt`."""
        if at + length > self.head.counts.heap:
            raise Corrupt("the checkpoint has texts that are not there")
        return self._bytes(self._heap_at + at, length)

    def _bytes(self, offset: int, length: int) -> bytes:
        if WITHOUT_WAITING.entered:
            raise WouldWait
        size, pieces = self._geometry.segment_bytes, []
        while length:
            piece = min(length, size - offset % size)
            pieces.append(self._device.read(self.place(offset), piece))
            offset += piece
            length -= piece
        return b"".join(pieces)


assert PAGE_BYTES % BLOCK_BYTES == 0  # noqa: S101
