"""The nodes of a tree that is being indexed or built, and the tables of CAPOSRO1 made of them.

Invariants:

* Node 0 is the root.  A directory has one name; any other node may have several, or none, and a
  node without a name is not in the tables.
* `NodeTable.tables` numbers nodes breadth first, entries in the order of their names' bytes, so a
  directory's entries stand together and a directory's number is less than that of any below it.
* The same tree gives the same bytes, whatever order it was made in, up to the order of extents.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capstore.images import ro1
from capstore.images.checksums import crc32c
from capstore.images.records import RO1_ENTRY, RO1_EXTENT, RO1_NODE
from capstore.schema.errors import TooLarge
from capstore.schema.nodes import NodeKind, Provenance

ROOT: Final = 0
NODES_MAX: Final = (1 << 32) - 1
_FILE, _DIRECTORY = ro1.KIND_CODES[NodeKind.FILE], ro1.KIND_CODES[NodeKind.DIRECTORY]
_INT64_MAX: Final = (1 << 63) - 1
# About what a node costs in memory, besides its name: columns, a place in a dictionary, a string.
NODE_BYTES: Final = 256
EXTENT_BYTES: Final = 32

# (offset in the file, length, offset in the device, number of the first checksum)
ExtentRow = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Tables:
    """The sealed tables, as CAPOSRO1 has them; `counts` of nodes, entries and extents."""

    nodes: bytes
    entries: bytes
    extents: bytes
    heap: bytes
    counts: tuple[int, int, int]


class NodeTable:
    """Nodes as columns; `bytes_used` estimates the memory they take."""

    def __init__(self) -> None:
        self._kind = bytearray()
        self._flags = bytearray()
        self._provenance = bytearray()
        self._size = array("q")
        self._created = array("q")
        self._modified = array("q")
        self._check = array("Q")
        self._first_extent = array("q")
        self._extent_count = array("q")
        self._extents = tuple(array("q") for _ in range(4))
        # What a symbolic link points to, or what is wrong with a damaged file.
        self._texts: dict[int, bytes] = {}
        self.children: dict[int, dict[str, int]] = {}
        self.bytes_used = 0
        self.add(NodeKind.DIRECTORY)

    def __len__(self) -> int:
        return len(self._kind)

    def add(self, kind: NodeKind) -> int:
        """A new node without a name; its number."""
        number = len(self._kind)
        if number >= NODES_MAX:
            raise TooLarge(f"more than {NODES_MAX} nodes")
        self._kind.append(ro1.KIND_CODES[kind])
        self._flags.append(0)
        self._provenance.append(0)
        for column in (self._size, self._created, self._modified, self._check):
            column.append(0)
        self._first_extent.append(0)
        self._extent_count.append(0)
        if kind is NodeKind.DIRECTORY:
            self.children[number] = {}
        self.bytes_used += NODE_BYTES
        return number

    def is_directory(self, node: int) -> bool:
        """Whether the node is one."""
        return node in self.children

    def set_facts(
        self, node: int, *, modified: int, created: int, provenance: Provenance, executable: bool
    ) -> None:
        """Times in ns since 1970; those that 64 bits do not hold are not recorded."""
        if max(abs(modified), abs(created)) > _INT64_MAX:
            modified = created = 0
            provenance = Provenance.UNKNOWN
        self._modified[node], self._created[node] = modified, created
        self._provenance[node] = ro1.PROVENANCE_CODES[provenance]
        flags = self._flags[node] & ~ro1.EXECUTABLE
        self._flags[node] = flags | (ro1.EXECUTABLE if executable else 0)

    def copy_facts(self, node: int, original: int) -> None:
        """Gives `node` the facts of `original`."""
        for column in (self._modified, self._created):
            column[node] = column[original]
        self._provenance[node] = self._provenance[original]
        self._flags[node] = self._flags[original]

    def set_content(self, node: int, size: int, extents: Sequence[ExtentRow]) -> None:
        """What the file consists of.  Numbers that 64 bits do not hold make it a damaged one."""
        if size > _INT64_MAX or any(max(row) > _INT64_MAX or min(row) < 0 for row in extents):
            self.damage(node, "its size or place is more than 64 bits hold")
            return
        self._size[node] = size
        self._first_extent[node] = len(self._extents[0])
        self._extent_count[node] = len(extents)
        for row in extents:
            for column, value in zip(self._extents, row, strict=True):
                column.append(value)
        self.bytes_used += EXTENT_BYTES * len(extents)

    def set_check(self, node: int, check: int) -> None:
        """The checksum of the file's whole content, of the archive's own kind."""
        self._check[node] = check & 0xFFFFFFFF
        self._flags[node] |= ro1.SUMMED

    def set_target(self, node: int, target: bytes) -> None:
        """What the symbolic link points to."""
        self._texts[node] = target
        self._size[node] = len(target)
        self.bytes_used += len(target)

    def target_bytes(self, node: int) -> int:
        """The length of what a symbolic link points to; 0 for other nodes."""
        is_link = self._kind[node] == ro1.KIND_CODES[NodeKind.SYMLINK]
        return len(self._texts.get(node, b"")) if is_link else 0

    def damage(self, node: int, message: str) -> None:
        """Reading the file's content will be `Corrupt` with this message."""
        self._texts[node] = message.encode()
        self._flags[node] |= ro1.DAMAGED
        self.bytes_used += len(message)

    # The tables ----------------------------------------------------------------------------------

    def tables(self, label: bytes = b"") -> Tables:
        """Sealed tables of everything that has a name; the heap begins with `label`."""
        order, entries = self._numbered()
        names = [entry[0] for entry in entries]
        heap = bytearray(label)
        heap += b"".join(names)
        nodes = self._node_rows(order, entries, heap)
        entry_rows = self._entry_rows(entries, len(label))
        extents = self._extent_rows()
        return Tables(
            RO1_NODE.seal(nodes),
            RO1_ENTRY.seal(entry_rows),
            RO1_EXTENT.seal(extents),
            bytes(heap),
            (len(nodes), len(entry_rows), len(extents)),
        )

    def _numbered(self) -> tuple[list[int], list[tuple[bytes, int, int]]]:
        """Nodes in their new order, and entries (name, new number, directory's new number)."""
        order, entries = [ROOT], list[tuple[bytes, int, int]]()
        numbers = {ROOT: 0}
        for new, node in enumerate(order):  # grows while it is walked: breadth first
            if node not in self.children:
                continue
            for name, child in sorted((n.encode(), c) for n, c in self.children[node].items()):
                number = numbers.get(child)
                if number is None:
                    number = numbers[child] = len(order)
                    order.append(child)
                entries.append((name, number, new))
        return order, entries

    def _node_rows(
        self, order: list[int], entries: list[tuple[bytes, int, int]], heap: bytearray
    ) -> npt.NDArray[Any]:
        at = np.array(order, dtype=np.int64)
        rows = np.zeros(len(at), RO1_NODE.dtype)
        for name, column in (
            ("kind", np.frombuffer(self._kind, np.uint8)),
            ("flags", np.frombuffer(self._flags, np.uint8)),
            ("provenance", np.frombuffer(self._provenance, np.uint8)),
            ("size", self._size),
            ("created", self._created),
            ("modified", self._modified),
            ("check", self._check),
            ("first", self._first_extent),
            ("count", self._extent_count),
        ):
            rows[name] = np.asarray(column)[at]
        held = np.array([entry[2] for entry in entries], dtype=np.int64)
        named = np.array([entry[1] for entry in entries], dtype=np.int64)
        rows["links"] = np.bincount(named, minlength=len(at))
        rows["links"][0] = 1
        rows["parent"][named] = held
        directories = rows["kind"] == _DIRECTORY
        counts = np.bincount(held, minlength=len(at))
        rows["count"][directories] = counts[directories]
        rows["first"][directories] = (np.cumsum(counts) - counts)[directories]
        self._place_texts(rows, order, heap)
        return rows

    def _place_texts(self, rows: npt.NDArray[Any], order: list[int], heap: bytearray) -> None:
        for number, node in enumerate(order):
            text = self._texts.get(node)
            if text is None:
                continue
            rows["first"][number], rows["count"][number] = len(heap), len(text)
            rows["check"][number] = crc32c(text)
            heap += text

    def _entry_rows(self, entries: list[tuple[bytes, int, int]], heap_at: int) -> npt.NDArray[Any]:
        rows = np.zeros(len(entries), RO1_ENTRY.dtype)
        if not entries:
            return rows
        names = [entry[0] for entry in entries]
        lengths = np.array([len(name) for name in names], dtype=np.int64)
        rows["nameAt"] = heap_at + np.cumsum(lengths) - lengths
        rows["nameBytes"] = lengths
        rows["nameSum"] = [crc32c(name) for name in names]
        rows["prefix"] = [prefix_of(name) for name in names]
        rows["node"] = [entry[1] for entry in entries]
        rows["directory"] = [entry[2] for entry in entries]
        return rows

    def _extent_rows(self) -> npt.NDArray[Any]:
        rows = np.zeros(len(self._extents[0]), RO1_EXTENT.dtype)
        names = ("fileOffset", "length", "source", "firstSum")
        for name, column in zip(names, self._extents, strict=True):
            rows[name] = np.asarray(column)
        return rows


def prefix_of(name: bytes) -> int:
    """The first four bytes of a name as a number that orders as they do."""
    return int.from_bytes(name[:4].ljust(4, b"\0"), "big")
