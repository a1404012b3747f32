"""Opening CAPOSWF1: the last checkpoint, and the log behind it as far as it is whole.

Invariants:

* Nothing is written.  What is found is the state after some prefix of the operations, with all that
  were durable: frames are taken in order, and those that may have been lost in part are believed
  only as far as their data is whole.
* No segment that a frame of the log ever referred to is free before the next checkpoint, since the
  next recovery may have to look there.
* Damage in front of what was durable is `Corrupt`: it is not taken for a tail that a crash tore.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capstore.images import wf1
from capstore.images.checksums import crc32c
from capstore.images.collecting import collection_paused
from capstore.images.device import BlockDevice
from capstore.images.frames import Frame, Position, log_start, read_frames
from capstore.images.records import BLOCK_BYTES
from capstore.images.segments import DATA, LOG, TABLE, Geometry, Space
from capstore.images.wf1_base import Tables, read_head
from capstore.images.wf1_checkpoint import orphans_of
from capstore.images.wf1_content import Extent
from capstore.images.wf1_log import FORMAT, decoded
from capstore.images.wf1_state import Change, State, gone
from capstore.schema.errors import Corrupt


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found: the `state`, where the log goes on (`position`), and the room there is.

    `discarded` is how many frames were there but not believed.
    """

    superblock: wf1.Superblock
    tables: Tables
    state: State
    space: Space
    position: Position
    log_segments: Sequence[int]
    log_bytes: int
    discarded: int


def recover(device: BlockDevice) -> Recovered:
    """Finds the state.  Raises `Corrupt`, `Unsupported`, and what the device raises."""
    with collection_paused():
        return _recover(device)


def _recover(device: BlockDevice) -> Recovered:
    superblock = wf1.read_superblock(device)
    geometry = wf1.geometry_of(superblock.segment_blocks * BLOCK_BYTES)
    grows = not superblock.region_blocks
    space = Space(device, geometry, grows=grows, end=wf1.region_end(superblock, device.size()))
    head = read_head(device, geometry, space.count, superblock)
    tables = Tables(device, geometry, space.count, head)
    for segment, live in enumerate(head.usage):
        space.live[segment] = live
        if live:
            space.use[segment] = DATA
    for segment in head.runs:
        space.use[segment] = TABLE
    state = State(tables, head.counts, head.next_node, head.changes)
    frames = list(read_frames(device, superblock, geometry, space.count, FORMAT))
    # A region may have grown, been referred to, and be short again: growing was not durable.
    reach = geometry.count_max if grows else space.count
    changes = [decoded(frame, geometry, reach) for frame in frames]
    count = _believed(device, superblock, frames, changes, space)
    for change in changes[:count]:
        state = _replay(state, change, space)
    state = _without_orphans(state, space)
    position = _position(superblock, geometry, frames[:count])
    segments = _log_segments(superblock, geometry, frames[:count])
    for segment in segments:
        if space.use[segment] == TABLE:
            raise Corrupt(f"the log lies in the checkpoint, in segment {segment}")
        if space.live[segment] or space.use[segment] == DATA:
            raise Corrupt(f"data lies in the log, in segment {segment}")
        space.use[segment] = LOG
    space.take_stock()
    log_bytes = sum(BLOCK_BYTES + len(frame.payload) for frame in frames[:count])
    return Recovered(
        superblock, tables, state, space, position, segments, log_bytes, len(frames) - count
    )


def _believed(
    device: BlockDevice,
    superblock: wf1.Superblock,
    frames: Sequence[Frame],
    changes: Sequence[Change],
    space: Space,
) -> int:
    """How many of the frames count: behind the durable ones, as long as their data is whole.

    Raises `Corrupt` for a durable one whose data cannot be there.
    """
    durable = max([superblock.durable, *(frame.header.durable for frame in frames)])
    for number, (frame, change) in enumerate(zip(frames, changes, strict=True)):
        extents = [extent for item in change.nodes for extent in item.extents]
        inside = all(space.geometry.of_lba(e.lba) < space.count for e in extents)
        if frame.header.sequence <= durable:
            if not inside:
                raise Corrupt(f"the frame at offset {frame.at} has data behind the image's end")
        elif not inside or not all(_is_whole(device, extent) for extent in extents):
            return number
    return len(frames)


def _is_whole(device: BlockDevice, extent: Extent) -> bool:
    at = extent.lba * BLOCK_BYTES
    return crc32c(device.read(at, extent.stored)) == extent.sum


def _replay(state: State, change: Change, space: Space) -> State:
    state, effect = state.apply(change)
    space.gained(effect.gained)
    space.lost(effect.lost)
    for extent in effect.gained:
        segment = space.geometry.of_lba(extent.lba)
        if space.use[segment] == TABLE:
            raise Corrupt(f"data lies in the checkpoint, in segment {segment}")
        space.use[segment] = DATA
    return state


def _without_orphans(state: State, space: Space) -> State:
    """The state without nodes that had lost their names and were held when the volume stopped."""
    for node in orphans_of(state):
        state = _replay(state, Change((gone(node),)), space)
    return state


def _position(superblock: wf1.Superblock, geometry: Geometry, frames: Sequence[Frame]) -> Position:
    return frames[-1].behind if frames else log_start(superblock, geometry)


def _log_segments(
    superblock: wf1.Superblock, geometry: Geometry, frames: Sequence[Frame]
) -> list[int]:
    segments = [geometry.of_lba(superblock.log_lba)]
    for frame in frames:
        if frame.behind.segment != segments[-1]:
            segments.append(frame.behind.segment)
    return segments
