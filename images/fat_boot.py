"""FAT: the boot sector and what follows from it, where everything is.

Invariants: a `Geometry` is checked.  Every table and every cluster that it names lies inside the
device, in the order reserved sectors, FATs, root directory (FAT12 and FAT16), clusters; so
arithmetic on its numbers needs no further bounds.

Source: Microsoft, *FAT32 File System Specification* 1.03 (fatgen103), 6 December 2000; where this
reader is wider or narrower stands in ``docs/spec/fat.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from capstore.images.device import BlockDevice, read_checked
from capstore.schema.errors import Corrupt, Unsupported
from capstore.schema.limits import FAT_CLUSTERS_MAX

BOOT_BYTES: Final = 512
ENTRY_BYTES: Final = 32
FIRST_CLUSTER: Final = 2

_COMMON: Final = (
    ("jump", "V3"),
    ("oem", "V8"),
    ("sector_bytes", "<u2"),
    ("cluster_sectors", "u1"),
    ("reserved_sectors", "<u2"),
    ("fats", "u1"),
    ("root_entries", "<u2"),
    ("sectors_16", "<u2"),
    ("media", "u1"),
    ("fat_sectors_16", "<u2"),
    ("track_sectors", "<u2"),
    ("heads", "<u2"),
    ("hidden_sectors", "<u4"),
    ("sectors_32", "<u4"),
)
_EXTENDED: Final = (
    ("drive", "u1"),
    ("state", "u1"),
    ("signature", "u1"),
    ("volume_id", "<u4"),
    ("label", "V11"),
    ("kind", "V8"),
)
_FAT32: Final = (
    ("fat_sectors_32", "<u4"),
    ("flags", "<u2"),
    ("version", "<u2"),
    ("root_cluster", "<u4"),
    ("info_sector", "<u2"),
    ("backup_sector", "<u2"),
    ("reserved", "V12"),
)
BOOT_16: Final = np.dtype([*_COMMON, *_EXTENDED])
BOOT_32: Final = np.dtype([*_COMMON, *_FAT32, *_EXTENDED])
INFO: Final = np.dtype(
    [
        ("lead", "<u4"),
        ("reserved", "V480"),
        ("signature", "<u4"),
        ("free", "<u4"),
        ("next", "<u4"),
        ("reserved2", "V12"),
        ("trail", "<u4"),
    ]
)
_BACKED_UP: Final = [
    name
    for name, _ in (*_COMMON, *_FAT32, *_EXTENDED)
    if name not in ("jump", "oem", "drive", "state")
]
_INFO_SIGNATURES: Final = (0x41615252, 0x61417272, 0xAA550000)
_BOOT_SIGNATURE: Final = b"\x55\xaa"
_EXTENDED_SIGNATURES: Final = (0x28, 0x29)
_MIRROR_OFF: Final = 0x80
_NO_LABEL: Final = "NO NAME"
_FAT12_CLUSTERS: Final = 4085
_FAT16_CLUSTERS: Final = 65525
_FAT32_CLUSTERS: Final = 0x0FFFFFF5


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where everything is; offsets and sizes in bytes unless the name says otherwise.

    `bits` is 12, 16 or 32; clusters are numbered from 2 to below `cluster_stop`.  `root_cluster`
    is 0 where the root directory has a place of its own, `root_entries` slots at `root_offset`.
    `active_fat` is the copy to read; `mirrored` says that the others are to equal it.
    `info_offset` and `backup_offset` are 0 where there is no such sector.
    """

    bits: int
    sector_bytes: int
    cluster_bytes: int
    clusters: int
    total_bytes: int
    media: int
    fat_offset: int
    fat_bytes: int
    fats: int
    active_fat: int
    mirrored: bool
    root_offset: int
    root_entries: int
    root_cluster: int
    data_offset: int
    info_offset: int
    backup_offset: int
    volume_id: int
    label: str

    @property
    def cluster_stop(self) -> int:
        """One more than the highest cluster number."""
        return self.clusters + FIRST_CLUSTER

    def offset_of(self, cluster: int) -> int:
        """Where the cluster is."""
        return self.data_offset + (cluster - FIRST_CLUSTER) * self.cluster_bytes

    def table_bytes(self) -> int:
        """How many bytes of a FAT the clusters use."""
        return (self.cluster_stop * self.bits + 7) // 8

    def copy_offset(self, copy: int) -> int:
        """Where copy number `copy` of the FAT is."""
        return self.fat_offset + copy * self.fat_bytes


def read_geometry(device: BlockDevice) -> Geometry:
    """Reads and checks the boot sector.

    Raises `Corrupt` where it is none or contradicts itself or the device, `Unsupported` for a
    later version or more than `FAT_CLUSTERS_MAX` clusters.
    """
    raw = read_checked(device, 0, BOOT_BYTES, "the boot sector")
    if raw[-2:] != _BOOT_SIGNATURE:
        raise _wrong("it does not end with 55 AA")
    common = np.frombuffer(raw, BOOT_16, 1)[0]
    large = not int(common["fat_sectors_16"])
    geometry = _geometry(np.frombuffer(raw, BOOT_32, 1)[0] if large else common, large)
    if geometry.total_bytes > device.size():
        raise _wrong(f"its {geometry.total_bytes} bytes exceed the image's {device.size()}")
    if geometry.clusters > FAT_CLUSTERS_MAX:
        raise Unsupported(f"FAT with more than {FAT_CLUSTERS_MAX} clusters")
    return geometry


def free_hint(device: BlockDevice, geometry: Geometry) -> int | None:
    """The free clusters that the FSInfo sector claims, None where it claims nothing.

    Raises `Corrupt` where the sector is not one.
    """
    if not geometry.info_offset:
        return None
    info = np.frombuffer(device.read(geometry.info_offset, INFO.itemsize), INFO, 1)[0]
    if (int(info["lead"]), int(info["signature"]), int(info["trail"])) != _INFO_SIGNATURES:
        raise Corrupt(f"the FSInfo sector at offset {geometry.info_offset} has no signatures")
    free = int(info["free"])
    return None if free == 0xFFFFFFFF else free


def backup_differs(device: BlockDevice, geometry: Geometry) -> bool:
    """Whether the backup of a FAT32 boot sector says something else than the boot sector.

    Boot code may differ, and the state byte: systems mark a volume as in use in one of them.
    """
    if not geometry.backup_offset:
        return False
    raw, backup = (device.read(at, BOOT_BYTES) for at in (0, geometry.backup_offset))
    ours, theirs = (np.frombuffer(sector, BOOT_32, 1)[0] for sector in (raw, backup))
    return backup[-2:] != _BOOT_SIGNATURE or any(
        ours[name].tobytes() != theirs[name].tobytes() for name in _BACKED_UP
    )


def volume_state(device: BlockDevice, geometry: Geometry) -> int:
    """The state byte of the boot sector: bit 0 says that the volume was not unmounted."""
    layout = BOOT_32 if geometry.bits == 32 else BOOT_16
    return int(np.frombuffer(device.read(0, BOOT_BYTES), layout, 1)[0]["state"])


def label_of(raw: bytes) -> str:
    """The text of a volume label's eleven bytes; empty where it is none."""
    text = raw.decode("cp437").rstrip(" \0")
    return "" if text == _NO_LABEL or not text.isprintable() else text


def _wrong(what: str) -> Corrupt:
    return Corrupt(f"the boot sector at offset 0 is no FAT boot sector: {what}")


def _geometry(boot: np.void, large: bool) -> Geometry:
    _check_fields(boot)
    sector = int(boot["sector_bytes"])
    cluster = int(boot["cluster_sectors"]) * sector
    fat_sectors = int(boot["fat_sectors_32"] if large else boot["fat_sectors_16"])
    total = int(boot["sectors_16"]) or int(boot["sectors_32"])
    fat_offset = int(boot["reserved_sectors"]) * sector
    root_entries = int(boot["root_entries"])
    root_offset = fat_offset + int(boot["fats"]) * fat_sectors * sector
    data_offset = root_offset + -(-root_entries * ENTRY_BYTES // sector) * sector
    clusters = (total * sector - data_offset) // cluster
    if clusters < 1:
        raise _wrong("it leaves no room for clusters")
    bits = _bits(clusters, large)
    if fat_sectors * sector * 8 < (clusters + FIRST_CLUSTER) * bits:
        raise _wrong(f"its FAT has no room for {clusters} clusters")
    active, mirrored = _active(boot, large)
    known = int(boot["signature"]) in _EXTENDED_SIGNATURES
    labelled = int(boot["signature"]) == _EXTENDED_SIGNATURES[-1]
    return Geometry(
        bits=bits,
        sector_bytes=sector,
        cluster_bytes=cluster,
        clusters=clusters,
        total_bytes=total * sector,
        media=int(boot["media"]),
        fat_offset=fat_offset,
        fat_bytes=fat_sectors * sector,
        fats=int(boot["fats"]),
        active_fat=active,
        mirrored=mirrored,
        root_offset=root_offset,
        root_entries=root_entries,
        root_cluster=_root_cluster(boot, root_entries, clusters, large),
        data_offset=data_offset,
        info_offset=_reserved(boot, "info_sector") if large else 0,
        backup_offset=_reserved(boot, "backup_sector") if large else 0,
        volume_id=int(boot["volume_id"]) if known else 0,
        label=label_of(boot["label"].tobytes()) if labelled else "",
    )


def _check_fields(boot: np.void) -> None:
    if int(boot["sector_bytes"]) not in (512, 1024, 2048, 4096):
        raise _wrong("a sector has 512, 1024, 2048 or 4096 bytes")
    if int(boot["cluster_sectors"]) not in (1, 2, 4, 8, 16, 32, 64, 128):
        raise _wrong("a cluster has 1 to 128 sectors, a power of two")
    if not int(boot["reserved_sectors"]):
        raise _wrong("it is not among the reserved sectors")
    if not int(boot["fats"]):
        raise _wrong("it has no FAT")
    if int(boot["media"]) not in (0xF0, *range(0xF8, 0x100)):
        raise _wrong(f"media {int(boot['media']):02X} is not in use")


def _bits(clusters: int, large: bool) -> int:
    """The type by the number of clusters, but FAT32 by its layout also where that is small."""
    if large:
        if clusters >= _FAT32_CLUSTERS:
            raise _wrong(f"{clusters} clusters are more than FAT32 has")
        return 32
    if clusters >= _FAT16_CLUSTERS:
        raise _wrong(f"{clusters} clusters are more than FAT16 has")
    return 12 if clusters < _FAT12_CLUSTERS else 16


def _root_cluster(boot: np.void, root_entries: int, clusters: int, large: bool) -> int:
    if not large:
        if not root_entries:
            raise _wrong("the root directory has no entries")
        return 0
    if root_entries:
        raise _wrong("FAT32 has no root directory outside of its clusters")
    if int(boot["version"]):
        raise Unsupported(f"FAT32 version {int(boot['version']):04X}")
    cluster = int(boot["root_cluster"])
    if not FIRST_CLUSTER <= cluster < clusters + FIRST_CLUSTER:
        raise _wrong(f"the root directory's cluster {cluster} does not exist")
    return cluster


def _active(boot: np.void, large: bool) -> tuple[int, bool]:
    """The copy of the FAT in use, and whether the others mirror it."""
    flags = int(boot["flags"]) if large else 0
    if not flags & _MIRROR_OFF:
        return 0, True
    active = flags & 0x0F
    if active >= int(boot["fats"]):
        raise _wrong(f"FAT number {active} is in use and does not exist")
    return active, False


def _reserved(boot: np.void, field: str) -> int:
    """The offset of one of the reserved sectors, 0 where the field names none."""
    sector = int(boot[field])
    return sector * int(boot["sector_bytes"]) if sector < int(boot["reserved_sectors"]) else 0
