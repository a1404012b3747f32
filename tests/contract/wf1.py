"""CAPOSWF1 volumes for the suite: growing and of a fixed size, in process and over a connection."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from capstore.backers.spec import open_volume
from capstore.backers.wf1 import Wf1Volume
from capstore.images.devices import MemoryDevice
from capstore.images.wf1_open import format_wf1
from capstore.service.client import connect
from capstore.service.remote import Directory
from tests.contract.harness import (
    HARNESSES,
    LONG,
    READERS,
    Factory,
    Harness,
    Tree,
    delayed,
    populate,
)
from tests.contract.rpc import _settled as settled_of
from tests.service.inprocess import serving

# The disk image of 32,768 blocks that the format has to fit.
FIXED_BYTES = 32_768 * 512


# Hundreds of tests would wait for a real disk; and this one makes every read go by a worker.
_SHARED_MEMORY = Path("/dev/shm")
FOLDER = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None


@asynccontextmanager
async def _volume(size: int | None) -> AsyncIterator[Wf1Volume]:
    with tempfile.TemporaryDirectory(prefix="capstore-test-", dir=FOLDER) as folder:
        volume = await Wf1Volume.open(Path(folder) / "image", create=True, size=size)
        yield volume
        await volume.close()


def _local(size: int | None) -> Factory:
    @asynccontextmanager
    async def factory() -> AsyncIterator[Harness]:
        async with _volume(size) as volume:
            yield Harness(volume.root, snapshots=True)

    return factory


@asynccontextmanager
async def _snapshot(tree: Tree) -> AsyncIterator[Harness]:
    async with _volume(None) as volume:
        await populate(volume.root, tree)
        snapshot = await volume.root.snapshot()
        await populate(volume.root, {"later": b"not in the snapshot"})
        yield Harness(snapshot, snapshots=True)


@asynccontextmanager
async def _opened_again(tree: Tree) -> AsyncIterator[Harness]:
    """For reading only, from its tables."""
    with tempfile.TemporaryDirectory(prefix="capstore-test-", dir=FOLDER) as folder:
        image = Path(folder) / "image"
        volume = await Wf1Volume.open(image, create=True)
        await populate(volume.root, tree)
        await volume.close()
        reading = await open_volume(f"wf1:{image},ro")
        yield Harness(reading.root, snapshots=True)
        await reading.close()


@asynccontextmanager
async def _at_hand() -> AsyncIterator[Harness]:
    """Where nothing ever waits, so that every read is answered on the loop."""

    def made() -> MemoryDevice:
        device = MemoryDevice()
        format_wf1(device)
        return device

    volume = await Wf1Volume.over(made)
    yield Harness(volume.root, snapshots=True)
    await volume.close()


@asynccontextmanager
async def _remote() -> AsyncIterator[Harness]:
    async with _volume(None) as volume:
        with tempfile.TemporaryDirectory(prefix="capstore-test-") as folder:
            async with (
                serving({"v": volume}, folder=Path(folder), tls=False) as served,
                connect(served.unix["v"]) as root,
            ):
                assert isinstance(root, Directory)
                settled = settled_of(root, served.service)
                yield Harness(root, snapshots=True, settled=settled)


HARNESSES["wf1"] = _local(None)
HARNESSES["wf1-at-hand"] = _at_hand
HARNESSES["wf1-fixed"] = _local(FIXED_BYTES)
HARNESSES["wf1+delay"] = delayed(HARNESSES["wf1-at-hand"])
HARNESSES["rpc-wf1"] = _remote
LONG |= {"wf1-at-hand", "wf1-fixed", "wf1+delay", "rpc-wf1"}
READERS["wf1-snapshot"] = _snapshot
READERS["wf1-read-only"] = _opened_again
