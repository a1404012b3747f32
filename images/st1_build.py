"""Building CAPOSST1: the engine's own operations, with a fixed clock, and a last compaction.

A combined image is a store of `st1.COMBINED_BLOCKS` blocks, built first, and a CAPOSWF1 volume that
is built on the same device behind it: neither touches what is the other's.

Invariants:

* The same calls give the same bytes: the image's id is a digest of the table, which holds the
  checksums of all values.
* The superblocks are written last; an image that was not finished has those of an empty store, or
  of one that is not whole, and is at no place that anybody looks at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from capstore.images import ro1, st1
from capstore.images.device import BlockDevice
from capstore.images.st1_compact import compact
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_open import format_st1, open_st1
from capstore.images.st1_recovery import recover
from capstore.images.st1_sink import Writing
from capstore.images.st1_table import Table
from capstore.schema.nodes import Buffer, Provenance


class St1Builder:
    """Makes a store on `device`, from its beginning, and fills it.

    With `size` (bytes of the region) it never changes its length, else it grows.  `built` (ns since
    1970) is when everything was put, 0 that it is not recorded.  Raises `InvalidArgument` for too
    small a size, `NoSpace` for more than the size allows.
    """

    def __init__(self, device: BlockDevice, *, size: int | None = None, built: int = 0) -> None:
        def clock() -> int:
            return built

        format_st1(device, size=size, clock=clock, entropy=_not_random)
        self._device = device
        self._engine: St1Engine = open_st1(device, clock=clock, entropy=_not_random)
        if not built:
            self._engine.provenance = ro1.PROVENANCE_CODES[Provenance.UNKNOWN]

    def put(self, key: bytes, data: Buffer) -> bytes:
        """Stores an object, with no key under its SHA-256; the key.  Raises as `St1Engine.put`."""
        return self._engine.put(key, data).key

    def put_pieces(self, key: bytes, pieces: Iterable[Buffer]) -> bytes:
        """As `put`, of an object that comes in pieces."""
        writing = self.begin(key)
        try:
            for piece in pieces:
                writing.write(piece)
            return writing.commit().key
        finally:
            writing.abort()

    def begin(self, key: bytes = b"") -> Writing:
        """A put in pieces."""
        return self._engine.begin(key)

    @property
    def engine(self) -> St1Engine:
        """The engine, for names."""
        return self._engine

    def finish(self) -> None:
        """Everything is in place, and durable."""
        compact(self._engine)
        self._engine.sync()
        _identify(self._device)


def _not_random(count: int) -> bytes:
    """The same bytes each time: the key of a log that whoever opens the store begins anew."""
    return hashlib.sha256(b"capstore st1").digest()[:count]


def _identify(device: BlockDevice) -> None:
    """Gives the finished image its id, in both superblocks."""
    found = recover(device)
    last = replace(found.superblock, image_id=_digest(device, found.table))
    for generation in range(1, 1 + len(st1.SUPERBLOCK_LBAS)):
        st1.write_superblock(device, replace(last, generation=generation))
    device.flush()


def _digest(device: BlockDevice, table: Table) -> int:
    digest = hashlib.sha256()
    size = table.head.page_bytes
    # A page lies in one piece.
    for at in range(0, table.head.sections.end, size):
        digest.update(device.read(table.place(at), min(size, table.head.sections.end - at)))
    return int.from_bytes(digest.digest()[:16], "big")
