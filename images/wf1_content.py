"""The content of a file in CAPOSWF1: extents in a persistent map, replaced piece by piece.

Invariants: extents of a file are disjoint and ascending; one is at most `UNIT_BYTES` long, is a
part of one stored unit, and lies in one chunk of the file.  What no extent covers is zeros.  A
`Chunks` never changes: every change gives a new one that shares what it can.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from immutables import Map

from capstore.images.records import BLOCK_BYTES
from capstore.images.wf1 import UNIT_BYTES
from capstore.schema.limits import MIB

# So much of a file is one entry of the map: a change copies no more extents than that holds.
CHUNK_BYTES: Final = 4 * MIB


class Extent(NamedTuple):
    """`length` bytes at `offset` of a file, which are those from `skip` on of the unit of `stored`
    bytes at block `lba`, whose CRC32C is `sum`."""

    offset: int
    length: int
    lba: int
    skip: int
    stored: int
    sum: int

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.offset + self.length

    def part(self, start: int, end: int) -> Extent:
        """The part of it from `start` to `end` of the file."""
        if start == self.offset and end == self.end:
            return self
        return self._replace(offset=start, length=end - start, skip=self.skip + start - self.offset)


Chunks = Map[int, tuple[Extent, ...]]
EMPTY: Final[Chunks] = Map()


def pieces_of(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Cuts `length` bytes at `offset` into ranges (start, length) that extents can have."""
    end = offset + length
    while offset < end:
        stop = min(end, offset + UNIT_BYTES, (offset // CHUNK_BYTES + 1) * CHUNK_BYTES)
        yield offset, stop - offset
        offset = stop


def chunks_of(extents: Iterable[Extent]) -> Chunks:
    """The content that consists of `extents`, which ascend."""
    grouped: dict[int, list[Extent]] = {}
    for extent in extents:
        grouped.setdefault(extent.offset // CHUNK_BYTES, []).append(extent)
    return Map({number: tuple(group) for number, group in grouped.items()})


def all_extents(chunks: Chunks) -> Iterator[Extent]:
    """All of them, ascending."""
    for number in sorted(chunks):
        yield from chunks[number]


def extents_between(chunks: Chunks, start: int, end: int) -> Iterator[Extent]:
    """Those parts of extents that lie between `start` and `end`, ascending."""
    if start >= end:
        return
    for number in range(start // CHUNK_BYTES, (end - 1) // CHUNK_BYTES + 1):
        for extent in chunks.get(number, ()):
            if extent.offset >= end:
                break
            if extent.end > start:
                yield extent.part(max(start, extent.offset), min(end, extent.end))


class Replaced(NamedTuple):
    """A changed content, and what it lost: parts of extents that are no longer referred to."""

    chunks: Chunks
    lost: Sequence[Extent]
    # How many more extents there are than before.
    more: int


def overlaid(chunks: Chunks, new: Sequence[Extent]) -> Replaced:
    """`chunks` with the extents `new`, which ascend, in the place of what they cover."""
    lost: list[Extent] = []
    more = 0
    for extent in new:
        number = extent.offset // CHUNK_BYTES
        before = chunks.get(number, ())
        after = _without(before, extent.offset, extent.end, lost)
        at = next((i for i, e in enumerate(after) if e.offset > extent.offset), len(after))
        after.insert(at, extent)
        more += len(after) - len(before)
        chunks = chunks.set(number, tuple(after))
    return Replaced(chunks, lost, more)


def cut(chunks: Chunks, size: int) -> Replaced:
    """`chunks` without what lies at `size` and behind it."""
    lost: list[Extent] = []
    more = 0
    for number in list(chunks):
        if (number + 1) * CHUNK_BYTES <= size:
            continue
        before = chunks[number]
        after = _without(before, size, (number + 1) * CHUNK_BYTES, lost)
        more += len(after) - len(before)
        chunks = chunks.set(number, tuple(after)) if after else chunks.delete(number)
    return Replaced(chunks, lost, more)


def _without(extents: Sequence[Extent], start: int, end: int, lost: list[Extent]) -> list[Extent]:
    """`extents` without what lies between `start` and `end`, which is added to `lost`."""
    kept: list[Extent] = []
    for extent in extents:
        if extent.end <= start or extent.offset >= end:
            kept.append(extent)
            continue
        lost.append(extent.part(max(start, extent.offset), min(end, extent.end)))
        if extent.offset < start:
            kept.append(extent.part(extent.offset, start))
        if extent.end > end:
            kept.append(extent.part(end, extent.end))
    return kept


def runs_of(extents: Iterable[Extent]) -> Iterator[list[Extent]]:
    """The extents in runs that one read gets: whole units, side by side on the device as well as in
    the file; or a single part of one."""
    run: list[Extent] = []
    for extent in extents:
        if run and not (
            extent.length == extent.stored
            and run[-1].length == run[-1].stored
            and run[-1].end == extent.offset
            and run[-1].lba * BLOCK_BYTES + run[-1].stored == extent.lba * BLOCK_BYTES
        ):
            yield run
            run = []
        run.append(extent)
    if run:
        yield run
