"""A store of objects in an image file, alone or in front of a tree, opened for looking at it.

Invariants: nothing is written.  What is in a file is told by its superblocks: a tree is looked for
behind a store only if the store says that it ends in front of one, since what is in a store was put
there by anybody.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from capstore.backers.workers import in_worker
from capstore.images import st1
from capstore.images.device import BlockDevice
from capstore.images.devices import FileDevice
from capstore.images.records import BLOCK_BYTES
from capstore.images.segments import DATA, FREE, LOG, TABLE
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_entry import Entry
from capstore.images.st1_map import regions
from capstore.images.st1_recovery import Recovered, recover
from capstore.images.st1_verify import verify
from capstore.images.tree import Finding, Region
from capstore.schema.errors import ReadOnly, StorageError
from capstore.schema.nodes import Buffer, Usage
from capstore.tools.console import local_error
from capstore.tools.image.source import Halves, OpenImage, halves_of, opened_image
from capstore.tools.progress import Meter

T = TypeVar("T")

FORMAT: Final = "st1"
_USES: Final = {FREE: "free", LOG: "log", DATA: "data", TABLE: "table"}


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment of a store: what it is used for, and how many bytes of it are live (values),
    dead and free; the rest belongs to the log or the table."""

    use: str
    live: int
    dead: int
    free: int


class OpenStore:
    """A store that is open for reading; owns its `device`."""

    def __init__(self, path: str, device: BlockDevice) -> None:
        """Raises `Corrupt`, `Unsupported`, and what the device raises."""
        self.path = path
        self.device = device
        self._found: Recovered = recover(device)
        self.engine = St1Engine(
            device, self._found, clock=time.time_ns, entropy=os.urandom, writable=False
        )

    def describe(self) -> dict[str, Any]:
        """What the store says of itself."""
        found = self._found
        superblock, space, head = found.superblock, found.space, found.table.head
        uses, counts = space.use, found.counts
        return {
            "format": "CAPOSST1",
            "version": st1.VERSION,
            "features": 0,
            "generation": superblock.generation,
            "imageId": f"{superblock.image_id:032x}",
            "created": superblock.created,
            "grows": space.grows,
            "regionBytes": st1.region_end(superblock, self.device.size()),
            "entries": {
                "objects": counts.entries - counts.names,
                "names": counts.names,
                "parts": counts.parts,
                "lastVersion": found.version,
            },
            "segmentBytes": space.geometry.segment_bytes,
            "segments": {name: uses.count(use) for use, name in _USES.items()},
            "table": {
                "offset": superblock.table_lba * BLOCK_BYTES,
                "bytes": head.sections.end,
                "entries": head.counts.entries,
            },
            "log": {
                "offset": superblock.log_lba * BLOCK_BYTES,
                "frames": found.position.sequence - superblock.log_sequence,
                "framesNotBelieved": found.discarded,
            },
        }

    def usage(self) -> Usage:
        """As the store says it while it is served."""
        return self.engine.usage()

    def regions(self) -> Iterator[Region]:
        """The map.  Raises `Corrupt`."""
        return regions(self.device, self._found)

    def segments(self) -> list[Segment]:
        """All segments, in order.  Raises `Corrupt`."""
        space, table = self._found.space, self._found.table
        live = list(space.live)
        for key in self._found.replaced:
            entry = table.find_key(key)
            for place, length in _pieces_of(entry) if entry is not None else ():
                live[space.geometry.at(place)] -= length
        size = space.geometry.segment_bytes
        return [
            Segment(
                _USES[use],
                count,
                size - count if use == DATA else 0,
                size if use == FREE else 0,
            )
            for use, count in zip(space.use, live, strict=True)
        ]

    def verify(self, meter: Meter) -> Iterator[Finding]:
        """What is wrong with it; `meter` counts what is read."""
        return verify(_Counting(self.device, meter))

    def close(self) -> None:
        """Lets go of the file."""
        self.engine.close()


def _pieces_of(entry: Entry) -> list[tuple[int, int]]:
    if entry.parts:
        return [(part.place, part.length) for part in entry.parts]
    return [(entry.place, entry.size)] if entry.size else []


class _Counting(BlockDevice):
    """A device to read from whose bytes are counted."""

    def __init__(self, device: BlockDevice, meter: Meter) -> None:
        self._device = device
        self._meter = meter

    def size(self) -> int:
        return self._device.size()

    def read_into(self, offset: int, view: memoryview) -> None:
        self._device.read_into(offset, view)
        self._meter.bytes += len(view)

    def write(self, offset: int, data: Buffer) -> None:
        raise ReadOnly("the device is open for reading")

    def resize(self, size: int) -> None:
        raise ReadOnly("the device is open for reading")

    def flush(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """Who opened the device closes it."""


# A file ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class OpenFile:
    """An image file with what is in it: a store, a tree, or both.

    `wrong` is what could not be opened beside what could."""

    path: str
    store: OpenStore | None = None
    tree: OpenImage | None = None
    wrong: list[StorageError] = field(default_factory=list)


@asynccontextmanager
async def opened_store(halves: Halves) -> AsyncIterator[OpenStore]:
    """The store in an image file.  Raises `NotFound`, `Busy`, `Corrupt`, `Unsupported`."""
    try:
        store = await in_worker(lambda: _open(halves.path))
    except StorageError as error:
        raise local_error(error, halves.path) from error
    try:
        yield store
    finally:
        await in_worker(store.close)


def _open(path: str) -> OpenStore:
    device = FileDevice.open(path, writable=False)
    try:
        return OpenStore(path, device)
    except BaseException:
        device.close()
        raise


@asynccontextmanager
async def opened_file(text: str) -> AsyncIterator[OpenFile]:
    """What is in the image that `text` names.

    Raises `NotFound`, `Busy`, `Corrupt` and `Unsupported` where nothing of it can be opened.
    """
    halves = await in_worker(lambda: halves_of(text))
    file = OpenFile(halves.path)
    async with AsyncExitStack() as stack:
        if halves.store:
            file.store = await _attempt(stack, opened_store(halves), file.wrong)
        if halves.tree is not None:
            file.tree = await _attempt(stack, opened_image(text), file.wrong)
        if file.store is None and file.tree is None:
            raise file.wrong[0]
        yield file


async def _attempt(
    stack: AsyncExitStack, opening: AbstractAsyncContextManager[T], wrong: list[StorageError]
) -> T | None:
    try:
        return await stack.enter_async_context(opening)
    except StorageError as error:
        wrong.append(error)
        return None
