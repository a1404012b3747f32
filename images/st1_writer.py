"""What a CAPOSST1 engine writes while it is open: values, frames of the log, superblocks.

Invariants:

* A value is on the device before a frame that refers to it, or lies in that frame.  Until that is
  written, whoever reads the value gets it from memory (`read_value`, in any thread).
* After a failed write or flush (`Flushing`) every later change and sync is `StorageIOError`.
  Reading goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from capstore.images import st1
from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice
from capstore.images.flushing import Flushing
from capstore.images.frames import Position
from capstore.images.records import BLOCK_BYTES, blocks_of
from capstore.images.segments import DATA, LOG, Space
from capstore.images.st1_entry import Entry, Part
from capstore.images.st1_log import PendingFrame
from capstore.images.waiting import read_at_hand
from capstore.schema.errors import Corrupt, NoSpace, StorageIOError
from capstore.schema.limits import KIB
from capstore.schema.nodes import Buffer

# Random bytes, so many as asked for.
Entropy = Callable[[int], bytes]

# A frame is written when so much is pending.
PENDING_BYTES_MAX: Final = 512 * KIB
# Values up to this length are read with what is around them, a page of so many bytes; so many pages
# are kept.
_SHORT_BYTES_MAX: Final = 1 * KIB
_NEAR_BYTES: Final = 4 * KIB
NEAR_PAGES_MAX: Final = 8192
_KEY_BYTES: Final = 8
# How far a new life is ahead of the last: frames of the last cannot be of its tables' epochs.
# An odd number, since superblocks alternate.
_LIFE_GENERATIONS: Final = 3


class Writer(Flushing):
    """The places where a store is written; `log_segments`, `log_bytes` and `entry_bytes` (those
    of them that are no values) are of the log since the last table."""

    def __init__(
        self,
        device: BlockDevice,
        superblock: st1.Superblock,
        space: Space,
        position: Position,
        log_segments: list[int],
        log_bytes: int,
        entry_bytes: int,
    ) -> None:
        super().__init__(device, position.sequence - 1)
        self.superblock = superblock
        self.space = space
        self.position = position
        self.log_segments = log_segments
        self.log_bytes = log_bytes
        self.entry_bytes = entry_bytes
        self.data_segment = -1
        self._geometry = space.geometry
        self.payload_max = st1.frame_payload_max(self._geometry.segment_bytes)
        self.pending_max = min(PENDING_BYTES_MAX, self.payload_max)
        self._data_at = self._geometry.segment_bytes
        self.pending = PendingFrame(1)
        # Pages that were read lately, as they were then.
        self._near: dict[int, bytes] = {}
        # Where the heaps of frames are that entries know by their numbers, when they are written;
        # and the heaps of those that are not.
        self.bases: dict[int, int] = {}
        self._heaps: dict[int, bytearray] = {1: self.pending.heap}

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

    # Entries -------------------------------------------------------------------------------------

    def add(
        self,
        key: bytes,
        entry: Entry,
        value: bytes | None,
        *,
        flags: int,
        replaced: int,
    ) -> Entry:
        """Adds an entry to the frame that is pending, which has room for it."""
        return self.pending.add(key, crc32c(key), entry, value, flags, replaced)

    def place_of(self, entry: Entry) -> int:
        """Where the value is, of an entry whose frame was written."""
        return entry.place + (self.bases[entry.frame] if entry.frame else 0)

    def read_value(self, entry: Entry) -> bytes:
        """The value of an entry without parts.  Raises `Corrupt`."""
        place = entry.place
        if entry.frame:
            base = self.bases.get(entry.frame)
            if base is None:
                heap = self._heaps.get(entry.frame)
                if heap is not None:
                    return bytes(heap[place : place + entry.size])
                # It has been written just now.
                base = self.bases[entry.frame]
            place += base
        if entry.size <= _SHORT_BYTES_MAX:
            value = self._read_near(place, entry.size)
            if crc32c(value) == entry.sum:
                return value
            # Something else was there when that was read, or nothing yet.
            self._near.pop(place // _NEAR_BYTES, None)
        return self.read_at(place, entry.size, entry.sum)

    def _read_near(self, place: int, length: int) -> bytes:
        """What is at a place, or was some time ago; less where it is not all in one piece.

        A page is read and kept, since short values lie side by side, and reading one takes as long
        as reading all of them.
        """
        number, inside = divmod(place, _NEAR_BYTES)
        page = self._near.get(number)
        if page is None:
            begin = number * _NEAR_BYTES
            buffer = bytearray(min(_NEAR_BYTES, self.device.size() - begin))
            read_at_hand(self.device, begin, memoryview(buffer))
            if len(self._near) >= NEAR_PAGES_MAX:
                self._near = {}
            page = self._near[number] = bytes(buffer)
        return page[inside : inside + length]

    def read_at(self, place: int, length: int, checksum: int) -> bytes:
        """The bytes at a place.  Raises `Corrupt` if they are not those of the checksum."""
        buffer = bytearray(length)
        read_at_hand(self.device, place, memoryview(buffer))
        data = bytes(buffer)
        if crc32c(data) != checksum:
            raise Corrupt(f"data at offset {place} has a wrong checksum")
        return data

    # What is live --------------------------------------------------------------------------------

    def gained(self, entry: Entry) -> None:
        """Counts a value that is referred to from now on, and does not lie in a pending frame."""
        live, at = self.space.live, self._geometry.at
        for part in entry.parts:
            live[at(part.place)] += part.length
        if not entry.parts and entry.frame != self.pending.number:
            live[at(self.place_of(entry))] += entry.size

    def lost(self, entry: Entry) -> None:
        """Counts a value that is no longer referred to."""
        live, at = self.space.live, self._geometry.at
        for part in entry.parts:
            live[at(part.place)] -= part.length
        if not entry.parts:
            if entry.frame == self.pending.number:
                self.pending.live -= entry.size
            else:
                live[at(self.place_of(entry))] -= entry.size

    # Data ----------------------------------------------------------------------------------------

    def put_data(self, data: Buffer) -> Part:
        """Writes bytes of their own, at a block; the part that they are, at offset 0.

        Raises `NoSpace`, with nothing changed but where the next bytes go."""
        view = memoryview(data).cast("B")
        size = blocks_of(len(view)) * BLOCK_BYTES
        if self._data_at + size > self._geometry.segment_bytes:
            self.data_segment = self.allocate(DATA)
            self._data_at = 0
        place = self._geometry.start(self.data_segment) + self._data_at
        padding = size - len(view)
        try:
            self.device.write(place, bytes(view) + bytes(padding) if padding else view)
        except NoSpace:
            raise
        except BaseException:
            self.failed = True
            raise
        self._data_at += size
        return Part(place, 0, len(view), crc32c(view))

    # Frames --------------------------------------------------------------------------------------

    def write_frame(self, *, goes_on: bool = False) -> None:
        """Writes what is pending; with `goes_on` the next frame belongs to the same batch."""
        pending = self.pending
        if not pending.records:
            return
        size = pending.frame_bytes
        if self.position.offset + size > self._geometry.segment_bytes - BLOCK_BYTES:
            self.go_on_elsewhere()
        position = self.position
        self._put_frame(pending, flags=st1.GOES_ON if goes_on else 0)
        self.entry_bytes += pending.size - pending.live
        self.space.live[position.segment] += pending.live
        at = self._geometry.start(position.segment) + position.offset
        self.bases[pending.number] = at + pending.heap_at
        self.pending = PendingFrame(pending.number + 1)
        self._heaps[pending.number + 1] = self.pending.heap
        # Whoever does not find it here any more finds it on the device.
        del self._heaps[pending.number]

    def commit(self) -> int:
        """Writes everything; returns the sequence of the last frame.

        `flush` with that, begun behind this, makes it durable.
        """
        self.write_frame()
        return self.position.sequence - 1

    def go_on_elsewhere(self) -> None:
        """Goes on with the log in another segment, and says so at the end of this one.

        Raises `NoSpace`, with nothing changed."""
        segment = self.allocate(LOG)
        self._put_frame(PendingFrame(0), next_lba=self._geometry.lba(segment))
        self.position = replace(self.position, segment=segment, offset=0)
        self.log_segments.append(segment)

    def leave_segments(self) -> None:
        """Goes on in other segments, so that these can be compacted.  Raises `NoSpace`."""
        self.write_frame()
        self.go_on_elsewhere()
        self.data_segment, self._data_at = -1, self._geometry.segment_bytes

    def _put_frame(self, frame: PendingFrame, *, next_lba: int = 0, flags: int = 0) -> None:
        position = self.position
        raw = frame.encoded(
            key=self.superblock.log_key,
            epoch=self.superblock.generation,
            sequence=position.sequence,
            durable=self.durable,
            next=next_lba,
            flags=flags,
        )
        self._write(self._geometry.start(position.segment) + position.offset, raw)
        self.log_bytes += len(raw)
        self.position = Position(
            position.segment,
            position.offset + len(raw),
            position.sequence + 1,
            self.superblock.generation,
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

    def write_superblock(self, superblock: st1.Superblock) -> None:
        """Writes one in the place of the older of the two."""
        try:
            st1.write_superblock(self.device, superblock)
        except BaseException:
            self.failed = True
            raise
