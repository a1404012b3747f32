"""Nodes that wait before and after each call, so that calls of different tasks interleave.

The waiting is some turns of the event loop, by a seeded generator: the seed is printed when a
test fails (pytest shows what was printed), and ``CAPSTORE_TEST_SEED`` sets it.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Awaitable
from typing import TypeVar

import anyio

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
from capstore.schema.limits import PAGE_ENTRIES_MAX

T = TypeVar("T")


class Delays:
    """Zero to three turns of the loop at a time."""

    def __init__(self) -> None:
        seed = int(os.environ.get("CAPSTORE_TEST_SEED") or secrets.randbits(32))
        print(f"CAPSTORE_TEST_SEED={seed}")
        self._random = random.Random(seed)

    async def pause(self) -> None:
        for _ in range(self._random.randrange(4)):
            await anyio.sleep(0)

    async def around(self, call: Awaitable[T]) -> T:
        try:
            await self.pause()
        except BaseException:
            # Cancelled before the call began: it must not be reported as never awaited.
            getattr(call, "close", lambda: None)()
            raise
        result = await call
        await self.pause()
        return result


class DelayedFile(FileNode):
    def __init__(self, inner: FileNode, delays: Delays) -> None:
        self._inner = inner
        self._delays = delays

    async def stat(self) -> Stat:
        return await self._delays.around(self._inner.stat())

    async def sync(self) -> None:
        await self._delays.around(self._inner.sync())

    async def size(self) -> int:
        return await self._delays.around(self._inner.size())

    async def read_into(self, offset: int, view: memoryview) -> int:
        return await self._delays.around(self._inner.read_into(offset, view))

    async def write(self, offset: int, data: Buffer) -> None:
        await self._delays.around(self._inner.write(offset, data))

    async def append(self, data: Buffer) -> int:
        return await self._delays.around(self._inner.append(data))

    async def truncate(self, size: int) -> None:
        await self._delays.around(self._inner.truncate(size))

    async def set_attributes(self, change: Attributes) -> None:
        await self._delays.around(self._inner.set_attributes(change))

    async def close(self) -> None:
        await self._delays.around(self._inner.close())


class DelayedDirectory(DirectoryNode):
    def __init__(self, inner: DirectoryNode, delays: Delays) -> None:
        self._inner = inner
        self._delays = delays

    def _directory(self, inner: DirectoryNode) -> DelayedDirectory:
        return DelayedDirectory(inner, self._delays)

    @staticmethod
    def _unwrapped(target: DirectoryNode) -> DirectoryNode:
        return target._inner if isinstance(target, DelayedDirectory) else target

    async def stat(self) -> Stat:
        return await self._delays.around(self._inner.stat())

    async def sync(self) -> None:
        await self._delays.around(self._inner.sync())

    async def lookup(self, name: str) -> Entry:
        return await self._delays.around(self._inner.lookup(name))

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        return await self._delays.around(self._inner.list(after, limit))

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        file = await self._delays.around(self._inner.open(name, flags))
        return DelayedFile(file, self._delays)

    async def create(self, name: str, *, executable: bool = False) -> FileNode:
        file = await self._delays.around(self._inner.create(name, executable=executable))
        return DelayedFile(file, self._delays)

    async def mkdir(self, name: str) -> DirectoryNode:
        return self._directory(await self._delays.around(self._inner.mkdir(name)))

    async def sub(self, name: str) -> DirectoryNode:
        return self._directory(await self._delays.around(self._inner.sub(name)))

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        await self._delays.around(self._inner.remove(name, expect))

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        to = self._unwrapped(target)
        await self._delays.around(self._inner.rename(name, to, new_name, mode))

    async def symlink(self, name: str, target: str) -> None:
        await self._delays.around(self._inner.symlink(name, target))

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        await self._delays.around(self._inner.link(name, self._unwrapped(target), new_name))

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        await self._delays.around(self._inner.set_attributes(change, name))

    async def usage(self) -> Usage:
        return await self._delays.around(self._inner.usage())

    async def snapshot(self) -> DirectoryNode:
        return self._directory(await self._delays.around(self._inner.snapshot()))
