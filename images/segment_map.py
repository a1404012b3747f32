"""The map of segments: what is live, dead and free in each, for both writable formats.

Invariants: regions ascend and are disjoint, and are all of the segments; all that is not live in a
segment of data is dead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capstore.images.frames import Position
from capstore.images.segments import DATA, LOG, TABLE, Geometry, Space
from capstore.images.tree import Region

# Rows of (where something live begins, where it ends), ascending and disjoint.
Stretches = npt.NDArray[np.int64]


def joined(starts: Stretches, ends: Stretches, geometry: Geometry) -> Stretches:
    """The stretches from `starts` to `ends`, neighbours joined, but not over the end of a
    segment."""
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    if not len(starts):
        return np.zeros((0, 2), dtype=np.int64)
    size = geometry.segment_bytes
    begins = np.ones(len(starts), dtype=bool)
    apart = (starts[1:] - geometry.begin) // size != (ends[:-1] - 1 - geometry.begin) // size
    begins[1:] = (starts[1:] > ends[:-1]) | apart
    last = np.append(np.flatnonzero(begins)[1:] - 1, len(starts) - 1)
    return np.column_stack((starts[begins], ends[last]))


@dataclass(frozen=True, slots=True)
class SegmentMap:
    """The segments of `space`, in which `live` is what is referred to, the log goes on at
    `position`, and a table of `table_bytes`, called `table`, lies in `runs`."""

    space: Space
    live: Stretches
    position: Position
    runs: Sequence[int]
    table_bytes: int
    table: str

    def regions(self, end: int) -> Iterator[Region]:
        """All of them, and what is behind them up to the offset `end`."""
        geometry = self.space.geometry
        for segment, use in enumerate(self.space.use):
            if use == DATA:
                yield from self._data(segment)
            elif use == TABLE:
                run = list(self.runs).index(segment)
                used = self.table_bytes - run * geometry.segment_bytes
                yield from self._used(segment, used, "table", f"{self.table}, part {run}")
            elif use == LOG:
                is_last = segment == self.position.segment
                used = self.position.offset if is_last else geometry.segment_bytes
                yield from self._used(segment, used, "log", f"segment {segment}")
            else:
                yield from self._used(segment, geometry.segment_bytes, "free", f"segment {segment}")
        if end > (behind := geometry.start(self.space.count)):
            yield Region(behind, end - behind, "unused", "behind the last segment")

    def _used(self, segment: int, used: int, kind: str, label: str) -> Iterator[Region]:
        """A segment whose first `used` bytes are of a kind."""
        start, size = self.space.geometry.start(segment), self.space.geometry.segment_bytes
        used = max(0, min(size, used))
        if used:
            yield Region(start, used, kind, label)
        if used < size:
            yield Region(start + used, size - used, "unused", f"segment {segment}")

    def _data(self, segment: int) -> Iterator[Region]:
        """What is live in a segment, and what is dead."""
        label, start = f"segment {segment}", self.space.geometry.start(segment)
        end = start + self.space.geometry.segment_bytes
        first, last = np.searchsorted(self.live[:, 0], (start, end)).tolist()
        at = start
        for low, high in self.live[first:last].tolist():
            if low > at:
                yield Region(at, low - at, "dead", label)
            at = min(high, end)
            yield Region(low, at - low, "data", label)
        if at < end:
            yield Region(at, end - at, "dead", label)
