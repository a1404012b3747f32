"""Dry runs of trees: changes are remembered over a tree that stays as it is.

Invariants:

* Nothing here writes to what is below: a directory is an overlay with a memory on top, whose lower
  layer is only read, and a file is its blocks that were changed.
* A dry run remembers at most `DRY_BYTES_MAX` and `DRY_NODES_MAX` (`NoSpace`, `TooLarge`), and there
  are at most `DRY_RUNS_MAX` at a time of one volume (`Busy`).
* No saved reference, with all below it, has more of them than it leaves to others (`begin_run`).
* It lives as long as somebody has a node of it.  What is saved is the node below (`real_node`).
* What is below may change meanwhile; what was not changed in the dry run shows that.

It answers what the protocol and the policies say; what the storage alone would refuse (a full disk,
names that it cannot hold) shows only when it is done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from capstore.backers.layer import PlainLayer
from capstore.backers.memory import MemoryVolume
from capstore.backers.memory_layer import MemoryUpper
from capstore.backers.node import (
    Attributes,
    Buffer,
    DirectoryNode,
    FileNode,
    Node,
    OpenFlags,
    Provenance,
    Stat,
    Usage,
    Volume,
)
from capstore.backers.node_ids import combined_id
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_node import OverlayDirectory, OverlayFile
from capstore.backers.overlay_tree import Tree
from capstore.backers.overlay_union import UPPER, Union
from capstore.backers.store import ObjectStore
from capstore.schema.errors import Busy, Closed, InvalidArgument, NoSpace, NotFound, TooLarge
from capstore.schema.limits import DRY_BYTES_MAX, DRY_NODES_MAX, DRY_RUNS_MAX

if TYPE_CHECKING:
    from capstore.service.grants import Grant

__all__ = ["begin_run", "dry_directory", "dry_file", "dry_node", "real_node"]

_BLOCK_BYTES: Final = 4096
_BLOCKS_MAX: Final = DRY_BYTES_MAX // _BLOCK_BYTES
# The number of the one layer below in the ids of an overlay.
_LOWER: Final = 1
_SIZE_MAX: Final = 2**63 - 1


def begin_run(grant: Grant, run: object) -> None:
    """Counts a dry run under `grant`, as long as it lives.  Raises `Busy` for one too many.

    The volume's owner may have them all.  A reference, with all saved below it, may have as many as
    are left when it has them; those below it share that in the same way.  So there is room for the
    next one who comes, whatever one of them does, and no reckoning of how many there could be: a
    dynamic threshold, as of a switch's buffers (Choudhury and Hahne 1998).
    """
    runs, holders = grant.served.dry_runs, grant.holders()
    counts = Counter(holder for each in runs.values() for holder in each)
    room = DRY_RUNS_MAX - len(runs)
    for holder in holders:
        room = (room - counts[holder] + 1) // 2
    if room <= 0:
        raise Busy(
            f"at most {DRY_RUNS_MAX} dry runs of a volume are under way at a time, "
            "and nobody has more of them than are left to others"
        )
    runs[run] = holders


# Directories -------------------------------------------------------------------------------------


class _Below(Volume):
    """A directory, with all below it, as a volume that is only read and that others own."""

    def __init__(self, root: DirectoryNode) -> None:
        self._root = root

    @property
    def read_only(self) -> bool:
        """True."""
        return True

    @property
    def root(self) -> DirectoryNode:
        """The directory."""
        return self._root

    async def usage(self) -> Usage:
        return await self._root.usage()

    async def sync(self) -> None:
        """Nothing was changed."""

    async def close(self) -> None:
        """It belongs to somebody else."""


class DryVolume(OverlayVolume):
    """An overlay that nobody keeps."""

    @classmethod
    async def begun(cls, root: DirectoryNode) -> DryVolume:
        """One over `root` and all below."""
        memory = await MemoryVolume.open(
            total_bytes_max=DRY_BYTES_MAX,
            file_bytes_max=DRY_BYTES_MAX,
            nodes_max=DRY_NODES_MAX,
        )
        upper, lower = MemoryUpper(memory), PlainLayer(_Below(root))
        # What is below is somebody's who may change it, so nothing of it is remembered.
        tree = Tree(Union(upper, [lower], fixed=False), upper, writable_files=False)
        return cls(tree, await tree.root(), [upper, lower])

    async def usage(self) -> Usage:
        """Of what is below, and what was added in the dry run."""
        memory, below = [await layer.volume.usage() for layer in self.layers]
        return Usage(
            total_bytes=below.total_bytes,
            used_bytes=below.used_bytes + memory.used_bytes,
            free_bytes=max(0, below.free_bytes - memory.used_bytes),
            total_nodes=below.total_nodes,
            used_nodes=below.used_nodes + memory.used_nodes - 1,
            label=below.label,
        )


async def dry_directory(node: DirectoryNode, grant: Grant) -> DirectoryNode:
    """A dry run over `node`, and all below; `node` itself where nothing is written anyway.

    Raises `Busy`.
    """
    volume = grant.served.volume
    if not isinstance(volume, ObjectStore) and volume.read_only:
        return node
    run = await DryVolume.begun(node)
    begin_run(grant, run)
    return run.root


async def dry_node(node: Node, grant: Grant) -> Node:
    """As `dry_directory` or `dry_file`."""
    if isinstance(node, DirectoryNode):
        return await dry_directory(node, grant)
    return dry_file(node, grant) if isinstance(node, FileNode) else node


# Files -------------------------------------------------------------------------------------------


def dry_file(node: FileNode, grant: Grant) -> FileNode:
    """A dry run over `node`, which it closes in the end; as `dry_directory`."""
    volume = grant.served.volume
    if not isinstance(volume, ObjectStore) and volume.read_only:
        return node
    run = DryFile(node)
    begin_run(grant, run)
    return run


class DryFile(FileNode):
    """A file whose changes are remembered by blocks."""

    def __init__(self, base: FileNode) -> None:
        self.base = base
        self._blocks: dict[int, bytearray] = {}
        # Where it ends, and how much of the base is still to be seen; None for as the base has it.
        self._size: int | None = None
        self._kept: int | None = None
        self._changes = 0
        self._attributes = Attributes()
        self._closed = False

    def __repr__(self) -> str:
        return f"<DryFile of {len(self._blocks)} blocks over {self.base!r}>"

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the file was closed")

    async def stat(self) -> Stat:
        stat = await self.base.stat()
        changed = self._attributes
        if not self._changes:
            return stat
        return stat._replace(
            size=stat.size if self._size is None else self._size,
            version=(stat.version + self._changes) & 2**64 - 1,
            modified=stat.modified if changed.modified is None else changed.modified,
            created=stat.created if changed.created is None else changed.created,
            provenance=Provenance.WALL_CLOCK,
            executable=stat.executable if changed.executable is None else changed.executable,
        )

    async def sync(self) -> None:
        self._check_open()

    async def size(self) -> int:
        self._check_open()
        return await self.base.size() if self._size is None else self._size

    async def read_into(self, offset: int, view: memoryview) -> int:
        length = max(0, min(len(view), await self.size() - offset))
        view = view[:length]
        kept = _SIZE_MAX if self._kept is None else self._kept
        below = max(0, min(length, kept - offset))
        got = await self.base.read_into(offset, view[:below]) if below else 0
        view[got:] = bytes(length - got)
        for index, start, end in _blocks(offset, length):
            block = self._blocks.get(index)
            if block is not None:
                at = index * _BLOCK_BYTES
                view[start - offset : end - offset] = block[start - at : end - at]
        return length

    async def write(self, offset: int, data: Buffer) -> None:
        self._check_open()
        if not len(data):
            return
        while True:
            size, changes = await self.size(), self._changes
            if await self._stored(offset, memoryview(data), changes):
                self._changed(size, max(size, offset + len(data)))
                return

    async def append(self, data: Buffer) -> int:
        self._check_open()
        while True:
            offset, changes = await self.size(), self._changes
            if await self._stored(offset, memoryview(data), changes):
                self._changed(offset, offset + len(data))
                return offset

    async def truncate(self, size: int) -> None:
        self._check_open()
        if size > _SIZE_MAX:
            raise TooLarge("no file is so long")
        before = await self.size()
        self._kept = min(size, before if self._kept is None else self._kept)
        index, rest = divmod(size, _BLOCK_BYTES)
        for each in [each for each in self._blocks if each >= index + bool(rest)]:
            del self._blocks[each]
        if rest and index in self._blocks:
            self._blocks[index][rest:] = bytes(_BLOCK_BYTES - rest)
        self._changed(before, size)

    async def set_attributes(self, change: Attributes) -> None:
        self._check_open()
        old = self._attributes
        self._attributes = Attributes(
            executable=old.executable if change.executable is None else change.executable,
            modified=old.modified if change.modified is None else change.modified,
            created=old.created if change.created is None else change.created,
        )
        self._changes += 1

    async def close(self) -> None:
        """Forgets the changes, and closes the file below."""
        if not self._closed:
            self._closed = True
            self._blocks.clear()
            await self.base.close()

    def _changed(self, before: int, size: int) -> None:
        if self._kept is None:
            # What is below may grow; that is not to be seen any more.
            self._kept = before
        self._size = size
        self._changes += 1
        now = time.time_ns()
        old = self._attributes
        self._attributes = Attributes(old.executable, now, old.created)

    async def _stored(self, offset: int, data: memoryview, changes: int) -> bool:
        """Puts `data` into blocks, unless there were other changes than so many meanwhile.

        Raises `NoSpace`, `TooLarge`, with the file as it was.
        """
        if offset + len(data) > _SIZE_MAX:
            raise TooLarge("no file is so long")
        pieces = list(_blocks(offset, len(data)))
        missing = {index for index, _, _ in pieces if index not in self._blocks}
        if len(self._blocks) + len(missing) > _BLOCKS_MAX:
            raise NoSpace(f"a dry run remembers at most {DRY_BYTES_MAX} bytes")
        fresh: dict[int, bytearray] = {}
        for index, start, end in pieces:
            if index in missing:
                whole = end - start == _BLOCK_BYTES
                fresh[index] = bytearray(_BLOCK_BYTES) if whole else await self._block(index)
        if changes != self._changes:
            return False
        # From here on nothing waits.
        for index, start, end in pieces:
            block = self._blocks.setdefault(index, fresh.get(index, bytearray(_BLOCK_BYTES)))
            at = index * _BLOCK_BYTES
            block[start - at : end - at] = data[start - offset : end - offset]
        return True

    async def _block(self, index: int) -> bytearray:
        """A block as it is to be seen now."""
        block = bytearray(_BLOCK_BYTES)
        await self.read_into(index * _BLOCK_BYTES, memoryview(block))
        return block


def _blocks(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """The blocks of a stretch: number, and where the stretch begins and ends in each."""
    end = offset + length
    for index in range(offset // _BLOCK_BYTES, -(-end // _BLOCK_BYTES)):
        at = index * _BLOCK_BYTES
        yield index, max(offset, at), min(end, at + _BLOCK_BYTES)


# What is saved -----------------------------------------------------------------------------------


async def real_node(node: Node) -> Node:
    """What a node of a dry run stands for in the tree below; any other as it is.

    A file that it opens for that is closed when it is dropped.  Raises `NotFound` for what is in
    the dry run alone.
    """
    while True:
        if isinstance(node, DryFile):
            node = node.base
        elif isinstance(node, OverlayDirectory) and isinstance(node.volume, DryVolume):
            if not node.core.lowers:
                raise _only_dry()
            node = node.core.lowers[0].node
        elif isinstance(node, OverlayFile) and isinstance(node.volume, DryVolume):
            node = await _real_file(node)
        else:
            return node


async def _real_file(file: OverlayFile) -> FileNode:
    core = file.core
    if core.number != UPPER:
        return core.file
    place = core.place
    if place.gone or not place.parent.lowers:
        raise _only_dry()
    directory = place.parent.lowers[0].node
    try:
        entry = await directory.lookup(place.name)
        if combined_id(entry.stat.node_id, _LOWER) != core.node_id:
            raise _only_dry()
        return await directory.open(place.name, OpenFlags.READ)
    except (InvalidArgument, NotFound):
        raise _only_dry() from None


def _only_dry() -> NotFound:
    return NotFound("it is there in the dry run only")
