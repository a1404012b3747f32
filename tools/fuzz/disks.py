"""Small FAT volumes and partitioned disks, made in process.

Invariants: as in `capstore.tools.fuzz.corpus`.  The offsets are written out from Microsoft's
specification and the UEFI specification, so that nothing is shared with the readers under test.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from capstore.tools.fuzz.corpus import noise
from capstore.tools.fuzz.draft import BLOCK_BYTES, Draft, Field, Original
from capstore.tools.fuzz.seals import seal_gpt, short_checksum

_END: Final = 0x0FFFFFFF
FAT_TREE: Final[Mapping[str, bytes | None]] = {
    "A.TXT": b"alpha",
    "a long name of a file.text": noise(1400),
    "Grüße.txt": "grün".encode(),
    "EMPTY": b"",
    "SUB": None,
    "SUB/B.BIN": noise(600, 3),
    "SUB/inner directory": None,
    "SUB/inner directory/C": b"deep",
    "Z": noise(513, 4),
}
# Numbers in a boot sector: offset and width.
_BOOT_FIELDS: Final = (
    (11, 2), (13, 1), (14, 2), (16, 1), (17, 2), (19, 2), (21, 1), (22, 2), (32, 4), (36, 4),
    (40, 2), (42, 2), (44, 4), (48, 2), (50, 2), (66, 1), (510, 2),
)  # fmt: skip
_SLOT_FIELDS: Final = ((0, 1), (11, 1), (12, 1), (13, 1), (20, 2), (22, 2), (24, 2), (26, 2))


@dataclass
class _Volume:
    """A FAT volume in the making, with one sector to a cluster and two FATs."""

    bits: int
    clusters: int
    root_slots: int = 32
    data: bytearray = field(default_factory=bytearray)
    next_cluster: int = 2
    slots: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reserved = 8 if self.bits == 32 else 1
        self.root_slots = 0 if self.bits == 32 else self.root_slots
        self.fat_sectors = -(-(self.clusters + 2) * self.bits // 8 // BLOCK_BYTES) + 1
        self.fat_at = self.reserved * BLOCK_BYTES
        self.fat_bytes = self.fat_sectors * BLOCK_BYTES
        self.root_at = self.fat_at + 2 * self.fat_bytes
        self.clusters_at = self.root_at + self.root_slots * 32
        self.data = bytearray(self.clusters_at + self.clusters * BLOCK_BYTES)
        self.link(0, 0x0FFFFFF8)
        self.link(1, _END)
        self.root_cluster = 0
        if self.bits == 32:
            self.root_cluster = self.next_cluster
            self.root_at = self.store(bytes(3 * BLOCK_BYTES))
        self._boot()

    def _boot(self) -> None:
        sectors = len(self.data) // BLOCK_BYTES
        large = self.bits == 32
        head = b"\xeb\x58\x90capstore" + struct.pack(
            "<HBHBHHBHHHII", BLOCK_BYTES, 1, self.reserved, 2, self.root_slots,
            0 if large else sectors, 0xF8, 0 if large else self.fat_sectors, 32, 64, 0,
            sectors if large else 0,
        )  # fmt: skip
        if large:
            head += struct.pack("<IHHIHH12x", self.fat_sectors, 0, 0, self.root_cluster, 1, 6)
        head += struct.pack("<BBBI", 0x80, 0, 0x29, 0x1234ABCD) + b"FUZZED     "
        head += b"FAT%d   " % self.bits
        boot = head.ljust(510, b"\0") + b"\x55\xaa"
        self.data[:BLOCK_BYTES] = boot
        if large:
            info = struct.pack("<I480xIII12xI", 0x41615252, 0x61417272, 0xFFFFFFFF, 2, 0xAA550000)
            self.data[BLOCK_BYTES : 2 * BLOCK_BYTES] = info
            self.data[6 * BLOCK_BYTES : 7 * BLOCK_BYTES] = boot

    def link(self, cluster: int, value: int) -> None:
        link(self.data, [self.fat_at, self.fat_bytes, self.bits], cluster, value)

    def store(self, content: bytes) -> int:
        """Puts `content` into the next clusters; returns where it is."""
        at = self.clusters_at + (self.next_cluster - 2) * BLOCK_BYTES
        count = -(-len(content) // BLOCK_BYTES)
        for number in range(count):
            last = number == count - 1
            self.link(self.next_cluster, _END if last else self.next_cluster + 1)
            self.next_cluster += 1
        self.data[at : at + len(content)] = content
        return at

    def cluster_of(self, offset: int) -> int:
        return (offset - self.clusters_at) // BLOCK_BYTES + 2

    def entry(self, directory: int, name: str, *, cluster: int, size: int, attribute: int) -> None:
        """An entry in the directory whose bytes are at `directory`."""
        at = directory
        while self.data[at]:
            at += 32
        short = name.encode("ascii", "replace").replace(b"?", b"_").upper()
        base, _, extension = short.partition(b".")
        plain = name.isascii() and name.isupper() and len(base) <= 8 and b" " not in short
        number = b"~%d" % (at // 32 % 10)
        raw = (base[:8] if plain else base.replace(b" ", b"")[:6] + number).ljust(8)
        raw += extension.ljust(3)[:3]
        if name in (".", ".."):
            raw = short.ljust(11)
        elif not plain:
            for piece in _long_entries(name, short_checksum(raw)):
                self._slot(at, piece)
                at += 32
        times = struct.pack(
            "<BBHHHHHH", 0, 5, 0x6000, 0x5821, 0x5821, cluster >> 16, 0x6000, 0x5821
        )
        self._slot(
            at, raw + bytes([attribute]) + times + struct.pack("<HI", cluster & 0xFFFF, size)
        )

    def _slot(self, at: int, raw: bytes) -> None:
        self.data[at : at + 32] = raw
        self.slots.append(at)

    def fill(self, tree: Mapping[str, bytes | None]) -> None:
        places = {"": self.root_at}
        for path, content in tree.items():
            above, _, name = path.rpartition("/")
            if content is None:
                at = self.store(bytes(BLOCK_BYTES))
                places[path] = at
                cluster, parent = self.cluster_of(at), 0
                if above:
                    parent = self.cluster_of(places[above])
                self.entry(at, ".", cluster=cluster, size=0, attribute=0x10)
                self.entry(at, "..", cluster=parent, size=0, attribute=0x10)
                self.entry(places[above], name, cluster=cluster, size=0, attribute=0x10)
            else:
                cluster = self.cluster_of(self.store(content)) if content else 0
                self.entry(places[above], name, cluster=cluster, size=len(content), attribute=0x20)

    def original(self, name: str) -> Original:
        boots = [0, 6 * BLOCK_BYTES] if self.bits == 32 else [0]
        fields = [Field(at + one, width, "little") for at in boots for one, width in _BOOT_FIELDS]
        for slot in self.slots:
            fields += [Field(slot + one, width, "little") for one, width in _SLOT_FIELDS]
            fields.append(Field(slot + 28, 4, "little"))
        marks = {
            "fat": [self.fat_at, self.fat_bytes, self.bits, self.clusters, self.next_cluster],
            "slots": self.slots,
        }
        return Original(name, bytes(self.data), fields, marks)


def link(data: bytearray, fat: Sequence[int], cluster: int, value: int) -> None:
    """Sets an entry in both copies of a FAT: `fat` are its offset, length in bytes, and bits."""
    at, length, bits = fat
    for base in (at, at + length):
        place = base + cluster * bits // 8
        if place + 4 > len(data):
            return
        if bits == 12:
            old = int.from_bytes(data[place : place + 2], "little")
            value &= 0xFFF
            new = (old & 0xF) | value << 4 if cluster % 2 else (old & 0xF000) | value
            data[place : place + 2] = new.to_bytes(2, "little")
        else:
            mask = (1 << bits) - 1
            data[place : place + bits // 8] = (value & mask).to_bytes(bits // 8, "little")


def _long_entries(name: str, checksum: int) -> list[bytes]:
    """The entries of a long name, the last piece first."""
    units = name.encode("utf-16-le")
    if len(units) % 26:
        units += b"\0\0"
        units += b"\xff" * (-len(units) % 26)
    count = len(units) // 26
    entries = []
    for order in range(count, 0, -1):
        piece = units[(order - 1) * 26 : order * 26]
        mark = order | (0x40 if order == count else 0)
        head = bytes([mark]) + piece[:10] + bytes([0x0F, 0, checksum])
        entries.append(head + piece[10:22] + b"\0\0" + piece[22:])
    return entries


def fat_volume(bits: int, clusters: int, tree: Mapping[str, bytes | None]) -> bytes:
    """The bytes of a volume."""
    volume = _Volume(bits, clusters)
    volume.fill(tree)
    return bytes(volume.data)


def fats() -> list[Original]:
    """A volume of each type; FAT32 is one by its layout, however small."""
    found = []
    for bits, clusters in ((12, 60), (16, 4100), (32, 60)):
        volume = _Volume(bits, clusters)
        volume.fill(FAT_TREE)
        found.append(volume.original(f"FAT{bits}"))
    return found


# Disks --------------------------------------------------------------------------------------------


def _mbr(rows: Sequence[tuple[int, int, int]]) -> bytes:
    """A table of (type, first sector, sectors)."""
    table = b"".join(
        struct.pack("<B3xB3xII", 0, kind, first, sectors) for kind, first, sectors in rows
    )
    return (bytes(446) + table).ljust(510, b"\0") + b"\x55\xaa"


def _mbr_fields(at: int) -> list[Field]:
    fields = []
    for row in range(446, 510, 16):
        fields += [Field(at + row, 1, "little"), Field(at + row + 4, 1, "little")]
        fields += [Field(at + row + 8, 4, "little"), Field(at + row + 12, 4, "little")]
    return [*fields, Field(at + 510, 2, "little")]


def mbr_disk() -> Original:
    """A primary partition and two logical ones."""
    volume = fat_volume(12, 40, {"A": b"primary"})
    sectors = len(volume) // BLOCK_BYTES
    first, chain = 4, 4 + sectors
    second = chain + 2 + sectors
    extended = 2 * (sectors + 2)
    data = bytearray((second + 2 + sectors) * BLOCK_BYTES)
    data[:BLOCK_BYTES] = _mbr([(0x01, first, sectors), (0x05, chain, extended)])
    boot_records = {
        chain: [(0x01, 2, sectors), (0x05, second - chain, sectors + 2)],
        second: [(0x01, 2, sectors)],
    }
    data[first * BLOCK_BYTES : first * BLOCK_BYTES + len(volume)] = volume
    for at, rows in boot_records.items():
        data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] = _mbr(rows)
        data[(at + 2) * BLOCK_BYTES : (at + 2) * BLOCK_BYTES + len(volume)] = volume
    fields = [one for at in (0, chain, second) for one in _mbr_fields(at * BLOCK_BYTES)]
    return Original("mbr", bytes(data), fields)


def gpt_disk() -> Original:
    """Two partitions, with the table at both ends."""
    volume = fat_volume(12, 40, {"A": b"in a GPT"})
    sectors = len(volume) // BLOCK_BYTES
    first, table_sectors, count = 6, 2, 8
    last = first + 2 * sectors + table_sectors
    data = bytearray((last + 1) * BLOCK_BYTES)
    data[:BLOCK_BYTES] = _mbr([(0xEE, 1, last)])
    kind = uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7").bytes_le
    table = b""
    for index in range(2):
        start = first + index * sectors
        data[start * BLOCK_BYTES : (start + sectors) * BLOCK_BYTES] = volume
        row = struct.pack("<QQQ", start, start + sectors - 1, 0)
        name = f"part {index}".encode("utf-16-le").ljust(72, b"\0")
        table += kind + bytes([index + 1] * 16) + row + name
    table = table.ljust(table_sectors * BLOCK_BYTES, b"\0")
    fields = _mbr_fields(0)
    for own, other, at in ((1, last, 2), (last, 1, last - table_sectors)):
        data[at * BLOCK_BYTES : (at + table_sectors) * BLOCK_BYTES] = table
        header = struct.pack(
            "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, own, other, first, last - 1,
            bytes(16), at, count, 128, 0,
        )  # fmt: skip
        data[own * BLOCK_BYTES : own * BLOCK_BYTES + len(header)] = header
        base = own * BLOCK_BYTES
        fields += [Field(base + one, 4, "little") for one in (8, 12, 16, 20, 80, 84, 88)]
        fields += [Field(base + one, 8, "little") for one in (24, 32, 40, 48, 72)]
        for place in range(at * BLOCK_BYTES, at * BLOCK_BYTES + 3 * 128, 128):
            fields += [Field(place + one, 8, "little") for one in (0, 16, 32, 40, 48, 56)]
    return Original("gpt", _sealed_gpt(data, fields), fields)


def _sealed_gpt(data: bytearray, fields: Sequence[Field]) -> bytes:
    import random

    draft = Draft(Original("", bytes(data), fields), (), random.Random(0))  # noqa: S311
    seal_gpt(draft)
    return bytes(draft.data)


def disks() -> list[Original]:
    """Disks with an MBR and with a GPT, and one without a table."""
    return [mbr_disk(), gpt_disk(), Original("bare", fat_volume(12, 40, {"A": b"bare"}))]
