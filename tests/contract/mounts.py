"""Trees out of several volumes for the suite: a directory beside mounts, and a mounted root.

Each root is one whose place could matter: mounts lie beside it, below it, or in its own place.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from capstore.backers.hostdir import HostVolume
from capstore.backers.memory import MemoryVolume
from capstore.backers.mounts import MountsVolume
from capstore.backers.node import DirectoryNode
from capstore.service.client import connect
from capstore.service.remote import Directory
from tests.contract.harness import (
    HARNESSES,
    LONG,
    READERS,
    Harness,
    Link,
    Tree,
    delayed,
    populate,
)
from tests.contract.images import unpack
from tests.contract.rpc import _settled as settled_of
from tests.service.inprocess import serving


async def _memories(*prefixes: str) -> MountsVolume:
    return MountsVolume.over({prefix: await MemoryVolume.open() for prefix in prefixes})


@asynccontextmanager
async def _beside() -> AsyncIterator[Harness]:
    """A directory of the volume at the root."""
    volume = await _memories("/", "/mnt", "/on/the/way")
    yield Harness(await volume.root.mkdir("d"), snapshots=True)
    await volume.close()


@asynccontextmanager
async def _mounted() -> AsyncIterator[Harness]:
    """The root of a mount, whose place the volume above it has, too, with something in it."""
    above = await MemoryVolume.open()
    await populate(above.root, {"mnt": {"hidden": b"x"}})
    volume = MountsVolume.over({"/": above, "/mnt": await MemoryVolume.open()})
    yield Harness(await volume.root.sub("mnt"), snapshots=True)
    await volume.close()


@asynccontextmanager
async def _nested() -> AsyncIterator[Harness]:
    """Mounts in a mount, in a directory that only the outer ones lead to."""
    volume = MountsVolume.over(
        {"/": await MemoryVolume.open(), "/a/b": await _memories("/", "/c", "/d/e")}
    )
    root: DirectoryNode = volume.root
    for name in ("a", "b", "c"):
        root = await root.sub(name)
    yield Harness(root, snapshots=True)
    await volume.close()


@asynccontextmanager
async def _remote() -> AsyncIterator[Harness]:
    volume = await _memories("/", "/mnt")
    with tempfile.TemporaryDirectory(prefix="capstore-test-") as folder:
        async with (
            serving({"v": volume}, folder=Path(folder), tls=False) as served,
            connect(served.unix["v"]) as root,
        ):
            assert isinstance(root, Directory)
            yield Harness(
                await root.sub("mnt"), snapshots=True, settled=settled_of(root, served.service)
            )


@asynccontextmanager
async def _snapshot(tree: Tree) -> AsyncIterator[Harness]:
    """A part of the tree is of another volume, mounted in the one with the rest."""
    volumes = [await MemoryVolume.open() for _ in range(2)]
    mounted = tree["full"]
    assert not isinstance(mounted, bytes | Link)
    top = await volumes[0].root.mkdir("d")
    await populate(top, {name: what for name, what in tree.items() if name != "full"})
    await populate(volumes[1].root, mounted)
    volume = MountsVolume.over({"/": volumes[0], "/d/full": volumes[1]})
    live = await volume.root.sub("d")
    snapshot = await live.snapshot()
    await populate(live, {"later": b"not in the snapshot"})
    await populate(await live.sub("full"), {"later": b"neither here"})
    yield Harness(snapshot, snapshots=True)
    await volume.close()


@asynccontextmanager
async def _read_only(tree: Tree) -> AsyncIterator[Harness]:
    """Mounted in a volume that writes."""
    with tempfile.TemporaryDirectory(prefix="capstore-test-") as folder:
        unpack(Path(folder), tree)
        reading = await HostVolume.open(folder, read_only=True)
        volume = MountsVolume.over({"/": await MemoryVolume.open(), "/ro": reading})
        yield Harness(await volume.root.sub("ro"), created_times=False)
        await volume.close()


HARNESSES["mounts-beside"] = _beside
HARNESSES["mounts-mounted"] = _mounted
HARNESSES["mounts-nested"] = _nested
HARNESSES["mounts-mounted+delay"] = delayed(_mounted)
HARNESSES["rpc-mounts"] = _remote
LONG |= {"mounts-mounted", "mounts-nested", "rpc-mounts"}
READERS["mounts-snapshot"] = _snapshot
READERS["mounts-read-only"] = _read_only
