"""A read-only image as a volume: any `ImageTree`, answered on the loop where nothing has to wait.

Invariants:

* Every change is refused as `ReadOnly`, before the image is asked.
* What may wait for a device, or take long, runs in a worker; `close` lets what is under way there
  end before it releases the image, and everything behind it is `Closed`.
* A handle leads to the node it was given for or to nothing: it carries the node's mark.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NoReturn, TypeVar

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
from capstore.images.tree import Content, ImageTree
from capstore.schema.errors import (
    Closed,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotFound,
    ReadOnly,
    Unsupported,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX, TRANSFER_BYTES_MAX
from capstore.schema.names import check_name

T = TypeVar("T")

_ID_BYTES: Final = 8


def _refuse() -> NoReturn:
    raise ReadOnly("an image does not change")


class ImageVolume(Volume):
    """A volume over an open image, which it owns."""

    def __init__(self, tree: ImageTree) -> None:
        self._tree: ImageTree | None = tree
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @classmethod
    async def open(cls, opener: Callable[[], ImageTree]) -> ImageVolume:
        """The volume over what `opener` opens, in a worker; raises what that raises."""
        opened: list[ImageTree] = []
        try:
            await in_worker(lambda: opened.append(opener()))
        except BaseException:
            for tree in opened:
                tree.close()
            raise
        return cls(opened[0])

    def __repr__(self) -> str:
        return f"<ImageVolume {self._tree!r}>"

    @property
    def tree(self) -> ImageTree:
        """The image; raises `Closed`."""
        if self._tree is None:
            raise Closed("the volume was closed")
        return self._tree

    async def call(self, function: Callable[[ImageTree], T], *, waits: bool) -> T:
        """What `function` makes of the image, in a worker where it `waits`."""
        tree = self.tree
        if not waits:
            return function(tree)
        self._under_way += 1
        self._idle.clear()
        try:
            return await in_worker(lambda: function(tree))
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    @property
    def read_only(self) -> bool:
        """True."""
        return True

    @property
    def root(self) -> ImageDirectory:
        """The root directory."""
        return ImageDirectory(self, self.tree.root)

    async def usage(self) -> Usage:
        """Space and nodes; see `ImageTree.usage`."""
        return await self.call(lambda tree: tree.usage(), waits=True)

    async def sync(self) -> None:
        """Nothing to do."""
        _ = self.tree

    async def close(self) -> None:
        """Releases the image when what is under way has ended."""
        tree, self._tree = self._tree, None
        if tree is None:
            return
        cancelled: asyncio.CancelledError | None = None
        while self._under_way:
            try:
                await self._idle.wait()
            except asyncio.CancelledError as error:
                # What is under way in a worker is bounded, and must not lose its descriptor.
                cancelled = error
        # To give back a large mapping or temporary file takes long.
        await in_worker(tree.close)
        if cancelled is not None:
            raise cancelled

    async def handle_of(self, node: Node) -> bytes:
        if not isinstance(node, ImageDirectory | ImageFile) or node.volume is not self:
            raise InvalidArgument("a node of another volume")
        number = node.node
        mark = await self.call(lambda tree: tree.mark(number), waits=True)
        return number.to_bytes(_ID_BYTES, "big") + mark

    async def node_of(self, handle: bytes) -> Node:
        number, mark = int.from_bytes(handle[:_ID_BYTES], "big"), handle[_ID_BYTES:]
        if not mark:
            raise InvalidArgument("no handle of this volume")
        found, stat = await self.call(
            lambda tree: (tree.mark(number), tree.stat(number)), waits=True
        )
        if found != mark:
            raise NotFound("the image is another one now")
        if stat.kind is NodeKind.DIRECTORY:
            return ImageDirectory(self, number)
        return await self.open_file(number)

    async def open_file(self, node: int) -> ImageFile:
        """Opens the file `node`; raises as `ImageTree.content`."""
        waits = self.tree.content_waits(node)
        content = await self.call(lambda tree: tree.content(node), waits=waits)
        return ImageFile(self, node, content)


class ImageFile(FileNode):
    """An open file of an image."""

    def __init__(self, volume: ImageVolume, node: int, content: Content) -> None:
        self.volume = volume
        self.node = node
        self._content: Content | None = content

    def __repr__(self) -> str:
        return f"<ImageFile {self.node} {'closed' if self._content is None else 'open'}>"

    def _opened(self) -> Content:
        _ = self.volume.tree
        if self._content is None:
            raise Closed("the file was closed")
        return self._content

    async def stat(self) -> Stat:
        """What is known of the file, also after `close`."""
        waits = self.volume.tree.content_waits(self.node)
        return await self.volume.call(lambda tree: tree.stat(self.node), waits=waits)

    async def size(self) -> int:
        return self._opened().size

    async def sync(self) -> None:
        self._opened()

    async def read_into(self, offset: int, view: memoryview) -> int:
        content = self._opened()
        if offset < 0:
            raise InvalidArgument("an offset is not negative")
        if len(view) <= TRANSFER_BYTES_MAX:
            got = content.read_now(offset, view)
            if got is not None:
                return got
        return await self.volume.call(lambda _: content.read_into(offset, view), waits=True)

    async def write(self, offset: int, data: Buffer) -> None:
        self._opened()
        _refuse()

    async def append(self, data: Buffer) -> int:
        self._opened()
        _refuse()

    async def truncate(self, size: int) -> None:
        self._opened()
        _refuse()

    async def set_attributes(self, change: Attributes) -> None:
        self._opened()
        _refuse()

    async def close(self) -> None:
        """Lets go of the content."""
        self._content = None


class ImageDirectory(DirectoryNode):
    """A directory of an image."""

    def __init__(self, volume: ImageVolume, node: int) -> None:
        self.volume = volume
        self.node = node

    def __repr__(self) -> str:
        return f"<ImageDirectory {self.node}>"

    async def _look(self, function: Callable[[ImageTree], T]) -> T:
        waits = self.volume.tree.waits(self.node)
        return await self.volume.call(function, waits=waits)

    async def stat(self) -> Stat:
        return await self._look(lambda tree: tree.stat(self.node))

    async def sync(self) -> None:
        _ = self.volume.tree

    async def lookup(self, name: str) -> Entry:
        return await self._look(lambda tree: tree.lookup(self.node, name))

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        return await self._look(lambda tree: tree.list(self.node, after, limit))

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        flags.check()
        check_name(name)
        if flags.writes:
            _refuse()
        stat = (await self.lookup(name)).stat
        if stat.kind is NodeKind.DIRECTORY:
            raise IsDirectory("a directory")
        if stat.kind is not NodeKind.FILE:
            raise Unsupported("only a file can be opened")
        return await self.volume.open_file(stat.node_id)

    async def sub(self, name: str) -> DirectoryNode:
        stat = (await self.lookup(name)).stat
        if stat.kind is not NodeKind.DIRECTORY:
            raise NotDirectory("no directory")
        return ImageDirectory(self.volume, stat.node_id)

    async def usage(self) -> Usage:
        return await self.volume.usage()

    async def snapshot(self) -> DirectoryNode:
        """This directory: it never changes."""
        _ = self.volume.tree
        return self

    # Refused -------------------------------------------------------------------------------------

    async def create(self, name: str, *, executable: bool = False) -> FileNode:
        check_name(name)
        _refuse()

    async def mkdir(self, name: str) -> DirectoryNode:
        check_name(name)
        _refuse()

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        check_name(name)
        _refuse()

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        check_name(name)
        check_name(new_name)
        _refuse()

    async def symlink(self, name: str, target: str) -> None:
        check_name(name)
        _refuse()

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        check_name(name)
        check_name(new_name)
        _refuse()

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        if name:
            check_name(name)
        _refuse()
