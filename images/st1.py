"""CAPOSST1: the constants of the format, its superblocks, and where segments are.

Invariants: ``docs/spec/caposst1.md`` says what every byte means, ``docs/design/caposst1.md`` why;
offsets come from ``layout.capnp``.  A superblock is used only if its seal fits, its version and
features are known and what it points to lies inside the region.  The slot that is written is never
the slot that is valid: superblocks alternate by their generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES, ST1_ENTRY, ST1_FRAME, ST1_PART, ST1_SUPERBLOCK
from capstore.images.segments import Geometry
from capstore.images.superblocks import Slots
from capstore.schema import layout
from capstore.schema.errors import Corrupt, InvalidArgument, Unsupported
from capstore.schema.limits import KEY_BYTES_MAX, KIB, MIB

MAGIC: Final = int(layout.st1Magic)
VERSION: Final = int(layout.st1Version)
SUPERBLOCK_LBAS: Final = tuple(int(lba) for lba in layout.st1SuperblockLbas)
_SLOTS: Final = Slots("CAPOSST1", ST1_SUPERBLOCK, MAGIC, VERSION, SUPERBLOCK_LBAS)
SEGMENTS_LBA: Final = int(layout.st1SegmentsLba)
SEGMENTS_AT: Final = SEGMENTS_LBA * BLOCK_BYTES

REMOVED: Final = int(layout.st1Removed)
HASHED: Final = int(layout.st1Hashed)
IN_FRAME: Final = int(layout.st1InFrame)
REPLACES: Final = int(layout.st1Replaces)
GOES_ON: Final = int(layout.st1GoesOn)

# The first byte of a stored key: what it is the key of.
OBJECTS: Final = b"\0"
NAMES: Final = b"\1"
# The space of a key is part of what is stored.
STORED_KEY_BYTES_MAX: Final = 1 + KEY_BYTES_MAX

SEGMENT_BYTES_MIN: Final = 4 * KIB
SEGMENT_BYTES_MAX: Final = 4 * MIB
SEGMENT_BYTES_GROWING: Final = 4 * MIB
# A fixed region has about this many segments or more, so that its last ones can be compacted.
_SEGMENTS_WANTED: Final = 64
# The log, data, two tables and what compaction moves into.
SEGMENTS_MIN: Final = 8
# What one checksum of a longer object covers.
PART_BYTES_MAX: Final = 256 * KIB
# Values up to this length are written with the frame that tells of them.
INLINE_BYTES_MAX: Final = 32 * KIB
# The region in front of a CAPOSWF1 volume.
COMBINED_BLOCKS: Final = 256


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a superblock says.

    `region_blocks` is the region's length, 0 for one that grows; the table begins at `table_lba`
    with a head whose CRC32C is `table_sum`; the log behind it begins at `log_lba` with the frame
    `log_sequence`.  Frames carry `log_key`, which nobody who only puts objects can know; those up
    to `durable` were durable when this was written.
    """

    generation: int
    image_id: int
    region_blocks: int
    created: int
    segment_blocks: int
    table_lba: int
    table_sum: int
    log_lba: int
    log_sequence: int
    log_key: int
    durable: int

    def pack(self) -> bytes:
        """The sealed record."""
        return ST1_SUPERBLOCK.pack(
            magic=MAGIC,
            generation=self.generation,
            imageIdLow=self.image_id & (1 << 64) - 1,
            imageIdHigh=self.image_id >> 64,
            regionBlocks=self.region_blocks,
            created=self.created,
            tableLba=self.table_lba,
            logLba=self.log_lba,
            logSequence=self.log_sequence,
            logKey=self.log_key,
            durable=self.durable,
            segmentBlocks=self.segment_blocks,
            tableSum=self.table_sum,
            version=VERSION,
        )


def geometry_of(segment_bytes: int) -> Geometry:
    """Where segments of this length are.  There are as many as the head of a table can tell of."""
    return Geometry(segment_bytes, SEGMENTS_AT, segment_bytes // 8 - 64)


def segment_bytes_for(region_bytes: int) -> int:
    """What suits a fixed region of this length.

    Raises `InvalidArgument` for one that is too small."""
    room = region_bytes - SEGMENTS_AT
    size = SEGMENT_BYTES_MIN
    while size < SEGMENT_BYTES_MAX and room // size > _SEGMENTS_WANTED:
        size *= 2
    if room // size < SEGMENTS_MIN:
        least = SEGMENTS_AT + SEGMENTS_MIN * SEGMENT_BYTES_MIN
        raise InvalidArgument(f"a CAPOSST1 region has at least {least} bytes")
    return size


def page_bytes_of(segment_bytes: int) -> int:
    """What one checksum of a table covers: a page lies in one segment."""
    return min(16 * KIB, segment_bytes)


def part_bytes_of(segment_bytes: int) -> int:
    """The longest part: it lies in one segment."""
    return min(PART_BYTES_MAX, segment_bytes)


def frame_payload_max(segment_bytes: int) -> int:
    """How long the payload of a frame can be: behind it comes the one that says where the log goes
    on."""
    return segment_bytes - BLOCK_BYTES - ST1_FRAME.size


def inline_bytes_of(segment_bytes: int) -> int:
    """The longest value that is written with its frame: at least two of them fit into one."""
    room = frame_payload_max(segment_bytes)
    return min(INLINE_BYTES_MAX, room // 2 - ST1_ENTRY.size - STORED_KEY_BYTES_MAX)


def object_bytes_of(segment_bytes: int) -> int:
    """The longest object: the records of its parts are in one frame."""
    room = frame_payload_max(segment_bytes) - ST1_ENTRY.size - STORED_KEY_BYTES_MAX
    return room // ST1_PART.size * part_bytes_of(segment_bytes)


def claims(device: BlockDevice, lba: int) -> bool:
    """Whether there is a store on the device whose region has the block `lba`."""
    try:
        blocks = read_superblock(device).region_blocks
    except (Corrupt, Unsupported):
        return False
    return not blocks or lba < blocks


def read_superblock(device: BlockDevice) -> Superblock:
    """The valid superblock of the highest generation.

    Raises `Corrupt` when there is none, `Unsupported` for a version or feature that is not known.
    """
    newest = _SLOTS.newest(device, superblock_at)
    # One that is whole and points to nowhere is damage: the older one is not what was durable.
    _check(newest, device.size(), f"the superblock of generation {newest.generation}")
    return newest


def superblock_at(device: BlockDevice, lba: int) -> Superblock:
    """The sealed superblock at block `lba`; raises as `read_superblock`.

    What it points to is not checked: that of the older one may have been cut off since.
    """
    raw = _SLOTS.record_at(device, lba)
    return Superblock(
        generation=raw.generation,
        image_id=raw.imageIdHigh << 64 | raw.imageIdLow,
        region_blocks=raw.regionBlocks,
        created=raw.created,
        segment_blocks=raw.segmentBlocks,
        table_lba=raw.tableLba,
        table_sum=raw.tableSum,
        log_lba=raw.logLba,
        log_sequence=raw.logSequence,
        log_key=raw.logKey,
        durable=raw.durable,
    )


def _check(superblock: Superblock, device_bytes: int, where: str) -> None:
    size = superblock.segment_blocks * BLOCK_BYTES
    if not SEGMENT_BYTES_MIN <= size <= SEGMENT_BYTES_MAX or size & (size - 1):
        raise Corrupt(f"{where}: segments of {size} bytes")
    end = superblock.region_blocks * BLOCK_BYTES
    if end > device_bytes:
        raise Corrupt(f"{where}: the region ends at {end}, behind the image")
    geometry = geometry_of(size)
    count = geometry.count(region_end(superblock, device_bytes))
    for lba in (superblock.table_lba, superblock.log_lba):
        if not 0 <= geometry.of_lba(lba) < count:
            raise Corrupt(f"{where}: it points to block {lba}, which is in no segment")


def region_end(superblock: Superblock, device_bytes: int) -> int:
    """The offset behind the region."""
    return superblock.region_blocks * BLOCK_BYTES or device_bytes


def write_superblock(device: BlockDevice, superblock: Superblock) -> None:
    """Writes it into its slot; durable with the next flush."""
    _SLOTS.write(device, superblock)
