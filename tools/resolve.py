"""From a path below a capability to the node it means.

Invariants:

* A symbolic link is resolved on this side and inside the capability (`capstore.service.links`).
* A path without links costs one round trip whatever its depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capstore.backers.node import Entry, NodeKind, OpenFlags
from capstore.schema.errors import (
    Denied,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotFound,
    ReadOnly,
    StorageError,
)
from capstore.service.links import resolve
from capstore.service.remote import Directory, File
from capstore.tools.console import about, printable, shown


@dataclass(frozen=True, slots=True)
class Found:
    """A node by the directory that names it.

    `parent` is None for the capability itself, whose name nobody knows; `path` leads there without
    links; `top` is the capability.
    """

    top: Directory | File
    parent: Directory | None
    path: tuple[str, ...]
    entry: Entry

    @property
    def name(self) -> str:
        """The entry's name, empty for the capability itself."""
        return self.entry.name

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory (and no link to one)."""
        return self.entry.stat.kind is NodeKind.DIRECTORY

    def directory(self) -> Directory:
        """The directory itself.  Raises `NotDirectory`."""
        if not self.is_directory:
            raise NotDirectory(f"{shown(self.path)} is no directory")
        if self.parent is not None:
            return self.parent.pipelined((self.name,))
        if isinstance(self.top, File):
            raise NotDirectory("the URI stands for a file")
        return self.top

    async def file(self, *, writable: bool = False) -> File:
        """The file, open for reading, and where `writable` and allowed also for writing.

        Raises `IsDirectory`, `Unsupported` (a special node).
        """
        if self.parent is None:
            if isinstance(self.top, File):
                return self.top
            raise IsDirectory(f"{shown(self.path)} is a directory")
        if self.is_directory:
            raise IsDirectory(f"{shown(self.path)} is a directory")
        if writable:
            try:
                return await self.parent.open(self.name, OpenFlags.WRITE)
            except (ReadOnly, Denied):
                pass
        try:
            return await self.parent.open(self.name)
        except StorageError as error:
            raise about(self.path, error) from error

    async def node(self) -> Directory | File:
        """The directory, or the file open for as much as is allowed."""
        return self.directory() if self.is_directory else await self.file(writable=True)

    def named(self) -> tuple[Directory, str]:
        """The directory and the name in it.  Raises `InvalidArgument` for the capability itself."""
        if self.parent is None:
            raise InvalidArgument("this needs a path: what the URI itself stands for has no name")
        return self.parent, self.name


async def find(top: Directory | File, path: Sequence[str], *, follow: bool = True) -> Found:
    """The node at `path` below `top`; `follow` a symbolic link at its end.

    Raises `NotFound`, `NotDirectory`, `Denied` for a path below a file.
    """
    if not path:
        return await _itself(top)
    if isinstance(top, File):
        raise Denied("the URI stands for a file, which has nothing below it")
    try:
        parent = top.pipelined(path[:-1])
        entry = await parent.lookup(path[-1])
    except (NotFound, NotDirectory):
        return await _resolved(top, path, follow=follow)
    except StorageError as error:
        raise about(path, error) from error
    if follow and entry.stat.kind is NodeKind.SYMLINK:
        return await _resolved(top, path, follow=follow)
    return Found(top, parent, tuple(path), entry)


async def _itself(top: Directory | File) -> Found:
    return Found(top, None, (), Entry("", await top.stat()))


async def _resolved(top: Directory, path: Sequence[str], *, follow: bool) -> Found:
    """`find` where a link may be on the way."""
    try:
        place = await resolve(top, path, follow_last=follow)
    except StorageError as error:
        raise about(path, error) from error
    if place.is_root:
        return await _itself(top)
    if place.entry is None:
        raise NotFound(f'no entry "{printable(place.name)}" in {shown(place.path[:-1])}')
    return Found(top, place.parent, place.path, place.entry)


async def find_directory(top: Directory | File, path: Sequence[str]) -> Directory:
    """The directory at `path`, links followed.  Raises as `find` and `Found.directory`."""
    return (await find(top, path)).directory()
