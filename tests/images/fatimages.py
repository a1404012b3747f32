"""Makers of FAT images: the host's mkfs.fat and mtools, and a forger that patches bytes.

The forger has the offsets of Microsoft's specification written out by hand, so that it shares
nothing with the reader under test.
"""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from capstore.images.devices import MemoryDevice
from capstore.images.fat import FatTree
from capstore.images.tree import Content
from capstore.schema.nodes import NodeKind

ENVIRONMENT = {
    **os.environ,
    "MTOOLS_SKIP_CHECK": "1",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "MTOOLSRC": os.devnull,
    "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
}
ENTRY = 32
END = 0x0FFFFFFF

# A small tree with names of every sort: 8.3, long, mixed case, Unicode, deep, many levels of dots.
TREE: dict[str, bytes] = {
    "README": b"readme\n",
    "lower.txt": b"lower case\n",
    "Mixed Case Name.TXT": b"mixed\n" * 100,
    "a name that is so long that it takes many entries of a directory.text": bytes(range(256)) * 40,
    "Grüße aus Köln.txt": b"umlauts",
    "日本語のファイル.dat": b"\0" * 3000,
    "empty": b"",
    "one.two.three.four": b"dots",
    "sub/inner/deepest/file in the deep.bin": b"\x5a" * 5000,
    "sub/UPPER.BIN": b"U" * 512,
    "sub/exact cluster": b"x" * 2048,
    "Пустая папка/текст": "кириллица".encode(),
}


def run(*command: str | Path) -> str:
    """Runs a tool; returns what it printed."""
    done = subprocess.run(
        [str(part) for part in command], env=ENVIRONMENT, capture_output=True, check=True
    )
    return done.stdout.decode(errors="replace")


def make(path: Path, kib: int, *options: str) -> Path:
    """An empty image."""
    path.unlink(missing_ok=True)
    run("mkfs.fat", "--invariant", "-C", *options, path, str(kib))
    return path


def plant(folder: Path, tree: dict[str, bytes]) -> Path:
    """`tree` as files below `folder`, with times that FAT can hold."""
    for at, (name, content) in enumerate(sorted(tree.items())):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1_700_000_000 + at * 86_402, 1_700_000_000 + at * 86_402))
    return folder


def fill(image: Path, folder: Path) -> Path:
    """Copies all below `folder` into the image with mcopy, keeping times."""
    run("mcopy", "-s", "-m", "-Q", "-i", image, *sorted(folder.iterdir()), "::/")
    return image


def fsck(image: Path) -> None:
    """fsck.fat finds nothing, else `CalledProcessError`."""
    run("fsck.fat", "-n", image)


def everything(content: Content) -> bytes:
    """All bytes of a file."""
    buffer = bytearray(content.size)
    assert content.read_into(0, memoryview(buffer)) == content.size
    return bytes(buffer)


def read_tree(tree: FatTree) -> dict[str, bytes]:
    """All files of an image by path, and empty directories with a slash behind."""
    found: dict[str, bytes] = {}
    pending = [(tree.root, "")]
    while pending:
        directory, prefix = pending.pop()
        page = tree.list(directory, "", 1000)
        assert not page.more
        if not page.entries:
            found[prefix] = b""
        for entry in page.entries:
            if entry.stat.kind is NodeKind.DIRECTORY:
                pending.append((entry.stat.node_id, f"{prefix}{entry.name}/"))
            else:
                found[prefix + entry.name] = everything(tree.content(entry.stat.node_id))
    return found


def checksum(short: bytes) -> int:
    """The checksum of a short name, as the specification's C code has it."""
    total = 0
    for byte in short:
        total = ((0x80 if total & 1 else 0) + (total >> 1) + byte) & 0xFF
    return total


def short_entry(
    name: bytes,
    *,
    attributes: int = 0x20,
    case: int = 0,
    cluster: int = 0,
    size: int = 0,
    tenths: int = 0,
    created: tuple[int, int] = (0, 0),
    modified: tuple[int, int] = (0x5821, 0),
) -> bytes:
    """A short entry; `created` and `modified` are (date, time) as stored."""
    assert len(name) == 11
    return struct.pack(
        "<11sBBBHHHHHHHI",
        name,
        attributes,
        case,
        tenths,
        created[1],
        created[0],
        0,
        cluster >> 16,
        modified[1],
        modified[0],
        cluster & 0xFFFF,
        size,
    )


def long_entries(name: str | bytes, short: bytes, *, total: int | None = None) -> list[bytes]:
    """The long entries of `name` (UTF-16 if bytes) in front of `short`, in stored order."""
    units = name if isinstance(name, bytes) else name.encode("utf-16-le")
    if len(units) % 26:
        units += b"\0\0"
        units += b"\xff" * (-len(units) % 26)
    pieces = [units[at : at + 26] for at in range(0, len(units), 26)]
    rows = [
        struct.pack(
            "<B10sBBB12sH4s",
            order | (0x40 if order == len(pieces) else 0),
            piece[:10],
            0x0F,
            0,
            checksum(short) if total is None else total,
            piece[10:22],
            0,
            piece[22:],
        )
        for order, piece in enumerate(pieces, 1)
    ]
    return rows[::-1]


# What mkfs.fat makes, by the bits of a FAT entry and the size in KiB.
_EMPTY: dict[tuple[int, int], bytes] = {}


@dataclass
class Forge:
    """A FAT image as bytes to patch."""

    data: bytearray

    @classmethod
    def empty(cls, folder: Path, bits: int, kib: int = 0) -> Forge:
        """A new image of the smallest usual size, one sector to a cluster."""
        kib = kib or {12: 512, 16: 4096, 32: 34_000}[bits]
        if (bits, kib) not in _EMPTY:
            path = make(folder / "empty.img", kib, "-F", str(bits), "-s", "1", "-a")
            _EMPTY[bits, kib] = path.read_bytes()
        forge = cls(bytearray(_EMPTY[bits, kib]))
        if bits == 32:
            # The FSInfo sector claims nothing, for nobody here keeps its count.
            struct.pack_into("<I", forge.data, forge.sector + 488, 0xFFFFFFFF)
        return forge

    def u16(self, offset: int) -> int:
        return int(struct.unpack_from("<H", self.data, offset)[0])

    def u32(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.data, offset)[0])

    @property
    def sector(self) -> int:
        return self.u16(11)

    @property
    def cluster_bytes(self) -> int:
        return self.data[13] * self.sector

    @property
    def fat_bytes(self) -> int:
        return (self.u16(22) or self.u32(36)) * self.sector

    @property
    def fat(self) -> int:
        return self.u16(14) * self.sector

    @property
    def root(self) -> int:
        """Where the root directory is."""
        at = self.fat + self.data[16] * self.fat_bytes
        return at if self.u16(17) else self.offset(self.u32(44))

    @property
    def clusters(self) -> int:
        total = self.u16(19) or self.u32(32)
        return (total * self.sector - (self.offset(2))) // self.cluster_bytes

    @property
    def bits(self) -> int:
        if not self.u16(22):
            return 32
        return 12 if self.clusters < 4085 else 16

    def offset(self, cluster: int) -> int:
        """Where a cluster is."""
        start = self.fat + self.data[16] * self.fat_bytes + self.u16(17) * ENTRY
        return start + (cluster - 2) * self.cluster_bytes

    def link(self, cluster: int, value: int, copies: tuple[int, ...] = (0, 1)) -> None:
        """Sets an entry of the FAT, in the copies that are named."""
        for copy in copies:
            base = self.fat + copy * self.fat_bytes
            if self.bits == 32:
                struct.pack_into("<I", self.data, base + cluster * 4, value & 0x0FFFFFFF)
            elif self.bits == 16:
                struct.pack_into("<H", self.data, base + cluster * 2, value & 0xFFFF)
            else:
                at = base + cluster * 3 // 2
                old, value = self.u16(at), value & 0xFFF
                new = (old & 0x000F) | value << 4 if cluster % 2 else (old & 0xF000) | value
                struct.pack_into("<H", self.data, at, new)

    def chain(self, *clusters: int) -> int:
        """Links the clusters and ends the chain; returns the first."""
        for here, there in zip(clusters, (*clusters[1:], END), strict=True):
            self.link(here, there)
        return clusters[0]

    def put(self, offset: int, *entries: bytes) -> int:
        """Writes entries at the first free slot behind `offset`; returns where the last is."""
        while self.data[offset]:
            offset += ENTRY
        for entry in entries:
            self.data[offset : offset + ENTRY] = entry
            offset += ENTRY
        return offset - ENTRY

    def file(self, where: int, name: bytes, content: bytes, *clusters: int) -> int:
        """A file in the directory at `where`, in the clusters that are named; returns its id."""
        for at, cluster in enumerate(clusters):
            piece = content[at * self.cluster_bytes : (at + 1) * self.cluster_bytes]
            self.data[self.offset(cluster) : self.offset(cluster) + len(piece)] = piece
        head = self.chain(*clusters) if clusters else 0
        return self.put(where, short_entry(name, cluster=head, size=len(content))) // ENTRY

    def directory(self, where: int, name: bytes, parent: int, *clusters: int) -> int:
        """A directory in the directory at `where`; returns its id.  `parent` is a cluster."""
        head = self.chain(*clusters)
        at = self.offset(head)
        self.put(
            at,
            short_entry(b".".ljust(11), attributes=0x10, cluster=head),
            short_entry(b"..".ljust(11), attributes=0x10, cluster=parent),
        )
        return self.put(where, short_entry(name, attributes=0x10, cluster=head)) // ENTRY

    def tree(self) -> FatTree:
        """The reader of what was forged; it sees what is forged later, where it looks again."""
        return FatTree(MemoryDevice(self.data, read_only=True))
