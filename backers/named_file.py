"""A file in the making: written under a name that nobody sees, until it gets its own.

Invariants: while it has no name of its own its stat says that it has no links; closing or dropping
it then removes it.  Afterwards it is an open file as any other.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from capstore.backers.named_notes import Notes, discard
from capstore.backers.node import Attributes, Buffer, FileNode, Stat
from capstore.backers.workers import finished
from capstore.schema.errors import StorageError


class UnnamedFile(FileNode):
    """The file `token` in the layer's `making`; empty once it was named."""

    def __init__(self, notes: Notes, token: str, inner: FileNode) -> None:
        self.notes = notes
        self.token = token
        self._inner = inner

    def __repr__(self) -> str:
        return f"<UnnamedFile {'unnamed' if self.token else 'named'} {self._inner!r}>"

    def __del__(self) -> None:
        if self.token:
            self.notes.dropped.append(self.token)

    async def stat(self) -> Stat:
        stat = await self._inner.stat()
        return stat._replace(link_count=0) if self.token else stat

    async def sync(self) -> None:
        await self._inner.sync()

    async def size(self) -> int:
        return await self._inner.size()

    async def read_into(self, offset: int, view: memoryview) -> int:
        return await self._inner.read_into(offset, view)

    async def read(self, offset: int, length: int) -> Buffer:
        return await self._inner.read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        await self._inner.write(offset, data)

    async def append(self, data: Buffer) -> int:
        return await self._inner.append(data)

    async def truncate(self, size: int) -> None:
        await self._inner.truncate(size)

    async def set_attributes(self, change: Attributes) -> None:
        await self._inner.set_attributes(change)

    async def close(self) -> None:
        await finished(asyncio.ensure_future(self._close()))

    async def _close(self) -> None:
        await self._inner.close()
        token, self.token = self.token, ""
        if token:
            with suppress(StorageError):
                await discard(self.notes.making, token)
