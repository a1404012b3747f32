"""A volume in memory: tmpfs with limits, snapshots, and a file to come back from.

Invariants:

* Nothing here waits between a check and the change it allows: the tree (`memory_tree`) works
  without yielding, so a cancelled call has happened whole or not at all.
* A handle (`MemoryDirectory`, `MemoryFile`) owns its node: content that lost its last name lives,
  and is counted, until the last handle is dropped or closed.
* Handles of a snapshot read the tree as it was, refuse every change with `ReadOnly`, and hold the
  snapshot alive.
* Memory is as durable as the process.  With a file, `sync` and `close` save the whole tree to it
  (`memory_save`); without one, `sync` has nothing to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

from capstore.backers.layer import Mark
from capstore.backers.memory_data import DirectoryState, FileState, Inode, State
from capstore.backers.memory_save import Saver
from capstore.backers.memory_tree import VOLUME_ID_BYTES, Limits, Snapshot, Tree
from capstore.backers.node import (
    Attributes,
    Buffer,
    DirectoryNode,
    Entry,
    Expect,
    FileNode,
    Node,
    NodeKind,
    OpenFlags,
    Page,
    RenameMode,
    Stat,
    Usage,
    Volume,
)
from capstore.backers.workers import in_worker
from capstore.schema.errors import (
    AlreadyExists,
    Closed,
    CrossVolume,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotFound,
    ReadOnly,
    Unsupported,
)
from capstore.schema.limits import (
    MEMORY_FILE_BYTES_MAX,
    MEMORY_NODES_MAX,
    MEMORY_TOTAL_BYTES_MAX,
    PAGE_BYTES_MAX,
    PAGE_ENTRIES_MAX,
)
from capstore.schema.names import check_name


class MemoryVolume(Volume):
    """A tree in memory; made by `open`."""

    def __init__(self, tree: Tree, saver: Saver | None) -> None:
        self.tree = tree
        self._saver = saver
        self._closing = anyio.Lock()
        # Calls are refused from the moment that closing begins, so nothing slips behind the
        # last save.
        self.closed = False

    @classmethod
    async def open(
        cls,
        *,
        file: str | None = None,
        total_bytes_max: int = MEMORY_TOTAL_BYTES_MAX,
        file_bytes_max: int = MEMORY_FILE_BYTES_MAX,
        nodes_max: int = MEMORY_NODES_MAX,
        clock: Callable[[], int] = time.time_ns,
    ) -> MemoryVolume:
        """A new volume, or the one that was saved in `file`, which is made if it is not there.

        `clock` gives nanoseconds since 1970.  Raises `Busy` when another volume holds the file,
        `Corrupt` when it is no saved tree, `NoSpace` and `TooLarge` when the limits are less than
        what was saved, and what the host says about the file.
        """
        limits = Limits(total_bytes_max, file_bytes_max, nodes_max)
        if file is None:
            return cls(Tree(limits, clock), None)
        opened: list[tuple[Tree, Saver]] = []
        try:
            await in_worker(lambda: opened.append(Saver.open(file, limits, clock)))
        except BaseException:
            for _, saver in opened:
                saver.release()
            raise
        return cls(*opened[0])

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        size, nodes = self.tree.account.in_use()
        return f"<MemoryVolume {state} {size} bytes {nodes} nodes>"

    @property
    def read_only(self) -> bool:
        """False; snapshots are read-only by themselves."""
        return False

    @property
    def root(self) -> MemoryDirectory:
        """The root directory."""
        return MemoryDirectory(self, self.tree.root)

    def check_open(self) -> None:
        """Raises `Closed` when the volume was closed."""
        if self.closed:
            raise Closed("the volume was closed")

    async def usage(self) -> Usage:
        """Space and nodes in use, with what open files and snapshots hold back."""
        self.check_open()
        size, nodes = self.tree.account.in_use()
        total = self.tree.limits.total_bytes_max
        return Usage(
            total_bytes=total,
            used_bytes=size,
            free_bytes=max(0, total - size),
            total_nodes=self.tree.limits.nodes_max,
            used_nodes=nodes,
        )

    async def sync(self) -> None:
        """Saves the tree if there is a file and something changed; raises what the host says."""
        self.check_open()
        if self._saver is not None:
            await self._saver.save(self.tree)

    async def reset(self) -> None:
        """Removes everything below the root, whiteouts and marks included, at once."""
        self.check_open()
        self.tree.reset()

    async def close(self) -> None:
        """Saves and releases the volume; when saving fails the volume stays open."""
        async with self._closing:
            if self.closed:
                return
            self.closed = True
            if self._saver is None:
                return
            try:
                await self._saver.save(self.tree)
            except BaseException:
                self.closed = False
                raise
            self._saver.release()

    async def handle_of(self, node: Node) -> bytes:
        """The volume's id and the node's; raises `NotFound` for a node without a name."""
        self.check_open()
        if not isinstance(node, MemoryDirectory | MemoryFile) or node.volume is not self:
            raise InvalidArgument("a node of another volume")
        if node.view is not None:
            # The node's own handle would lead to the live tree, which is more than was held.
            raise Unsupported("a snapshot lives no longer than its holder")
        inode = node.inode
        if not inode.state.shown:
            raise NotFound("the node has no name")
        return self.tree.volume_id + inode.id.to_bytes(8, "big")

    async def node_of(self, handle: bytes) -> MemoryDirectory | MemoryFile:
        self.check_open()
        volume_id, raw = handle[:VOLUME_ID_BYTES], handle[VOLUME_ID_BYTES:]
        if volume_id != self.tree.volume_id or len(raw) != 8:
            raise InvalidArgument("no handle of this volume")
        inode = self.tree.index.get(int.from_bytes(raw, "big"))
        if inode is None or not inode.state.shown:
            raise NotFound("the node is gone")
        if inode.kind is NodeKind.DIRECTORY:
            return MemoryDirectory(self, inode)
        if inode.kind is NodeKind.FILE:
            return MemoryFile(self, inode, writable=True)
        raise InvalidArgument("no handle of this volume")


def stat_of(inode: Inode, state: State, links: int) -> Stat:
    """What is known of a node with that state, `links` its number of names."""
    size = state.size if isinstance(state, FileState) else len(inode.target.encode())
    # By place, as every look-up comes through here and keywords cost a third more.
    return Stat(
        inode.kind,
        size,
        inode.id,
        state.version,
        state.created,
        state.modified,
        state.provenance,
        state.executable,
        links,
    )


def entry_of(name: str, inode: Inode, state: State, links: int) -> Entry:
    """An entry for a node with that state, `links` its number of names."""
    target = inode.target if inode.kind is NodeKind.SYMLINK else None
    return Entry(name, stat_of(inode, state, links), target)


def open_inode(
    volume: MemoryVolume, inode: Inode, flags: OpenFlags, view: Snapshot | None
) -> MemoryFile:
    """Opens a node that is there.

    Raises `AlreadyExists` (exclusive), `IsDirectory`, and `Unsupported` for what is no file.
    """
    if OpenFlags.EXCLUSIVE in flags:
        raise AlreadyExists("the name is taken")
    if inode.kind is NodeKind.DIRECTORY:
        raise IsDirectory("a directory")
    if inode.kind is not NodeKind.FILE:
        raise Unsupported("only a file can be opened")
    if OpenFlags.TRUNCATE in flags:
        volume.tree.truncate(inode, 0)
    return MemoryFile(volume, inode, writable=flags.writes, view=view)


class MemoryFile(FileNode):
    """An open file, live or of a snapshot."""

    def __init__(
        self,
        volume: MemoryVolume,
        inode: Inode,
        *,
        writable: bool,
        view: Snapshot | None = None,
    ) -> None:
        self.volume = volume
        self.view = view
        self._inode: Inode | None = inode
        self._writable = writable
        # What `stat` and `about` tell after `close`, when the node itself may be gone.
        self._last: tuple[Stat, Mark] | None = None

    def __repr__(self) -> str:
        if self._inode is None:
            return "<MemoryFile closed>"
        return f"<MemoryFile {self._inode.id} {'writable' if self._writable else 'read-only'}>"

    @property
    def inode(self) -> Inode:
        """The node; raises `Closed`."""
        self.volume.check_open()
        if self._inode is None:
            raise Closed("the file was closed")
        return self._inode

    def state(self) -> FileState:
        """The node's state, as it is or was then; raises `Closed`."""
        inode = self.inode
        state = inode.state if self.view is None else self.view.state(inode)
        assert isinstance(state, FileState)  # noqa: S101 the kind of a node never changes
        return state

    def changing(self) -> Inode:
        """The node, for a change; raises `Closed`, `ReadOnly`."""
        inode = self.inode
        if not self._writable:
            raise ReadOnly("the file is not open for writing")
        return inode

    async def stat(self) -> Stat:
        """What is known of the file; after `close` what was known then."""
        return self.about()[0]

    def about(self) -> tuple[Stat, Mark]:
        """`stat` and the mark; after `close` what they were then."""
        if self._last is not None:
            return self._last
        inode, state = self.inode, self.state()
        return stat_of(inode, state, state.links), state.mark

    async def sync(self) -> None:
        _ = self.inode
        await self.volume.sync()

    async def size(self) -> int:
        return self.state().size

    async def read_into(self, offset: int, view: memoryview) -> int:
        state = self.state()
        if offset < 0:
            raise InvalidArgument("a negative offset")
        return state.read_into(offset, view)

    async def write(self, offset: int, data: Buffer) -> None:
        self.volume.tree.write(self.changing(), offset, memoryview(data).cast("B"))

    async def append(self, data: Buffer) -> int:
        inode = self.changing()
        offset = self.state().size
        self.volume.tree.write(inode, offset, memoryview(data).cast("B"))
        return offset

    async def truncate(self, size: int) -> None:
        self.volume.tree.truncate(self.changing(), size)

    async def set_attributes(self, change: Attributes) -> None:
        """Changes attributes; all of a file's can be recorded."""
        self.volume.tree.set_attributes(self.changing(), change)

    async def close(self) -> None:
        """Lets go of the node and, with it, of a snapshot."""
        if self._inode is not None and not self.volume.closed:
            self._last = self.about()
        self._inode = None
        self.view = None


class MemoryDirectory(DirectoryNode):
    """A directory, live or of a snapshot."""

    def __init__(self, volume: MemoryVolume, inode: Inode, view: Snapshot | None = None) -> None:
        self.volume = volume
        self.view = view
        self._inode = inode

    def __repr__(self) -> str:
        view = "live" if self.view is None else "of a snapshot"
        return f"<MemoryDirectory {self._inode.id} {view}>"

    @property
    def inode(self) -> Inode:
        """The node; raises `Closed` when the volume was closed."""
        self.volume.check_open()
        return self._inode

    def state_of(self, inode: Inode) -> State:
        """The state of a node of the tree, as it is or was then."""
        return inode.state if self.view is None else self.view.state(inode)

    def state(self) -> DirectoryState:
        """The directory's own state, as it is or was then; raises `Closed`."""
        state = self.state_of(self.inode)
        assert isinstance(state, DirectoryState)  # noqa: S101 the kind of a node never changes
        return state

    def changing(self) -> Inode:
        """The node, for a change below it; raises `ReadOnly` in a snapshot."""
        inode = self.inode
        if self.view is not None:
            raise ReadOnly("a snapshot does not change")
        return inode

    def _target(self, target: DirectoryNode) -> Inode:
        """The node of a second directory that takes part in a change of this one."""
        if not isinstance(target, MemoryDirectory) or target.volume is not self.volume:
            raise CrossVolume("the target is not of this volume")
        return target.changing()  # the same class

    async def stat(self) -> Stat:
        return self.about()[0]

    def about(self) -> tuple[Stat, Mark]:
        """`stat` and the mark."""
        inode, state = self.inode, self.state()
        return stat_of(inode, state, state.links), state.mark

    async def sync(self) -> None:
        await self.volume.sync()

    async def lookup(self, name: str) -> Entry:
        inode = self.volume.tree.child(self.state(), name)
        state = self.state_of(inode)
        return entry_of(name, inode, state, state.links)

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        """Up to `limit` entries behind `after`, as many as names and targets fit in a page."""
        state = self.state()
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        names = state.entries.after(after, limit + 1)
        entries: list[Entry] = []
        room = PAGE_BYTES_MAX
        for name in names[:limit]:
            inode = state.entries[name]
            room -= len(name.encode()) + len(inode.target.encode())
            if room < 0 and entries:
                break
            own = self.state_of(inode)
            entries.append(entry_of(name, inode, own, own.links))
        return Page(entries, more=len(names) > len(entries))

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        flags.check()
        check_name(name)
        if flags.writes:
            self.changing()
        inode = self.state().entries.get(name)
        if inode is None:
            if OpenFlags.CREATE in flags:
                return await self.create(name)
            raise NotFound("no entry of this name")
        return open_inode(self.volume, inode, flags, self.view)

    async def create(self, name: str, *, executable: bool = False) -> MemoryFile:
        inode = self.volume.tree.make(self.changing(), name, NodeKind.FILE)
        inode.state.executable = executable
        return MemoryFile(self.volume, inode, writable=True)

    async def mkdir(self, name: str) -> MemoryDirectory:
        inode = self.volume.tree.make(self.changing(), name, NodeKind.DIRECTORY)
        return MemoryDirectory(self.volume, inode)

    async def sub(self, name: str) -> MemoryDirectory:
        inode = self.volume.tree.child(self.state(), name)
        if inode.kind is not NodeKind.DIRECTORY:
            raise NotDirectory("no directory")
        return MemoryDirectory(self.volume, inode, self.view)

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        self.volume.tree.remove(self.changing(), name, expect)

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        source = self.changing()
        self.volume.tree.rename(source, name, self._target(target), new_name, mode)

    async def symlink(self, name: str, target: str) -> None:
        self.volume.tree.symlink(self.changing(), name, target)

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        source = self.changing()
        self.volume.tree.link(source, name, self._target(target), new_name)

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        """Changes attributes; an executable bit is `Unsupported` but for files."""
        inode = self.changing()
        if name:
            inode = self.volume.tree.child(inode.state, name)
        self.volume.tree.set_attributes(inode, change)

    async def usage(self) -> Usage:
        return await self.volume.usage()

    async def snapshot(self) -> MemoryDirectory:
        """This directory and all below as it is now; of a snapshot, the same."""
        inode = self.inode
        return MemoryDirectory(self.volume, inode, self.view or self.volume.tree.snapshot())
