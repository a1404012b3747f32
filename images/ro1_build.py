"""Building CAPOSRO1: data as it comes, then the tables, and the superblocks when all is durable.

Invariants:

* The same calls give the same bytes; the image's id is a digest of its tables, which hold the
  checksums of all data.
* A chunk of zeros is a hole.  Each file's data begins at a block.
* The superblocks are written behind a flush of everything else: an image that was not finished has
  none and is refused.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import Final

import numpy as np

from capstore.images import ro1
from capstore.images.builder import (
    Facts,
    FilePieces,
    Path,
    TreeBuilder,
    check_named,
    check_target,
)
from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice
from capstore.images.nodetable import ROOT, ExtentRow, NodeTable, Tables
from capstore.images.records import BLOCK_BYTES, RO1_ENTRY, RO1_EXTENT, RO1_NODE, blocks_of
from capstore.images.ro1 import CHUNK_BYTES, SUM_BYTES, Span, Superblock
from capstore.schema.errors import AlreadyExists, InvalidArgument, NotFound, TooLarge
from capstore.schema.limits import MIB
from capstore.schema.names import check_name
from capstore.schema.nodes import Buffer, NodeKind

# The device grows by this while the image is written, and is cut to size at the end.
_GROWTH_BYTES: Final = 16 * MIB
_DATA_AT: Final = (max(ro1.SUPERBLOCK_LBAS) + 1) * BLOCK_BYTES
_SUMS_MAX: Final = 1 << 32


class Ro1Builder(TreeBuilder):
    """Writes an image onto `device`, from its beginning.

    `built` (ns since 1970) and `label` go into the superblock.  Raises `InvalidArgument` for a
    label that is no UTF-8 or over 255 bytes, and for calls in a wrong order.
    """

    def __init__(self, device: BlockDevice, *, label: str = "", built: int = 0) -> None:
        self._label = label.encode(errors="replace")
        if len(self._label) > ro1.LABEL_BYTES_MAX or self._label.decode() != label:
            raise InvalidArgument(f"a label has at most {ro1.LABEL_BYTES_MAX} bytes of UTF-8")
        self._built = built
        self._table = NodeTable()
        self._output = _Output(device)
        self._sums = array("I")
        # The file that was begun: its node, what is in place of it, and what is not.
        self._file = ROOT
        self._extents: list[ExtentRow] = []
        self._pieces: FilePieces | None = None
        self._finished = False

    # Nodes ---------------------------------------------------------------------------------------

    def directory(self, path: Path, facts: Facts) -> None:
        node = self._add(NodeKind.DIRECTORY, facts)
        if path:
            self._bind(path, node)
        else:
            self._table.copy_facts(ROOT, node)

    def symlink(self, path: Path, facts: Facts, target: str) -> None:
        check_target(path, target)
        node = self._add(NodeKind.SYMLINK, facts)
        self._bind(path, node)
        self._table.set_target(node, target.encode())

    def link(self, path: Path, original: Path) -> None:
        self._check_whole()
        node = self._find(original)
        if self._table.is_directory(node):
            raise InvalidArgument("a directory has one name")
        self._bind(path, node)

    def _check_whole(self) -> None:
        if self._finished:
            raise InvalidArgument("the image is finished")
        if self._pieces is not None:
            raise InvalidArgument("the file before is not whole")

    def _add(self, kind: NodeKind, facts: Facts) -> int:
        self._check_whole()
        return self._table.add(
            kind,
            modified=facts.modified,
            created=facts.created,
            provenance=facts.provenance,
            executable=facts.executable,
        )

    def _bind(self, path: Path, node: int) -> None:
        check_named(path)
        names = self._table.children[self._find(path[:-1])]
        name = check_name(path[-1])
        if name in names:
            raise AlreadyExists("the name is taken")
        names[name] = node

    def _find(self, path: Path) -> int:
        at = ROOT
        for name in path:
            child = self._table.children.get(at, {}).get(name)
            if child is None:
                raise NotFound("what is above comes first")
            at = child
        return at

    # Files ---------------------------------------------------------------------------------------

    def begin_file(self, path: Path, facts: Facts, size: int) -> None:
        node = self._add(NodeKind.FILE, facts)
        self._bind(path, node)
        self._output.align()
        self._file = node
        self._extents = []
        self._pieces = FilePieces(size, CHUNK_BYTES, self._put_chunk)

    def write(self, data: Buffer) -> None:
        self._begun().write(data)

    def end_file(self) -> None:
        pieces = self._begun()
        pieces.end()
        self._pieces = None
        self._table.set_content(self._file, pieces.size, self._extents)

    def _begun(self) -> FilePieces:
        if self._pieces is None:
            raise InvalidArgument("no file was begun")
        return self._pieces

    def _put_chunk(self, offset: int, chunk: bytes) -> None:
        at = self._output.write(chunk)
        self._extend(offset, at, len(chunk))
        if len(self._sums) == _SUMS_MAX:
            raise TooLarge("more data than an image has checksums for")
        self._sums.append(crc32c(chunk))

    def _extend(self, offset: int, at: int, length: int) -> None:
        """Adds a chunk to the file's last extent if it continues it, else begins one."""
        if self._extents:
            start, extent, source, first = self._extents[-1]
            if start + extent == offset and source + extent == at:
                self._extents[-1] = (start, extent + length, source, first)
                return
        self._extents.append((offset, length, at, len(self._sums)))

    # The end -------------------------------------------------------------------------------------

    def finish(self) -> None:
        self._check_whole()
        self._finished = True
        output = self._output
        output.align()
        data = Span("data", _DATA_AT, output.at - _DATA_AT, 0)
        tables = self._table.tables(self._label)
        sums = np.asarray(self._sums, dtype="<u4").tobytes()
        nodes, entries, extents = tables.counts
        superblock = Superblock(
            features=0,
            generation=1,
            image_id=_image_id(tables, sums),
            built=self._built,
            source_bytes=0,
            data=data,
            nodes=Span("nodes", output.put(tables.nodes), nodes * RO1_NODE.size, nodes),
            entries=Span("entries", output.put(tables.entries), entries * RO1_ENTRY.size, entries),
            extents=Span("extents", output.put(tables.extents), extents * RO1_EXTENT.size, extents),
            sums=Span("sums", output.put(sums), len(sums), len(sums) // SUM_BYTES),
            heap=Span("names", output.put(tables.heap), len(tables.heap), len(tables.heap)),
            label_bytes=len(self._label),
            label_sum=crc32c(self._label),
            image_bytes=output.at,
        )
        output.finish(superblock)

    def abort(self) -> None:
        """Nothing to do: without superblocks it is no image."""


class _Output:
    """The device, written from front to back; `at` is where the next byte goes."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._pending = bytearray()
        self._pending_at = _DATA_AT
        device.resize(_DATA_AT)
        device.write(0, bytes(_DATA_AT))

    @property
    def at(self) -> int:
        return self._pending_at + len(self._pending)

    def align(self) -> None:
        self._pending += bytes(-self.at % BLOCK_BYTES)

    def write(self, data: bytes) -> int:
        """Writes `data`; returns where it went."""
        at = self.at
        self._pending += data
        if len(self._pending) >= MIB:
            self._drain()
        return at

    def put(self, table: bytes) -> int:
        """Writes `table` and fills its last block; returns where it went."""
        at = self.write(table)
        self.align()
        return at

    def _drain(self) -> None:
        end = self.at
        if end > self._device.size():
            self._device.resize(max(end, self._device.size() + _GROWTH_BYTES))
        self._device.write(self._pending_at, self._pending)
        self._pending_at = end
        self._pending = bytearray()

    def finish(self, superblock: Superblock) -> None:
        self._drain()
        self._device.resize(self.at)
        self._device.flush()
        block = superblock.pack().ljust(BLOCK_BYTES, b"\0")
        for lba in ro1.SUPERBLOCK_LBAS:
            self._device.write(lba * BLOCK_BYTES, block)
        self._device.flush()


def _image_id(tables: Tables, sums: bytes) -> int:
    digest = hashlib.sha256()
    for part in (tables.nodes, tables.entries, tables.extents, sums, tables.heap):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return int.from_bytes(digest.digest()[:16], "big")


def index_image(tables: Tables, source_bytes: int) -> bytes:
    """An image with external data out of `tables`: the index of an archive of `source_bytes`."""
    parts = [bytes(_DATA_AT)]
    at = _DATA_AT

    def put(name: str, table: bytes, count: int) -> Span:
        nonlocal at
        span = Span(name, at, len(table), count)
        parts.append(table.ljust(blocks_of(len(table)) * BLOCK_BYTES, b"\0"))
        at += len(parts[-1])
        return span

    nodes, entries, extents = tables.counts
    spans = {
        "nodes": put("nodes", tables.nodes, nodes),
        "entries": put("entries", tables.entries, entries),
        "extents": put("extents", tables.extents, extents),
        "heap": put("names", tables.heap, len(tables.heap)),
        "sums": Span("sums", at, 0, 0),
        "data": Span("data", _DATA_AT, 0, 0),
    }
    superblock = Superblock(
        features=ro1.EXTERNAL_DATA,
        generation=1,
        image_id=_image_id(tables, b""),
        built=0,
        source_bytes=source_bytes,
        label_bytes=0,
        label_sum=crc32c(b""),
        image_bytes=at,
        **spans,
    )
    block = superblock.pack().ljust(BLOCK_BYTES, b"\0")
    parts[0] = block * len(ro1.SUPERBLOCK_LBAS)
    return b"".join(parts)
