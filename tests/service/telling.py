"""A service of its own process that tells all who watch of many changes, and what that takes.

It prints a URI; at a line on stdin it tells those who watch, and prints by how many bytes the C
library's heap has grown when all is sent: once that is less than what it was given, or a while
later.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from contextlib import suppress

import capnp

from capstore.backers.memory import MemoryVolume
from capstore.schema.nodes import Change, ChangeKind
from capstore.service.watcher import Watch
from tests.service.inprocess import serving
from tests.service.watches import hub_of, until

libc = ctypes.CDLL(None)
NAME_BYTES = 250


class Heap(ctypes.Structure):
    """What mallinfo2(3) says."""

    _fields_ = (
        ("not_asked", ctypes.c_size_t * 4),
        ("hblkhd", ctypes.c_size_t),
        ("nor_asked", ctypes.c_size_t * 2),
        ("uordblks", ctypes.c_size_t),
        ("at_last", ctypes.c_size_t * 2),
    )


def heap_bytes() -> int:
    """How much of the heap is in use, by the thread that asks."""
    gc.collect()
    libc.mallinfo2.restype = Heap
    heap = libc.mallinfo2()
    return int(heap.uordblks + heap.hblkhd)


async def main(changes: int, enough: int) -> None:
    loop = asyncio.get_running_loop()
    volume = await MemoryVolume.open()
    async with capnp.kj_loop(), serving({"m": volume}) as served:
        print(served.unix["m"], flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        hub, root = hub_of(served), (await volume.root.stat()).node_id
        told = [each for each in hub.watches[root] if isinstance(each, Watch)]
        before = heap_bytes()
        for number in range(changes):
            hub.tell(root, Change(ChangeKind.CREATED, f"{number:0{NAME_BYTES}}"))
        await until(lambda: not any(watch._noted for watch in told))
        await until(lambda: not any(watch._session.unsent_bytes for watch in told))
        # What is on its way to a client that is slow to read is not kept.
        with suppress(TimeoutError):
            await until(lambda: heap_bytes() - before < enough)
        # Each waits for an answer that nobody gives.
        assert all(watch._telling is not None for watch in told)
        print(heap_bytes() - before, flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
