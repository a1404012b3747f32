"""Volumes that count what is done to them, stop in the middle, or lack something."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from capstore.backers.memory import MemoryVolume
from capstore.backers.named import NamedUpper
from capstore.backers.node import (
    Attributes,
    Buffer,
    DirectoryNode,
    Entry,
    Expect,
    FileNode,
    Node,
    OpenFlags,
    Page,
    RenameMode,
    Stat,
    Usage,
    Volume,
)
from capstore.schema.errors import (
    StorageIOError,
    Unsupported,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX

HIDDEN = ".wh..wh.capstore"


class Power:
    """Changing calls that are left before the power is cut; for one call only with `once`."""

    def __init__(self, *, once: bool = False) -> None:
        self.left: int | None = None
        self.once = once
        self.cut = False
        # Raised where something is said to be impossible.
        self.lacks: frozenset[str] = frozenset()
        self.listed = 0
        self.slow = False
        # Called before each call that changes something.
        self.look: Callable[[], Awaitable[None]] | None = None

    async def spend(self, what: str) -> None:
        if self.slow:
            await asyncio.sleep(0)
        if self.look is not None:
            await self.look()
        if what in self.lacks:
            raise Unsupported(what)
        if self.left is None:
            return
        if self.left == 0:
            self.cut = True
            if self.once:
                self.left = None
            raise StorageIOError("the power is cut")
        self.left -= 1


class WiredFile(FileNode):
    def __init__(self, inner: FileNode, power: Power) -> None:
        self.inner = inner
        self._power = power

    async def stat(self) -> Stat:
        return await self.inner.stat()

    async def sync(self) -> None:
        await self._power.spend("sync")
        await self.inner.sync()

    async def read_into(self, offset: int, view: memoryview) -> int:
        return await self.inner.read_into(offset, view)

    async def write(self, offset: int, data: Buffer) -> None:
        await self._power.spend("write")
        await self.inner.write(offset, data)

    async def append(self, data: Buffer) -> int:
        await self._power.spend("append")
        return await self.inner.append(data)

    async def truncate(self, size: int) -> None:
        await self._power.spend("truncate")
        await self.inner.truncate(size)

    async def set_attributes(self, change: Attributes) -> None:
        await self._power.spend("attributes")
        await self.inner.set_attributes(change)

    async def close(self) -> None:
        await self.inner.close()


class WiredDirectory(DirectoryNode):
    def __init__(self, inner: DirectoryNode, power: Power) -> None:
        self.inner = inner
        self._power = power

    async def stat(self) -> Stat:
        return await self.inner.stat()

    async def sync(self) -> None:
        await self.inner.sync()

    async def lookup(self, name: str) -> Entry:
        return await self.inner.lookup(name)

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        page = await self.inner.list(after, limit)
        self._power.listed += len(page.entries)
        return page

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        return WiredFile(await self.inner.open(name, flags), self._power)

    async def create(self, name: str, *, executable: bool = False) -> FileNode:
        await self._power.spend("create")
        return WiredFile(await self.inner.create(name, executable=executable), self._power)

    async def mkdir(self, name: str) -> DirectoryNode:
        await self._power.spend("mkdir")
        return WiredDirectory(await self.inner.mkdir(name), self._power)

    async def sub(self, name: str) -> DirectoryNode:
        return WiredDirectory(await self.inner.sub(name), self._power)

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        await self._power.spend("remove")
        await self.inner.remove(name, expect)

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        await self._power.spend(f"rename {mode.value}")
        assert isinstance(target, WiredDirectory)
        await self.inner.rename(name, target.inner, new_name, mode)

    async def symlink(self, name: str, target: str) -> None:
        await self._power.spend("symlink")
        await self.inner.symlink(name, target)

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        await self._power.spend("link")
        assert isinstance(target, WiredDirectory)
        await self.inner.link(name, target.inner, new_name)

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        await self._power.spend("attributes")
        await self.inner.set_attributes(change, name)

    async def usage(self) -> Usage:
        return await self.inner.usage()


class WiredVolume(Volume):
    def __init__(self, inner: Volume, power: Power) -> None:
        self.inner = inner
        self.power = power

    @property
    def read_only(self) -> bool:
        return self.inner.read_only

    @property
    def root(self) -> DirectoryNode:
        return WiredDirectory(self.inner.root, self.power)

    async def usage(self) -> Usage:
        return await self.inner.usage()

    async def sync(self) -> None:
        await self.inner.sync()

    async def close(self) -> None:
        await self.inner.close()

    async def handle_of(self, node: Node) -> bytes:
        if "handle" in self.power.lacks:
            raise Unsupported("handle")
        assert isinstance(node, WiredFile | WiredDirectory)
        return await self.inner.handle_of(node.inner)


async def wired(
    *lacks: str, inner: Volume | None = None, once: bool = False
) -> tuple[NamedUpper, Power]:
    power = Power(once=once)
    power.lacks = frozenset(lacks)
    upper = await NamedUpper.open(WiredVolume(inner or await MemoryVolume.open(), power))
    return upper, power


async def deeper(root: DirectoryNode, *names: str) -> DirectoryNode:
    for name in names:
        root = await root.sub(name)
    return root
