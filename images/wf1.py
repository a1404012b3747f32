"""CAPOSWF1: the constants of the format, its superblocks, and where segments are.

Invariants: ``docs/spec/caposwf1.md`` says what every byte means, ``docs/design/caposwf1.md`` why;
offsets come from ``layout.capnp``.  A superblock is used only if its seal fits, its version and
features are known and what it points to lies inside the region.  The slot that is written is never
the slot that is valid: superblocks alternate by their generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from capstore.images import ro1, st1
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES, WF1_SUPERBLOCK
from capstore.images.segments import Geometry
from capstore.images.superblocks import Slots
from capstore.schema import layout
from capstore.schema.errors import Corrupt, InvalidArgument, InvalidName, TooLarge
from capstore.schema.limits import KIB, MIB
from capstore.schema.names import check_name
from capstore.schema.nodes import NodeKind

MAGIC: Final = int(layout.wf1Magic)
VERSION: Final = int(layout.wf1Version)
SUPERBLOCK_LBAS: Final = tuple(int(lba) for lba in layout.wf1SuperblockLbas)
_SLOTS: Final = Slots("CAPOSWF1", WF1_SUPERBLOCK, MAGIC, VERSION, SUPERBLOCK_LBAS)
SEGMENTS_LBA: Final = int(layout.wf1SegmentsLba)
SEGMENTS_AT: Final = SEGMENTS_LBA * BLOCK_BYTES

EXECUTABLE: Final = int(layout.wf1Executable)
OPAQUE: Final = int(layout.wf1Opaque)
REMOVED: Final = int(layout.wf1Removed)

FILE: Final = ro1.KIND_CODES[NodeKind.FILE]
DIRECTORY: Final = ro1.KIND_CODES[NodeKind.DIRECTORY]
SYMLINK: Final = ro1.KIND_CODES[NodeKind.SYMLINK]
SPECIAL: Final = ro1.KIND_CODES[NodeKind.SPECIAL]
WHITEOUT: Final = int(layout.wf1Whiteout)
KINDS: Final = frozenset((FILE, DIRECTORY, SYMLINK, SPECIAL, WHITEOUT))

# The id of the root; others count up from it and are never used again.
ROOT: Final = 1

# What one checksum of data covers: an extent has at most this many bytes.
UNIT_BYTES: Final = 64 * KIB
SEGMENT_BYTES_MIN: Final = 64 * KIB
SEGMENT_BYTES_MAX: Final = 4 * MIB
SEGMENT_BYTES_GROWING: Final = 1 * MIB
# A fixed region has about this many segments, so that its last ones can be cleaned one by one.
_SEGMENTS_WANTED: Final = 256
# The log, the data, a checkpoint and what a cleaner needs to move.
SEGMENTS_MIN: Final = 8
# The path at which a directory goes on in the layers below.
REDIRECT_BYTES_MAX: Final = 4095


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a superblock says.

    `region_blocks` is the region's length from LBA 256 on, 0 for one that grows; the checkpoint
    begins at `checkpoint_lba` with a head whose CRC32C is `checkpoint_sum`; the log behind it
    begins at `log_lba` with the frame `log_sequence`.  Frames carry `log_key`, which nobody who
    only writes files can know; those up to `durable` were durable when this was written.
    """

    generation: int
    image_id: int
    region_blocks: int
    created: int
    segment_blocks: int
    checkpoint_lba: int
    checkpoint_sum: int
    log_lba: int
    log_sequence: int
    log_key: int
    durable: int

    def pack(self) -> bytes:
        """The sealed record."""
        return WF1_SUPERBLOCK.pack(
            magic=MAGIC,
            generation=self.generation,
            imageIdLow=self.image_id & (1 << 64) - 1,
            imageIdHigh=self.image_id >> 64,
            regionBlocks=self.region_blocks,
            created=self.created,
            checkpointLba=self.checkpoint_lba,
            logLba=self.log_lba,
            logSequence=self.log_sequence,
            logKey=self.log_key,
            durable=self.durable,
            segmentBlocks=self.segment_blocks,
            checkpointSum=self.checkpoint_sum,
            version=VERSION,
        )


def geometry_of(segment_bytes: int) -> Geometry:
    """Where segments of this length are.  There are as many as the head of a checkpoint can tell
    of, which fits in one, with four bytes for each and for each that it takes itself."""
    return Geometry(segment_bytes, SEGMENTS_AT, segment_bytes // 8 - 64)


def segment_bytes_for(region_bytes: int) -> int:
    """What suits a fixed region of this length.

    Raises `InvalidArgument` for one that is too small."""
    room = region_bytes - (SEGMENTS_AT - SUPERBLOCK_LBAS[0] * BLOCK_BYTES)
    size = SEGMENT_BYTES_MIN
    while size < SEGMENT_BYTES_MAX and room // size > _SEGMENTS_WANTED:
        size *= 2
    if room // size < SEGMENTS_MIN:
        least = SEGMENTS_AT + SEGMENTS_MIN * SEGMENT_BYTES_MIN
        raise InvalidArgument(f"a CAPOSWF1 image has at least {least} bytes")
    return size


def check_redirect(path: str) -> str:
    """`path` if a directory can go on there in the layers below: names with "/" between.

    Raises `TooLarge`, `InvalidArgument`."""
    try:
        size = len(path.encode())
        for name in path.split("/"):
            check_name(name)
    except (UnicodeEncodeError, InvalidName):
        raise InvalidArgument("a redirect is a relative path of names") from None
    if size > REDIRECT_BYTES_MAX:
        raise TooLarge(f"a redirect has at most {REDIRECT_BYTES_MAX} bytes")
    return path


def read_superblock(device: BlockDevice) -> Superblock:
    """The valid superblock of the highest generation.

    Raises `Corrupt` when there is none, `Unsupported` for a version or feature that is not known.
    """
    if st1.claims(device, SUPERBLOCK_LBAS[0]):
        # Whatever lies there is what somebody put into a store.
        raise Corrupt("the blocks of the superblock belong to a store of objects")
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
        checkpoint_lba=raw.checkpointLba,
        checkpoint_sum=raw.checkpointSum,
        log_lba=raw.logLba,
        log_sequence=raw.logSequence,
        log_key=raw.logKey,
        durable=raw.durable,
    )


def _check(superblock: Superblock, device_bytes: int, where: str) -> None:
    size = superblock.segment_blocks * BLOCK_BYTES
    if size & (size - 1) or not SEGMENT_BYTES_MIN <= size <= SEGMENT_BYTES_MAX:
        raise Corrupt(f"{where}: segments of {size} bytes")
    end = SUPERBLOCK_LBAS[0] + superblock.region_blocks
    if superblock.region_blocks and end * BLOCK_BYTES > device_bytes:
        raise Corrupt(f"{where}: the region ends at {end * BLOCK_BYTES}, behind the image")
    geometry = geometry_of(size)
    count = geometry.count(region_end(superblock, device_bytes))
    for lba in (superblock.checkpoint_lba, superblock.log_lba):
        if not 0 <= geometry.of_lba(lba) < count:
            raise Corrupt(f"{where}: it points to block {lba}, which is in no segment")


def region_end(superblock: Superblock, device_bytes: int) -> int:
    """The offset behind the region."""
    if not superblock.region_blocks:
        return device_bytes
    return (SUPERBLOCK_LBAS[0] + superblock.region_blocks) * BLOCK_BYTES


def write_superblock(device: BlockDevice, superblock: Superblock) -> None:
    """Writes it into its slot; durable with the next flush."""
    _SLOTS.write(device, superblock)
