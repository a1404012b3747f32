"""What the frames of CAPOSWF1 hold: changes, as tables of records.

Invariants: a frame (`capstore.images.frames`) holds whole changes.  Frames behind the last that is
known to be durable are believed only if the data they refer to is whole, since a crash may have
kept the frame and lost the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from capstore.images import wf1
from capstore.images.checksums import crc32c
from capstore.images.frames import Frame, FrameFormat
from capstore.images.records import (
    BLOCK_BYTES,
    WF1_ENTRY,
    WF1_EXTENT,
    WF1_FRAME,
    WF1_NODE,
    Record,
    blocks_of,
)
from capstore.images.segments import Geometry
from capstore.images.wf1_codec import (
    Encoder,
    check_extents,
    decoded_name,
    extent_of,
    node_of,
    text_place,
)
from capstore.images.wf1_state import Change, NameChange, NodeChange
from capstore.schema.errors import Corrupt


def change_bytes(change: Change) -> int:
    """How much of a frame `change` takes."""
    size = 0
    for node, extents in change.nodes:
        size += WF1_NODE.size + len(extents) * WF1_EXTENT.size + len(node.text.encode())
    for _, name, _ in change.names:
        size += WF1_ENTRY.size + len(name.encode())
    return size


class PendingFrame:
    """Changes that wait for the next frame, which holds them as one.

    Of the records of one directory the last says it all, and so only that is kept: there is one for
    each name that comes or goes.
    """

    def __init__(self) -> None:
        # What it takes in a frame at most.
        self.size = 0
        self._nodes: list[NodeChange] = []
        self._names: list[NameChange] = []
        self._directories: dict[int, int] = {}

    def add(self, change: Change, size: int) -> None:
        """Adds a change of `change_bytes` `size`."""
        self.size += size
        for item in change.nodes:
            if item.node.is_directory:
                at = self._directories.setdefault(item.node.id, len(self._nodes))
                if at < len(self._nodes):
                    self._nodes[at] = item
                    continue
            self._nodes.append(item)
        self._names.extend(change.names)

    def encoded(self) -> Encoder:
        """The tables of the frame."""
        tables = Encoder()
        for node, extents in self._nodes:
            tables.node(node, len(tables.extents), len(extents))
            for extent in extents:
                tables.extent(extent)
        for directory, name, number in self._names:
            tables.entry(directory, name, number)
        return tables


def frame_bytes(tables: Encoder, **header: int) -> bytes:
    """A frame of whole blocks; `header` gives key, epoch, sequence, durable and next."""
    payload = tables.tables()
    head = WF1_FRAME.pack(
        nodeCount=len(tables.nodes),
        entryCount=len(tables.entries),
        extentCount=len(tables.extents),
        heapBytes=len(tables.heap),
        payloadSum=crc32c(payload),
        **header,
    )
    size = len(head) + len(payload)
    return (head + payload).ljust(blocks_of(size) * BLOCK_BYTES, b"\0")


def frame_blocks_bytes(tables: Encoder) -> int:
    """How long the frame of `tables` is, in bytes."""
    return blocks_of(WF1_FRAME.size + tables.size) * BLOCK_BYTES


def _payload_bytes(header: Any) -> int:
    return int(
        header.nodeCount * WF1_NODE.size
        + header.entryCount * WF1_ENTRY.size
        + header.extentCount * WF1_EXTENT.size
        + header.heapBytes
    )


FORMAT: Final = FrameFormat(WF1_FRAME, _payload_bytes)


# What a frame says -------------------------------------------------------------------------------


def decoded(frame: Frame, geometry: Geometry, segments: int) -> Change:
    """The changes of a frame, as one: nodes in order, names in order.  Raises `Corrupt`."""
    header, payload, at = frame.header, frame.payload, frame.at + WF1_FRAME.size
    entries_at = header.nodeCount * WF1_NODE.size
    extents_at = entries_at + header.entryCount * WF1_ENTRY.size
    heap_at = extents_at + header.extentCount * WF1_EXTENT.size
    heap = payload[heap_at:]
    extents = [
        extent_of(record, where, geometry, segments)
        for where, record in _records(WF1_EXTENT, payload[extents_at:heap_at], at + extents_at)
    ]
    nodes = []
    for where, record in _records(WF1_NODE, payload[:entries_at], at):
        here = f"node {record.id} at offset {where}"
        start, length = text_place(record)
        if start + length > len(heap):
            raise Corrupt(f"{here} has a text that is not there")
        node = node_of(record, heap[start : start + length], here)
        mine: Sequence[Any] = ()
        if node.kind == wf1.FILE:
            if record.first + record.count > len(extents):
                raise Corrupt(f"{here} has extents that are not there")
            mine = extents[record.first : record.first + record.count]
            check_extents(mine, node.size, here)
        nodes.append(NodeChange(node, mine))
    names = []
    for where, record in _records(WF1_ENTRY, payload[entries_at:extents_at], at + entries_at):
        raw = heap[record.nameAt : record.nameAt + record.nameBytes]
        name = decoded_name(raw, record.nameSum, f"the entry at offset {where}")
        names.append(NameChange(record.directory, name, record.node))
    return Change(nodes, names)


def _records(record: Record, table: bytes, at: int) -> Iterator[tuple[int, Any]]:
    """The records of a table that begins at `at` of the image, each with its offset."""
    rows = record.unpack_all(table, record.name, at)
    return zip(range(at, at + len(table), record.size), rows, strict=True)
