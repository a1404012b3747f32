"""FAT: the map of a volume, and what of it is in use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from capstore.images.fat_boot import BOOT_BYTES, FIRST_CLUSTER, Geometry
from capstore.images.fat_table import BAD, FREE, stretches
from capstore.images.fat_volume import Volume
from capstore.images.tree import Region

_DATA: Final = 0
_FREE: Final = 1
_BAD: Final = 2
_DIRECTORY: Final = 3
_KINDS: Final = ("data", "free", "damaged", "directory")


def regions_of(volume: Volume) -> Iterator[Region]:
    """The volume from its boot sector to the end of the device, ascending and without gaps."""
    geometry = volume.geometry
    yield from _reserved(geometry)
    for copy in range(geometry.fats):
        start = geometry.copy_offset(copy)
        yield Region(start, geometry.fat_bytes, "table", f"FAT {copy + 1}")
    if geometry.root_offset < geometry.data_offset:
        length = geometry.data_offset - geometry.root_offset
        yield Region(geometry.root_offset, length, "directory", "root directory")
    yield from _clusters(volume)
    end = geometry.offset_of(geometry.cluster_stop)
    if end < volume.device.size():
        yield Region(end, volume.device.size() - end, "unused", "behind the last cluster")


def _reserved(geometry: Geometry) -> Iterator[Region]:
    known = {
        geometry.backup_offset: "backup boot sector",
        geometry.info_offset: "FSInfo",
        0: "boot sector",
    }
    at = 0
    for start, label in sorted(known.items()):
        if at < start:
            yield Region(at, start - at, "unused", "reserved")
        at = start + (geometry.sector_bytes if start else BOOT_BYTES)
        yield Region(start, at - start, "superblock", label)
    if at < geometry.fat_offset:
        yield Region(at, geometry.fat_offset - at, "unused", "reserved")


def _clusters(volume: Volume) -> Iterator[Region]:
    geometry = volume.geometry
    numbers = volume.table.next
    kinds = np.full(len(numbers), _DATA, np.uint8)
    kinds[numbers == FREE] = _FREE
    kinds[numbers == BAD] = _BAD
    for _, directory in volume.directories():
        kinds[directory.clusters] = _DIRECTORY
    kinds = kinds[FIRST_CLUSTER:]
    for start, stop in stretches(kinds):
        yield Region(
            geometry.data_offset + start * geometry.cluster_bytes,
            (stop - start) * geometry.cluster_bytes,
            _KINDS[kinds[start]],
        )
