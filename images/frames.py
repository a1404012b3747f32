"""Frames: the log of a writable format, one frame behind the other, from segment to segment.

Invariants:

* A frame counts only if its seal and its payload's checksum fit, its key is the superblock's (bytes
  of an object that look like a frame have another), its sequence is the next, and its epoch is not
  less than the one before and not more than the superblock's.  The first one that does not count
  ends the log.
* The first block of a frame begins at a block of its segment; the last block of a segment is kept
  for the frame that says where the log goes on.
* `durable` of a frame is the sequence of a frame that a flush had made durable before this one was
  written.  If a frame that is missing was durable, that is damage, and no end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES, Record, blocks_of
from capstore.images.segments import Geometry
from capstore.schema.errors import Corrupt

_KEY_BYTES: Final = 8
# A key that is wrong in no more bits was one.
_WRONG_BITS_MAX: Final = 8


class LogStart(Protocol):
    """What a superblock says of the log."""

    @property
    def generation(self) -> int:
        """Frames of its life have this epoch, or one that is less."""

    @property
    def region_blocks(self) -> int:
        """The length of the region, 0 for one that grows."""

    @property
    def log_lba(self) -> int:
        """Where the first frame is."""

    @property
    def log_sequence(self) -> int:
        """The sequence of the first frame."""

    @property
    def log_key(self) -> int:
        """What frames carry, and nobody can know who only writes objects."""

    @property
    def durable(self) -> int:
        """Frames up to this sequence were durable when the superblock was written."""


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """The `record` of a frame's head, and how many bytes of payload such a head speaks of."""

    record: Record
    payload_bytes: Callable[[Any], int]


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


def log_start(superblock: LogStart, geometry: Geometry) -> Position:
    """Where the first frame behind the table is, or would be."""
    segment = geometry.of_lba(superblock.log_lba)
    offset = superblock.log_lba * BLOCK_BYTES - geometry.start(segment)
    return Position(segment, offset, superblock.log_sequence, 0)


def read_frames(
    device: BlockDevice,
    superblock: LogStart,
    geometry: Geometry,
    segments: int,
    format: FrameFormat,  # noqa: A002 - what else
) -> Iterator[Frame]:
    """The frames of the log, in order; ends where the log ends.

    Raises `Corrupt` where a frame is missing that a later one shows to have been durable.
    """
    position = log_start(superblock, geometry)
    seen, durable = {position.segment}, superblock.durable
    raw = read_segment(device, geometry, position.segment)
    while True:
        found = frame_at(raw, geometry, position, superblock, format)
        if found is None:
            _check_tail(raw, geometry, position, superblock, format)
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
            raw = read_segment(device, geometry, segment)
            position = Position(segment, 0, found.behind.sequence, found.behind.epoch)
            found = Frame(found.at, found.header, found.payload, position)
        position = found.behind
        yield found


def read_segment(device: BlockDevice, geometry: Geometry, segment: int) -> bytes:
    """All of a segment."""
    return device.read(geometry.start(segment), geometry.segment_bytes)


def header_at(raw: bytes, offset: int, key: int, format: FrameFormat) -> Any | None:  # noqa: A002
    """The sealed header at `offset` of a segment, if there is one."""
    # Where there is no frame, which is nearly everywhere, the key says so without a checksum.
    if raw[offset : offset + _KEY_BYTES] != key.to_bytes(_KEY_BYTES, "little"):
        return None
    try:
        header = format.record.unpack(raw[offset : offset + format.record.size], "a frame")
    except Corrupt:
        return None
    return header if header.key == key else None


def frame_at(
    raw: bytes,
    geometry: Geometry,
    position: Position,
    superblock: LogStart,
    format: FrameFormat,  # noqa: A002
) -> Frame | None:
    """The frame at a position of a segment, whose bytes are `raw`, if it counts."""
    header = header_at(raw, position.offset, superblock.log_key, format)
    if header is None or header.sequence != position.sequence:
        return None
    if not position.epoch <= header.epoch <= superblock.generation:
        return None
    # What was not durable when the superblock was written is of the life that wrote it, or of none:
    # an earlier life may have left a frame here that a crash had cut off from its log.
    if header.sequence > superblock.durable and header.epoch < superblock.generation - 1:
        return None
    start = position.offset + format.record.size
    end = start + format.payload_bytes(header)
    payload = raw[start:end]
    if end > len(raw) or crc32c(payload) != header.payloadSum:
        return None
    behind = Position(
        position.segment, blocks_of(end) * BLOCK_BYTES, position.sequence + 1, header.epoch
    )
    return Frame(geometry.start(position.segment) + position.offset, header, payload, behind)


def _check_tail(
    raw: bytes,
    geometry: Geometry,
    position: Position,
    superblock: LogStart,
    format: FrameFormat,  # noqa: A002
) -> None:
    """Raises `Corrupt` if a frame behind `position` says that the one there was durable, or is of
    a later epoch than the superblock.

    Frames that a crash cut off from the log, in an earlier life, say no such thing: what was
    durable was not cut off, and the superblock of an epoch is durable before its frames.
    """
    at = geometry.start(position.segment) + position.offset
    for offset in range(position.offset, len(raw), BLOCK_BYTES):
        header = header_at(raw, offset, superblock.log_key, format)
        if header is None or header.sequence < position.sequence:
            continue
        if header.epoch > superblock.generation:
            raise Corrupt(f"the log at offset {at} goes on, but its superblock is damaged")
        durable = min(header.durable, header.sequence - 1)
        if offset > position.offset and durable >= position.sequence:
            raise Corrupt(f"the log is damaged at offset {at}: a frame is missing")


def torn_tail(
    device: BlockDevice,
    superblock: LogStart,
    geometry: Geometry,
    position: Position,
    format: FrameFormat,  # noqa: A002
) -> int | None:
    """The offset of the first frame behind the end of the log that a crash cut off from it.

    None if there is none, or nothing that can be told from what was there before.
    """
    record = format.record
    # Frames of this life, and of the one that ended; older ones were cut off before.
    since = position.epoch or superblock.generation - 1
    raw = read_segment(device, geometry, position.segment)
    key = superblock.log_key.to_bytes(_KEY_BYTES, "little")
    for offset in range(position.offset, len(raw), BLOCK_BYTES):
        if offset > position.offset and raw[offset : offset + _KEY_BYTES] != key:
            continue
        block = raw[offset : offset + BLOCK_BYTES]
        header = record.view(block)
        is_next = header.sequence == position.sequence and header.epoch >= since
        try:
            record.unpack(block, "a frame")
        except Corrupt:
            # A head that is damaged still looks like the next one.
            is_near = (header.key ^ superblock.log_key).bit_count() <= _WRONG_BITS_MAX
            is_mine = header.key == superblock.log_key or (is_next and is_near)
            if offset == position.offset and is_mine and any(block):
                return geometry.start(position.segment) + offset
            continue
        is_behind = header.sequence >= position.sequence and header.epoch >= since
        if header.key == superblock.log_key and is_behind:
            return geometry.start(position.segment) + offset
    return None
