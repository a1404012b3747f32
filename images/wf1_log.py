"""The log of CAPOSWF1: frames of changes, one behind the other, from segment to segment.

Invariants:

* A frame holds whole changes.  It counts only if its seal and its payload's checksum fit, its key
  is the superblock's (bytes of a file that look like a frame have another), its sequence is the
  next, and its epoch is not less than the one before and not more than the superblock's.  The first
  one that does not count ends the log.
* The first block of a frame begins at a block of its segment; the last block of a segment is kept
  for the frame that says where the log goes on.
* `durable` of a frame is the sequence of a frame that a flush had made durable before this one was
  written.  Frames behind the last such are believed only if the data they refer to is whole, since
  a crash may have kept the frame and lost the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from capstore.images import wf1
from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice
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
)
from capstore.images.wf1_state import Change, NameChange, NodeChange
from capstore.schema.errors import Corrupt

_KEY_BYTES: Final = 8


def change_bytes(change: Change) -> int:
    """How much of a frame `change` takes."""
    size = 0
    for node, extents in change.nodes:
        size += WF1_NODE.size + len(extents) * WF1_EXTENT.size + len(node.target.encode())
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


@dataclass(frozen=True, slots=True)
class Position:
    """Where the next frame goes: `offset` in `segment`, its `sequence`, and the `epoch` of the
    frame before it."""

    segment: int
    offset: int
    sequence: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that counts; `at` is its offset in the image, `behind` where the next one goes."""

    at: int
    header: Any
    payload: bytes
    behind: Position


def log_start(superblock: wf1.Superblock, geometry: Geometry) -> Position:
    """Where the first frame behind the checkpoint is, or would be."""
    segment = geometry.of_lba(superblock.log_lba)
    offset = superblock.log_lba * BLOCK_BYTES - geometry.start(segment)
    return Position(segment, offset, superblock.log_sequence, 0)


def read_frames(
    device: BlockDevice, superblock: wf1.Superblock, geometry: Geometry, segments: int
) -> Iterator[Frame]:
    """The frames of the log, in order; ends where the log ends.

    Raises `Corrupt` where a frame is missing that a later one shows to have been durable.
    """
    position = log_start(superblock, geometry)
    seen, durable = {position.segment}, superblock.durable
    raw = _segment(device, geometry, position.segment)
    while True:
        found = _frame_at(raw, geometry, position, superblock)
        if found is None:
            _check_tail(raw, geometry, position, superblock)
            return
        durable = max(durable, found.header.durable)
        target = found.header.next
        if target:
            segment = geometry.of_lba(target)
            may_be_lost = segments <= segment < geometry.count_max and not superblock.region_blocks
            if may_be_lost and found.header.sequence > durable:
                # The image had grown for it, and that was not durable either.
                return
            sound = 0 <= segment < segments and geometry.lba(segment) == target
            if not sound or segment in seen:
                raise Corrupt(f"the log at offset {found.at} goes on where it cannot")
            seen.add(segment)
            raw = _segment(device, geometry, segment)
            position = Position(segment, 0, found.behind.sequence, found.behind.epoch)
            found = Frame(found.at, found.header, found.payload, position)
        position = found.behind
        yield found


def _segment(device: BlockDevice, geometry: Geometry, segment: int) -> bytes:
    return device.read(geometry.start(segment), geometry.segment_bytes)


def _header_at(raw: bytes, offset: int, key: int) -> Any | None:
    """The sealed header at `offset` of a segment, if there is one."""
    # Where there is no frame, which is nearly everywhere, the key says so without a checksum.
    if raw[offset : offset + _KEY_BYTES] != key.to_bytes(_KEY_BYTES, "little"):
        return None
    head = raw[offset : offset + WF1_FRAME.size]
    try:
        header = WF1_FRAME.unpack(head, "a frame")
    except Corrupt:
        return None
    return header if header.key == key else None


def _frame_at(
    raw: bytes, geometry: Geometry, position: Position, superblock: wf1.Superblock
) -> Frame | None:
    header = _header_at(raw, position.offset, superblock.log_key)
    if header is None or header.sequence != position.sequence:
        return None
    if not position.epoch <= header.epoch <= superblock.generation:
        return None
    # What was not durable when the superblock was written is of the life that wrote it, or of none:
    # an earlier life may have left a frame here that a crash had cut off from its log.
    if header.sequence > superblock.durable and header.epoch < superblock.generation - 1:
        return None
    start = position.offset + WF1_FRAME.size
    end = start + _payload_bytes(header)
    payload = raw[start:end]
    if end > len(raw) or crc32c(payload) != header.payloadSum:
        return None
    behind = Position(
        position.segment,
        blocks_of(end) * BLOCK_BYTES,
        position.sequence + 1,
        header.epoch,
    )
    return Frame(geometry.start(position.segment) + position.offset, header, payload, behind)


def _payload_bytes(header: Any) -> int:
    return int(
        header.nodeCount * WF1_NODE.size
        + header.entryCount * WF1_ENTRY.size
        + header.extentCount * WF1_EXTENT.size
        + header.heapBytes
    )


def _check_tail(
    raw: bytes, geometry: Geometry, position: Position, superblock: wf1.Superblock
) -> None:
    """Raises `Corrupt` if a frame behind `position` says that the one there was durable, or is of
    a later epoch than the superblock.

    Frames that a crash cut off from the log, in an earlier life of the volume, say no such thing:
    what was durable was not cut off, and the superblock of an epoch is durable before its frames.
    """
    at = geometry.start(position.segment) + position.offset
    for offset in range(position.offset, len(raw), BLOCK_BYTES):
        header = _header_at(raw, offset, superblock.log_key)
        if header is None or header.sequence < position.sequence:
            continue
        if header.epoch > superblock.generation:
            raise Corrupt(f"the log at offset {at} goes on, but its superblock is damaged")
        durable = min(header.durable, header.sequence - 1)
        if offset > position.offset and durable >= position.sequence:
            raise Corrupt(f"the log is damaged at offset {at}: a frame is missing")


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
        node = node_of(record, heap, where)
        mine: Sequence[Any] = ()
        if node.kind == wf1.FILE:
            if record.first + record.count > len(extents):
                raise Corrupt(f"node {node.id} at offset {where} has extents that are not there")
            mine = extents[record.first : record.first + record.count]
            check_extents(mine, node.size, f"node {node.id} at offset {where}")
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
