"""What a CAPOSWF1 engine writes while it is open: units of data, frames of the log, superblocks.

Invariants:

* Data is on the device before a frame that refers to it: short units wait in memory until the next
  frame, next to each other, and are written at once; whoever reads them meanwhile is given them
  from there (`read_units`, in any thread).
* After a failed write or flush (`Flushing`) every later change and sync is `StorageIOError`.
  Reading goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from capstore.images import wf1
from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice
from capstore.images.flushing import Flushing
from capstore.images.records import BLOCK_BYTES, WF1_FRAME, blocks_of
from capstore.images.segments import DATA, LOG
from capstore.images.waiting import read_at_hand
from capstore.images.wf1_codec import Encoder
from capstore.images.wf1_content import Extent
from capstore.images.wf1_log import PendingFrame, frame_blocks_bytes, frame_bytes
from capstore.images.wf1_recovery import Recovered
from capstore.images.wf1_state import Change
from capstore.schema.errors import Corrupt, NoSpace, StorageIOError, TooLarge
from capstore.schema.limits import KIB, MIB
from capstore.schema.nodes import Buffer

# Random bytes, so many as asked for.
Entropy = Callable[[int], bytes]

# A frame is written when so much is pending.
PENDING_BYTES_MAX: Final = 128 * KIB
# Units that are shorter than this wait for others, until so much waits.
SHORT_BYTES_MAX: Final = 32 * KIB
WAITING_BYTES_MAX: Final = 1 * MIB
_KEY_BYTES: Final = 8
# How far a new life is ahead of the last: frames of the last cannot be of its checkpoints' epochs.
# An odd number, since superblocks alternate.
_LIFE_GENERATIONS: Final = 3


class Writer(Flushing):
    """The places where a volume is written; `log_segments` and `log_bytes` are those of the log
    since the last checkpoint, `data_bytes` is what was written of data since then."""

    def __init__(self, device: BlockDevice, recovered: Recovered) -> None:
        super().__init__(device, recovered.position.sequence - 1)
        self.superblock = recovered.superblock
        self.space = recovered.space
        self.position = recovered.position
        self.log_segments = list(recovered.log_segments)
        self.log_bytes = recovered.log_bytes
        self.data_bytes = 0
        self.data_segment = -1
        self._geometry = recovered.space.geometry
        self._data_at = self._geometry.segment_bytes
        self._pending = PendingFrame()
        # Units by their blocks, which lie one behind the other.
        self._waiting: dict[int, bytes] = {}
        self._waiting_bytes = self._waiting_end = 0

    # Changes -------------------------------------------------------------------------------------

    def allocate(self, use: int) -> int:
        """As `Space.allocate`; after a failure nobody can say how long the image is."""
        try:
            return self.space.allocate(use)
        except StorageIOError:
            self.failed = True
            raise

    def grow(self, wanted: int) -> None:
        """As `Space.grow`."""
        try:
            self.space.grow(wanted)
        except StorageIOError:
            self.failed = True
            raise

    def frame_bytes_max(self) -> int:
        """What the tables of one frame may take: a frame, and behind it the one that goes on."""
        room = self._geometry.segment_bytes - BLOCK_BYTES - WF1_FRAME.size
        return min(room, 4 * PENDING_BYTES_MAX)

    def check_change(self, change_bytes: int) -> None:
        """Raises `TooLarge` for a change that no frame holds."""
        if change_bytes > self.frame_bytes_max():
            raise TooLarge("the change is more than one frame holds")

    def has_at_hand(self, data_bytes: int, change_bytes: int) -> bool:
        """Whether so much data, in whole blocks, and a change can be taken in without writing."""
        return (
            self._pending.size + change_bytes < PENDING_BYTES_MAX
            and self._waiting_bytes + data_bytes <= WAITING_BYTES_MAX
            and self._data_at + data_bytes <= self._geometry.segment_bytes
        )

    def make_way(self, change_bytes: int) -> None:
        """Writes the frame that is pending if a change does not go into it any more."""
        if self._pending.size + change_bytes > self.frame_bytes_max():
            self.write_frame()

    def add(self, change: Change, change_bytes: int) -> None:
        """Adds a change to the frame that is pending, and writes that when it is long."""
        self._pending.add(change, change_bytes)
        if self._pending.size >= PENDING_BYTES_MAX:
            self.write_frame()

    # Data ----------------------------------------------------------------------------------------

    def put_data(self, offset: int, data: Buffer) -> Extent:
        """Writes a unit of data; the extent that puts it at `offset` of a file.

        Raises `NoSpace`, with nothing changed but where the next unit goes."""
        view = memoryview(data).cast("B")
        return self.put_pieces(offset, view, ((offset, len(view)),))[0]

    def put_pieces(
        self, offset: int, view: memoryview, pieces: Sequence[tuple[int, int]]
    ) -> list[Extent]:
        """Writes `view`, which lies at `offset` of a file, in units: `pieces` of that file, each a
        start and a length.  Returns their extents; raises as `put_data`."""
        extents: list[Extent] = []
        # Long units that lie side by side are one write: where it begins, and which part of `view`.
        place, begin, end = 0, 0, 0
        for start, length in pieces:
            at = self._room_for(length)
            piece = view[start - offset : start - offset + length]
            if length < SHORT_BYTES_MAX:
                kept = bytes(piece)
                self._keep(at, kept)
                checksum = crc32c(kept)
            else:
                checksum = crc32c(piece)
                if begin == end or place + end - begin != at or start - offset != end:
                    self._write_units(place, view[begin:end])
                    place, begin = at, start - offset
                end = start - offset + length
            extents.append(Extent(start, length, at // BLOCK_BYTES, 0, length, checksum))
        self._write_units(place, view[begin:end])
        return extents

    def _room_for(self, length: int) -> int:
        """Where the next unit goes, as an offset of the image."""
        size = blocks_of(length) * BLOCK_BYTES
        if self._data_at + size > self._geometry.segment_bytes:
            self.write_data()
            self.data_segment = self.allocate(DATA)
            self._data_at = 0
        at = self._geometry.start(self.data_segment) + self._data_at
        self._data_at += size
        self.data_bytes += size
        return at

    def _keep(self, at: int, raw: bytes) -> None:
        """Has a short unit wait for others."""
        size = blocks_of(len(raw)) * BLOCK_BYTES
        if self._waiting_bytes + size > WAITING_BYTES_MAX or at != self._waiting_end:
            self.write_data()
        self._waiting[at // BLOCK_BYTES] = raw
        self._waiting_bytes += size
        self._waiting_end = at + size

    def _write_units(self, at: int, data: memoryview) -> None:
        if not data:
            return
        padding = -len(data) % BLOCK_BYTES
        try:
            self.device.write(at, bytes(data) + bytes(padding) if padding else data)
        except NoSpace:
            raise
        except BaseException:
            self.failed = True
            raise

    def write_data(self) -> None:
        """Writes the units that wait."""
        if not self._waiting:
            return
        pieces = [
            raw.ljust(blocks_of(len(raw)) * BLOCK_BYTES, b"\0") for raw in self._waiting.values()
        ]
        self._write(next(iter(self._waiting)) * BLOCK_BYTES, b"".join(pieces))
        # Whoever does not find a unit here any more finds it on the device.
        self._waiting, self._waiting_bytes = {}, 0

    def read_units(self, extents: Sequence[Extent], view: memoryview) -> None:
        """Fills `view` with the whole units of extents, which lie side by side on the device.

        Raises `Corrupt`; see `read_at_hand`."""
        # Those that do not wait are on the device, whatever is written meanwhile.
        waiting = [self._waiting.get(extent.lba) for extent in extents]
        if waiting[0] is None and not any(waiting):
            read_at_hand(self.device, extents[0].lba * BLOCK_BYTES, view)
        at = 0
        for extent, raw in zip(extents, waiting, strict=True):
            unit = view[at : at + extent.stored]
            if raw is not None:
                unit[:] = raw
            elif any(waiting):
                read_at_hand(self.device, extent.lba * BLOCK_BYTES, unit)
            if crc32c(unit) != extent.sum:
                offset = extent.lba * BLOCK_BYTES
                raise Corrupt(f"data at offset {offset} has a wrong checksum")
            at += extent.stored

    # Frames --------------------------------------------------------------------------------------

    def write_frame(self) -> None:
        """Writes what waits and what is pending."""
        self.write_data()
        if not self._pending.size:
            return
        tables = self._pending.encoded()
        size = frame_blocks_bytes(tables)
        if self.position.offset + size > self._geometry.segment_bytes - BLOCK_BYTES:
            self._go_on_elsewhere()
        self._put_frame(tables, next_lba=0)
        self._pending = PendingFrame()

    def commit(self) -> int:
        """Writes everything; returns the sequence of the last frame.

        `flush` with that, begun behind this, makes it durable.
        """
        self.write_frame()
        return self.position.sequence - 1

    def _go_on_elsewhere(self) -> None:
        """Goes on with the log in another segment, and says so at the end of this one."""
        segment = self.allocate(LOG)
        self._put_frame(Encoder(), next_lba=self._geometry.lba(segment))
        self.position = replace(self.position, segment=segment, offset=0)
        self.log_segments.append(segment)

    def _put_frame(self, tables: Encoder, *, next_lba: int) -> None:
        position = self.position
        raw = frame_bytes(
            tables,
            key=self.superblock.log_key,
            epoch=self.superblock.generation,
            sequence=position.sequence,
            durable=self.durable,
            next=next_lba,
        )
        self._write(self._geometry.start(position.segment) + position.offset, raw)
        self.log_bytes += len(raw)
        self.position = replace(
            position,
            offset=position.offset + len(raw),
            sequence=position.sequence + 1,
            epoch=self.superblock.generation,
        )

    def _write(self, offset: int, data: bytes) -> None:
        try:
            self.device.write(offset, data)
        except BaseException:
            self.failed = True
            raise

    # Superblocks ---------------------------------------------------------------------------------

    def begin_life(self, entropy: Entropy) -> None:
        """A new generation: frames of this life are told from those of earlier ones by it."""
        key = self.superblock.log_key
        if self.position.sequence == self.superblock.log_sequence:
            # There is no frame that carries the old one.
            key = int.from_bytes(entropy(_KEY_BYTES), "little")
        superblock = replace(
            self.superblock,
            generation=self.superblock.generation + _LIFE_GENERATIONS,
            log_key=key,
            durable=self.durable,
        )
        self.write_superblock(superblock)
        self.flush()
        self.superblock = superblock

    def write_superblock(self, superblock: wf1.Superblock) -> None:
        """Writes one in the place of the older of the two."""
        try:
            wf1.write_superblock(self.device, superblock)
        except BaseException:
            self.failed = True
            raise
