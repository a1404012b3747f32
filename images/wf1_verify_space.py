"""Checking where the data of a CAPOSWF1 image lies: extents, segments, usage.

Invariants: a row of the table of extents is looked at once, whatever files claim it; memory is some
bytes for each extent.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from capstore.images import wf1
from capstore.images.records import BLOCK_BYTES
from capstore.images.segments import DATA
from capstore.images.tree import Finding
from capstore.images.wf1_content import Extent, all_extents
from capstore.images.wf1_recovery import Recovered
from capstore.schema.errors import Corrupt

_Table = npt.NDArray[np.int64]

_START, _STORED, _SKIP, _LENGTH, _SUM, _OWNER = range(6)


def verify_extents(found: Recovered) -> Iterator[Finding]:
    """What is wrong with extents and with what is said of their segments."""
    rows = _Rows()
    yield from rows.take(found)
    table = rows.table()
    if len(table) != found.state.counts.extents:
        said = found.state.counts.extents
        yield Finding("counts", f"{said} extents were counted, there are {len(table)}")
    yield from _places(table, found)
    yield from _shared_bytes(table)
    yield from _overlapping_units(table)
    yield from _usage(table, found)


class _Rows:
    """The extents of all files."""

    def __init__(self) -> None:
        self._values = array("q")

    def table(self) -> _Table:
        """One row each."""
        return np.array(self._values, dtype=np.int64).reshape(-1, 6)

    def take(self, found: Recovered) -> Iterator[Finding]:
        """Takes in the extents of every file; gives what is wrong with single files."""
        state, next_row = found.state, 0
        for record in found.tables.records():
            if record.kind != wf1.FILE:
                continue
            where = f"node {record.id}"
            if record.count and record.first != next_row:
                yield Finding(where, "its extents do not follow those before")
            if record.count and record.first < next_row:
                continue
            next_row = record.first + record.count
            changed = state.nodes.get(record.id)
            if record.id in state.nodes and (changed is None or changed.content is not None):
                continue
            yield from self._take_base(found, record, where)
        for number in sorted(state.nodes):
            node = state.nodes[number]
            if node is not None and node.content is not None:
                self._add(number, list(all_extents(node.content)))

    def _take_base(self, found: Recovered, record: Any, where: str) -> Iterator[Finding]:
        try:
            self._add(record.id, found.tables.extents_of(record))
        except Corrupt as error:
            yield Finding(where, error.message)

    def _add(self, owner: int, extents: Sequence[Extent]) -> None:
        owner = min(owner, (1 << 63) - 1)
        for e in extents:
            at = e.lba * BLOCK_BYTES
            self._values.extend((at, e.stored, e.skip, e.length, e.sum, owner))


def _places(table: _Table, found: Recovered) -> Iterator[Finding]:
    """Extents in segments of the log or of a checkpoint."""
    uses = np.frombuffer(bytes(found.space.use), dtype=np.uint8)
    segments = (table[:, _START] - wf1.SEGMENTS_AT) // found.space.geometry.segment_bytes
    for row in np.flatnonzero(uses[segments] != DATA).tolist():
        message = f"segment {segments[row]} holds its data, but is none of data"
        yield Finding(f"node {table[row, _OWNER]}", message, int(table[row, _START]))


def _shared_bytes(table: _Table) -> Iterator[Finding]:
    """Extents that have bytes of the image in common."""
    order = np.argsort(table[:, _START] + table[:, _SKIP], kind="stable")
    rows = table[order]
    starts = rows[:, _START] + rows[:, _SKIP]
    ends = np.maximum.accumulate(starts + rows[:, _LENGTH])
    for row in np.flatnonzero(starts[1:] < ends[:-1]).tolist():
        message = "it has bytes that are another extent's, too"
        yield Finding(f"node {rows[row + 1, _OWNER]}", message, int(starts[row + 1]))


def _overlapping_units(table: _Table) -> Iterator[Finding]:
    """Units that lie over one another, unless they are the same."""
    units = np.unique(table[:, (_START, _STORED, _SUM)], axis=0)
    ends = np.maximum.accumulate(units[:, 0] + units[:, 1])
    for row in np.flatnonzero(units[1:, 0] < ends[:-1]).tolist():
        at = int(units[row + 1, 0])
        yield Finding("data", f"the unit at offset {at} lies over another", at)


def _usage(table: _Table, found: Recovered) -> Iterator[Finding]:
    """Segments that hold more or less than is said of them."""
    segments = (table[:, _START] - wf1.SEGMENTS_AT) // found.space.geometry.segment_bytes
    live = np.zeros(found.space.count, dtype=np.int64)
    np.add.at(live, segments, table[:, _LENGTH])
    for segment, (there, said) in enumerate(zip(live.tolist(), found.space.live, strict=True)):
        if there != said:
            where = found.space.geometry.start(segment)
            message = f"{said} bytes are said to be live in it, there are {there}"
            yield Finding(f"segment {segment}", message, where)
