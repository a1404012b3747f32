"""Opening CAPOSST1: the front table, and the log behind it as far as it is whole.

Invariants:

* Nothing is written.  What is found is the state after some prefix of the operations, with all that
  were durable: frames are taken in order, and those that may have been lost in part are believed
  only as far as the values they refer to are whole, and their batches.
* No segment that a frame of the log ever referred to is free before the next table, since the next
  recovery may have to look there.
* Damage in front of what was durable is `Corrupt`: it is not taken for a tail that a crash tore.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from capstore.images import st1
from capstore.images.checksums import crc32c
from capstore.images.collecting import collection_paused
from capstore.images.device import BlockDevice
from capstore.images.frames import Frame, Position, log_start, read_frames
from capstore.images.records import BLOCK_BYTES
from capstore.images.segments import DATA, LOG, TABLE, Geometry, Space
from capstore.images.st1_entry import Entry
from capstore.images.st1_log import FORMAT, Logged, decoded
from capstore.images.st1_state import Changes
from capstore.images.st1_table import Counts, Table, read_head
from capstore.schema.errors import Corrupt


@dataclass(frozen=True, slots=True)
class Read:
    """A frame that was read: where it was and where the next goes, and what it says."""

    at: int
    sequence: int
    durable: int
    goes_on: bool
    bytes: int
    behind: Position
    changes: Sequence[Logged]


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found: the `table`, what was changed since, and where the log goes on (`position`).

    `replaced` are keys of the table whose values are still in `space.live`; `discarded` is how many
    frames were there but not believed.
    """

    superblock: st1.Superblock
    table: Table
    changes: Changes
    counts: Counts
    version: int
    space: Space
    replaced: list[bytes]
    position: Position
    log_segments: list[int]
    log_bytes: int
    entry_bytes: int
    discarded: int


def recover(device: BlockDevice) -> Recovered:
    """Finds the state.  Raises `Corrupt`, `Unsupported`, and what the device raises."""
    with collection_paused():
        return _recover(device)


def _recover(device: BlockDevice) -> Recovered:
    superblock = st1.read_superblock(device)
    geometry = st1.geometry_of(superblock.segment_blocks * BLOCK_BYTES)
    grows = not superblock.region_blocks
    space = Space(device, geometry, grows=grows, end=st1.region_end(superblock, device.size()))
    # The head may tell of segments that were free and cut off since.
    head = read_head(device, geometry, space.count, superblock)
    table = Table(device, geometry, space.count, head)
    for segment, live in enumerate(head.usage):
        space.live[segment] = live
        if live:
            space.use[segment] = DATA
    for segment in head.runs:
        if space.live[segment]:
            raise Corrupt(f"values lie in the table, in segment {segment}")
        space.use[segment] = TABLE
    # A region may have grown, been referred to, and be short again: growing was not durable.
    reach = geometry.count_max if grows else space.count
    frames = [
        _read(frame, geometry, reach)
        for frame in read_frames(device, superblock, geometry, space.count, FORMAT)
    ]
    believed = frames[: _believed(device, superblock, frames, space)]
    replay = _Replay(space, head.counts, head.version)
    for frame in believed:
        replay.frame(frame)
    position = believed[-1].behind if believed else log_start(superblock, geometry)
    segments = _log_segments(superblock, geometry, believed)
    for segment in segments:
        if space.use[segment] == TABLE:
            raise Corrupt(f"the log lies in the table, in segment {segment}")
        space.use[segment] = LOG
    space.take_stock()
    return Recovered(
        superblock=superblock,
        table=table,
        changes=replay.changes,
        counts=replay.counts(),
        version=replay.version,
        space=space,
        replaced=replay.replaced,
        position=position,
        log_segments=segments,
        log_bytes=sum(frame.bytes for frame in believed),
        entry_bytes=sum(frame.bytes for frame in believed) - replay.values_in_frames,
        discarded=len(frames) - len(believed),
    )


def _read(frame: Frame, geometry: Geometry, segments: int) -> Read:
    header = frame.header
    return Read(
        at=frame.at,
        sequence=header.sequence,
        durable=header.durable,
        goes_on=bool(header.flags & st1.GOES_ON),
        bytes=BLOCK_BYTES + len(frame.payload),
        behind=frame.behind,
        changes=decoded(frame, geometry, segments),
    )


def _believed(
    device: BlockDevice, superblock: st1.Superblock, frames: Sequence[Read], space: Space
) -> int:
    """How many of the frames count: behind the durable ones, as long as what they refer to is
    whole; and batches only as a whole.

    Raises `Corrupt` for a durable one that cannot be.
    """
    durable = max([superblock.durable, *(frame.durable for frame in frames)])
    count = 0
    for number, frame in enumerate(frames, 1):
        places = [place for change in frame.changes for place in _places(change)]
        inside = all(space.geometry.at(place) < space.count for place, _, _ in places)
        if frame.sequence <= durable:
            if not inside:
                raise Corrupt(f"the frame at offset {frame.at} has values behind the image's end")
        elif not inside or not all(_is_whole(device, *place) for place in places):
            break
        # The frame that only says where the log goes on may be in the middle of a batch.
        if not frame.goes_on and (frame.changes or not _is_open(frames[:number])):
            count = number
    if count < len(frames) and frames[count].sequence <= durable:
        raise Corrupt(f"the log at offset {frames[count].at} ends in the middle of a batch")
    return count


def _is_open(frames: Sequence[Read]) -> bool:
    """Whether a batch goes on behind these frames."""
    for frame in reversed(frames):
        if frame.changes:
            return frame.goes_on
    return False


def _places(change: Logged) -> Iterable[tuple[int, int, int]]:
    """Where a change has values that do not lie in its frame: offset, length and checksum."""
    entry = change.entry
    if entry is None or change.in_frame:
        return ()
    if entry.parts:
        return [(part.place, part.length, part.sum) for part in entry.parts]
    return ((entry.place, entry.size, entry.sum),)


def _is_whole(device: BlockDevice, place: int, length: int, checksum: int) -> bool:
    return crc32c(device.read(place, length)) == checksum


class _Replay:
    """What the frames of the log make of a table that holds `counts`."""

    def __init__(self, space: Space, counts: Counts, version: int) -> None:
        self.changes: Changes = {}
        self.replaced: list[bytes] = []
        self.version = version
        self.values_in_frames = 0
        self._space = space
        self._entries, self._names, self._parts, self._heap = counts

    def counts(self) -> Counts:
        """What there is."""
        return Counts(self._entries, self._names, self._parts, self._heap)

    def frame(self, frame: Read) -> None:
        """Takes in what a frame says.  Raises `Corrupt`."""
        for change in frame.changes:
            key, entry = change.key, change.entry
            if key in self.changes:
                before = self.changes[key]
                if (before is None) == change.replaces:
                    raise Corrupt(f"the frame at offset {frame.at} replaces what is not there")
                if before is not None:
                    self._count(before, -1)
            elif change.replaces:
                self.replaced.append(key)
            sign = (entry is not None) - change.replaces
            if entry is None and not change.replaces:
                raise Corrupt(f"the frame at offset {frame.at} removes what is not there")
            self._entries += sign
            self._heap += sign * len(key)
            self._names += sign * (key[:1] == st1.NAMES)
            self._parts -= change.replaced_parts
            self.version = max(self.version, change.version)
            if entry is not None:
                self._parts += len(entry.parts)
                self._count(entry, 1)
                self.values_in_frames += entry.size if change.in_frame else 0
            self.changes[key] = entry
            if min(self._entries, self._names, self._parts, self._heap) < 0:
                raise Corrupt(f"the frame at offset {frame.at} removes what is not there")

    def _count(self, entry: Entry, sign: int) -> None:
        """Counts a value as live, or as no longer so."""
        pieces = [(p.place, p.length) for p in entry.parts] or [(entry.place, entry.size)]
        for place, length in pieces:
            if not length:
                # An empty value is anywhere.
                continue
            segment = self._space.geometry.at(place)
            if self._space.use[segment] == TABLE:
                raise Corrupt(f"values lie in the table, in segment {segment}")
            self._space.use[segment] = DATA
            self._space.live[segment] += sign * length


def _log_segments(
    superblock: st1.Superblock, geometry: Geometry, frames: Sequence[Read]
) -> list[int]:
    segments = [geometry.of_lba(superblock.log_lba)]
    for frame in frames:
        if frame.behind.segment != segments[-1]:
            segments.append(frame.behind.segment)
    return segments
