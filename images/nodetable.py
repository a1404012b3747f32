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
_KIND_CODES: Final = {kind.value: code for kind, code in ro1.KIND_CODES.items()}
_PROVENANCE_CODES: Final = {of.value: code for of, code in ro1.PROVENANCE_CODES.items()}
_DIRECTORY: Final = ro1.KIND_CODES[NodeKind.DIRECTORY]
_SYMLINK: Final = ro1.KIND_CODES[NodeKind.SYMLINK]
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_ROW: Final = RO1_NODE.size
_EXTENT_COLUMNS: Final = 4
_NODE: Final = RO1_NODE.packer(
    "kind", "flags", "provenance", "count", "size", "created", "modified", "first"
)
_UNSOUND: Final = "its size or place is more than 64 bits hold"
# About what a node costs in memory, besides its name: columns, a place in a dictionary, a string.
NODE_BYTES: Final = 256
# And a directory besides, for its dictionary.
DIRECTORY_BYTES: Final = 512
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
    """Nodes as unsealed records, one after another; `bytes_used` estimates the memory they take."""

    def __init__(self) -> None:
        self._rows = bytearray()
        # Four columns: fileOffset, length, source, firstSum.
        self._extents = array("q")
        # What a symbolic link points to, or what is wrong with a damaged file.
        self._texts: dict[int, bytes] = {}
        self.children: dict[int, dict[str, int]] = {}
        self.bytes_used = 0
        self.add(NodeKind.DIRECTORY)

    def __len__(self) -> int:
        return len(self._rows) // _ROW

    def add(
        self,
        kind: NodeKind,
        *,
        modified: int = 0,
        created: int = 0,
        provenance: Provenance = Provenance.UNKNOWN,
        executable: bool = False,
        size: int = 0,
        extents: Sequence[ExtentRow] = (),
    ) -> int:
        """A new node without a name; its number.

        Times are in ns since 1970; those that 64 bits do not hold are not recorded.  `size` and
        `extents` are a file's.  A file whose numbers 64 bits do not hold is a damaged one.
        """
        number = len(self._rows) // _ROW
        if number >= NODES_MAX:
            raise TooLarge(f"more than {NODES_MAX} nodes")
        if not _INT64_MIN <= modified <= _INT64_MAX or not _INT64_MIN <= created <= _INT64_MAX:
            modified = created = 0
            provenance = Provenance.UNKNOWN
        sound = 0 <= size <= _INT64_MAX
        first = self._add_extents(extents) if sound and extents else 0
        sound = sound and first >= 0
        self._rows += _NODE.pack(
            # By their values: an enumeration's own hash is slow.
            _KIND_CODES[kind.value],
            ro1.EXECUTABLE if executable else 0,
            _PROVENANCE_CODES[provenance.value],
            len(extents) if sound else 0,
            size if sound else 0,
            created,
            modified,
            first if sound else 0,
        )
        if kind is NodeKind.DIRECTORY:
            self.children[number] = {}
            self.bytes_used += DIRECTORY_BYTES
        self.bytes_used += NODE_BYTES + EXTENT_BYTES * len(extents)
        if not sound:
            self.damage(number, _UNSOUND)
        return number

    def _add_extents(self, extents: Sequence[ExtentRow]) -> int:
        """The number of the first; -1 where 64 bits do not hold them."""
        first = len(self._extents)
        try:
            for row in extents:
                self._extents.extend(row)
        except OverflowError:
            del self._extents[first:]
            return -1
        return first // _EXTENT_COLUMNS

    def is_directory(self, node: int) -> bool:
        """Whether the node is one."""
        return node in self.children

    def _set(self, node: int, **values: int) -> None:
        RO1_NODE.put(self._rows, node * _ROW, **values)

    def _get(self, node: int, field: str) -> int:
        return RO1_NODE.get(self._rows, node * _ROW, field)

    def copy_facts(self, node: int, original: int) -> None:
        """Gives `node` the facts of `original`."""
        for field in ("flags", "provenance", "created", "modified"):
            self._set(node, **{field: self._get(original, field)})

    def set_content(self, node: int, size: int, extents: Sequence[ExtentRow]) -> None:
        """What the file consists of.  Numbers that 64 bits do not hold make it a damaged one."""
        first = self._add_extents(extents)
        if first < 0 or not 0 <= size <= _INT64_MAX:
            self.damage(node, _UNSOUND)
            return
        self._set(node, size=size, first=first, count=len(extents))
        self.bytes_used += EXTENT_BYTES * len(extents)

    def set_check(self, node: int, check: int) -> None:
        """The checksum of the file's whole content, of the archive's own kind."""
        self._set(node, check=check & 0xFFFFFFFF, flags=self._get(node, "flags") | ro1.SUMMED)

    def set_target(self, node: int, target: bytes) -> None:
        """What the symbolic link points to."""
        self._texts[node] = target
        self._set(node, size=len(target))
        self.bytes_used += len(target)

    def target_bytes(self, node: int) -> int:
        """The length of what a symbolic link points to; 0 for other nodes."""
        if node not in self._texts or self._get(node, "kind") != _SYMLINK:
            return 0
        return len(self._texts[node])

    def damage(self, node: int, message: str) -> None:
        """Reading the file's content will be `Corrupt` with this message."""
        self._texts[node] = message.encode()
        self._set(node, flags=self._get(node, "flags") | ro1.DAMAGED)
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
        rows = RO1_NODE.table(self._rows)[np.array(order, dtype=np.int64)]
        held = np.array([entry[2] for entry in entries], dtype=np.int64)
        named = np.array([entry[1] for entry in entries], dtype=np.int64)
        rows["links"] = np.bincount(named, minlength=len(rows))
        rows["links"][0] = 1
        rows["parent"][named] = held
        directories = rows["kind"] == _DIRECTORY
        entry_of = np.zeros(len(rows), dtype=np.int64)
        entry_of[named] = np.arange(len(named))
        rows["check"][directories] = entry_of[directories]
        counts = np.bincount(held, minlength=len(rows))
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
        columns = np.asarray(self._extents, dtype=np.int64).reshape(-1, _EXTENT_COLUMNS)
        rows = np.zeros(len(columns), RO1_EXTENT.dtype)
        for number, name in enumerate(("fileOffset", "length", "source", "firstSum")):
            rows[name] = columns[:, number]
        return rows


def prefix_of(name: bytes) -> int:
    """The first four bytes of a name as a number that orders as they do."""
    return int.from_bytes(name[:4].ljust(4, b"\0"), "big")
