"""Copying rows from one checkpoint of CAPOSWF1 into the next, many at a time.

Invariants: what belongs to consecutive nodes is consecutive in the tables too, entries, extents and
texts alike, so it is copied as it is, and only the numbers that say where it is are changed.
Tables in which that is not so were not written by this format: `Corrupt`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from capstore.images import wf1
from capstore.images.records import WF1_ENTRY, WF1_EXTENT, WF1_NODE
from capstore.images.wf1_state import Base
from capstore.schema.errors import Corrupt

Table = npt.NDArray[Any]


@dataclass
class Rows:
    """How much of the new tables there is so far: entries, extents, and bytes of the heap."""

    entries: int = 0
    extents: int = 0
    heap: int = 0


def copied(base: Base, first: int, count: int, rows: Rows) -> tuple[bytes, bytes, bytes, bytes]:
    """The tables of `count` nodes from the row `first` on, as they are to be behind `rows`.

    Gives nodes, entries, extents and heap.  Raises `Corrupt`.
    """
    nodes = WF1_NODE.table(base.rows(WF1_NODE, first, count)).copy()
    kinds = nodes["kind"]
    entries_at, entry_count = _moved(nodes, kinds == wf1.DIRECTORY, rows.entries)
    extents_at, extent_count = _moved(nodes, kinds == wf1.FILE, rows.extents)
    entries = WF1_ENTRY.table(base.rows(WF1_ENTRY, entries_at, entry_count)).copy()
    extents = base.rows(WF1_EXTENT, extents_at, extent_count)
    heap = _move_texts(base, nodes, entries, rows.heap)
    return WF1_NODE.seal(nodes), WF1_ENTRY.seal(entries), extents, heap


def _moved(nodes: Table, chosen: npt.NDArray[np.bool_], to: int) -> tuple[int, int]:
    """Has what the `chosen` nodes have in a table begin at its row `to`; where it was, and how much
    it is."""
    counts = nodes["count"][chosen].astype(np.int64)
    before = np.cumsum(counts) - counts
    was = nodes["first"][chosen].astype(np.int64)
    total = int(counts.sum())
    start = int(was[counts > 0][0]) if total else 0
    if (was != start + before)[counts > 0].any():
        raise Corrupt("the tables of the checkpoint are not in the order of its nodes")
    nodes["first"][chosen] = to + before
    return start, total


def _move_texts(base: Base, nodes: Table, entries: Table, to: int) -> bytes:
    """The texts of entries, links and redirected directories, which are to begin at `to` of the
    heap."""
    links = nodes["kind"] == wf1.SYMLINK
    redirected = nodes["redirectBytes"] > 0
    starts = np.concatenate(
        (entries["nameAt"], nodes["first"][links], nodes["redirectAt"][redirected])
    ).astype(np.int64)
    lengths = np.concatenate(
        (entries["nameBytes"], nodes["count"][links], nodes["redirectBytes"][redirected])
    ).astype(np.int64)
    if not len(starts):
        return b""
    start, total = int(starts.min()), int(lengths.sum())
    if start < 0 or int((starts + lengths).max()) != start + total:
        raise Corrupt("the texts of the checkpoint are not in the order of its nodes")
    entries["nameAt"] += np.uint32((to - start) % (1 << 32))
    nodes["first"][links] += np.uint64((to - start) % (1 << 64))
    nodes["redirectAt"][redirected] += np.uint64((to - start) % (1 << 64))
    return base.heap_bytes(start, total)
