"""CAPOSWF1 as a tree for reading: the state that recovery finds, as it would be served.

Invariants:

* Nothing is written: a tail that a crash tore is passed over and stays.
* A directory is shown only below the parent that it names, and the root below nothing, so a forged
  image shows no loop.
* Bytes of a file are given out only when the checksum of their unit fits, and no two extents of a
  file share a byte, so that reading a file takes no longer than the image is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from capstore.images import ro1, wf1
from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES
from capstore.images.segments import DATA, FREE, LOG, TABLE
from capstore.images.tree import Content, ExtentContent, Finding, ImageTree, Region, extents_of
from capstore.images.wf1_content import Extent, all_extents
from capstore.images.wf1_map import regions
from capstore.images.wf1_recovery import Recovered, recover
from capstore.images.wf1_state import GONE, Node
from capstore.schema.errors import (
    Closed,
    Corrupt,
    InvalidName,
    IsDirectory,
    NotDirectory,
    NotFound,
    Unsupported,
)
from capstore.schema.limits import PAGE_BYTES_MAX, PAGE_ENTRIES_MAX
from capstore.schema.names import check_name
from capstore.schema.nodes import Entry, NodeKind, Page, Provenance, Stat, Usage

# Units that were read last: parts of one can alternate with others.
_UNITS_KEPT_MAX: Final = 8


class Wf1Tree(ImageTree):
    """An open image, which owns `device`."""

    root = wf1.ROOT

    def __init__(self, device: BlockDevice) -> None:
        """Raises `Corrupt`, `Unsupported`, and what the device raises."""
        self._device = device
        self.recovered: Recovered = recover(device)
        self._state = self.recovered.state
        self._closed = False
        root = self._state.node(self.root)
        if root is None or not root.is_directory:
            raise Corrupt("the root is no directory, or not there")

    def __repr__(self) -> str:
        return f"<Wf1Tree {self._state.counts.nodes} nodes{', closed' * self._closed}>"

    # Looking -------------------------------------------------------------------------------------

    def _node(self, number: int) -> Node:
        if self._closed:
            raise Closed("the image was closed")
        node = self._state.node(number) if number >= self.root else None
        if node is None:
            raise NotFound("there is no such node")
        return node

    def _directory(self, number: int) -> Node:
        node = self._node(number)
        if not node.is_directory:
            raise NotDirectory("no directory")
        return node

    def stat(self, node: int) -> Stat:
        return _stat_of(self._node(node))

    def lookup(self, directory: int, name: str) -> Entry:
        check_name(name)
        self._directory(directory)
        number = self._state.child(directory, name)
        if number == GONE:
            raise NotFound("no entry of this name")
        return self._entry(directory, name, number)

    def _entry(self, directory: int, name: str, number: int) -> Entry:
        node = self._state.node(number)
        if node is None:
            raise Corrupt(f"an entry of node {directory} is of node {number}, which is not there")
        if number == self.root or (node.is_directory and node.parent != directory):
            raise Corrupt(f"node {number} is a directory that has another name")
        return Entry(name, _stat_of(node), node.target or None)

    def list(self, directory: int, after: str, limit: int) -> Page:
        self._directory(directory)
        _check_encodes(after)
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        found = self._state.list_names(directory, after, limit + 1)
        entries: list[Entry] = []
        room, last = PAGE_BYTES_MAX, after
        for name, number in found[:limit]:
            if name <= last:
                raise Corrupt(f'"{name}" is out of order in node {directory}')
            entry = self._entry(directory, name, number)
            room -= len(name.encode()) + len((entry.target or "").encode())
            if room < 0 and entries:
                break
            entries.append(entry)
            last = name
        return Page(entries, more=len(entries) < len(found))

    # Content -------------------------------------------------------------------------------------

    def content(self, node: int) -> Content:
        found = self._node(node)
        if found.is_directory:
            raise IsDirectory("a directory")
        if found.kind != wf1.FILE:
            raise Unsupported("only a file can be opened")
        extents = list(all_extents(self._state.content(found)))
        _check_apart(extents, node)
        return Units(self._device, found.size, extents)

    def waits(self, directory: int) -> bool:
        return True

    def content_waits(self, node: int) -> bool:
        return True

    # The image as a whole ------------------------------------------------------------------------

    def usage(self) -> Usage:
        space = self.recovered.space
        dead = sum(
            space.geometry.segment_bytes - live
            for use, live in zip(space.use, space.live, strict=True)
            if use == DATA
        )
        free = space.free * space.geometry.segment_bytes + dead
        nodes = self._state.counts.nodes
        return Usage(
            total_bytes=space.bytes,
            used_bytes=space.bytes - free,
            free_bytes=free,
            total_nodes=nodes,
            used_nodes=nodes,
        )

    def regions(self) -> Iterator[Region]:
        return regions(self._device, self.recovered)

    def verify(self) -> Iterator[Finding]:
        from capstore.images.wf1_verify import verify

        return verify(self._device)

    def describe(self) -> dict[str, Any]:
        found = self.recovered
        superblock, space, head = found.superblock, found.space, found.tables.head
        uses = space.use
        return {
            "format": "CAPOSWF1",
            "version": wf1.VERSION,
            "features": 0,
            "generation": superblock.generation,
            "imageId": f"{superblock.image_id:032x}",
            "created": superblock.created,
            "grows": space.grows,
            "segmentBytes": space.geometry.segment_bytes,
            "segments": {
                "data": uses.count(DATA),
                "log": uses.count(LOG),
                "checkpoint": uses.count(TABLE),
                "free": uses.count(FREE),
            },
            "checkpoint": {
                "offset": superblock.checkpoint_lba * BLOCK_BYTES,
                "bytes": head.length,
                "nodes": head.counts.nodes,
                "entries": head.counts.entries,
                "extents": head.counts.extents,
            },
            "log": {
                "offset": superblock.log_lba * BLOCK_BYTES,
                "frames": found.position.sequence - superblock.log_sequence,
                "framesNotBelieved": found.discarded,
            },
            "liveBytes": sum(space.live),
        }

    def close(self) -> None:
        self._closed = True
        self._device.close()


class Units(ExtentContent):
    """A file whose bytes are parts of units with a checksum each."""

    def __init__(self, device: BlockDevice, size: int, extents: Sequence[Extent]) -> None:
        rows = [(e.offset, e.length, e.lba * BLOCK_BYTES + e.skip) for e in extents]
        super().__init__(device, size, extents_of(rows))
        self._parts = extents
        self._units: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read_into(self, offset: int, view: memoryview) -> int:
        got = self._clip(offset, view)
        for at, source, length in self._pieces(offset, got):
            if source < 0:
                view[at : at + length] = bytes(length)
                continue
            row = int(np.searchsorted(self._ends, offset + at, side="right"))
            extent = self._parts[row]
            skip = source - extent.lba * BLOCK_BYTES
            view[at : at + length] = self._unit(extent)[skip : skip + length]
        return got

    def read_now(self, offset: int, view: memoryview) -> int | None:
        return None

    def _unit(self, extent: Extent) -> bytes:
        """The unit that `extent` is a part of, checked.  Raises `Corrupt`."""
        at = extent.lba * BLOCK_BYTES
        with self._lock:
            unit = self._units.get(at)
        if unit is None or len(unit) != extent.stored:
            unit = self._device.read(at, extent.stored)
            if crc32c(unit) != extent.sum:
                raise Corrupt(f"data at offset {at} has a wrong checksum")
            with self._lock:
                self._units[at] = unit
                if len(self._units) > _UNITS_KEPT_MAX:
                    self._units.popitem(last=False)
        return unit


def _check_apart(extents: Sequence[Extent], node: int) -> None:
    """Raises `Corrupt` if two extents of a file share a byte of the image."""
    places = sorted((e.lba * BLOCK_BYTES + e.skip, e.length) for e in extents)
    end = 0
    for start, length in places:
        if start < end:
            raise Corrupt(f"node {node} has the bytes at offset {start} twice")
        end = start + length


def _stat_of(node: Node) -> Stat:
    recorded = node.provenance is not Provenance.UNKNOWN
    return Stat(
        # An overlay's mark for a name that is gone is no file to anybody else.
        kind=ro1.KINDS.get(node.kind, NodeKind.SPECIAL),
        size=0 if node.is_directory else node.size,
        node_id=node.id,
        version=node.version,
        created=node.created if recorded else 0,
        modified=node.modified if recorded else 0,
        provenance=node.provenance,
        executable=bool(node.flags & wf1.EXECUTABLE),
        link_count=node.names,
    )


def _check_encodes(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidName("a name is valid UTF-8") from None
