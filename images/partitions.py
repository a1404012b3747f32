"""Partition tables: MBR with logical partitions, and GPT.

Invariants: partitions are as the table says, in bytes, and may lie outside of the device; whoever
opens one checks that.  The work is bounded by `PARTITIONS_MAX` whatever the tables say.

Sources: UEFI Specification 2.10, chapter 5 (GPT and protective MBR); the layout of the classic MBR
and its chain of extended boot records as chapter 5.2.1 and the tools of all systems have it.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from capstore.images.device import BlockDevice
from capstore.schema.errors import Corrupt
from capstore.schema.limits import GPT_TABLE_BYTES_MAX, PARTITIONS_MAX

_SECTOR_BYTES: Final = 512
_SECTORS_OF_GPT: Final = (512, 4096)
_SIGNATURE: Final = b"\x55\xaa"
_MBR_TABLE: Final = 446
# Status, CHS of the first, type, CHS of the last, first sector, sectors.
_MBR_ENTRY: Final = struct.Struct("<B3sB3sII")
_MBR_ENTRIES: Final = 4
_MBR_STATUS: Final = (0x00, 0x80)
_EXTENDED: Final = (0x05, 0x0F, 0x85)
_PROTECTIVE: Final = 0xEE
# Signature, revision, header size, CRC, reserved, this LBA, other LBA, first and last usable LBA,
# disk GUID, table LBA, entries, entry size, CRC of the table.
_GPT_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_CRC: Final = slice(16, 20)
_GPT_SIGNATURE: Final = b"EFI PART"
# Type GUID, own GUID, first and last LBA, attributes, name.
_GPT_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_LBA_MAX: Final = 1 << 51


@dataclass(frozen=True, slots=True)
class Partition:
    """`length` bytes at `start`; `number` is the one that systems count by.

    `type` is two hexadecimal digits (MBR) or a GUID (GPT), `name` is GPT's.
    """

    number: int
    start: int
    length: int
    type: str
    name: str = ""


def partitions(device: BlockDevice) -> list[Partition]:
    """The partitions on a disk, by number; none where there is no partition table.

    Raises `Corrupt` for a damaged table, `StorageIOError` from the device.
    """
    return list(each_partition(device))


def each_partition(device: BlockDevice) -> Iterator[Partition]:
    """As `partitions`, but one by one: what comes before damage is had all the same."""
    if device.size() < _SECTOR_BYTES:
        return
    rows = _mbr_rows(device.read(0, _SECTOR_BYTES))
    if rows is None:
        return
    if any(kind == _PROTECTIVE for kind, _, _ in rows):
        yield from _gpt(device)
    else:
        yield from _mbr(device, rows)


# MBR ----------------------------------------------------------------------------------------------


def _mbr_rows(raw: bytes) -> list[tuple[int, int, int]] | None:
    """The (type, first sector, sectors) of a table's four entries, or None if it is none."""
    if raw[-2:] != _SIGNATURE:
        return None
    rows: list[tuple[int, int, int]] = []
    for index in range(_MBR_ENTRIES):
        status, _, kind, _, first, sectors = _MBR_ENTRY.unpack_from(
            raw, _MBR_TABLE + index * _MBR_ENTRY.size
        )
        if status not in _MBR_STATUS:
            return None
        rows.append((kind, first, sectors))
    return rows


def _mbr(device: BlockDevice, rows: list[tuple[int, int, int]]) -> Iterator[Partition]:
    for number, (kind, first, sectors) in enumerate(rows, 1):
        if kind and sectors and first and kind not in _EXTENDED:
            yield _mbr_partition(number, kind, first, sectors)
    for kind, first, _ in rows:
        if kind in _EXTENDED and first:
            yield from _logical(device, first, _MBR_ENTRIES + 1)
            return


def _mbr_partition(number: int, kind: int, first: int, sectors: int) -> Partition:
    return Partition(number, first * _SECTOR_BYTES, sectors * _SECTOR_BYTES, f"{kind:02x}")


def _logical(device: BlockDevice, base: int, number: int) -> Iterator[Partition]:
    """The logical partitions: a chain of boot records, each with a partition and a link."""
    seen: set[int] = set()
    at: int | None = base
    while at is not None:
        offset = at * _SECTOR_BYTES
        if at in seen:
            raise Corrupt(f"the extended boot record at offset {offset} is linked twice")
        seen.add(at)
        if len(seen) > PARTITIONS_MAX:
            raise Corrupt(f"more than {PARTITIONS_MAX} logical partitions")
        if offset + _SECTOR_BYTES > device.size():
            raise Corrupt(f"the extended boot record at offset {offset} is cut off")
        rows = _mbr_rows(device.read(offset, _SECTOR_BYTES))
        if rows is None:
            raise Corrupt(f"the extended boot record at offset {offset} is none")
        following = None
        for kind, first, sectors in rows[:2]:
            if kind in _EXTENDED:
                following = base + first
            elif kind and sectors:
                yield _mbr_partition(number, kind, at + first, sectors)
                number += 1
        at = following


# GPT ----------------------------------------------------------------------------------------------


def _gpt(device: BlockDevice) -> list[Partition]:
    """The partitions of the primary table, or of the backup at the end where that is damaged."""
    damage: Corrupt | None = None
    for sector in _SECTORS_OF_GPT:
        last = device.size() // sector - 1
        for lba in (1, last):
            try:
                return _gpt_at(device, sector, lba)
            except Corrupt as error:
                damage = damage or error
    raise damage or Corrupt("the disk has no GPT")


def _gpt_at(device: BlockDevice, sector: int, lba: int) -> list[Partition]:
    offset = lba * sector
    if lba < 1 or offset + sector > device.size():
        raise Corrupt(f"the GPT header at offset {offset} is cut off")
    raw = bytearray(device.read(offset, sector))
    header = _GPT_HEADER.unpack_from(raw)
    signature, size, checksum, own = header[0], header[2], header[3], header[5]
    if signature != _GPT_SIGNATURE or not _GPT_HEADER.size <= size <= sector:
        raise Corrupt(f"the GPT header at offset {offset} is none")
    raw[_GPT_CRC] = bytes(4)
    if zlib.crc32(raw[:size]) != checksum or own != lba:
        raise Corrupt(f"the GPT header at offset {offset} has a wrong checksum or place")
    table, count, width, sum_of_table = header[10:14]
    return _gpt_entries(
        _gpt_table(device, table, sector, count * width, sum_of_table), sector, width
    )


def _gpt_table(device: BlockDevice, lba: int, sector: int, length: int, checksum: int) -> bytes:
    offset = lba * sector
    if length > GPT_TABLE_BYTES_MAX:
        raise Corrupt(f"the GPT at offset {offset} has {length} bytes of entries")
    if lba > _LBA_MAX or offset + length > device.size():
        raise Corrupt(f"the GPT at offset {offset} is cut off")
    raw = device.read(offset, length)
    if zlib.crc32(raw) != checksum:
        raise Corrupt(f"the GPT at offset {offset} has a wrong checksum")
    return raw


def _gpt_entries(raw: bytes, sector: int, width: int) -> list[Partition]:
    if width < _GPT_ENTRY.size or width % 8:
        raise Corrupt(f"the GPT has entries of {width} bytes")
    found: list[Partition] = []
    for index in range(len(raw) // width):
        kind, _, first, last, _, name = _GPT_ENTRY.unpack_from(raw, index * width)
        if not any(kind):
            continue
        if not first <= last <= _LBA_MAX:
            raise Corrupt(f"entry {index + 1} of the GPT ends at {last} and begins at {first}")
        if len(found) == PARTITIONS_MAX:
            raise Corrupt(f"the GPT has more than {PARTITIONS_MAX} partitions")
        text = name.decode("utf-16-le", "replace").partition("\0")[0]
        start, length = first * sector, (last - first + 1) * sector
        guid = str(uuid.UUID(bytes_le=kind))
        found.append(Partition(index + 1, start, length, guid, text))
    return found
