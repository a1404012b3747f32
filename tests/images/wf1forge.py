"""Images of CAPOSWF1 whose records are forged, and what is found in them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from capstore.images import wf1
from capstore.images.checksums import crc32c
from capstore.images.devices import MemoryDevice
from capstore.images.records import (
    BLOCK_BYTES,
    WF1_CHECKPOINT,
    WF1_ENTRY,
    WF1_EXTENT,
    WF1_NODE,
    WF1_SUPERBLOCK,
    Record,
)
from capstore.images.tree import Finding
from capstore.images.wf1_recovery import recover
from capstore.images.wf1_tree import Wf1Tree
from capstore.images.wf1_verify import verify
from capstore.schema.errors import Corrupt, Unsupported
from capstore.tools.image.reading import contents_read
from capstore.tools.progress import Meter
from tests.images.trees import File, Folder, Link

SIZE = 1 << 20
TREE = Folder(
    {
        "dir": Folder({"inner": Folder({"deep": Folder()}), "file": File(b"one" * 40_000)}),
        "file": File(b"two" * 300),
        "link": Link("dir/file"),
        "other": Folder(),
        "z": File(b"three"),
    }
)
# Their ids, in the order of the walk.
DIR, FILE, INNER, DEEP, FILE_2, LINK, OTHER = 2, 3, 4, 5, 6, 7, 8


def clock() -> int:
    return 1


def entropy(count: int) -> bytes:
    return b"k" * count


class Forger:
    """An image whose records are changed, and sealed again."""

    def __init__(self, image: bytes) -> None:
        self.image = bytearray(image)
        self.found = recover(MemoryDevice(image))

    def at(self, table: int, record: Record, row: int) -> int:
        return self.found.tables.place(self.found.tables.head.starts[table] + row * record.size)

    def change(self, record: Record, offset: int, **values: int) -> Any:
        """Changes fields of the record at `offset`; what it was before."""
        before = record.unpack(self.image[offset:], "a record", offset)
        fields = before._asdict() | values
        del fields["crc"]
        self.image[offset : offset + record.size] = record.pack(**fields)
        return before

    def node(self, number: int, **values: int) -> Any:
        """Changes a node; the tables of a small image have it in the row of its number."""
        return self.change(WF1_NODE, self.at(0, WF1_NODE, number - 1), **values)

    def entry(self, row: int, **values: int) -> Any:
        return self.change(WF1_ENTRY, self.at(1, WF1_ENTRY, row), **values)

    def extent(self, row: int, **values: int) -> Any:
        return self.change(WF1_EXTENT, self.at(2, WF1_EXTENT, row), **values)

    def head(self, **values: int) -> None:
        """Changes the head of the checkpoint, and what the superblocks say of it."""
        at = self.found.tables.place(0)
        self.change(WF1_CHECKPOINT, at, **values)
        self.superblock(checkpointSum=crc32c(bytes(self.image[at : at + WF1_CHECKPOINT.size])))

    def numbers(self, at: int, *values: int) -> None:
        """Changes numbers behind the head, of 4 bytes each: runs, then usage."""
        head = self.found.tables.head
        start = self.found.tables.place(0) + WF1_CHECKPOINT.size
        for index, value in enumerate(values, at):
            offset = start + 4 * index
            self.image[offset : offset + 4] = value.to_bytes(4, "little")
        end = start + 4 * (len(head.runs) + len(head.usage))
        self.head(headSum=crc32c(bytes(self.image[start:end])))

    def superblock(self, **values: int) -> None:
        for lba in wf1.SUPERBLOCK_LBAS:
            self.change(WF1_SUPERBLOCK, lba * BLOCK_BYTES, **values)

    @property
    def entry_of(self) -> dict[tuple[int, int], int]:
        """The rows of entries, by directory and node."""
        rows = {}
        for row in range(self.found.tables.head.counts.entries):
            raw = self.image[self.at(1, WF1_ENTRY, row) :]
            record = WF1_ENTRY.unpack(raw, "an entry")
            rows[record.directory, record.node] = row
        return rows


def findings(image: bytes | bytearray) -> list[Finding]:
    """What is wrong with an image, its files included; it is the same afterwards."""
    device = MemoryDevice(image)
    found = list(verify(device))
    try:
        tree = Wf1Tree(device)
    except (Corrupt, Unsupported):
        assert found
    else:
        found += [Finding("/".join(p), e.message) for p, e in contents_read(tree, Meter())]
        with suppress(Corrupt):
            list(tree.regions())
        tree.describe()
        tree.usage()
    assert device.view == image
    return found


BIG = (1 << 64) - 1
