"""The segments of a writable region: where they are, what each is used for, what is live in it.

Invariants:

* `live` counts the bytes of each segment that the present state refers to; a segment of data is
  reclaimed only when that is 0 for the present and for every snapshot.
* A segment that the last durable table, or the log behind it, can lead to is never written anew:
  what becomes free is free only behind the next durable table.
* The lowest free segment is taken first, so an image grows no longer than it must.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES
from capstore.schema.errors import NoSpace

FREE: Final = 0
LOG: Final = 1
DATA: Final = 2
TABLE: Final = 3


@dataclass(frozen=True, slots=True)
class Geometry:
    """Segments of `segment_bytes` each, numbered from the one at the offset `begin`, of which there
    can be `count_max`."""

    segment_bytes: int
    begin: int
    count_max: int

    def start(self, segment: int) -> int:
        """The offset of a segment's first byte."""
        return self.begin + segment * self.segment_bytes

    def lba(self, segment: int) -> int:
        """The block at which a segment begins."""
        return self.start(segment) // BLOCK_BYTES

    def at(self, offset: int) -> int:
        """The segment that holds the byte at an offset; negative for one in front of all."""
        return (offset - self.begin) // self.segment_bytes

    def of_lba(self, lba: int) -> int:
        """The segment that holds a block; negative for one in front of all."""
        return self.at(lba * BLOCK_BYTES)

    def count(self, device_bytes: int) -> int:
        """How many whole segments fit a device of this length."""
        return max(0, min(self.count_max, (device_bytes - self.begin) // self.segment_bytes))


class Stored(Protocol):
    """Bytes that are stored: so many of those in the unit that begins at a block."""

    @property
    def lba(self) -> int:
        """The block."""

    @property
    def length(self) -> int:
        """How many bytes."""


class Space:
    """The segments of a region; `segments` of them are there, a region that `grows` gets more."""

    def __init__(self, device: BlockDevice, geometry: Geometry, *, grows: bool, end: int) -> None:
        self.geometry = geometry
        self.grows = grows
        self._device = device
        count = geometry.count(end)
        self.use = bytearray(count)
        self.live = [0] * count
        self._free: list[int] = []

    @property
    def count(self) -> int:
        """How many segments there are."""
        return len(self.use)

    @property
    def bytes(self) -> int:
        """How many bytes they have in all."""
        return len(self.use) * self.geometry.segment_bytes

    @property
    def free(self) -> int:
        """How many of them are free."""
        return len(self._free)

    @property
    def dead_bytes(self) -> int:
        """What cleaning could give back, about."""
        size = self.geometry.segment_bytes
        pairs = zip(self.use, self.live, strict=True)
        return sum(size - live for use, live in pairs if use == DATA)

    def take_stock(self) -> None:
        """Finds out which segments are free, after `use` was set."""
        self._free = [number for number, use in enumerate(self.use) if use == FREE]
        heapq.heapify(self._free)

    def allocate(self, use: int) -> int:
        """A free segment, for `use`.  Raises `NoSpace`."""
        if not self._free:
            self.grow(1)
        segment = self._free[0]
        # Others may have filled the disk meanwhile, and the image may have holes.
        self._device.reserve(self.geometry.start(segment), self.geometry.segment_bytes)
        heapq.heappop(self._free)
        self.use[segment] = use
        self.live[segment] = 0
        return segment

    def has_free_below(self, segment: int) -> bool:
        """Whether the next one that `allocate` gives is one of the first so many."""
        return bool(self._free) and self._free[0] < segment

    def grow(self, wanted: int) -> None:
        """Makes the region longer, so that `wanted` segments are free.  Raises `NoSpace`."""
        more = wanted - self.free
        if more <= 0:
            return
        if not self.grows:
            raise NoSpace("the volume is full")
        count = self.count + more
        if count > self.geometry.count_max:
            raise NoSpace("the volume has as many segments as there can be")
        self._lengthen(self.geometry.start(count))
        for number in range(self.count, count):
            heapq.heappush(self._free, number)
        self.use.extend(bytes(more))
        self.live.extend([0] * more)

    def _lengthen(self, new: int) -> None:
        """Makes the image longer, on a disk that has room for it."""
        old = self._device.size()
        self._device.resize(new)
        try:
            self._device.reserve(old, max(0, new - old))
        except NoSpace:
            self._device.resize(old)
            raise

    def release(self, segments: Iterable[int]) -> None:
        """Makes segments free."""
        for segment in segments:
            self.use[segment] = FREE
            self.live[segment] = 0
            heapq.heappush(self._free, segment)

    def cut(self) -> int:
        """Takes free segments away from the end; the offset behind those that are left.

        Whoever cuts the device there makes the region shorter."""
        count = self.count
        while count and self.use[count - 1] == FREE:
            count -= 1
        del self.use[count:]
        del self.live[count:]
        self.take_stock()
        return self.geometry.start(count)

    def gained(self, extents: Iterable[Stored]) -> None:
        """Counts what is referred to from now on."""
        for extent in extents:
            self.live[self.geometry.of_lba(extent.lba)] += extent.length

    def lost(self, extents: Iterable[Stored]) -> None:
        """Counts what is no longer referred to."""
        for extent in extents:
            self.live[self.geometry.of_lba(extent.lba)] -= extent.length

    def reclaimable(self, held: Callable[[int], bool]) -> list[int]:
        """Segments of data with nothing live in them that nobody `held`s."""
        pairs = enumerate(zip(self.use, self.live, strict=True))
        return [n for n, (use, live) in pairs if use == DATA and not live and not held(n)]
