"""What the bytes of an image are used for, summed up: for tables and for a picture.

Invariants: the memory that it takes is bounded, however many regions there are; every byte is
counted once, and what no region covers, or a second one covers, is `UNACCOUNTED`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from capstore.images.tree import REGION_KINDS, Region

REGIONS_MAX: Final = 10_000
CELLS_MAX: Final = 2048

UNACCOUNTED: Final = "unaccounted"
KINDS: Final = (*REGION_KINDS, UNACCOUNTED)


class Survey:
    """Regions of an image of `size` bytes, taken in order of their starts.

    `regions` are the first `REGIONS_MAX` of them, neighbours of one kind joined, and `left_out`
    says how many followed.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.regions: list[Region] = []
        self.left_out = 0
        self._last: Region | None = None
        self._cells = np.zeros((CELLS_MAX, len(REGION_KINDS)), dtype=np.int64)
        self._cell_bytes = 1
        self._reach(size)

    def add(self, regions: Iterable[Region]) -> None:
        """Takes in `regions`.  What these raise leaves those before it counted."""
        end = 0
        for region in regions:
            start = max(region.start, end)
            length = region.start + region.length - start
            if length > 0:
                end = start + length
                self._take(replace(region, start=start, length=length))
        self._keep()

    def _take(self, region: Region) -> None:
        self.size = max(self.size, region.start + region.length)
        self._reach(self.size)
        self._count(region)
        last = self._last
        if last and last.kind == region.kind and last.start + last.length == region.start:
            label = _joined(last.label, region.label)
            self._last = replace(last, length=last.length + region.length, label=label)
        else:
            self._keep()
            self._last = region

    def _keep(self) -> None:
        if self._last is None:
            return
        if len(self.regions) < REGIONS_MAX:
            self.regions.append(self._last)
        else:
            self.left_out += 1
        self._last = None

    # Cells ---------------------------------------------------------------------------------------

    def _reach(self, size: int) -> None:
        """Folds cells in pairs until they reach as far as `size`."""
        while size > self._cell_bytes * CELLS_MAX:
            pairs = self._cells.reshape(CELLS_MAX // 2, 2, -1).sum(axis=1)
            self._cells = np.concatenate([pairs, np.zeros_like(pairs)])
            self._cell_bytes *= 2

    def _count(self, region: Region) -> None:
        column = self._cells[:, REGION_KINDS.index(region.kind)]
        at, end = region.start, region.start + region.length
        first, last = at // self._cell_bytes, (end - 1) // self._cell_bytes
        if first == last:
            column[first] += region.length
            return
        column[first] += (first + 1) * self._cell_bytes - at
        column[first + 1 : last] += self._cell_bytes
        column[last] += end - last * self._cell_bytes

    @property
    def cell_bytes(self) -> int:
        """How many bytes one cell stands for, a power of two."""
        return self._cell_bytes

    def cells(self) -> npt.NDArray[np.int64]:
        """Bytes of each of `KINDS` in each cell: shape (cells, kinds); each row sums up to what
        there is of the image in it."""
        count = max(1, -(-self.size // self._cell_bytes))
        ends = np.minimum(np.arange(1, count + 1) * self._cell_bytes, self.size)
        lengths = np.diff(ends, prepend=0)
        known = self._cells[:count]
        return np.column_stack([known, lengths - known.sum(axis=1)])

    def totals(self) -> dict[str, int]:
        """Bytes by kind; kinds that do not occur are left out."""
        sums = self._cells.sum(axis=0)
        totals = {kind: int(sums[number]) for number, kind in enumerate(REGION_KINDS)}
        totals[UNACCOUNTED] = self.size - sum(totals.values())
        return {kind: count for kind, count in totals.items() if count}


def _joined(first: str, last: str) -> str:
    """One label for neighbours: the first's and the last's."""
    begin = first.partition(" … ")[0]
    return begin if begin == last else f"{begin} … {last}"
