"""Trees that PyFilesystem2 shows, for the contract suite's read half.

The write half needs what PyFilesystem2 has no means for (links, exchanging entries, exact times):
what of it holds is in ``tests/backers/test_pyfs_contract.py``.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from fs.base import FS
from fs.osfs import OSFS
from fs.wrap import read_only

from capstore.backers.node import DirectoryNode
from capstore.backers.pyfs import PyfsVolume
from capstore.service.client import connect
from tests.contract.harness import READERS, Harness, Link, Tree
from tests.service.inprocess import serving

Opened = Callable[[Path], "str | FS"]


def _populate(folder: Path, tree: Tree) -> None:
    for name, what in tree.items():
        if isinstance(what, bytes):
            (folder / name).write_bytes(what)
        elif isinstance(what, Link):
            (folder / name).symlink_to(what.target)
        else:
            (folder / name).mkdir()
            _populate(folder / name, what)


@asynccontextmanager
async def _volume(tree: Tree, what: Opened) -> AsyncIterator[tuple[Path, PyfsVolume]]:
    with tempfile.TemporaryDirectory(prefix="capstore-test-") as home:
        folder = Path(home) / "tree"
        folder.mkdir()
        _populate(folder, tree)
        volume = await PyfsVolume.open(what(folder), read_only=True)
        yield Path(home), volume
        await volume.close()


def _local(what: Opened) -> Callable[[Tree], AbstractAsyncContextManager[Harness]]:
    @asynccontextmanager
    async def factory(tree: Tree) -> AsyncIterator[Harness]:
        async with _volume(tree, what) as (_, volume):
            yield Harness(volume.root, created_times=False)

    return factory


@asynccontextmanager
async def _remote(tree: Tree) -> AsyncIterator[Harness]:
    async with (
        _volume(tree, lambda folder: f"osfs://{folder}") as (home, volume),
        serving({"v": volume}, folder=home) as served,
        connect(served.unix["v"]) as root,
    ):
        assert isinstance(root, DirectoryNode)
        yield Harness(root, created_times=False)


READERS["pyfs-osfs"] = _local(lambda folder: f"osfs://{folder}")
READERS["pyfs-wrapped"] = _local(lambda folder: read_only(OSFS(str(folder))))
READERS["rpc-pyfs"] = _remote
