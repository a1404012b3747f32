"""Any PyFilesystem2 filesystem as a volume: ``pyfs:URL``.

Invariants:

* Every call of the filesystem runs in a worker thread, one at a time for a volume; calls that wait
  together share a trip (`capstore.backers.workers.Lane`).  What such a call raises leaves here as a
  `StorageError` that tells neither the URL nor a path (`capstore.backers.pyfs_errors`).
* A volume writes if its filesystem does.  An archive that exists (``zip://``, ``tar://``) is opened
  for reading.
* A node is a path.  Held nodes follow what is renamed through the volume, and end with what is
  removed through it (`capstore.backers.pyfs_places`).  What others rename is lost to those who hold
  it, and what others put in its place is taken for it.
* No link is followed by name.  The containment is that of the filesystem: ``osfs://`` asks by path,
  so others who write below its root can lead a call out of it.  ``dir:`` is for that.

What PyFilesystem2 has no means for is `Unsupported`: links are not made, entries not exchanged,
trees not snapshot.  A directory is renamed only where the filesystem does not copy it.
A file that is open outlives its name in memory and on the host; elsewhere it is `NotFound` then.
Moving a file, where the filesystem copies it, is not atomic: while it runs, and when it fails, a
target that is replaced may be incomplete; the source is complete until the target is.
An FTP server is written at the end of files only, and cuts them to nothing only.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

# fs itself imports `_bulk`, `move` and `subfs` in the middle of the work, by when a service shall
# not look for files any more.
from fs import (
    _bulk,  # noqa: F401
    move,  # noqa: F401
    open_fs,
    subfs,  # noqa: F401
)
from fs.base import FS

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
from capstore.backers.pyfs_content import Content
from capstore.backers.pyfs_errors import fs_errors
from capstore.backers.pyfs_info import Traits
from capstore.backers.pyfs_places import Place
from capstore.backers.pyfs_tree import Tree
from capstore.backers.workers import Lane, in_worker
from capstore.schema.errors import (
    Closed,
    CrossVolume,
    InvalidArgument,
    NotFound,
    ReadOnly,
    StorageError,
    Unsupported,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.names import check_name

T = TypeVar("T")

# Without a kind PyFilesystem2 would take the text for a path of the host.
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SESSION_BYTES: Final = 8
_ID_BYTES: Final = 8
_HEAD_BYTES: Final = _SESSION_BYTES + _ID_BYTES + 1


class PyfsVolume(Volume):
    """A PyFilesystem2 filesystem; made by `open`."""

    def __init__(self, tree: Tree, *, read_only: bool) -> None:
        self.tree = tree
        self._read_only = read_only
        self._lane = Lane()
        self._loop = asyncio.get_running_loop()
        self._session = secrets.token_bytes(_SESSION_BYTES)
        # Files whose last holder let go of them without closing.
        self._dropped: deque[Content] = deque()
        self._sweeping: set[asyncio.Task[None]] = set()
        self.closed = False

    @classmethod
    async def open(cls, url_or_fs: str | FS, *, read_only: bool | None = None) -> PyfsVolume:
        """Opens the filesystem that an URL names, or takes over one that is open.

        `read_only` is as the filesystem has it if None; False demands that it writes.  Raises
        `InvalidArgument` for what is no URL, `Unsupported` for a kind that is not installed,
        `ReadOnly`, and what opening it raises.
        """
        if isinstance(url_or_fs, str) and not _URL.match(url_or_fs):
            raise InvalidArgument("a filesystem URL begins with its kind: zip://, osfs://")

        opened: list[FS] = []

        def make() -> Tree:
            with fs_errors("open the filesystem"):
                filesystem = open_fs(url_or_fs, writeable=False)
                if filesystem is not url_or_fs:
                    opened.append(filesystem)
                return Tree(filesystem, _traits(filesystem, read_only))

        try:
            tree = await in_worker(make)
        except BaseException:
            # Cancelled, perhaps: then it was opened all the same.
            for filesystem in opened:
                with suppress(Exception):
                    await in_worker(filesystem.close)
            raise
        return cls(tree, read_only=tree.traits.read_only)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "ro" if self._read_only else "rw"
        return f"<PyfsVolume {type(self.tree.fs).__name__} {state}>"

    @property
    def read_only(self) -> bool:
        """As `Volume.read_only`."""
        return self._read_only

    @property
    def root(self) -> PyfsDirectory:
        """As `Volume.root`."""
        return PyfsDirectory(self, self.tree.places.root)

    # How calls are made

    def check(self) -> None:
        """Raises `Closed` after the volume was closed."""
        if self.closed:
            raise Closed("the volume was closed")

    def check_writable(self) -> None:
        """Raises `Closed` or `ReadOnly` where nothing may be changed."""
        self.check()
        if self._read_only:
            raise ReadOnly("the volume is read-only")

    async def run(self, what: str, call: Callable[[], T]) -> T:
        """Runs `call` in a worker, alone on the filesystem; its errors are about `what`."""
        self.check()

        def guarded() -> T:
            with fs_errors(what), self.tree.fs.lock():
                self._sweep()
                return call()

        return await self._lane.run(guarded)

    def dropped(self, content: Content) -> None:
        """Takes back a file that somebody let go of; may be called by any thread."""
        self._dropped.append(content)
        with suppress(RuntimeError):  # the loop has ended, and with it the volume
            self._loop.call_soon_threadsafe(self._sweep_soon)

    def _sweep_soon(self) -> None:
        if self.closed or not self._dropped:
            return
        task = self._loop.create_task(self._lane.run(self._sweep))
        self._sweeping.add(task)
        task.add_done_callback(self._sweeping.discard)

    def _sweep(self) -> None:
        while self._dropped:
            with suppress(StorageError):
                self.tree.release(self._dropped.popleft())

    # The volume

    async def usage(self) -> Usage:
        """As `Volume.usage`: of the host's filesystem for ``osfs://``, else nothing is known."""
        return await self.run("usage", self.tree.usage)

    async def sync(self) -> None:
        """As `Volume.sync`; durable as far as the filesystem has means for that."""
        await self.run("sync", self.tree.sync)

    async def close(self) -> None:
        """As `Volume.close`; closes the filesystem, also one that `open` was given."""
        if self.closed:
            await self._lane.run(_nothing)
            return
        self.closed = True
        await self._lane.run(self.tree.close)

    async def handle_of(self, node: Node) -> bytes:
        """The node's path, with its id, by which this opening of the volume knows it again.

        After the volume was opened anew, the path alone decides, and what has it then counts as
        the node if it is of its kind.
        """
        self.check()
        if not isinstance(node, PyfsDirectory | PyfsFile) or node.volume is not self:
            raise InvalidArgument("a node of another volume")
        place = node.place

        def name() -> bytes:
            kind = self.tree.stat(place).kind
            names = [place.name]
            parent = place.parent
            while parent is not None:
                names.append(parent.name)
                parent = parent.parent
            _ = place.path  # raises where the name is gone
            flag = b"d" if kind is NodeKind.DIRECTORY else b"f"
            path = "/".join(reversed(names)).encode()
            return self._session + place.id.to_bytes(_ID_BYTES, "big") + flag + path

        return await self.run("name the node", name)

    async def node_of(self, handle: bytes) -> Node:
        """As `Volume.node_of`; a node that was moved is `NotFound`."""
        self.check()
        node_id, directory, names = self._decode(handle)

        def find() -> Node:
            place = self.tree.places.root
            try:
                for name in names[:-1] if not directory else names:
                    place = self.tree.sub(place, name)
            except StorageError:
                raise NotFound("the node is gone") from None
            if directory:
                self._check_id(place.id, node_id)
                return PyfsDirectory(self, place)
            self._check_id(self.tree.places.id_of(place, names[-1]), node_id)
            writable = not self._read_only
            flags = OpenFlags.WRITE if writable else OpenFlags.READ
            content = self.tree.open(place, names[-1], flags)
            return PyfsFile(self, content, writable=writable)

        return await self.run("find the node", find)

    def _decode(self, handle: bytes) -> tuple[int | None, bool, list[str]]:
        """Id (None: of an earlier opening), whether a directory, and the names of the path."""
        head, flag = handle[: _HEAD_BYTES - 1], handle[_HEAD_BYTES - 1 : _HEAD_BYTES]
        try:
            root, *names = handle[_HEAD_BYTES:].decode().split("/")
            if root or flag not in (b"d", b"f") or (flag == b"f" and not names):
                raise InvalidArgument("no handle of this volume")
            for name in names:
                check_name(name)
        except (UnicodeDecodeError, StorageError):
            raise InvalidArgument("no handle of this volume") from None
        same = head[:_SESSION_BYTES] == self._session
        node_id = int.from_bytes(head[_SESSION_BYTES:], "big") if same else None
        return node_id, flag == b"d", names

    def _check_id(self, found: int, wanted: int | None) -> None:
        if wanted not in (None, found):
            raise NotFound("the name was given to another node")


def _traits(filesystem: FS, read_only: bool | None) -> Traits:
    """What the filesystem is like, read-only where that is wanted; raises `ReadOnly`."""
    traits = Traits.of(filesystem)
    if traits.read_only and read_only is False:
        raise ReadOnly("the filesystem is read-only")
    return traits.as_read_only() if read_only else traits


def _nothing() -> None:
    """What is waited for to wait for what came before."""


class PyfsFile(FileNode):
    """An open file."""

    def __init__(self, volume: PyfsVolume, content: Content, *, writable: bool) -> None:
        """Takes over one hold on `content`."""
        self.volume = volume
        self.place = content.place
        self._content: Content | None = content
        self._writable = writable
        self._finalizer = weakref.finalize(self, volume.dropped, content)
        self._finalizer.atexit = False

    def __repr__(self) -> str:
        if self._content is None:
            return "<PyfsFile closed>"
        return f"<PyfsFile {'writable' if self._writable else 'read-only'}>"

    def _opened(self) -> Content:
        self.volume.check()
        if self._content is None:
            raise Closed("the file was closed")
        return self._content

    def _changing(self) -> Content:
        content = self._opened()
        if not self._writable:
            raise ReadOnly("the file is not open for writing")
        return content

    async def stat(self) -> Stat:
        """As `Node.stat`."""
        return await self.volume.run("stat", lambda: self.volume.tree.stat(self.place))

    async def sync(self) -> None:
        """As `Node.sync`."""
        await self.volume.run("sync", self._opened().sync)

    async def size(self) -> int:
        """As `FileNode.size`."""
        return await self.volume.run("size", self._opened().size)

    async def read_into(self, offset: int, view: memoryview) -> int:
        """As `FileNode.read_into`."""
        content = self._opened()
        return await self.volume.run("read", lambda: content.read(offset, view))

    async def read(self, offset: int, length: int) -> Buffer:
        """As `FileNode.read`, in one trip."""
        content = self._opened()

        def read() -> Buffer:
            buffer = bytearray(max(0, min(length, content.size() - offset)))
            return memoryview(buffer)[: content.read(offset, memoryview(buffer))]

        return await self.volume.run("read", read)

    async def write(self, offset: int, data: Buffer) -> None:
        """As `FileNode.write`; `Unsupported` within a file of an FTP server."""
        content, view = self._changing(), memoryview(data).cast("B")
        await self.volume.run("write", lambda: self.volume.tree.write(content, offset, view))

    async def append(self, data: Buffer) -> int:
        """As `FileNode.append`."""
        content, view = self._changing(), memoryview(data).cast("B")
        return await self.volume.run("append", lambda: self.volume.tree.append(content, view))

    async def truncate(self, size: int) -> None:
        """As `FileNode.truncate`; a gap is written as zeros, and so is not free."""
        content = self._changing()
        await self.volume.run("truncate", lambda: self.volume.tree.truncate(content, size))

    async def set_attributes(self, change: Attributes) -> None:
        """As `FileNode.set_attributes`; `NotFound` when the name is gone."""
        self._changing()
        tree, place = self.volume.tree, self.place
        await self.volume.run("set attributes", lambda: tree.set_attributes(place, change))

    async def close(self) -> None:
        """As `FileNode.close`; raises what was written and could not be finished."""
        content, self._content = self._content, None
        self._finalizer.detach()
        if content is not None and not self.volume.closed:
            await self.volume.run("close", lambda: self.volume.tree.release(content))


class PyfsDirectory(DirectoryNode):
    """A directory, by its place."""

    def __init__(self, volume: PyfsVolume, place: Place) -> None:
        self.volume = volume
        self.place = place
        self._tree = volume.tree

    def __repr__(self) -> str:
        return f"<PyfsDirectory {self.place.id:x}{' gone' if self.place.gone else ''}>"

    async def _run(self, what: str, call: Callable[[], T]) -> T:
        return await self.volume.run(what, call)

    async def stat(self) -> Stat:
        """As `Node.stat`."""
        return await self._run("stat", lambda: self._tree.stat(self.place))

    async def sync(self) -> None:
        """As `Node.sync`; covers the whole volume."""
        await self.volume.sync()

    async def usage(self) -> Usage:
        """As `DirectoryNode.usage`."""
        return await self.volume.usage()

    async def lookup(self, name: str) -> Entry:
        """As `DirectoryNode.lookup`."""
        check_name(name)
        return await self._run("lookup", lambda: self._tree.lookup(self.place, name))

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        """As `DirectoryNode.list`; see `capstore.backers.pyfs_walk`."""
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        return await self._run("list", lambda: self._tree.list(self.place, after, limit))

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        """As `DirectoryNode.open`."""
        flags = OpenFlags(flags).check()
        check_name(name)
        if flags.writes:
            self.volume.check_writable()

        def opened() -> PyfsFile:
            content = self._tree.open(self.place, name, flags)
            return PyfsFile(self.volume, content, writable=flags.writes)

        return await self._run("open", opened)

    async def create(self, name: str, *, executable: bool = False) -> FileNode:
        """As `DirectoryNode.create`; `Unsupported` where no permissions are set."""
        check_name(name)
        self.volume.check_writable()

        def created() -> PyfsFile:
            content = self._tree.create(self.place, name, executable=executable)
            return PyfsFile(self.volume, content, writable=True)

        return await self._run("create", created)

    async def mkdir(self, name: str) -> DirectoryNode:
        """As `DirectoryNode.mkdir`."""
        check_name(name)
        self.volume.check_writable()
        return PyfsDirectory(
            self.volume, await self._run("mkdir", lambda: self._tree.mkdir(self.place, name))
        )

    async def sub(self, name: str) -> DirectoryNode:
        """As `DirectoryNode.sub`."""
        check_name(name)
        return PyfsDirectory(
            self.volume, await self._run("sub", lambda: self._tree.sub(self.place, name))
        )

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        """As `DirectoryNode.remove`."""
        check_name(name)
        self.volume.check_writable()
        await self._run("remove", lambda: self._tree.remove(self.place, name, expect))

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        """As `DirectoryNode.rename`; `Unsupported` for `EXCHANGE` and where directories are copied.

        Atomic where the filesystem's own move is.
        """
        goal = self._target(name, target, new_name)
        await self._run("rename", lambda: self._tree.rename(self.place, name, goal, new_name, mode))

    def _target(self, name: str, target: DirectoryNode, new_name: str) -> Place:
        """The place of a second directory that takes part in a change."""
        check_name(name)
        check_name(new_name)
        self.volume.check_writable()
        if not isinstance(target, PyfsDirectory) or target.volume is not self.volume:
            raise CrossVolume("the target is not of this volume")
        _ = target.place.path  # raises where the directory was removed
        return target.place

    async def symlink(self, name: str, target: str) -> None:
        """`Unsupported`: PyFilesystem2 makes no links."""
        self._target(name, self, name)
        raise Unsupported("PyFilesystem2 makes no symbolic links")

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        """`Unsupported`: PyFilesystem2 makes no links."""
        self._target(name, target, new_name)
        raise Unsupported("PyFilesystem2 makes no hard links")

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        """As `DirectoryNode.set_attributes`; `Unsupported` for what the filesystem does not set.

        Times are floating point seconds there, so a microsecond is what can be told apart.
        """
        if name:
            check_name(name)
        self.volume.check_writable()
        tree, place = self._tree, self.place
        if name:
            await self._run(
                "set attributes", lambda: tree.set_entry_attributes(place, name, change)
            )
        else:
            await self._run("set attributes", lambda: tree.set_attributes(place, change))
