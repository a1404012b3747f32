"""The map of a CAPOSWF1 image: superblocks, tables, log, and what is live, dead and free.

Invariants: those of `capstore.images.segment_map`; what is live is told by blocks, as extents say.
Memory is some bytes for each extent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from capstore.images import wf1
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES, WF1_EXTENT, WF1_NODE
from capstore.images.segment_map import SegmentMap, Stretches, joined
from capstore.images.tree import Region
from capstore.images.wf1_content import all_extents
from capstore.images.wf1_recovery import Recovered
from capstore.images.wf1_state import State
from capstore.schema.errors import Corrupt

# Rows of (offset of the unit, its bytes, bytes in front of the part, bytes of the part, checksum).
Parts = npt.NDArray[np.int64]

_SLICE_RECORDS: Final = 1 << 16


def regions(device: BlockDevice, found: Recovered) -> Iterator[Region]:
    """All of the image, from its first superblock on; what is in front of it is not its own."""
    for slot, lba in enumerate(wf1.SUPERBLOCK_LBAS):
        yield Region(lba * BLOCK_BYTES, BLOCK_BYTES, "superblock", f"superblock {slot}")
    head = found.tables.head
    segments = SegmentMap(
        found.space, _live(found), found.position, head.runs, head.length, "checkpoint"
    )
    yield from segments.regions(wf1.region_end(found.superblock, device.size()))


# Extents, many at a time -------------------------------------------------------------------------


def _live(found: Recovered) -> Stretches:
    """Stretches (start, end) of blocks that hold something live, ascending and disjoint."""
    parts = [rows for _, rows in parts_of(found.state, found)]
    rows = np.concatenate([*parts, np.zeros((0, 5), dtype=np.int64)])
    starts = (rows[:, 0] + rows[:, 2]) // BLOCK_BYTES * BLOCK_BYTES
    ends = -(-(rows[:, 0] + rows[:, 2] + rows[:, 3]) // BLOCK_BYTES) * BLOCK_BYTES
    return joined(starts, ends, found.space.geometry)


def parts_of(state: State, found: Recovered) -> Iterator[tuple[npt.NDArray[np.int64], Parts]]:
    """The extents of all files, as (ids of their files, `Parts`), some at a time.

    Raises `Corrupt`.
    """
    own = [node for node in state.nodes.values() if node is not None and node.content is not None]
    for node in own:
        rows = [
            (e.lba * BLOCK_BYTES, e.stored, e.skip, e.length, e.sum)
            for e in all_extents(state.content(node))
        ]
        table = np.array(rows, dtype=np.int64).reshape(-1, 5)
        yield np.full(len(rows), node.id, dtype=np.int64), table
    replaced = {node.id for node in own} | {n for n, node in state.nodes.items() if node is None}
    yield from _base_parts(found, np.array(sorted(replaced), dtype=np.int64))


def _base_parts(
    found: Recovered, replaced: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], Parts]]:
    tables = found.tables
    total, extents_in_all = tables.head.counts.nodes, tables.head.counts.extents
    for first in range(0, total, _SLICE_RECORDS):
        nodes = WF1_NODE.table(tables.rows(WF1_NODE, first, min(_SLICE_RECORDS, total - first)))
        ids = nodes["id"].astype(np.int64)
        files = nodes[(nodes["kind"] == wf1.FILE) & ~np.isin(ids, replaced) & (nodes["count"] > 0)]
        if not len(files):
            continue
        counts = files["count"].astype(np.int64)
        starts = files["first"].astype(np.int64)
        if counts.sum() > extents_in_all or (starts < 0).any():
            raise Corrupt("files of the checkpoint have the same extents")
        low, high = int(starts.min()), int((starts + counts).max())
        rows = WF1_EXTENT.table(tables.rows(WF1_EXTENT, low, high - low))
        owners = np.repeat(files["id"].astype(np.int64), counts)
        inside = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = rows[np.repeat(starts - low, counts) + inside]
        yield owners, _parts_of_rows(chosen)


def _parts_of_rows(rows: npt.NDArray[np.void]) -> Parts:
    return np.column_stack(
        (
            rows["lba"].astype(np.int64) * BLOCK_BYTES,
            rows["storedLess1"].astype(np.int64) + 1,
            rows["skip"].astype(np.int64),
            rows["lengthLess1"].astype(np.int64) + 1,
            rows["sum"].astype(np.int64),
        )
    )
