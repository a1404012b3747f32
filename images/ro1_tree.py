"""CAPOSRO1 as a tree: lookups straight from the mapped tables, without a step that loads them.

Invariants:

* Opening reads the superblocks and nothing else, whatever the image holds.
* No record is believed before its seal was checked, no name before its checksum was, no number
  before it was compared with what it counts.  A directory's number is less than that of every
  directory in it, so no walk down a forged image goes round.
* Bytes of a file are given out only when their checksums fit.  An image with external data (an
  archive's index) has none of its own: its extents lie in `data`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from capstore.images import ro1
from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice
from capstore.images.nodetable import prefix_of
from capstore.images.records import BLOCK_BYTES, RO1_ENTRY, RO1_EXTENT, RO1_NODE, blocks_of
from capstore.images.ro1 import CHUNK_BYTES, SUM_BYTES, Span
from capstore.images.ro1_names import NameSums
from capstore.images.tree import (
    SIZE_MAX,
    Content,
    ExtentContent,
    Extents,
    Finding,
    ImageTree,
    Region,
)
from capstore.schema.errors import (
    Closed,
    Corrupt,
    InvalidName,
    IsDirectory,
    NotDirectory,
    NotFound,
    Unsupported,
)
from capstore.schema.limits import PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, SYMLINK_TARGET_BYTES_MAX
from capstore.schema.names import check_name
from capstore.schema.nodes import Entry, NodeKind, Page, Provenance, Stat, Usage

# Makes the content of a file whose archive has a checksum of the whole:
# (device, size, offset in the device, checksum).
Summed = Callable[[BlockDevice, int, int, int], Content]

_FILE: Final = ro1.KIND_CODES[NodeKind.FILE]
_DIRECTORY: Final = ro1.KIND_CODES[NodeKind.DIRECTORY]
_SYMLINK: Final = ro1.KIND_CODES[NodeKind.SYMLINK]
# What a search looks at.
_PROBE: Final = RO1_ENTRY.packer("nameAt", "nameBytes", "prefix")
# A read-only image never changes.
_VERSION: Final = 1
# To check the seals of more takes long enough to keep others waiting.
_EXTENTS_AT_ONCE_MAX: Final = 1024


class Ro1Tree(ImageTree):
    """An open image.

    `view` shows all of `device`; `data` is where an image with external data has its content, and
    `summed` makes the content of files with a checksum of their own there.
    """

    root = 0

    def __init__(
        self,
        device: BlockDevice,
        view: memoryview,
        *,
        data: BlockDevice | None = None,
        summed: Summed | None = None,
    ) -> None:
        """Raises `Corrupt` without a valid superblock, `Unsupported` for one of a newer version
        and for external data where `data` is not given."""
        self.superblock = ro1.read_superblock(device)
        external = bool(self.superblock.features & ro1.EXTERNAL_DATA)
        if external != (data is not None):
            raise Unsupported("this is the index of an archive, no image by itself")
        self._device = device
        self._view: memoryview | None = view
        self._data = data
        self._summed = summed
        self._nodes_at = self.superblock.nodes.start
        self._entries_at = self.superblock.entries.start
        self._node_count = self.superblock.nodes.count
        self._name_sums = NameSums()

    def __repr__(self) -> str:
        return f"<Ro1Tree {self._node_count} nodes>"

    # Records -------------------------------------------------------------------------------------

    @property
    def view(self) -> memoryview:
        """The mapped image; raises `Closed`."""
        if self._view is None:
            raise Closed("the image was closed")
        return self._view

    def node(self, number: int) -> Any:
        """The record of a node.  Raises `NotFound`, `Corrupt`."""
        if not 0 <= number < self._node_count:
            raise NotFound("there is no such node")
        at = self._nodes_at + number * RO1_NODE.size
        record = RO1_NODE.unpack(self.view[at : at + RO1_NODE.size], f"node {number}", at)
        return _checked_node(record, number, at)

    def entry(self, number: int, directory: int) -> Any:
        """The record of an entry, which has to be one of `directory`.  Raises `Corrupt`."""
        at = self._entries_at + number * RO1_ENTRY.size
        record = RO1_ENTRY.unpack(self.view[at : at + RO1_ENTRY.size], f"entry {number}", at)
        if record.directory != directory:
            raise Corrupt(f"entry {number} at offset {at} is of another directory")
        return record

    def raw_name(self, record: Any) -> bytes:
        """The bytes of an entry's name.  Raises `Corrupt`."""
        raw = self._text(record.nameAt, record.nameBytes, record.nameSum, "the name")
        if prefix_of(raw) != record.prefix:
            at = self.superblock.heap.start + record.nameAt
            raise Corrupt(f"the name at offset {at} is not what its entry says")
        return raw

    def text_of(self, record: Any) -> str:
        """The target of a symbolic link, or what is wrong with a damaged file.

        Raises `Corrupt`, also for a text that no target can be.
        """
        if not 0 < record.count <= SYMLINK_TARGET_BYTES_MAX:
            raise Corrupt(f"a text of {record.count} bytes is none")
        raw = self._text(record.first, record.count, record.check, "the text")
        at = self.superblock.heap.start + record.first
        if b"\0" in raw:
            raise Corrupt(f"the text at offset {at} has a NUL")
        return _decoded(raw, "the text", at)

    def _text(self, at: int, length: int, checksum: int, what: str) -> bytes:
        heap = self.superblock.heap
        if at + length > heap.length:
            raise Corrupt(f"{what} at offset {heap.start + at} is cut off")
        raw = self.view[heap.start + at : heap.start + at + length].tobytes()
        if crc32c(raw) != checksum:
            raise Corrupt(f"{what} at offset {heap.start + at} has a wrong checksum")
        return raw

    def range_of(self, directory: int) -> tuple[int, int]:
        """The numbers of a directory's entries, first and last plus one."""
        record = self.node(directory)
        if record.kind != _DIRECTORY:
            raise NotDirectory("no directory")
        end = record.first + record.count
        if end > self.superblock.entries.count:
            raise Corrupt(f"node {directory} has entries behind the end of their table")
        return record.first, end

    # Looking -------------------------------------------------------------------------------------

    def stat(self, node: int) -> Stat:
        return _stat_of(self.node(node), node)

    def lookup(self, directory: int, name: str) -> Entry:
        raw = check_name(name).encode()
        _ = self.view
        if self._name_sums.exclude(directory, raw):
            raise NotFound("no entry of this name")
        low, high = self.range_of(directory)
        number = self._guess(directory, low, high, raw)
        if not self._is_place(number, directory, low, high, raw):
            # What is not found where it should be is looked for again, with every seal on the way.
            number = self._bisect(directory, low, high, raw)
        if number < high:
            record = self.entry(number, directory)
            if self.raw_name(record) == raw:
                return self._entry_of(name, record, directory, number)
        self._name_sums.missed(directory, high - low, lambda: self._entry_records(low, high))
        raise NotFound("no entry of this name")

    def _is_place(self, number: int, directory: int, low: int, high: int, raw: bytes) -> bool:
        """Whether `raw` is the name of entry `number`, or would stand in front of it."""
        if number < high:
            name = self.raw_name(self.entry(number, directory))
            if name <= raw:
                return name == raw
        return number == low or self.raw_name(self.entry(number - 1, directory)) < raw

    def _entry_records(self, low: int, high: int) -> memoryview:
        """The records of entries, as they are stored."""
        at = self._entries_at
        return self.view[at + low * RO1_ENTRY.size : at + high * RO1_ENTRY.size]

    def _guess(self, directory: int, low: int, high: int, raw: bytes) -> int:
        """As `_bisect`, but believing what it reads: a wrong answer shows in what it leads to."""
        prefix, view, heap = prefix_of(raw), self.view, self.superblock.heap
        while low < high:
            middle = (low + high) // 2
            at = self._entries_at + middle * RO1_ENTRY.size
            name_at, length, found = _PROBE.unpack_from(view, at)
            if found == prefix:
                start = heap.start + min(name_at, heap.length)
                before = view[start : start + length].tobytes() < raw
            else:
                before = found < prefix
            if before:
                low = middle + 1
            else:
                high = middle
        return low

    def _bisect(
        self, directory: int, low: int, high: int, raw: bytes, *, after: bool = False
    ) -> int:
        """The first entry whose name is not less than `raw`, or (`after`) greater."""
        prefix = prefix_of(raw)
        while low < high:
            middle = (low + high) // 2
            record = self.entry(middle, directory)
            if record.prefix != prefix:
                before = record.prefix < prefix
            else:
                name = self.raw_name(record)
                before = name < raw or (after and name == raw)
            if before:
                low = middle + 1
            else:
                high = middle
        return low

    def _entry_of(self, name: str, record: Any, directory: int, number: int) -> Entry:
        node = self._child(record.node, directory, number)
        target = self.text_of(node) if node.kind == _SYMLINK else None
        return Entry(name, _stat_of(node, record.node), target)

    def _child(self, number: int, directory: int, entry: int) -> Any:
        """The node `number`, which `entry` of `directory` names."""
        if number >= self._node_count:
            raise Corrupt(f"an entry of node {directory} is of node {number}, which is not there")
        node = self.node(number)
        if node.kind == _DIRECTORY and number <= directory:
            raise Corrupt(f"node {number} is a directory inside of itself")
        if node.kind == _DIRECTORY and (node.parent, node.check) != (directory, entry):
            # Two names for one directory would make a walk exponential.
            raise Corrupt(f"node {number} is a directory that has another name")
        return node

    def list(self, directory: int, after: str, limit: int) -> Page:
        low, end = self.range_of(directory)
        if after:
            low = self._bisect(directory, low, end, _encoded(after), after=True)
        high = min(end, low + max(1, min(limit, PAGE_ENTRIES_MAX)))
        entries = self._entries(directory, low, high)
        return Page(entries, more=low + len(entries) < end)

    def _entries(self, directory: int, low: int, high: int) -> Sequence[Entry]:
        """Entries `low` to `high`, fewer where their texts would fill more than a page."""
        entries: list[Entry] = []
        room, last = PAGE_BYTES_MAX, b""
        for number in range(low, high):
            raw, entry = self.named_entry(number, directory)
            if entries and raw <= last:
                raise Corrupt(f"entry {number} of node {directory} is out of order")
            room -= len(raw) + len((entry.target or "").encode())
            if room < 0 and entries:
                break
            entries.append(entry)
            last = raw
        return entries

    def named_entry(self, number: int, directory: int) -> tuple[bytes, Entry]:
        """The entry of this number, which has to be one of `directory`, and the bytes of its name.

        Raises `Corrupt`.
        """
        record = self.entry(number, directory)
        raw = self.raw_name(record)
        return raw, self._entry_of(_checked_name(raw, number), record, directory, number)

    # Content -------------------------------------------------------------------------------------

    def content(self, node: int) -> Content:
        record = self.node(node)
        if record.kind == _DIRECTORY:
            raise IsDirectory("a directory")
        if record.kind != _FILE:
            raise Unsupported("only a file can be opened")
        if record.flags & ro1.DAMAGED:
            raise Corrupt(self.text_of(record))
        extents, sums = self.extents_of(record, node)
        if self._data is None:
            return SummedExtents(self._device, record.size, extents, sums, self._sum)
        if record.flags & ro1.SUMMED and self._summed is not None:
            # Without an extent the file is empty, or its archive has none of its bytes.
            at = int(extents[0, 2]) if len(extents) else 0
            return self._summed(self._data, record.size, at, record.check)
        return ExtentContent(self._data, record.size, extents)

    def content_waits(self, node: int) -> bool:
        record = self.node(node)
        return bool(record.kind == _FILE and record.count > _EXTENTS_AT_ONCE_MAX)

    def extents_of(self, record: Any, node: int) -> tuple[Extents, np.ndarray[Any, Any]]:
        """A file's extents, and the numbers of their first checksums."""
        table = self.superblock.extents
        if record.first + record.count > table.count:
            raise Corrupt(f"node {node} has extents behind the end of their table")
        at = table.start + record.first * RO1_EXTENT.size
        raw = self.view[at : at + record.count * RO1_EXTENT.size]
        bad = RO1_EXTENT.unsealed(raw)
        if len(bad):
            where = at + int(bad[0]) * RO1_EXTENT.size
            raise Corrupt(f"an extent of node {node} at offset {where} has a wrong checksum")
        rows = RO1_EXTENT.table(raw)
        # Forged numbers of 64 bits turn negative here, which `ExtentContent` refuses.
        columns = [rows[name].astype(np.int64) for name in ("fileOffset", "length", "source")]
        return np.stack(columns, axis=1), rows["firstSum"].astype(np.int64)

    def _sum(self, number: int) -> int:
        sums = self.superblock.sums
        if number >= sums.count:
            raise Corrupt(f"checksum {number} is not there")
        at = sums.start + number * SUM_BYTES
        return int.from_bytes(self.view[at : at + SUM_BYTES], "little")

    def mark(self, node: int) -> bytes:
        self.node(node)
        return self.superblock.image_id.to_bytes(16, "big")

    # The image as a whole ------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """The label of the image.  Raises `Corrupt`."""
        raw = self._text(0, self.superblock.label_bytes, self.superblock.label_sum, "the label")
        return _decoded(raw, "the label", self.superblock.heap.start)

    def usage(self) -> Usage:
        size = self.superblock.source_bytes or self.superblock.image_bytes
        return Usage(
            total_bytes=size,
            used_bytes=size,
            total_nodes=self._node_count,
            used_nodes=self._node_count,
            label=self.label,
        )

    def spans(self) -> Sequence[Span]:
        """The superblocks and tables, in the order of their places."""
        blocks = [
            Span(f"superblock {slot}", lba * BLOCK_BYTES, BLOCK_BYTES, 1)
            for slot, lba in enumerate(ro1.SUPERBLOCK_LBAS)
        ]
        found = [*blocks, *(span for span in self.superblock.spans if span.length)]
        return sorted(found, key=lambda span: span.start)

    def regions(self) -> Iterator[Region]:
        kinds = {"data": "data", "superblock 0": "superblock", "superblock 1": "superblock"}
        for span in self.spans():
            # What is left of a table's last block is nothing else's.
            length = blocks_of(span.length) * BLOCK_BYTES
            yield Region(span.start, length, kinds.get(span.name, "table"), span.name)
        end = self.superblock.image_bytes
        if end < self._device.size():
            yield Region(end, self._device.size() - end, "unused", "behind the image")

    def verify(self) -> Iterator[Finding]:
        from capstore.images.ro1_verify import verify

        return verify(self, self._device)

    def describe(self) -> dict[str, Any]:
        superblock = self.superblock
        return {
            "format": "CAPOSRO1",
            "version": ro1.VERSION,
            "features": superblock.features,
            "generation": superblock.generation,
            "imageId": f"{superblock.image_id:032x}",
            "label": self.label,
            "built": superblock.built or None,
            "imageBytes": superblock.image_bytes,
            "tables": {
                span.name: {"offset": span.start, "bytes": span.length}
                | ({"records": span.count} if span is not superblock.data else {})
                for span in superblock.spans
            },
        }

    def close(self) -> None:
        self._view = None
        self._device.close()
        if self._data is not None:
            self._data.close()


class SummedExtents(ExtentContent):
    """Extents whose bytes have a checksum for each `CHUNK_BYTES`; reads what it needs to check."""

    def __init__(
        self,
        device: BlockDevice,
        size: int,
        extents: Extents,
        first_sums: np.ndarray[Any, Any],
        sum_of: Callable[[int], int],
    ) -> None:
        super().__init__(device, size, extents)
        self._first_sums = first_sums
        self._sum_of = sum_of
        # The chunk that was read last, and its number: reads come one after another.
        self._last: tuple[int, bytes] = (-1, b"")
        self._lock = threading.Lock()

    def read_into(self, offset: int, view: memoryview) -> int:
        got = self._read(offset, view, self._wait)
        assert got is not None  # noqa: S101 - waiting brings every chunk
        return got

    def read_now(self, offset: int, view: memoryview) -> int | None:
        return self._read(offset, view, self._at_once)

    def _wait(self, at: int, length: int) -> bytes | None:
        return self._device.read(at, length)

    def _at_once(self, at: int, length: int) -> bytes | None:
        buffer = bytearray(length)
        return bytes(buffer) if self._device.read_now(at, memoryview(buffer)) else None

    def _read(
        self, offset: int, view: memoryview, fetch: Callable[[int, int], bytes | None]
    ) -> int | None:
        got = self._clip(offset, view)
        for at, source, length in self._pieces(offset, got):
            if source < 0:
                view[at : at + length] = bytes(length)
            elif not self._fill(view[at : at + length], source, offset + at, fetch):
                return None
        return got

    def _fill(
        self,
        view: memoryview,
        source: int,
        file_offset: int,
        fetch: Callable[[int, int], bytes | None],
    ) -> bool:
        """Fills `view` with what lies at `source` in one extent."""
        row = int(np.searchsorted(self._ends, file_offset, side="right"))
        start = int(self._extents[row, 2])
        inside, done = source - start, 0
        while done < len(view):
            number, skip = divmod(inside + done, CHUNK_BYTES)
            chunk = self._chunk(row, number, fetch)
            if chunk is None:
                return False
            piece = memoryview(chunk)[skip : skip + len(view) - done]
            view[done : done + len(piece)] = piece
            done += len(piece)
        return True

    def _chunk(
        self, row: int, number: int, fetch: Callable[[int, int], bytes | None]
    ) -> bytes | None:
        """The chunk `number` of extent `row`, checked; None if it is not there at once."""
        sum_number = int(self._first_sums[row]) + number
        with self._lock:
            last, data = self._last
        if last == sum_number:
            return data
        at = int(self._extents[row, 2]) + number * CHUNK_BYTES
        length = min(CHUNK_BYTES, int(self._extents[row, 1]) - number * CHUNK_BYTES)
        chunk = fetch(at, length)
        if chunk is None:
            return None
        if crc32c(chunk) != self._sum_of(sum_number):
            raise Corrupt(f"data at offset {at} has a wrong checksum")
        with self._lock:
            self._last = (sum_number, chunk)
        return chunk


def _checked_node(record: Any, number: int, at: int) -> Any:
    if record.kind not in ro1.KINDS or record.provenance not in ro1.PROVENANCES:
        raise Corrupt(f"node {number} at offset {at} is of no known kind")
    if (
        (not number and record.kind != _DIRECTORY)
        or not record.links
        or record.size > SIZE_MAX
        or (record.kind == _SYMLINK and record.size != record.count)
    ):
        raise Corrupt(f"node {number} at offset {at} contradicts itself")
    return record


def _stat_of(record: Any, number: int) -> Stat:
    recorded = ro1.PROVENANCES[record.provenance]
    return Stat(
        kind=ro1.KINDS[record.kind],
        size=0 if record.kind == _DIRECTORY else record.size,
        node_id=number,
        version=_VERSION,
        created=0 if recorded is Provenance.UNKNOWN else record.created,
        modified=0 if recorded is Provenance.UNKNOWN else record.modified,
        provenance=recorded,
        executable=bool(record.flags & ro1.EXECUTABLE),
        link_count=record.links,
    )


def _checked_name(raw: bytes, number: int) -> str:
    try:
        return check_name(raw.decode())
    except (UnicodeDecodeError, InvalidName):
        raise Corrupt(f"entry {number} has no valid name") from None


def _decoded(raw: bytes, what: str, at: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Corrupt(f"{what} at offset {at} is no UTF-8") from None


def _encoded(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise InvalidName("a name is valid UTF-8") from None
