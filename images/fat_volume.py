"""FAT: the table and all directories of one volume, walked once.

Invariants:

* A node's id is the position of its short entry, counted in entries of 32 bytes from the start of
  the device; the root has the id 1, where no entry can be.  Directories share no cluster, so ids
  are unique.
* A directory belongs to the entry that is first in breadth-first order.  Every later entry that
  leads to it (a cross link, or a loop to an ancestor) is damaged, and only that entry is.
* Every directory is read once and never followed deeper than the queue of those that were found,
  so the work is bounded by the size of the volume whatever the entries say.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from capstore.images.device import BlockDevice
from capstore.images.fat_boot import ENTRY_BYTES, FIRST_CLUSTER, Geometry, read_geometry
from capstore.images.fat_entries import Slots, has_dots, scan
from capstore.images.fat_table import Numbers, Table
from capstore.images.tree import Extents
from capstore.schema.errors import Corrupt, NotDirectory, NotFound
from capstore.schema.limits import FAT_DIRECTORY_BYTES_MAX

ROOT: Final = 1

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RawDirectory:
    """A directory as it is stored: its slots, the ids of its entries, its bytes and clusters."""

    slots: Slots
    ids: Ids
    data: bytes
    clusters: list[int]
    first_ids: Ids

    def offset_of(self, slot: int) -> int:
        """Where a slot is on the device, in bytes."""
        per_piece = len(self.data) // ENTRY_BYTES // len(self.first_ids)
        return (int(self.first_ids[slot // per_piece]) + slot % per_piece) * ENTRY_BYTES


@dataclass(slots=True)
class _Found:
    """What the walk has found so far, a row for each entry."""

    ids: array[int] = field(default_factory=lambda: array("q"))
    parents: array[int] = field(default_factory=lambda: array("q"))
    heads: array[int] = field(default_factory=lambda: array("q"))
    directories: bytearray = field(default_factory=bytearray)

    def add(self, parent: int, raw: RawDirectory) -> None:
        self.ids.frombytes(raw.ids.tobytes())
        self.parents.extend([parent] * len(raw.ids))
        self.heads.frombytes(raw.slots.heads.astype(np.int64).tobytes())
        self.directories += raw.slots.directories.tobytes()


class Volume:
    """A FAT volume that has been walked."""

    def __init__(self, device: BlockDevice, geometry: Geometry) -> None:
        """Reads the table and every directory.  Raises `StorageIOError` from the device."""
        self.device = device
        self.geometry = geometry
        self.table = Table(device, geometry)
        # The first cluster of each directory, and the node that it belongs to.
        self.owners: dict[int, int] = {}
        found, sound = self._walk()
        ids = np.frombuffer(found.ids, np.int64)
        order = np.argsort(ids)
        self._ids: Ids = ids[order]
        self._parents: Ids = np.frombuffer(found.parents, np.int64)[order]
        heads = np.frombuffer(found.heads, np.int64)
        directories = np.frombuffer(found.directories, np.bool_)
        claims = np.concatenate([heads[~directories], np.array(sound, np.int64)])
        self.table.seal(claims.astype(np.uint32))
        self._heads: npt.NDArray[np.uint32] = heads[order].astype(np.uint32)
        self._directories = directories[order]

    @classmethod
    def open(cls, device: BlockDevice) -> Volume:
        """Reads everything from the boot sector on; raises as `read_geometry`."""
        return cls(device, read_geometry(device))

    @property
    def nodes(self) -> int:
        """How many entries there are, the root among them."""
        return len(self._ids) + 1

    def parent_of(self, node: int) -> int:
        """The directory that the node's entry is in.  Raises `NotFound` for what is no entry."""
        return int(self._parents[self._row(node)])

    def directory(self, node: int) -> RawDirectory:
        """A directory's bytes.  Raises `Corrupt`, `NotDirectory`, `NotFound`."""
        if node == ROOT:
            return self._read(ROOT, self.geometry.root_cluster)
        row = self._row(node)
        if not self._directories[row]:
            raise NotDirectory("a file")
        head = int(self._heads[row])
        if self.owners.get(head, node) != node:
            raise Corrupt(f"cluster {head} is another directory's, at {_entry(node)}")
        return self._read(node, head)

    def directories(self) -> Iterator[tuple[int, RawDirectory]]:
        """All sound directories, with their nodes."""
        for node in dict.fromkeys((ROOT, *self.owners.values())):
            try:
                yield node, self.directory(node)
            except Corrupt:
                continue

    def runs(self, node: int, head: int, size: int) -> Numbers:
        """The runs of a file's clusters; raises as `Table.runs`, naming the entry, too."""
        try:
            return self.table.runs(head, -(-size // self.geometry.cluster_bytes))
        except Corrupt as error:
            raise Corrupt(f"{error.message}, at {_entry(node)}") from None

    def extents(self, node: int, head: int, size: int) -> Extents:
        """Where a file's bytes are; raises as `runs`."""
        cluster = self.geometry.cluster_bytes
        rows = self.runs(node, head, size).astype(np.int64)
        lengths = (rows[:, 1] - rows[:, 0] + 1) * cluster
        starts = np.cumsum(lengths) - lengths
        sources = self.geometry.data_offset + (rows[:, 0] - FIRST_CLUSTER) * cluster
        return np.stack([starts, np.minimum(lengths, size - starts), sources], axis=1)

    def _row(self, node: int) -> int:
        row = int(np.searchsorted(self._ids, node))
        if row == len(self._ids) or int(self._ids[row]) != node:
            raise NotFound("no such node")
        return row

    def _walk(self) -> tuple[_Found, list[int]]:
        """Everything that is found from the root on, and the heads of sound directories."""
        found, sound = _Found(), list[int]()
        root = self.geometry.root_cluster
        if root:
            self.owners[root] = ROOT
        pending = deque([(ROOT, root)])
        while pending:
            node, head = pending.popleft()
            try:
                raw = self._read(node, head)
            except Corrupt:
                continue
            sound.append(head)
            found.add(node, raw)
            below = raw.slots.directories
            for child, start in zip(
                raw.ids[below].tolist(), raw.slots.heads[below].tolist(), strict=True
            ):
                if self.table.exists(start) and start not in self.owners:
                    self.owners[start] = child
                    pending.append((child, start))
        return found, sound

    def _read(self, node: int, head: int) -> RawDirectory:
        geometry = self.geometry
        if node == ROOT and not head:
            data = self.device.read(geometry.root_offset, geometry.root_entries * ENTRY_BYTES)
            clusters: list[int] = []
            starts = np.array([geometry.root_offset // ENTRY_BYTES])
        else:
            try:
                clusters = self.table.directory_chain(
                    head, FAT_DIRECTORY_BYTES_MAX // geometry.cluster_bytes
                )
            except Corrupt as error:
                raise Corrupt(f"{error.message}, at {_entry(node)}") from None
            data = self._clusters(clusters)
            starts = np.array([geometry.offset_of(one) // ENTRY_BYTES for one in clusters])
        if node != ROOT and not has_dots(data):
            raise Corrupt(f"cluster {head} does not begin a directory, at {_entry(node)}")
        slots = scan(data, wide=geometry.bits == 32)
        per_piece = len(data) // ENTRY_BYTES // len(starts)
        ids = starts[slots.entries // per_piece] + slots.entries % per_piece
        return RawDirectory(slots, ids, data, clusters, starts)

    def _clusters(self, clusters: list[int]) -> bytes:
        geometry = self.geometry
        data = bytearray(len(clusters) * geometry.cluster_bytes)
        view, first = memoryview(data), 0
        for at in range(1, len(clusters) + 1):
            if at < len(clusters) and clusters[at] == clusters[at - 1] + 1:
                continue
            piece = view[first * geometry.cluster_bytes : at * geometry.cluster_bytes]
            self.device.read_into(geometry.offset_of(clusters[first]), piece)
            first = at
        return bytes(data)


def _entry(node: int) -> str:
    if node == ROOT:
        return "the root directory"
    return f"the entry at offset {node * ENTRY_BYTES}"
