"""Files and directories of an overlay.

Invariants: a handle holds a core, and asks it anew for each call, so it follows copy-up, renaming
and removal; `capstore.backers.overlay_tree` says how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstore.backers.node import (
    Attributes,
    Buffer,
    DirectoryNode,
    Entry,
    Expect,
    FileNode,
    OpenFlags,
    Page,
    RenameMode,
    Stat,
    Usage,
)
from capstore.backers.overlay_core import DirectoryCore, FileCore
from capstore.backers.overlay_union import UPPER, shown
from capstore.schema.errors import Closed, CrossVolume, ReadOnly
from capstore.schema.limits import PAGE_ENTRIES_MAX

if TYPE_CHECKING:
    from capstore.backers.overlay import OverlayVolume


class OverlayFile(FileNode):
    """An open file, of whatever layer it is at the moment."""

    __slots__ = ("_closed", "_writable", "core", "volume")

    def __init__(self, volume: OverlayVolume, core: FileCore, *, writable: bool) -> None:
        """Takes over one of the core's handles."""
        self.volume = volume
        self.core = core
        self._writable = writable
        self._closed = False

    def __repr__(self) -> str:
        words = ["closed"] if self._closed else ["writable" if self._writable else "read-only"]
        words.append("upper" if self.core.number == UPPER else f"lower {self.core.number}")
        return f"<OverlayFile {' '.join(words)}>"

    def _opened(self) -> FileNode:
        if self._closed:
            raise Closed("the file was closed")
        return self.core.file

    def _check_writable(self) -> None:
        self._opened()
        if not self._writable:
            raise ReadOnly("the file is not open for writing")

    async def stat(self) -> Stat:
        """What is known of the file; after `close` what was known then."""
        core = self.core
        if self._closed:
            stat = await core.file.stat()
        else:
            stat, _ = await self.volume.tree.union.about(core.number, core.file)
        stat = shown(stat, core.number, core.node_id)
        # Of lower layers, what has several names is copied up before one of them goes.
        return stat._replace(link_count=0) if core.is_nameless else stat

    async def sync(self) -> None:
        self._opened()
        await self.volume.sync()

    async def size(self) -> int:
        return await self._opened().size()

    async def read_into(self, offset: int, view: memoryview) -> int:
        return await self._opened().read_into(offset, view)

    async def read(self, offset: int, length: int) -> Buffer:
        return await self._opened().read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        self._check_writable()
        if not len(data):
            return
        await self._copied()
        if self.core.number != UPPER:
            # In place: nobody copies it meanwhile, or the copy would have half of this.
            async with self.core.copying:
                await self.core.file.write(offset, data)
            return
        await self.core.file.write(offset, data)

    async def append(self, data: Buffer) -> int:
        self._check_writable()
        await self._copied()
        async with self.core.copying:
            return await self.core.file.append(data)

    async def truncate(self, size: int) -> None:
        self._check_writable()
        await self._copied(size)
        async with self.core.copying:
            await self.core.file.truncate(size)

    async def set_attributes(self, change: Attributes) -> None:
        """Changes attributes, as far as the layer that has the file then can record them."""
        self._check_writable()
        if change == Attributes():
            return
        await self._copied()
        async with self.core.copying:
            await self.core.file.set_attributes(change)

    async def _copied(self, length: int | None = None) -> None:
        """Copies the file up, or its beginning, if it may not be changed where it is."""
        if self.core.number != UPPER:
            await self.volume.tree.copied(self.core, length)

    async def close(self) -> None:
        """Lets go of the file."""
        if not self._closed:
            self._closed = True
            await self.volume.tree.release(self.core)


class OverlayDirectory(DirectoryNode):
    """A directory: what all layers have in its place."""

    __slots__ = ("core", "volume")

    def __init__(self, volume: OverlayVolume, core: DirectoryCore) -> None:
        self.volume = volume
        self.core = core

    def __repr__(self) -> str:
        numbers = ", ".join(str(piece.number) for piece in self.core.pieces)
        return f"<OverlayDirectory {self.core.name!r} of layers {numbers or 'none'}>"

    # Looking -------------------------------------------------------------------------------------

    async def stat(self) -> Stat:
        return await self.volume.tree.stat_of(self.core)

    async def sync(self) -> None:
        await self.volume.sync()

    async def lookup(self, name: str) -> Entry:
        return (await self.volume.tree.seen(self.core, name)).entry

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        """Up to `limit` entries behind `after`, merged from all layers."""
        tree, core = self.volume.tree, self.core
        tree.check_open()
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        return Page(*await tree.union.entries(core.pieces, after, limit, core.kept))

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        flags.check()
        tree = self.volume.tree
        tree.check_name(name)
        if flags.writes:
            tree.check_writable()
        while True:
            file = await tree.open(self.core, name, flags)
            if file is None:
                file = await self.volume.changes.create_unless_there(self.core, name, flags)
            if file is not None:
                return OverlayFile(self.volume, file, writable=flags.writes)

    async def sub(self, name: str) -> DirectoryNode:
        return OverlayDirectory(self.volume, await self.volume.tree.directory(self.core, name))

    async def usage(self) -> Usage:
        return await self.volume.usage()

    async def snapshot(self) -> DirectoryNode:
        """This directory and all below as it is now.

        Raises `Unsupported` where the upper layer has no snapshots, and where files of lower layers
        are written in place.
        """
        return await self.volume.snapshot(self.core)

    # Changing ------------------------------------------------------------------------------------

    async def create(self, name: str, *, executable: bool = False) -> FileNode:
        core = await self.volume.changes.create(self.core, name, executable=executable)
        return OverlayFile(self.volume, core, writable=True)

    async def mkdir(self, name: str) -> DirectoryNode:
        return OverlayDirectory(self.volume, await self.volume.changes.mkdir(self.core, name))

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        self.volume.tree.check_name(name)
        await self.volume.changes.remove(self.core, name, expect)

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        self.volume.tree.check_name(name)
        self.volume.tree.check_name(new_name)
        await self.volume.changes.rename(self.core, name, self._core_of(target), new_name, mode)

    async def symlink(self, name: str, target: str) -> None:
        await self.volume.changes.symlink(self.core, name, target)

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        self.volume.tree.check_name(name)
        self.volume.tree.check_name(new_name)
        await self.volume.changes.link(self.core, name, self._core_of(target), new_name)

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        if name:
            self.volume.tree.check_name(name)
        await self.volume.changes.set_attributes(self.core, change, name)

    def _core_of(self, target: DirectoryNode) -> DirectoryCore:
        """A second directory that takes part in a change of this one."""
        self.volume.tree.check_writable()
        if isinstance(target, OverlayDirectory):
            target.volume.tree.check_writable()
        if not isinstance(target, OverlayDirectory) or target.volume is not self.volume:
            raise CrossVolume("the target is not of this volume")
        return target.core
