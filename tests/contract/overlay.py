"""Overlays for the suite: above nothing, above names that were all removed, and behind a service.

`overlay-covered` has had every name that the suite makes use of below, and removed it: whatever is
made there is made over a whiteout.  In `overlay+delay` each call of a layer waits before and after.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from capstore.backers.layers import open_layer
from capstore.backers.memory import MemoryVolume
from capstore.backers.overlay import OverlayVolume
from capstore.service.client import connect
from capstore.service.remote import Directory
from tests.backers.overlays import Entry, Folder, Stack, file, fill_volume, folder, stacked
from tests.backers.slowlayers import slow_lower, slow_upper
from tests.contract.faults import Delays
from tests.contract.harness import HARNESSES, LONG, READERS, Factory, Harness, Link, Tree, clear
from tests.contract.rpc import _settled as settled_of
from tests.images.trees import Link as ImageLink
from tests.service.inprocess import serving

_NAMES = [
    *("a", "b", "c", "d", "e", "f", "g", "l", "x", "y", "z", "s", "t", "to", "new", "one", "two"),
    *("file", "link", "empty", "full", "inner", "big", "-", "é", "bystander", "moved", "deep"),
]


def _full(depth: int) -> Folder:
    """Everything twice: directories, with all names again in them, and files."""
    entries: dict[str, Entry] = {}
    for number, name in enumerate(_NAMES):
        is_directory = depth and number % 2 == 0
        entries[name] = _full(depth - 1) if is_directory else file(b"below " + name.encode())
    return folder(entries)


def _over(name: str, tree: Folder, *, covered: bool = False, slow: bool = False) -> Factory:
    @asynccontextmanager
    async def factory() -> AsyncIterator[Harness]:
        async with stacked(name, tree) as stack:
            if slow:
                _slow(stack)
            volume = await stack.open()
            if covered:
                await clear(volume.root)
            is_dir = stack.upper == "dir"
            # What pauses is not known for what it is.
            snapshots = not is_dir and not slow
            yield Harness(volume.root, snapshots=snapshots, created_times=not is_dir)
            await volume.close()

    return factory


def _slow(stack: Stack) -> None:
    delays = Delays()
    stack.through_upper = lambda layer: slow_upper(layer, delays)
    stack.through_lower = lambda layer: slow_lower(layer, delays)


@asynccontextmanager
async def _remote() -> AsyncIterator[Harness]:
    async with stacked("memory over ro1", folder()) as stack:
        volume = await stack.open()
        with tempfile.TemporaryDirectory(prefix="capstore-test-") as place:
            async with (
                serving({"v": volume}, folder=Path(place), tls=False) as served,
                connect(served.unix["v"]) as root,
            ):
                assert isinstance(root, Directory)
                yield Harness(root, snapshots=True, settled=settled_of(root, served.service))


def _as_folder(tree: Tree) -> Folder:
    entries: dict[str, Entry] = {}
    for name, what in tree.items():
        if isinstance(what, bytes):
            entries[name] = file(what)
        elif isinstance(what, Link):
            entries[name] = ImageLink(what.target)
        else:
            entries[name] = _as_folder(what)
    return folder(entries)


@asynccontextmanager
async def _union(tree: Tree) -> AsyncIterator[Harness]:
    """Layers without an upper one, each with a part of the tree."""
    async with stacked("memory over ro1+tar", _as_folder(tree)) as stack:
        layers = [open_layer(volume) for volume in await stack.open_lowers()]
        volume = await OverlayVolume.over(None, layers)
        yield Harness(volume.root, snapshots=True)
        await volume.close()


@asynccontextmanager
async def _above(tree: Tree) -> AsyncIterator[Harness]:
    """A layer that is read as the top one, with marks over one below, and no upper layer."""
    top = await MemoryVolume.open()
    await fill_volume(top, _as_folder(tree))
    volume = await OverlayVolume.over(None, [open_layer(top)])
    yield Harness(volume.root, snapshots=True)
    await volume.close()


HARNESSES["overlay-memory"] = _over("memory over tar", folder())
HARNESSES["overlay-wf1"] = _over("wf1 over ro1", folder())
HARNESSES["overlay-dir"] = _over("dir over ro1", folder())
HARNESSES["overlay-covered"] = _over("memory over ro1", _full(1), covered=True)
HARNESSES["overlay+delay"] = _over("memory over ro1", folder(), slow=True)
HARNESSES["rpc-overlay"] = _remote
LONG |= {"overlay-covered", "overlay-dir", "rpc-overlay"}
READERS["overlay-union"] = _union
READERS["overlay-of-one"] = _above
