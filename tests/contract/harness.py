"""What the contract suite runs against, and how another backer joins it.

A harness is a root directory with what may be expected of it.  To join, register a factory:
``HARNESSES["name"] = factory`` for a tree that can be written, ``READERS["name"] = factory`` for
one that can only be read, whose factory is given the tree it shall show.  A factory is a function
that returns an asynchronous context manager giving a `Harness`; it opens what it needs on entry
and releases it on exit.  The suite knows nothing of a harness but `capstore.backers.node`.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from capstore.backers.memory import MemoryVolume
from capstore.backers.node import DirectoryNode, Entry, NodeKind, OpenFlags
from capstore.schema.limits import MIB
from tests.contract.faults import DelayedDirectory, Delays


@dataclass(frozen=True)
class Link:
    """A symbolic link in a `Tree`."""

    target: str


# A file's content, a symbolic link, or a directory.
Tree = Mapping[str, "bytes | Link | Tree"]


async def _at_once() -> None:
    """Nothing to wait for."""


@dataclass(frozen=True)
class Harness:
    """A tree under test: `root`, and what the backer is able to do."""

    root: DirectoryNode
    snapshots: bool = False
    hard_links: bool = True
    created_times: bool = True
    executable: bool = True
    # Without, a reader's tree has no symbolic links.
    symlinks: bool = True
    # Returns when nothing that was cancelled is under way: at once, but where a connection lies
    # between the caller, whose cancellation does not wait, and the node.
    settled: Callable[[], Awaitable[None]] = _at_once


Factory = Callable[[], AbstractAsyncContextManager[Harness]]
ReaderFactory = Callable[[Tree], AbstractAsyncContextManager[Harness]]

HARNESSES: dict[str, Factory] = {}
READERS: dict[str, ReaderFactory] = {}

# What is left to the long tests: another run of the same code in other places.
LONG: set[str] = set()


async def populate(directory: DirectoryNode, tree: Tree) -> None:
    """Makes `tree` in `directory`."""
    for name, what in tree.items():
        if isinstance(what, bytes):
            file = await directory.create(name)
            await file.write(0, what)
            await file.close()
        elif isinstance(what, Link):
            await directory.symlink(name, what.target)
        else:
            await populate(await directory.mkdir(name), what)


async def entries_of(directory: DirectoryNode, limit: int = 1000) -> list[Entry]:
    """The whole listing, page by page."""
    entries: list[Entry] = []
    after = ""
    while True:
        page = await directory.list(after, limit)
        entries.extend(page.entries)
        if not page.more:
            return entries
        after = page.entries[-1].name


async def names_of(directory: DirectoryNode) -> list[str]:
    return [entry.name for entry in await entries_of(directory)]


async def content_of(directory: DirectoryNode, name: str) -> bytes:
    file = await directory.open(name)
    try:
        content, size = b"", await file.size()
        while len(content) < size:
            # What is damaged may claim to be of any size.
            piece = bytes(await file.read(len(content), min(size - len(content), MIB)))
            assert piece, "it ends before its end"
            content += piece
        return content
    finally:
        await file.close()


async def tree_of(directory: DirectoryNode) -> Tree:
    """Everything below `directory`, for comparison."""
    tree: dict[str, bytes | Link | Tree] = {}
    for entry in await entries_of(directory):
        if entry.stat.kind is NodeKind.DIRECTORY:
            tree[entry.name] = await tree_of(await directory.sub(entry.name))
        elif entry.stat.kind is NodeKind.SYMLINK:
            assert entry.target is not None
            tree[entry.name] = Link(entry.target)
        else:
            tree[entry.name] = await content_of(directory, entry.name)
    return tree


async def clear(directory: DirectoryNode) -> None:
    """Removes everything in `directory`."""
    for entry in await entries_of(directory):
        if entry.stat.kind is NodeKind.DIRECTORY:
            await clear(await directory.sub(entry.name))
        await directory.remove(entry.name)


async def replace_content(directory: DirectoryNode, name: str, data: bytes) -> None:
    """Makes `data` the content of the file `name`."""
    flags = OpenFlags.WRITE | OpenFlags.CREATE | OpenFlags.TRUNCATE
    file = await directory.open(name, flags)
    await file.write(0, data)
    await file.close()


# The harnesses of this package's own backers --------------------------------------------------


@asynccontextmanager
async def _memory() -> AsyncIterator[Harness]:
    volume = await MemoryVolume.open()
    yield Harness(volume.root, snapshots=True)
    await volume.close()


@asynccontextmanager
async def _memory_snapshot(tree: Tree) -> AsyncIterator[Harness]:
    volume = await MemoryVolume.open()
    await populate(volume.root, tree)
    root = await volume.root.snapshot()
    yield Harness(root, snapshots=True)
    await volume.close()


@asynccontextmanager
async def _dir() -> AsyncIterator[Harness]:
    from capstore.backers.hostdir import HostVolume

    with tempfile.TemporaryDirectory(prefix="capstore-test-") as folder:
        volume = await HostVolume.open(folder)
        yield Harness(volume.root, created_times=False)
        await volume.close()


@asynccontextmanager
async def _dir_read_only(tree: Tree) -> AsyncIterator[Harness]:
    from capstore.backers.hostdir import HostVolume

    with tempfile.TemporaryDirectory(prefix="capstore-test-") as folder:
        _populate_host(Path(folder), tree)
        volume = await HostVolume.open(folder, read_only=True)
        yield Harness(volume.root, created_times=False)
        await volume.close()


def _populate_host(folder: Path, tree: Tree) -> None:
    for name, what in tree.items():
        if isinstance(what, bytes):
            (folder / name).write_bytes(what)
        elif isinstance(what, Link):
            (folder / name).symlink_to(what.target)
        else:
            (folder / name).mkdir()
            _populate_host(folder / name, what)


def delayed(factory: Factory) -> Factory:
    """`factory` with delays around every call; see `tests.contract.faults`."""

    @asynccontextmanager
    async def slow() -> AsyncIterator[Harness]:
        async with factory() as harness:
            yield replace(harness, root=DelayedDirectory(harness.root, Delays()))

    return slow


HARNESSES["memory"] = _memory
HARNESSES["dir"] = _dir
HARNESSES["memory+delay"] = delayed(_memory)
HARNESSES["dir+delay"] = delayed(_dir)
LONG.add("dir+delay")
READERS["memory-snapshot"] = _memory_snapshot
READERS["dir-read-only"] = _dir_read_only
