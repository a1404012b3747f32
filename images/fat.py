"""FAT12, FAT16 and FAT32 volumes as trees, read in place.

Invariants:

* The table and all directories are walked once, at the first use (`capstore.images.fat_volume`);
  names and stats of one directory are decoded together when it is first looked into, and kept
  while there is room.  Afterwards nothing but content waits for the device.
* An answer does not depend on what was asked before: damage is found by the walk, which has one
  order.

What is decided where images are doubtful stands in ``docs/spec/fat.md``.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final

from capstore.images.device import BlockDevice
from capstore.images.devices import WindowDevice
from capstore.images.fat_boot import free_hint, label_of, read_geometry, volume_state
from capstore.images.fat_entries import Listing, decode, volume_label
from capstore.images.fat_map import regions_of
from capstore.images.fat_names import folded
from capstore.images.fat_verify import findings_of
from capstore.images.fat_volume import ROOT, Volume
from capstore.images.partitions import Partition, each_partition, partitions
from capstore.images.tree import ExtentContent, Finding, ImageTree, Region
from capstore.schema.errors import (
    Corrupt,
    InvalidArgument,
    IsDirectory,
    NotFound,
    StorageError,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.names import check_name
from capstore.schema.nodes import Entry, NodeKind, Page, Stat, Usage

# Two directories of the largest size, or thousands of usual ones.
CACHED_ENTRIES_MAX: Final = 1 << 17
# A chain of more clusters than this has is followed in a worker.
AT_ONCE_BYTES_MAX: Final = 1 << 20
_ROOT_STAT: Final = Stat(NodeKind.DIRECTORY, 0, ROOT, 1)


class FatTree(ImageTree):
    """The files of one FAT volume; `device` is the tree's own and closed with it."""

    root = ROOT

    def __init__(self, device: BlockDevice) -> None:
        """Reads the boot sector; raises as `read_geometry`, and then `device` stays open."""
        self._geometry = read_geometry(device)
        self._device = device
        self._volume: Volume | None = None
        self._loading = threading.Lock()
        self._listings = _Listings()

    def __repr__(self) -> str:
        geometry = self._geometry
        return f"FatTree(FAT{geometry.bits}, {geometry.clusters} clusters)"

    def stat(self, node: int) -> Stat:
        if node == ROOT:
            return _ROOT_STAT
        return self._entry(node)[0].stat

    def lookup(self, directory: int, name: str) -> Entry:
        """By long or short name, in any case; the entry's name is the one that is listed."""
        check_name(name)
        listing = self._listing(directory)
        at = listing.by_name.get(folded(name))
        if at is None:
            raise NotFound("no entry of this name")
        return listing.entries[at]

    def list(self, directory: int, after: str, limit: int) -> Page:
        # A page of the longest names has half of the bytes that a page may have.
        listing = self._listing(directory)
        start = bisect_right(listing.names, after)
        stop = start + max(1, min(limit, PAGE_ENTRIES_MAX))
        return Page(listing.entries[start:stop], more=stop < len(listing.entries))

    def content(self, node: int) -> ExtentContent:
        if node == ROOT:
            raise IsDirectory("a directory")
        entry, head = self._entry(node)
        if entry.stat.kind is NodeKind.DIRECTORY:
            raise IsDirectory("a directory")
        extents = self._loaded().extents(node, head, entry.stat.size)
        return ExtentContent(self._device, entry.stat.size, extents)

    def waits(self, directory: int) -> bool:
        return self._volume is None or not self._listings.has(directory)

    def content_waits(self, node: int) -> bool:
        volume = self._volume
        try:
            if volume is None or self.waits(volume.parent_of(node)):
                return True
            return self._entry(node)[0].stat.size > AT_ONCE_BYTES_MAX
        except StorageError:
            return False  # `content` raises it, and needs no time for that

    def usage(self) -> Usage:
        volume = self._loaded()
        geometry = self._geometry
        total = geometry.clusters * geometry.cluster_bytes
        free = volume.table.free * geometry.cluster_bytes
        return Usage(
            total_bytes=total,
            used_bytes=total - free,
            free_bytes=free,
            used_nodes=volume.nodes,
            label=self._label(volume),
        )

    def regions(self) -> Iterator[Region]:
        return regions_of(self._loaded())

    def verify(self) -> Iterator[Finding]:
        return findings_of(self._loaded())

    def describe(self) -> dict[str, Any]:
        volume, geometry = self._loaded(), self._geometry
        try:
            hint = free_hint(self._device, geometry)
        except Corrupt:
            hint = None
        return {
            "format": f"FAT{geometry.bits}",
            "label": self._label(volume),
            "volume_id": f"{geometry.volume_id:08X}",
            "sector_bytes": geometry.sector_bytes,
            "cluster_bytes": geometry.cluster_bytes,
            "clusters": geometry.clusters,
            "free_clusters": volume.table.free,
            "free_clusters_hint": hint,
            "total_bytes": geometry.total_bytes,
            "fats": geometry.fats,
            "fat_offset": geometry.fat_offset,
            "fat_bytes": geometry.fat_bytes,
            "root_entries": geometry.root_entries,
            "root_cluster": geometry.root_cluster,
            "data_offset": geometry.data_offset,
            "unmounted": not volume_state(self._device, geometry) & 1,
            "nodes": volume.nodes,
        }

    def close(self) -> None:
        self._listings.clear()
        self._volume = None
        self._device.close()

    def _loaded(self) -> Volume:
        volume = self._volume
        if volume is None:
            with self._loading:
                volume = self._volume
                if volume is None:
                    volume = self._volume = Volume(self._device, self._geometry)
        return volume

    def _label(self, volume: Volume) -> str:
        try:
            raw = volume_label(volume.directory(ROOT).slots)
        except Corrupt:
            raw = None
        return self._geometry.label if raw is None else label_of(raw)

    def _entry(self, node: int) -> tuple[Entry, int]:
        """A node's entry and first cluster."""
        listing = self._listing(self._loaded().parent_of(node))
        at = listing.by_id.get(node)
        if at is None:
            raise NotFound("the entry has no name of its own")
        return listing.entries[at], listing.heads[at]

    def _listing(self, directory: int) -> Listing:
        found = self._listings.get(directory)
        if found is None:
            raw = self._loaded().directory(directory)
            found = decode(raw.slots, raw.ids.tolist())
            found.problems.clear()
            self._listings.put(directory, found)
        return found


class _Listings:
    """The listings that were used last, at most `CACHED_ENTRIES_MAX` entries of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Listing] = OrderedDict()
        self._room = CACHED_ENTRIES_MAX

    def has(self, directory: int) -> bool:
        return directory in self._kept

    def get(self, directory: int) -> Listing | None:
        with self._lock:
            found = self._kept.get(directory)
            if found is not None:
                self._kept.move_to_end(directory)
            return found

    def put(self, directory: int, listing: Listing) -> None:
        with self._lock:
            if directory in self._kept:
                return
            self._kept[directory] = listing
            self._room -= _weight(listing)
            while self._room < 0:
                self._room += _weight(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._room = CACHED_ENTRIES_MAX


def _weight(listing: Listing) -> int:
    # An empty listing takes room too.
    return len(listing.entries) + 8


def open_fat(device: BlockDevice, part: int | None = None) -> FatTree:
    """The FAT volume on `device`, or in its partition number `part`.

    The tree owns `device`; if this raises, the caller still does.  Raises `InvalidArgument` where a
    partition is to be named or does not exist, `Corrupt`, `Unsupported`.
    """
    if part is not None:
        return FatTree(_window(device, part))
    try:
        return FatTree(device)
    except StorageError as error:
        try:
            found = partitions(device)
        except Corrupt:
            raise error from None
        if not found:
            raise
        raise InvalidArgument(
            f"a disk with partitions, name one with part=N: {_listed(found)}"
        ) from None


def _window(device: BlockDevice, part: int) -> WindowDevice:
    found: list[Partition] = []
    for partition in each_partition(device):
        found.append(partition)
        if partition.number != part:
            continue
        if partition.start + partition.length > device.size():
            raise Corrupt(f"partition {part} at offset {partition.start} is cut off")
        return WindowDevice(device, partition.start, partition.length, owns=True)
    raise InvalidArgument(f"there is no part={part}, but {_listed(found) or 'no partition'}")


def _listed(found: list[Partition]) -> str:
    shown = [f"part={one.number} ({one.type}, {one.length} bytes)" for one in found[:16]]
    return ", ".join(shown + ["..."] * (len(found) > 16))
