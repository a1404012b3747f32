"""FAT: the file allocation table, decoded once, and the chains in it.

Invariants:

* `Table.next` is one entry for each cluster number, without the reserved bits; the work of
  following a chain is one step for each run of neighbouring clusters, and a chain is left at the
  first cluster that is suspect, so that no chain is followed in a circle.
* A cluster is *suspect* where the copies of the FAT differ, or where more than one thing leads to
  it: two entries of the FAT (*shared*), or at least one thing that is the start of a file or
  directory (*claimed*, known after `seal`).  Two chains that meet, and a chain that runs into
  itself, do so at such a cluster.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capstore.images.device import BlockDevice
from capstore.images.fat_boot import FIRST_CLUSTER, Geometry
from capstore.schema.errors import Corrupt
from capstore.schema.limits import MIB

FREE: Final = 0
BAD: Final = 0x0FFFFFF7
END: Final = 0x0FFFFFF8

_SHARED: Final = 1
_DIFFERENT: Final = 2
_LINKED: Final = 4
_CLAIMED: Final = 8
# A directory knows itself by its dot entries: what files claim does not make it suspect.
_SUSPECT_DIRECTORY: Final = _SHARED | _DIFFERENT
_SUSPECT: Final = _SUSPECT_DIRECTORY | _CLAIMED
# A multiple of every entry's width (12 bits in pairs) and of every sector.
_PIECE_BYTES: Final = 3 * MIB
_PIECE_ENTRIES: Final = 1 << 20
# How far a chain is followed to tell a loop from two chains that meet.  Thousands of entries may
# lead to one damaged chain.
_LOOP_RUNS_MAX: Final = 64

Numbers = npt.NDArray[np.uint32]


class Table:
    """The file allocation table in memory: nine bytes for each cluster."""

    def __init__(self, device: BlockDevice, geometry: Geometry) -> None:
        """Reads all copies of the table.  Raises `StorageIOError` from the device."""
        self._geometry = geometry
        self.stop = geometry.cluster_stop
        self.next: Numbers = np.empty(self.stop, np.uint32)
        self._flags = np.zeros(self.stop, np.uint8)
        self._read(device)
        # A link back to the entries without clusters, or behind the last, leads nowhere.
        self.next[:FIRST_CLUSTER] = END
        self.free = int(np.count_nonzero(self.next == FREE))
        self._mark_shared()
        self._next_view = self.next.data
        self._flags_view = self._flags.data
        self._ends_view = memoryview(b"")

    def _read(self, device: BlockDevice) -> None:
        geometry = self._geometry
        total = geometry.table_bytes()
        others = [copy for copy in range(geometry.fats) if copy != geometry.active_fat]
        for at in range(0, total, _PIECE_BYTES):
            size = min(_PIECE_BYTES, total - at)
            raw = device.read(geometry.copy_offset(geometry.active_fat) + at, size)
            first = at * 8 // geometry.bits
            numbers = decode(raw, geometry.bits)[: self.stop - first]
            self.next[first : first + len(numbers)] = normal(numbers, geometry.bits)
            for copy in others if geometry.mirrored else ():
                other = device.read(geometry.copy_offset(copy) + at, size)
                if other != raw:
                    differs = decode(other, geometry.bits)[: len(numbers)] != numbers
                    self._flags[first : first + len(numbers)][differs] |= _DIFFERENT

    def _mark_shared(self) -> None:
        """Marks the clusters that entries of the table lead to, and those that two lead to."""
        # Of several entries that lead to a cluster one stays in `winner`; the others have lost.
        winner = np.empty(self.stop, np.uint32)
        for sources, targets in self._links():
            winner[targets] = sources
            self._flags[targets] |= _LINKED
        for sources, targets in self._links():
            self._flags[targets[winner[targets] != sources]] |= _SHARED

    def _links(self) -> Iterator[tuple[Numbers, Numbers]]:
        """All entries that lead to a cluster, with that cluster, piece by piece."""
        for first in range(0, self.stop, _PIECE_ENTRIES):
            piece = self.next[first : first + _PIECE_ENTRIES]
            at = np.flatnonzero(self._valid(piece))
            yield (at + first).astype(np.uint32), piece[at]

    def _valid(self, numbers: Numbers) -> npt.NDArray[np.bool_]:
        return (numbers >= FIRST_CLUSTER) & (numbers < self.stop)

    def seal(self, heads: Numbers) -> None:
        """Takes the first clusters of all files and directories; then `runs` may be called."""
        inside = heads[self._valid(heads)]
        inside.sort()
        self._flags[inside[1:][inside[1:] == inside[:-1]]] |= _CLAIMED
        self._flags[inside[(self._flags[inside] & _LINKED) != 0]] |= _CLAIMED
        ends: Numbers = np.empty(self.stop, np.uint32)
        # Backwards, for a run may end in a later piece.
        for first in reversed(range(0, self.stop, _PIECE_ENTRIES)):
            self._find_ends(ends, first, min(first + _PIECE_ENTRIES, self.stop))
        self._ends_view = ends.data

    def _find_ends(self, ends: Numbers, first: int, stop: int) -> None:
        """Notes where the runs of the clusters from `first` to `stop` end; those behind are known.

        A run ends where the next cluster is not the neighbour; suspect clusters stand alone.
        """
        numbers = ends[first:stop]
        numbers[:] = np.arange(first, stop, dtype=np.uint32)
        breaks = self.next[first:stop] != numbers + 1
        suspect = (self._flags[first : stop + 1] & _SUSPECT) != 0
        breaks |= suspect[: stop - first]
        behind = suspect[1:]
        breaks[: len(behind)] |= behind
        numbers[~breaks] = self.stop
        if stop == self.stop:
            numbers[-1] = stop - 1
        elif not breaks[-1]:
            numbers[-1] = ends[stop]
        np.minimum.accumulate(numbers[::-1], out=numbers[::-1])

    def directory_chain(self, head: int, limit: int) -> list[int]:
        """The clusters of a directory of at most `limit`; may be called before `seal`.

        Raises `Corrupt` as `runs`, also where the first cluster is inside of another chain.
        """
        if self.exists(head) and self._flags_view[head] & _LINKED:
            raise Corrupt(f"cluster {head} begins a directory and is inside of a chain")
        clusters: list[int] = []
        at = head
        while self.exists(at):
            if self._flags_view[at] & _SUSPECT_DIRECTORY:
                raise self._suspect(at)
            clusters.append(at)
            if len(clusters) > limit:
                raise Corrupt(f"the directory at cluster {head} is too long, at cluster {at}")
            at = self._next_view[at]
        self._check_end(clusters[-1] if clusters else 0, at)
        return clusters

    def exists(self, cluster: int) -> bool:
        """Whether there is such a cluster."""
        return FIRST_CLUSTER <= cluster < self.stop

    def runs(self, head: int, need: int) -> Numbers:
        """The runs of a file that needs `need` clusters: rows of first cluster, last cluster.

        Raises `Corrupt` naming the cluster where the chain is shorter or longer, leads to a free,
        bad or missing cluster, or meets a suspect one.
        """
        if not need:
            if head:
                raise Corrupt(f"an empty file has the cluster {head}")
            return np.empty((0, 2), np.uint32)
        # Numbers only: a file may be in millions of pieces.
        runs = array("I")
        got, at, last = 0, head, 0
        for first, last in self._walk(head):
            if self._flags_view[first] & _SUSPECT:
                raise self._suspect(first)
            runs.append(first)
            runs.append(last)
            got += last - first + 1
            if got > need:
                over = last - (got - need) + 1
                raise Corrupt(f"the chain goes on with cluster {over} behind the file's size")
        at = self._next_view[last] if runs else head
        self._check_end(last, at)
        if got < need:
            raise Corrupt(f"the chain ends with cluster {last}: {got} clusters instead of {need}")
        return np.array(runs, np.uint32).reshape(-1, 2)

    def _walk(self, head: int) -> Iterator[tuple[int, int]]:
        ends, following, stop = self._ends_view, self._next_view, self.stop
        at = head
        while FIRST_CLUSTER <= at < stop:
            last = ends[at]
            yield at, last
            at = following[last]

    def _check_end(self, last: int, link: int) -> None:
        """Raises `Corrupt` unless a chain may end with `link`, which cluster `last` holds."""
        if not last:
            raise Corrupt(f"the directory entry leads to cluster {link}, which does not exist")
        if link == BAD:
            raise Corrupt(f"cluster {last} is marked as bad inside of a chain")
        if link == FREE:
            raise Corrupt(f"cluster {last} is marked as free inside of a chain")
        if link < END:
            raise Corrupt(f"cluster {last} leads to cluster {link}, which does not exist")

    def _suspect(self, cluster: int) -> Corrupt:
        if self._flags_view[cluster] & _DIFFERENT:
            return Corrupt(f"the copies of the FAT differ in cluster {cluster}")
        if self._in_loop(cluster):
            return Corrupt(f"the chain loops back to cluster {cluster}")
        return Corrupt(f"cluster {cluster} is cross-linked: two chains lead to it")

    def _in_loop(self, cluster: int) -> bool:
        """Whether the chain comes back to a suspect cluster soon; False before `seal`."""
        if not self._ends_view:
            return False
        following = islice(self._walk(self._next_view[cluster]), _LOOP_RUNS_MAX)
        return any(first == cluster for first, _ in following)

    def differing(self) -> Iterator[tuple[int, int]]:
        """The stretches (first, last) of entries in which the copies of the table differ."""
        different = (self._flags & _DIFFERENT) != 0
        for first, stop in stretches(different):
            if different[first]:
                yield first, stop - 1


def stretches(values: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    """The stretches (first, behind the last) of equal neighbours; there may be millions."""
    start = 0
    for at in range(1, len(values), _PIECE_ENTRIES):
        piece = values[at - 1 : at + _PIECE_ENTRIES]
        for change in (np.flatnonzero(piece[1:] != piece[:-1]) + at).tolist():
            yield start, change
            start = change
    yield start, len(values)


def decode(raw: bytes, bits: int) -> Numbers:
    """The entries of a piece of a FAT that begins with an even one, as they are stored."""
    if bits == 32:
        return np.frombuffer(raw, "<u4") & np.uint32(0x0FFFFFFF)
    if bits == 16:
        return np.frombuffer(raw, "<u2").astype(np.uint32)
    # Three bytes are two entries; a last half entry has no second nibble to take from.
    triples = np.frombuffer(raw + bytes(-len(raw) % 3), np.uint8).reshape(-1, 3).astype(np.uint32)
    pairs = np.empty((len(triples), 2), np.uint32)
    pairs[:, 0] = triples[:, 0] | (triples[:, 1] & 0x0F) << 8
    pairs[:, 1] = triples[:, 1] >> 4 | triples[:, 2] << 4
    return pairs.reshape(-1)


def normal(numbers: Numbers, bits: int) -> Numbers:
    """Entries with the marks of FAT32: what is `BAD` and what is at least `END`, for all types."""
    if bits == 32:
        return numbers
    bad = (1 << bits) - 9
    return np.where(numbers >= bad, numbers + np.uint32(BAD - bad), numbers)
