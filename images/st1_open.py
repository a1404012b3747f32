"""Making and opening CAPOSST1 stores.

Invariants: a store is made whole: its superblock is written when the first table is durable.
Opening for reading writes nothing; opening for writing writes a superblock, after everything was
found to be in order.
"""

from __future__ import annotations

import os
import time

from capstore.images import st1
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES
from capstore.images.segments import LOG, TABLE, Space
from capstore.images.st1_engine import Clock, St1Engine
from capstore.images.st1_recovery import recover
from capstore.images.st1_table import Counts, Head, pack_head, plan
from capstore.images.st1_writer import Entropy

_ID_BYTES = 16
_KEY_BYTES = 8


def format_st1(
    device: BlockDevice,
    *,
    size: int | None = None,
    segment_bytes: int | None = None,
    clock: Clock = time.time_ns,
    entropy: Entropy = os.urandom,
) -> None:
    """Makes an empty store on `device`, from its beginning.

    With `size` (bytes of the region) it never changes its length, else it grows.  Raises
    `InvalidArgument` for a size that is too small, `NoSpace`, and what the device raises.
    """
    if size is not None:
        size -= size % BLOCK_BYTES
        segment_bytes = segment_bytes or st1.segment_bytes_for(size)
    geometry = st1.geometry_of(segment_bytes or st1.SEGMENT_BYTES_GROWING)
    end = geometry.start(2) if size is None else size
    if device.size() < end:
        device.resize(end)
    for lba in st1.SUPERBLOCK_LBAS:
        device.write(lba * BLOCK_BYTES, bytes(BLOCK_BYTES))
    space = Space(device, geometry, grows=False, end=end)
    space.take_stock()
    runs, pages, sections = plan(geometry, Counts(), 0)
    head = Head(
        sequence=0,
        version=0,
        counts=Counts(),
        slots=0,
        runs=[space.allocate(TABLE) for _ in range(runs)],
        usage=[],
        sums=[0] * pages,
        page_bytes=st1.page_bytes_of(geometry.segment_bytes),
        sections=sections,
    )
    front, table_sum = pack_head(head)
    device.write(geometry.start(head.runs[0]), front)
    log = space.allocate(LOG)
    device.flush()
    superblock = st1.Superblock(
        generation=1,
        image_id=int.from_bytes(entropy(_ID_BYTES), "big"),
        region_blocks=0 if size is None else size // BLOCK_BYTES,
        created=clock(),
        segment_blocks=geometry.segment_bytes // BLOCK_BYTES,
        table_lba=geometry.lba(head.runs[0]),
        table_sum=table_sum,
        log_lba=geometry.lba(log),
        log_sequence=1,
        log_key=int.from_bytes(entropy(_KEY_BYTES), "little"),
        durable=0,
    )
    st1.write_superblock(device, superblock)
    device.flush()


def open_st1(
    device: BlockDevice,
    *,
    writable: bool = True,
    clock: Clock = time.time_ns,
    entropy: Entropy = os.urandom,
) -> St1Engine:
    """Opens the store on `device`, which becomes the engine's own.

    Raises `Corrupt`, `Unsupported`, and what the device raises; `device` stays open then.
    """
    return St1Engine(device, recover(device), clock=clock, entropy=entropy, writable=writable)
