"""Writing the shadow of a CAPOSST1 generation: the next table, in bounded steps.

Invariants:

* What it is made of does not change meanwhile: the table before, and changes that are frozen.
* Values are copied only out of the segments that are to become free (victims), and checked; one
  that is damaged is not moved, and its segment stays (`kept`).
* Nothing points to what is written here before the superblock does, which is written when all of
  it is durable.  What began has room until it ends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from capstore.images import st1
from capstore.images.checksums import crc32c
from capstore.images.records import BLOCK_BYTES, ST1_ENTRY, ST1_PART
from capstore.images.segments import DATA, TABLE
from capstore.images.st1_entry import Part, seal_part
from capstore.images.st1_index import IndexBuilder
from capstore.images.st1_state import View
from capstore.images.st1_table import Counts, Head, Table, pack_head, plan
from capstore.images.st1_writer import Writer
from capstore.schema.errors import Corrupt, NoSpace
from capstore.schema.limits import KIB

# A step handles about so many entries, or moves so many values or bytes.
STEP_ENTRIES: Final = 1024
STEP_MOVES: Final = 256
STEP_BYTES: Final = 512 * KIB
# Values with no more than this between them are read at once.
_GAP_BYTES_MAX: Final = 4 * KIB
_BUFFER_BYTES: Final = 256 * KIB
_pack_entry = ST1_ENTRY.packer(
    "version",
    "created",
    "place",
    "size",
    "sum",
    "partCount",
    "keySum",
    "keyBytes",
    "flags",
    "provenance",
)
_Records = npt.NDArray[np.void]


class ShadowWriter:
    """Writes the table of what `view` has frozen over the table before.

    `counts` is what that holds, `sequence` the last frame in it, `version` the last that was
    given.  Raises `NoSpace`, with nothing changed.
    """

    def __init__(
        self,
        writer: Writer,
        view: View,
        counts: Counts,
        *,
        sequence: int,
        version: int,
        victims: Collection[int],
    ) -> None:
        space = writer.space
        self._device = writer.device
        self._geometry = space.geometry
        self._view = view
        self._counts = counts
        self._sequence, self._version = sequence, version
        self._place_of = writer.place_of
        self._usage = space.count
        runs, self._pages, self.sections = plan(self._geometry, counts, self._usage)
        self.runs: list[int] = []
        try:
            while len(self.runs) < runs:
                self.runs.append(writer.allocate(TABLE))
        except NoSpace:
            space.release(self.runs)
            raise
        self._mover = _Mover(writer)
        self._victims = np.zeros(space.count, dtype=bool)
        self._victims[list(victims)] = True
        # Victims that something could not be moved out of.
        self.kept: set[int] = set()
        # What is live in each segment, of what the new table leads to.
        self.live: npt.NDArray[np.int64] = np.zeros(space.count, dtype=np.int64)
        self._index = IndexBuilder(counts.entries)
        self._file = _TableFile(self, st1.page_bytes_of(self._geometry.segment_bytes), self._pages)
        self._rows = self._parts = self._heap = 0
        self.head: Head | None = None
        self.head_sum = 0

    @property
    def segments(self) -> list[int]:
        """All segments that were taken."""
        return [*self.runs, *self._mover.segments]

    @property
    def moved_into(self) -> list[int]:
        """The segments that values were moved into."""
        return self._mover.segments

    # Steps ---------------------------------------------------------------------------------------

    def steps(self) -> Iterator[None]:
        """Writes everything; each item is one step.  Raises `Corrupt` if the table before is
        damaged, and what the device raises."""
        sections, file = self.sections, self._file
        streams = [_Stream(file, at) for at in sections[:4]]
        for chunk in self._chunks():
            yield from self._add(chunk, streams)
            yield
        wanted = (sections.parts, sections.heap, sections.heap + self._counts.heap)
        if tuple(stream.at for stream in streams[:3]) != wanted:
            raise Corrupt("the store does not hold what it counted: nothing was compacted")
        for number in range(self._index.partitions):
            streams[3].write(self._index.partition(number))
            yield
        for stream in streams:
            stream.finish()
        self._mover.finish()
        file.finish(sections.entries, sections.end)
        self._write_head()

    def _write_head(self) -> None:
        usage = self.live[: self._usage].tolist()
        beyond = self.live[self._usage :]
        if beyond.any():
            raise Corrupt("values were moved to where the table cannot tell of")
        self.head = Head(
            sequence=self._sequence,
            version=self._version,
            counts=self._counts,
            slots=self._index.slots,
            runs=self.runs,
            usage=usage,
            sums=[self._file.sums[page] for page in range(self._pages)],
            page_bytes=self._file.page_bytes,
            sections=self.sections,
        )
        front, self.head_sum = pack_head(self.head)
        self.write(0, front)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes at an offset of the table."""
        size = self._geometry.segment_bytes
        view = memoryview(data)
        while view:
            run, inside = divmod(offset, size)
            piece = view[: size - inside]
            self._device.write(self._geometry.start(self.runs[run]) + inside, piece)
            view = view[len(piece) :]
            offset += len(piece)

    # Merging -------------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[_Chunk]:
        """All entries in the order of their keys, some at a time."""
        chunk = _Chunk()
        for piece in self._pieces():
            chunk.add(*piece)
            if len(chunk.rows) >= STEP_ENTRIES * ST1_ENTRY.size:
                yield chunk
                chunk = _Chunk()
        if chunk.rows:
            yield chunk

    def _pieces(self) -> Iterator[tuple[bytes, bytes, Sequence[Sequence[Part]]]]:
        """Rows, their keys, and the parts of those that have any."""
        table, changes = self._view.table, iter(self._view.frozen_order)
        change = next(changes, b"")
        for first in range(0, table.entries, STEP_ENTRIES):
            some = _Rows(table, first)
            row = 0
            while change and change <= some.keys[-1]:
                at = bisect_left(some.keys, change, row)
                if at > row:
                    yield some.between(row, at)
                row = at + (some.keys[at] == change)
                yield from self._new(change)
                change = next(changes, b"")
            if row < len(some.keys):
                yield some.between(row, len(some.keys))
        while change:
            yield from self._new(change)
            change = next(changes, b"")

    def _new(self, key: bytes) -> Iterator[tuple[bytes, bytes, Sequence[Sequence[Part]]]]:
        """The row of a change."""
        entry = self._view.frozen[key]
        if entry is None:
            return
        row = _pack_entry.pack(
            entry.version,
            entry.created,
            0 if entry.parts else self._place_of(entry),
            entry.size,
            entry.sum,
            len(entry.parts),
            crc32c(key),
            len(key),
            entry.flags,
            entry.provenance,
        )
        yield row, key, [entry.parts] if entry.parts else []

    def _add(self, chunk: _Chunk, streams: Sequence[_Stream]) -> Iterator[None]:
        """Adds the entries of a chunk, with what has to be moved for them."""
        rows = np.frombuffer(chunk.rows, ST1_ENTRY.dtype)
        lengths = rows["keyBytes"].astype(np.int64)
        heap = b"".join(chunk.keys)
        if len(heap) != int(lengths.sum()):
            raise Corrupt("the table has keys of other lengths than it says")
        rows["keyAt"] = self._heap + np.cumsum(lengths) - lengths
        rows["replacedParts"] = 0
        is_long = rows["partCount"] > 0
        yield from self._move_short(rows, ~is_long)
        parts = bytearray()
        for row, old in zip(np.flatnonzero(is_long).tolist(), chunk.parts, strict=True):
            rows["place"][row] = self._parts + len(parts) // ST1_PART.size
            for part in old:
                place = part.place
                if self._is_victim(place):
                    place = self._moved(place, part.length, part.sum)
                    yield
                self.live[self._geometry.at(place)] += part.length
                parts += seal_part(place, part.offset, part.length, part.sum)
        self._index.add(self._rows, rows["keySum"])
        self._rows += len(rows)
        self._parts += len(parts) // ST1_PART.size
        self._heap += len(heap)
        tables = (ST1_ENTRY.seal(rows), bytes(parts), heap)
        for stream, table in zip(streams, tables, strict=False):
            stream.write(table)

    def _move_short(self, rows: _Records, chosen: npt.NDArray[np.bool_]) -> Iterator[None]:
        """Moves those values out of victims that are in one piece, and counts what is live."""
        geometry = self._geometry
        places = rows["place"].astype(np.int64)
        sizes = rows["size"].astype(np.int64)
        segments = (places - geometry.begin) // geometry.segment_bytes
        chosen = chosen & (sizes > 0)
        inside = (segments >= 0) & (segments < len(self._victims))
        if not inside[chosen].all():
            raise Corrupt("the table has values where none can be")
        waiting = np.flatnonzero(chosen & inside & self._victims[np.where(inside, segments, 0)])
        # In the order of their places: what lies side by side is read at once.
        waiting = waiting[np.argsort(places[waiting], kind="stable")]
        sums = rows["sum"][waiting].tolist()
        moves = moved = 0
        for run in _side_by_side(places[waiting].tolist(), sizes[waiting].tolist()):
            (begin, _), (last, length) = run.values[0], run.values[-1]
            data = self._device.read(begin, last + length - begin)
            for number, (place, size) in enumerate(run.values, run.first):
                value = data[place - begin : place - begin + size]
                places[waiting[number]] = self._put(place, value, sums[number])
            moves, moved = moves + len(run.values), moved + len(data)
            if moves >= STEP_MOVES or moved >= STEP_BYTES:
                moves = moved = 0
                yield
        rows["place"] = places
        # An empty value is nowhere.
        rows["place"][(sizes == 0) & (rows["partCount"] == 0)] = geometry.begin
        segments = (places - geometry.begin) // geometry.segment_bytes
        np.add.at(self.live, segments[chosen], sizes[chosen])

    def _is_victim(self, place: int) -> bool:
        segment = self._geometry.at(place)
        return 0 <= segment < len(self._victims) and bool(self._victims[segment])

    def _moved(self, place: int, length: int, checksum: int) -> int:
        """Where a value is behind this; where it was, if it could not be moved."""
        return self._put(place, self._device.read(place, length), checksum)

    def _put(self, place: int, value: bytes, checksum: int) -> int:
        """As `_moved`, of a value that was read."""
        if crc32c(value) == checksum:
            with suppress(NoSpace):
                return self._mover.put(value, self._usage)
        self.kept.add(self._geometry.at(place))
        return place


class _Run(NamedTuple):
    """Values, each a place and a length, that are read at once; `first` is the number of the first
    among all."""

    first: int
    values: list[tuple[int, int]]


def _side_by_side(places: Sequence[int], sizes: Sequence[int]) -> Iterator[_Run]:
    """Values whose places ascend, in runs with little between them."""
    run = _Run(0, [])
    for number, (place, size) in enumerate(zip(places, sizes, strict=True)):
        if run.values:
            (begin, _), (last, length) = run.values[0], run.values[-1]
            is_far = place - (last + length) > _GAP_BYTES_MAX
            if is_far or place + size - begin > STEP_BYTES or len(run.values) == STEP_MOVES:
                yield run
                run = _Run(number, [])
        run.values.append((place, size))
    if run.values:
        yield run


class _Rows:
    """Rows of the table before, from `first` on."""

    def __init__(self, table: Table, first: int) -> None:
        count = min(STEP_ENTRIES, table.entries - first)
        self._table = table
        self._raw = table.rows(first, count)
        self.keys = table.keys(self._raw, first)
        records = ST1_ENTRY.table(self._raw)
        # Those that have parts: which ones, and of how many.
        self._long = np.flatnonzero(records["partCount"]).tolist()
        chosen = records[self._long]
        self._parts = list(zip(chosen["place"].tolist(), chosen["partCount"].tolist(), strict=True))

    def between(self, begin: int, end: int) -> tuple[bytes, bytes, Sequence[Sequence[Part]]]:
        """Some of them, with their keys and parts."""
        rows = self._raw[begin * ST1_ENTRY.size : end * ST1_ENTRY.size]
        low, high = bisect_left(self._long, begin), bisect_left(self._long, end)
        parts = [self._table.part_rows(first, count) for first, count in self._parts[low:high]]
        return rows, b"".join(self.keys[begin:end]), parts


class _Chunk:
    """Some entries that follow one another."""

    def __init__(self) -> None:
        self.rows = bytearray()
        self.keys: list[bytes] = []
        # Of those entries that have any, in order.
        self.parts: list[Sequence[Part]] = []

    def add(self, rows: bytes, keys: bytes, parts: Sequence[Sequence[Part]]) -> None:
        self.rows += rows
        self.keys.append(keys)
        self.parts += parts


class _Stream:
    """One section, written from front to back."""

    def __init__(self, file: _TableFile, at: int) -> None:
        self._file = file
        self._start = at
        self._buffer = bytearray()

    @property
    def at(self) -> int:
        return self._start + len(self._buffer)

    def write(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= _BUFFER_BYTES:
            # Whole pages; what is left waits for the rest of its page.
            self._hand_on(self.at // self._file.page_bytes * self._file.page_bytes - self._start)

    def finish(self) -> None:
        self._hand_on(len(self._buffer))

    def _hand_on(self, length: int) -> None:
        self._file.put(self._start, bytes(self._buffer[:length]))
        del self._buffer[:length]
        self._start += length


class _TableFile:
    """What streams write, with the sums of its pages; ends of streams share pages."""

    def __init__(self, writer: ShadowWriter, page_bytes: int, pages: int) -> None:
        self._writer = writer
        self.page_bytes = page_bytes
        self.sums: dict[int, int] = dict.fromkeys(range(pages), 0)
        self._shared: dict[int, bytearray] = {}

    def put(self, offset: int, data: bytes) -> None:
        """Puts bytes at an offset of the table."""
        size = self.page_bytes
        begin = min(len(data), -offset % size)
        self._share(offset, data[:begin])
        end = begin + (len(data) - begin) // size * size
        for at in range(begin, end, size):
            self.sums[(offset + at) // size] = crc32c(data[at : at + size])
        self._writer.write(offset + begin, memoryview(data)[begin:end])
        self._share(offset + end, data[end:])

    def _share(self, offset: int, data: bytes) -> None:
        if data:
            page, inside = divmod(offset, self.page_bytes)
            shared = self._shared.setdefault(page, bytearray(self.page_bytes))
            shared[inside : inside + len(data)] = data

    def finish(self, first: int, end: int) -> None:
        """Writes the pages that are shared; the sections are between two offsets."""
        for page, data in self._shared.items():
            start = page * self.page_bytes
            begin = max(0, first - start)
            used = bytes(data[begin : max(begin, end - start)])
            self.sums[page] = crc32c(used)
            self._writer.write(start + begin, used)


class _Mover:
    """Where values are moved to: one behind the other."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._geometry = writer.space.geometry
        self.segments: list[int] = []
        self._at = self._begin = self._end = 0
        self._buffer = bytearray()

    def put(self, value: bytes, segments: int) -> int:
        """Where the value will be, in one of the first `segments`.  Raises `NoSpace`."""
        if self._at + len(value) > self._end:
            self.finish()
            self._take(segments)
        place = self._at
        self._buffer += value
        self._at += len(value)
        if len(self._buffer) >= _BUFFER_BYTES:
            self._write(len(self._buffer) // BLOCK_BYTES * BLOCK_BYTES)
        return place

    def _take(self, segments: int) -> None:
        if not self._writer.space.has_free_below(segments):
            raise NoSpace("there is no room to move values to")
        segment = self._writer.allocate(DATA)
        self.segments.append(segment)
        self._at = self._begin = self._geometry.start(segment)
        self._end = self._at + self._geometry.segment_bytes

    def finish(self) -> None:
        """Writes what waits; nothing more goes behind it."""
        self._write(len(self._buffer))
        self._end = self._at

    def _write(self, length: int) -> None:
        data = bytes(self._buffer[:length])
        self._writer.device.write(
            self._begin, data.ljust(-(-length // BLOCK_BYTES) * BLOCK_BYTES, b"\0")
        )
        del self._buffer[:length]
        self._begin += length
