"""Memory volumes as layers of an overlay: marks and whiteouts are in the nodes.

Invariants:

* Nothing here waits, so each operation has happened as a whole or not at all; what a volume's
  limits forbid is refused before anything changes.
* What is silent changes neither versions nor times of directories, but is saved with the next
  `sync` as all changes are.
* A layer of a snapshot shows marks, whiteouts and linked nodes as they were, and opens nothing
  for writing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from heapq import merge

from capstore.backers.layer import NO_MARK, WHITEOUT, Found, FoundPage, Layer, Mark, Upper
from capstore.backers.memory import (
    MemoryDirectory,
    MemoryFile,
    MemoryVolume,
    entry_of,
    open_inode,
    stat_of,
)
from capstore.backers.memory_data import DirectoryState, Inode
from capstore.backers.memory_marks import (
    adopt,
    cover,
    linked,
    make_silently,
    name_silently,
    set_mark,
    uncover,
)
from capstore.backers.node import (
    DirectoryNode,
    Expect,
    FileNode,
    Node,
    NodeKind,
    OpenFlags,
    RenameMode,
    Stat,
)
from capstore.schema.errors import CrossVolume, NotFound, ReadOnly


class MemoryLayer(Layer):
    """A volume, or a directory of one of its snapshots, as a layer."""

    def __init__(self, volume: MemoryVolume, root: MemoryDirectory | None = None) -> None:
        self._volume = volume
        self._root = volume.root if root is None else root

    @property
    def volume(self) -> MemoryVolume:
        return self._volume

    @property
    def root(self) -> MemoryDirectory:
        return self._root

    def _own(self, directory: DirectoryNode) -> MemoryDirectory:
        """A directory that is of the layer's volume; raises `CrossVolume`."""
        if not isinstance(directory, MemoryDirectory) or directory.volume is not self._volume:
            raise CrossVolume("a directory of another volume")
        return directory

    async def find(self, directory: DirectoryNode, name: str) -> Found | None:
        own = self._own(directory)
        return _found(own, own.state(), name)

    async def page(
        self, directory: DirectoryNode, after: str, limit: int, until: str = ""
    ) -> FoundPage:
        own = self._own(directory)
        state = own.state()
        limit = max(1, limit)
        names = state.entries.after(after, limit + 1)
        if state.whiteouts:
            names = list(merge(names, state.whiteouts.after(after, limit + 1)))
        if until:
            names = names[: bisect_right(names, until)]
        found = [(name, _found(own, state, name) or WHITEOUT) for name in names[:limit]]
        return FoundPage(found, more=len(names) > limit)

    async def about(self, node: Node) -> tuple[Stat, Mark]:
        if not isinstance(node, MemoryDirectory | MemoryFile) or node.volume is not self._volume:
            raise CrossVolume("a node of another volume")
        stat, mark = node.about()
        if mark.below:
            stat = stat._replace(link_count=stat.link_count + mark.below)
        return stat, mark

    async def linked(self, origin: int) -> Stat | None:
        inode = self._linked(origin)
        if inode is None:
            return None
        state = self._root.state_of(inode)
        return stat_of(inode, state, state.shown)

    async def open_linked(self, origin: int, flags: OpenFlags) -> FileNode:
        flags.check()
        if flags.writes:
            self._root.changing()
        inode = self._linked(origin)
        if inode is None:
            raise NotFound("nothing with this origin")
        return open_inode(self._volume, inode, flags, self._root.view)

    async def origins(self) -> Sequence[int]:
        self._volume.check_open()
        register = self._root.state_of(self._volume.tree.linked)
        assert isinstance(register, DirectoryState)  # noqa: S101 the kind of a node never changes
        return [int(name) for name in register.entries]

    def _linked(self, origin: int) -> Inode | None:
        self._volume.check_open()
        return linked(self._root.state_of(self._volume.tree.linked), origin)


def _found(directory: MemoryDirectory, state: DirectoryState, name: str) -> Found | None:
    inode = state.entries.get(name)
    if inode is None:
        return WHITEOUT if name in state.whiteouts else None
    own = directory.state_of(inode)
    return Found(entry_of(name, inode, own, own.shown), own.mark)


class MemoryUpper(MemoryLayer, Upper):
    """A volume as the layer that takes all changes."""

    def __init__(self, volume: MemoryVolume) -> None:
        super().__init__(volume)
        self._tree = volume.tree

    @property
    def redirects(self) -> bool:
        return True

    def _changing(self, directory: DirectoryNode) -> Inode:
        """The node of a directory that is to change; raises `CrossVolume`, `ReadOnly`."""
        return self._own(directory).changing()

    # A user's changes -----------------------------------------------------------------------------

    async def create(
        self, directory: DirectoryNode, name: str, *, executable: bool = False
    ) -> FileNode:
        return await self._own(directory).create(name, executable=executable)

    async def mkdir(self, directory: DirectoryNode, name: str, *, opaque: bool) -> DirectoryNode:
        made = await self._own(directory).mkdir(name)
        made.inode.state.mark = Mark(opaque=True) if opaque else NO_MARK
        return made

    async def symlink(self, directory: DirectoryNode, name: str, target: str) -> None:
        await self._own(directory).symlink(name, target)

    async def link(
        self, directory: DirectoryNode, name: str, target: DirectoryNode, new_name: str
    ) -> None:
        await self._own(directory).link(name, target, new_name)

    async def remove(self, directory: DirectoryNode, name: str, *, cover: bool) -> None:
        self._tree.remove(self._changing(directory), name, Expect.ANY, cover=cover)

    async def cover(self, directory: DirectoryNode, name: str) -> None:
        cover(self._tree, self._changing(directory), name)

    async def rename(
        self,
        source: DirectoryNode,
        name: str,
        target: DirectoryNode,
        new_name: str,
        *,
        cover: bool,
        mark: Mark | None = None,
    ) -> None:
        ends = (self._changing(source), name, self._changing(target), new_name)
        self._tree.rename(*ends, RenameMode.REPLACE, cover=cover, mark=mark)

    async def exchange(
        self,
        source: DirectoryNode,
        name: str,
        mark: Mark | None,
        target: DirectoryNode,
        new_name: str,
        new_mark: Mark | None,
    ) -> None:
        ends = (self._changing(source), name, self._changing(target), new_name)
        self._tree.exchange(*ends, mark, new_mark)

    # Copying up, which is silent ------------------------------------------------------------------

    async def unnamed(self) -> MemoryFile:
        self._volume.check_open()
        return MemoryFile(self._volume, self._tree.new(NodeKind.FILE), writable=True)

    async def name_file(
        self, file: FileNode, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> None:
        if not isinstance(file, MemoryFile) or file.volume is not self._volume:
            raise CrossVolume("a file of another volume")
        if file.view is not None:
            raise ReadOnly("a snapshot does not change")
        name_silently(self._tree, file.inode, self._changing(directory), name, like, mark)

    async def copy_directory(
        self, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> DirectoryNode:
        parent = self._changing(directory)
        made = make_silently(self._tree, NodeKind.DIRECTORY, "", parent, name, like, mark)
        return MemoryDirectory(self._volume, made)

    async def copy_symlink(
        self, directory: DirectoryNode, name: str, target: str, like: Stat, mark: Mark
    ) -> None:
        parent = self._changing(directory)
        make_silently(self._tree, NodeKind.SYMLINK, target, parent, name, like, mark)

    async def adopt(self, origin: int, directory: DirectoryNode, name: str) -> None:
        adopt(self._tree, origin, self._changing(directory), name)

    async def set_mark(self, directory: DirectoryNode, mark: Mark) -> None:
        set_mark(self._tree, self._changing(directory), mark)

    async def uncover(self, directory: DirectoryNode, name: str) -> None:
        uncover(self._tree, self._changing(directory), name)
