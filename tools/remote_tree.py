"""A directory of a service as an end of a copy.

Invariants:

* A file appears under its name when it is complete: it is written beside it and renamed, whether
  or not one was there.  Whoever dies on the way leaves no torso under a name that was asked for,
  and a copy that fails removes what it made.
* A listing that does not go forward is refused: it would never end.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from capstore.backers.node import Attributes, Entry, Expect, OpenFlags, Stat
from capstore.schema.errors import (
    AlreadyExists,
    Corrupt,
    NotDirectory,
    StorageError,
    TransportError,
    Unsupported,
)
from capstore.schema.names import check_name
from capstore.service.remote import Directory, File
from capstore.service.transfer import Writer, read_chunks
from capstore.tools.trees import Content, carried

_NEW = OpenFlags.WRITE | OpenFlags.CREATE | OpenFlags.EXCLUSIVE


async def listed(directory: Directory) -> AsyncGenerator[Sequence[Entry], None]:
    """The pages of a listing, one ahead of its user.  Raises `Corrupt` for one without end."""
    last = ""
    fetch = asyncio.create_task(directory.list())
    try:
        while True:
            page = await fetch
            names = [entry.name for entry in page.entries]
            if page.more and (not names or names[-1].encode() <= last.encode()):
                raise Corrupt("the service gives a listing that does not go forward")
            if page.more:
                last = names[-1]
                fetch = asyncio.create_task(directory.list(last))
            yield page.entries
            if not page.more:
                return
    finally:
        if not fetch.cancel() and not fetch.cancelled():
            fetch.exception()  # retrieved, so that nobody warns of it


def temporary_name() -> str:
    """A name that nobody else uses, for what is to be renamed."""
    return f".capstore-{secrets.token_hex(8)}.part"


class RemoteTree:
    """Directories of a service, to read from and to write to."""

    def sub(self, directory: Directory, name: str) -> Directory:
        return directory.pipelined((name,))

    def pages(self, directory: Directory) -> AsyncGenerator[Sequence[Entry], None]:
        return listed(directory)

    async def content(self, directory: Directory, entry: Entry) -> Content:
        data, eof, file = await directory.read_file(entry.name)
        return Content(data, None if eof else read_chunks(file, len(data)))

    async def directory(self, parent: Directory, name: str) -> Directory:
        try:
            return await parent.mkdir(name)
        except AlreadyExists:
            return await parent.sub(name)

    async def file(self, parent: Directory, name: str, content: Content, stat: Stat) -> None:
        check_name(name)
        temporary = temporary_name()
        try:
            if content.rest is None:
                file = await parent.write_file(temporary, content.first, _NEW)
            else:
                file = await parent.create(temporary)
                await fill(file, content)
            change = carried(stat)
            if change.executable or change.modified is not None:
                await _set_attributes(file, change)
            await parent.rename(temporary, parent, name)
        except BaseException:
            await _discard(parent, temporary)
            raise

    async def symlink(self, parent: Directory, name: str, target: str, stat: Stat) -> None:
        try:
            await parent.symlink(name, target)
        except AlreadyExists:
            temporary = temporary_name()
            await parent.symlink(temporary, target)
            try:
                await parent.rename(temporary, parent, name)
            except BaseException:
                await _discard(parent, temporary)
                raise
        await self._set_modified(parent, name, stat)

    async def finish(self, directory: Directory, stat: Stat) -> None:
        await self._set_modified(directory, "", stat)

    async def _set_modified(self, directory: Directory, name: str, stat: Stat) -> None:
        modified = carried(stat).modified
        if modified is not None:
            # Not every volume records times, and a copy without them is still a copy.
            with suppress(Unsupported):
                await directory.set_attributes(Attributes(modified=modified), name)


async def _set_attributes(file: File, change: Attributes) -> None:
    """Sets as much of `change` as the volume records: a copy without the rest is still one."""
    for part in (change, Attributes(executable=change.executable)):
        try:
            await file.set_attributes(part)
        except Unsupported:
            continue
        return


class LoneFile:
    """A file that a URI itself stands for, as either end of one copy.

    It has no name that could be replaced, so it is overwritten in place.
    """

    def sub(self, directory: File, name: str) -> File:
        raise NotDirectory("the URI stands for a file, which has nothing below it")

    def pages(self, directory: File) -> AsyncGenerator[Sequence[Entry], None]:
        raise NotDirectory("the URI stands for a file, which has nothing below it")

    async def content(self, directory: File, entry: Entry) -> Content:
        return Content(b"", read_chunks(directory))

    async def directory(self, parent: File, name: str) -> File:
        raise NotDirectory("the URI stands for a file, which has nothing below it")

    async def file(self, parent: File, name: str, content: Content, stat: Stat) -> None:
        await parent.truncate(await fill(parent, content))
        with suppress(Unsupported):
            await parent.set_attributes(carried(stat))

    async def symlink(self, parent: File, name: str, target: str, stat: Stat) -> None:
        raise Unsupported("a symbolic link cannot replace the file that the URI stands for")

    async def finish(self, directory: File, stat: Stat) -> None:
        return


async def fill(file: File, content: Content) -> int:
    """Writes all of `content` from the start of `file`; returns how much that was."""
    if content.rest is None:
        if content.first:
            await file.write(0, content.first)
        return len(content.first)
    writer = Writer(file)
    await writer.write(content.first)
    async for chunk in content.rest:
        await writer.write(chunk)
    await writer.finish()
    return writer.offset


async def _discard(directory: Directory, name: str) -> None:
    """Removes what is not complete; what cannot be removed was reported by what came before."""
    with suppress(StorageError, TransportError):
        await directory.remove(name, Expect.NOT_DIRECTORY)
