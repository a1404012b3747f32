"""The map of a CAPOSST1 image: superblocks, table, log, and what is live, dead and free.

Invariants: those of `capstore.images.segment_map`.  Memory is some bytes for each value.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from capstore.images import st1
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES
from capstore.images.segment_map import SegmentMap, Stretches, joined
from capstore.images.st1_entry import Part
from capstore.images.st1_recovery import Recovered
from capstore.images.st1_state import view_over
from capstore.images.tree import Region


def regions(device: BlockDevice, found: Recovered) -> Iterator[Region]:
    """All of the region; what is behind it is not its own.  Raises `Corrupt`."""
    for slot, lba in enumerate(st1.SUPERBLOCK_LBAS):
        yield Region(lba * BLOCK_BYTES, BLOCK_BYTES, "superblock", f"superblock {slot}")
    behind = (st1.SUPERBLOCK_LBAS[-1] + 1) * BLOCK_BYTES
    yield Region(behind, st1.SEGMENTS_AT - behind, "unused", "behind the superblocks")
    head = found.table.head
    segments = SegmentMap(
        found.space, _live(found), found.position, head.runs, head.sections.end, "table"
    )
    yield from segments.regions(st1.region_end(found.superblock, device.size()))


def _live(found: Recovered) -> Stretches:
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
    return joined(starts, ends, found.space.geometry)
