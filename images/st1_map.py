"""The map of a CAPOSST1 image: superblocks, table, log, and what is live, dead and free.

Invariants: regions ascend and are disjoint; all that is not live in a segment of data is dead.
Memory is some bytes for each value.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from capstore.images import st1
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES
from capstore.images.segments import DATA, LOG, TABLE
from capstore.images.st1_entry import Part
from capstore.images.st1_recovery import Recovered
from capstore.images.st1_state import view_over
from capstore.images.tree import Region

# Rows of (where something live begins, where it ends), ascending and disjoint.
_Stretches = npt.NDArray[np.int64]


def regions(device: BlockDevice, found: Recovered) -> Iterator[Region]:
    """All of the region; what is behind it is not its own.  Raises `Corrupt`."""
    for slot, lba in enumerate(st1.SUPERBLOCK_LBAS):
        yield Region(lba * BLOCK_BYTES, BLOCK_BYTES, "superblock", f"superblock {slot}")
    behind = (st1.SUPERBLOCK_LBAS[-1] + 1) * BLOCK_BYTES
    yield Region(behind, st1.SEGMENTS_AT - behind, "unused", "behind the superblocks")
    space, geometry = found.space, found.space.geometry
    size = geometry.segment_bytes
    live = _live(found)
    for segment, use in enumerate(space.use):
        start = geometry.start(segment)
        if use == DATA:
            yield from _data(live, start, start + size, segment)
        elif use == TABLE:
            yield from _table(found, segment)
        elif use == LOG:
            yield from _log(found, segment)
        else:
            yield Region(start, size, "free", f"segment {segment}")
    end = st1.region_end(found.superblock, device.size())
    if end > (behind := geometry.start(space.count)):
        yield Region(behind, end - behind, "unused", "behind the last segment")


def _data(live: _Stretches, start: int, end: int, segment: int) -> Iterator[Region]:
    """What is live between two offsets, and what is dead."""
    label = f"segment {segment}"
    first, last = np.searchsorted(live[:, 0], (start, end)).tolist()
    at = start
    for low, high in live[first:last].tolist():
        if low > at:
            yield Region(at, low - at, "dead", label)
        at = min(high, end)
        yield Region(low, at - low, "data", label)
    if at < end:
        yield Region(at, end - at, "dead", label)


def _table(found: Recovered, segment: int) -> Iterator[Region]:
    head, size = found.table.head, found.space.geometry.segment_bytes
    start = found.space.geometry.start(segment)
    run = list(head.runs).index(segment)
    used = max(0, min(size, head.sections.end - run * size))
    if used:
        yield Region(start, used, "table", f"table, part {run}")
    if used < size:
        yield Region(start + used, size - used, "unused", f"segment {segment}")


def _log(found: Recovered, segment: int) -> Iterator[Region]:
    size = found.space.geometry.segment_bytes
    start = found.space.geometry.start(segment)
    used = found.position.offset if segment == found.position.segment else size
    if used:
        yield Region(start, used, "log", f"segment {segment}")
    if used < size:
        yield Region(start + used, size - used, "unused", f"segment {segment}")


def _live(found: Recovered) -> _Stretches:
    """Stretches that hold values, neighbours in a segment joined."""
    places: list[int] = []
    lengths: list[int] = []
    for _, entry in view_over(found.table, found.changes).pairs(b"", b""):
        for part in entry.parts or [Part(entry.place, 0, entry.size, entry.sum)]:
            if part.length:
                places.append(part.place)
                lengths.append(part.length)
    starts = np.array(places, dtype=np.int64)
    ends = starts + np.array(lengths, dtype=np.int64)
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    if not len(starts):
        return np.zeros((0, 2), dtype=np.int64)
    size = found.space.geometry.segment_bytes
    begins = np.ones(len(starts), dtype=bool)
    apart = (starts[1:] - st1.SEGMENTS_AT) // size != (ends[:-1] - 1 - st1.SEGMENTS_AT) // size
    begins[1:] = (starts[1:] > ends[:-1]) | apart
    last = np.append(np.flatnonzero(begins)[1:] - 1, len(starts) - 1)
    return np.column_stack((starts[begins], ends[last]))
