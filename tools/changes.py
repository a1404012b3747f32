"""Removing, making and flushing: `rm`, `mkdir`, `sync`.

Invariants: what is removed is what its name stands for, a symbolic link as a link; a directory is
removed after everything in it, and left where something in it stays.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from capstore.backers.node import Entry, Expect
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    IsDirectory,
    NotFound,
    StorageError,
)
from capstore.service.remote import Directory
from capstore.service.uri import CapabilityURI
from capstore.tools.console import about, explained, shown
from capstore.tools.copying import summed_up
from capstore.tools.location import opened
from capstore.tools.progress import Meter, metered
from capstore.tools.remote_tree import listed
from capstore.tools.resolve import find, find_directory
from capstore.tools.walk import Branch, Visitor, walk


class Remover(Visitor[Directory]):
    """Removes everything below a directory, and the directory with it.

    The state of a branch is the directory itself; that of the root stands in `parent`.
    """

    def __init__(self, parent: Directory, meter: Meter) -> None:
        self._parent = parent
        self._meter = meter

    async def enter(self, branch: Branch[Directory]) -> None:
        branch.state = self._above(branch).pipelined((branch.entry.name,))

    def _above(self, branch: Branch[Directory]) -> Directory:
        return self._parent if branch.parent is None else branch.parent.held

    def pages(self, branch: Branch[Directory]) -> AsyncGenerator[Sequence[Entry], None]:
        return listed(branch.held)

    async def visit(self, branch: Branch[Directory], entry: Entry) -> None:
        await branch.held.remove(entry.name, Expect.NOT_DIRECTORY)
        self._meter.entries += 1

    async def leave(self, branch: Branch[Directory]) -> None:
        # With something left in it, it would only fail once more, as notEmpty.
        if not branch.broken:
            await self._above(branch).remove(branch.entry.name, Expect.DIRECTORY)
            self._meter.entries += 1

    def failed(self, path: Sequence[str], error: StorageError) -> None:
        self._meter.failed(explained(about(path, error)))


async def rm(uri: CapabilityURI, *, recursive: bool, force: bool, quiet: bool) -> None:
    """Removes an entry."""
    async with opened(uri) as service, metered("rm", quiet=quiet) as meter:
        try:
            found = await find(service.top, service.path, follow=False)
        except NotFound:
            if force:
                return
            raise
        parent, name = found.named()
        if not found.is_directory:
            try:
                await parent.remove(name, Expect.NOT_DIRECTORY)
            except StorageError as error:
                raise about(found.path, error) from error
            return
        if not recursive:
            raise IsDirectory(f"{shown(found.path)} is a directory: use -r")
        await walk(Remover(parent, meter), Branch(found.entry, None, found.path))
    summed_up(meter)


async def mkdir(uri: CapabilityURI, *, parents: bool) -> None:
    """Makes a directory."""
    async with opened(uri) as service:
        path = service.path
        if not path:
            raise InvalidArgument("this needs a path: what the URI itself stands for is there")
        if not parents:
            above = await find_directory(service.top, path[:-1])
            await _make(above, path)
            return
        missing = 0
        while missing < len(path):
            try:
                directory = await find_directory(service.top, path[: len(path) - missing])
                break
            except NotFound:
                missing += 1
        else:
            directory = await find_directory(service.top, ())
        for depth in range(len(path) - missing, len(path)):
            directory = await _make_or_enter(directory, path[: depth + 1])


async def _make(above: Directory, path: Sequence[str]) -> Directory:
    try:
        return await above.mkdir(path[-1])
    except StorageError as error:
        raise about(path, error) from error


async def _make_or_enter(above: Directory, path: Sequence[str]) -> Directory:
    """Somebody else may have made it meanwhile."""
    try:
        return await _make(above, path)
    except AlreadyExists:
        return await above.sub(path[-1])


async def sync(uri: CapabilityURI) -> None:
    """Makes a node and all below it durable."""
    async with opened(uri) as service:
        found = await find(service.top, service.path)
        node = await found.node()
        try:
            await node.sync()
        except StorageError as error:
            raise about(found.path, error) from error
