"""Making and opening CAPOSWF1 volumes.

Invariants: a volume is made whole: its superblock is written when the first checkpoint is durable.
Opening for reading writes nothing; opening for writing writes a superblock, after everything was
found to be in order.
"""

from __future__ import annotations

import os
import time

from capstore.images import wf1
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES
from capstore.images.segments import LOG, Space
from capstore.images.wf1_checkpoint import CheckpointWriter
from capstore.images.wf1_engine import Clock, Engine
from capstore.images.wf1_recovery import recover
from capstore.images.wf1_state import Change, Counts, EmptyBase, Node, NodeChange, State
from capstore.images.wf1_writer import Entropy
from capstore.schema.nodes import Provenance

_ID_BYTES = 16
_KEY_BYTES = 8


def format_wf1(
    device: BlockDevice,
    *,
    size: int | None = None,
    segment_bytes: int | None = None,
    clock: Clock = time.time_ns,
    entropy: Entropy = os.urandom,
) -> None:
    """Makes an empty volume on `device`, from its beginning.

    With `size` (bytes of the whole image) it never changes its length, else it grows.  Raises
    `InvalidArgument` for a size that is too small, `NoSpace`, and what the device raises.
    """
    first = wf1.SUPERBLOCK_LBAS[0] * BLOCK_BYTES
    if size is not None:
        size -= size % BLOCK_BYTES
        segment_bytes = segment_bytes or wf1.segment_bytes_for(size - first)
    geometry = wf1.geometry_of(segment_bytes or wf1.SEGMENT_BYTES_GROWING)
    end = geometry.start(wf1.SEGMENTS_MIN) if size is None else size
    if device.size() < end:
        device.resize(end)
    for lba in wf1.SUPERBLOCK_LBAS:
        device.write(lba * BLOCK_BYTES, bytes(BLOCK_BYTES))
    space = Space(device, geometry, grows=False, end=end)
    space.take_stock()
    now = clock()
    root = Node(
        wf1.ROOT,
        wf1.DIRECTORY,
        created=now,
        modified=now,
        provenance=Provenance.WALL_CLOCK,
        version=1,
        parent=wf1.ROOT,
    )
    empty = State(EmptyBase(), Counts(), wf1.ROOT, 0)
    state, _ = empty.apply(Change((NodeChange(root),)))
    writer = CheckpointWriter(device, space, state, 0, [0] * space.count)
    for _ in writer.steps():
        continue
    log = space.allocate(LOG)
    device.flush()
    superblock = wf1.Superblock(
        generation=1,
        image_id=int.from_bytes(entropy(_ID_BYTES), "big"),
        region_blocks=0 if size is None else (size - first) // BLOCK_BYTES,
        created=now,
        segment_blocks=geometry.segment_bytes // BLOCK_BYTES,
        checkpoint_lba=geometry.lba(writer.head.runs[0]),
        checkpoint_sum=writer.head_sum,
        log_lba=geometry.lba(log),
        log_sequence=1,
        log_key=int.from_bytes(entropy(_KEY_BYTES), "little"),
        durable=0,
    )
    wf1.write_superblock(device, superblock)
    device.flush()


def open_wf1(
    device: BlockDevice,
    *,
    writable: bool = True,
    clock: Clock = time.time_ns,
    entropy: Entropy = os.urandom,
) -> Engine:
    """Opens the volume on `device`, which becomes the engine's own.

    Raises `Corrupt`, `Unsupported`, and what the device raises; `device` stays open then.
    """
    return Engine(device, recover(device), clock=clock, entropy=entropy, writable=writable)
