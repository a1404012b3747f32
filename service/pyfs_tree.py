"""What `CapstoreFS` does, on the event loop: one coroutine for each operation on paths.

Invariants:

* A path is a tuple of names below the root; the empty one is the root.  Links are resolved as
  `links` says.
* What fails raises `StorageError` or `TransportError`; nothing here knows of PyFilesystem2.
* An operation on one small file is one round trip, whatever the depth, if there is no link on the
  way.
* Every change counts in `changes`, before it is sent and after it was answered: what was read
  ahead meanwhile is not used (see `pyfs_file`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from capstore.backers.node import (
    Attributes,
    Entry,
    Expect,
    NodeKind,
    OpenFlags,
    Page,
    Stat,
)
from capstore.schema.errors import (
    AlreadyExists,
    InvalidName,
    NotDirectory,
    NotFound,
    ReadOnly,
    StorageError,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX, TRANSFER_BYTES_MAX
from capstore.service.links import Path, Place, at_directory, at_name, resolve, together
from capstore.service.pyfs_file import Changes, OpenFile
from capstore.service.remote import REPLACE, Directory, File
from capstore.service.transfer import Writer, read_chunks

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """What a path stands for: `stat` of what it leads to, `target` of a link that it names.

    Of a link that leads nowhere `stat` is the link's own.
    """

    name: str
    stat: Stat
    target: str | None = None

    @property
    def is_directory(self) -> bool:
        """Whether it is, or leads to, a directory."""
        return self.stat.kind is NodeKind.DIRECTORY

    @property
    def is_dangling(self) -> bool:
        """Whether it is a link that leads nowhere."""
        return self.stat.kind is NodeKind.SYMLINK


# Some entries of a directory, and whether there are more.
FoundPage = tuple[list[Found], bool]


class Listing:
    """A directory that is being listed, page by page."""

    def __init__(self, tree: Tree, path: Path, directory: Directory) -> None:
        self._tree = tree
        self._path = path
        self._directory = directory
        self._after = ""

    async def next_page(self, limit: int = PAGE_ENTRIES_MAX) -> FoundPage:
        """The next entries, with what the links among them lead to."""
        page = await self._directory.list(self._after, limit)
        if page.entries:
            self._after = page.entries[-1].name
        links = [entry for entry in page.entries if entry.stat.kind is NodeKind.SYMLINK]
        followed = await self._tree.follow_all([(*self._path, link.name) for link in links])
        stats = {link.name: stat for link, stat in zip(links, followed, strict=True)}
        found = [
            Found(entry.name, stats.get(entry.name) or entry.stat, entry.target)
            for entry in page.entries
        ]
        return found, page.more and bool(found)


class Tree:
    """Everything below `root`."""

    def __init__(self, root: Directory) -> None:
        self.root = root
        self.changes = Changes()

    async def _at(
        self,
        path: Path,
        operation: Callable[[Directory, str], Awaitable[T]],
        *,
        follow_last: bool = True,
    ) -> T:
        return await at_name(self.root, path, operation, follow_last=follow_last)

    async def _change(
        self,
        path: Path,
        operation: Callable[[Directory, str], Awaitable[T]],
        *,
        follow_last: bool = True,
    ) -> T:
        self.changes.count += 1
        try:
            return await self._at(path, operation, follow_last=follow_last)
        finally:
            self.changes.count += 1

    # Looking -----------------------------------------------------------------------------------

    async def find(self, path: Path, *, dangling: bool = False) -> Found:
        """What `path` stands for.

        Raises `NotFound`, for a link that leads nowhere too unless `dangling` ones are wanted.
        """
        if not path:
            return Found("", await self.root.stat())
        entry = await self.entry(path)
        if entry.stat.kind is not NodeKind.SYMLINK:
            return Found(path[-1], entry.stat)
        (stat,) = await self.follow_all([path])
        if stat is None and not dangling:
            raise NotFound("the link leads nowhere")
        return Found(path[-1], stat or entry.stat, entry.target)

    async def entry(self, path: Path) -> Entry:
        """The entry that `path` names; a link is not followed.  The path is not the root."""
        return await self._at(path, lambda parent, name: parent.lookup(name), follow_last=False)

    async def follow_all(self, paths: Sequence[Path]) -> list[Stat | None]:
        """The stat of what each path leads to; None for nothing."""
        return await together([self._follow(path) for path in paths]) if paths else []

    async def _follow(self, path: Path) -> Stat | None:
        try:
            place = await resolve(self.root, path)
            if place.is_root:
                return await self.root.stat()
        except (NotFound, NotDirectory, InvalidName):
            return None
        return place.entry.stat if place.entry else None

    async def place(self, path: Path) -> Place:
        """Where `path` leads; its last name may be missing."""
        return await resolve(self.root, path)

    async def start_listing(self, path: Path, limit: int) -> tuple[FoundPage, Listing]:
        """The first entries of a directory, in one round trip, and where to get the others."""

        async def start(directory: Directory) -> tuple[FoundPage, Listing]:
            listing = Listing(self, path, directory)
            return await listing.next_page(limit), listing

        return await at_directory(self.root, path, start)

    async def names(self, path: Path) -> list[str]:
        """All names in a directory."""

        async def names(directory: Directory) -> list[str]:
            return [entry.name for entry in await all_entries(directory)]

        return await at_directory(self.root, path, names)

    async def is_empty(self, path: Path) -> bool:
        """Whether a directory has no entries."""
        page: Page = await at_directory(self.root, path, lambda directory: directory.list("", 1))
        return not page.entries

    async def is_read_only(self) -> bool | None:
        """Whether a change would be refused with `ReadOnly`; None if it cannot be known.

        Asked by a change of nothing.
        """
        try:
            await self.root.set_attributes(Attributes())
        except ReadOnly:
            return True
        except StorageError:
            return None
        return False

    # Content -----------------------------------------------------------------------------------

    async def read(self, path: Path) -> bytes:
        """The whole content of a file."""
        data, eof, file = await self._at(path, lambda parent, name: parent.read_file(name))
        if eof:
            return data
        return b"".join([data, *[piece async for piece in read_chunks(file, len(data))]])

    async def start_reading(self, path: Path) -> tuple[bytes, OpenFile | None]:
        """The begin of a file's content, and where to read on if that was not all."""
        data, eof, file = await self._at(path, lambda parent, name: parent.read_file(name))
        return data, None if eof else OpenFile(file, self.changes, streaming=True)

    async def write(self, path: Path, data: bytes, flags: OpenFlags = REPLACE) -> File:
        """Makes `data` the whole content of a file; returns it open."""
        if len(data) <= TRANSFER_BYTES_MAX:
            return await self._change(
                path, lambda parent, name: parent.write_file(name, data, flags)
            )
        file, writer = await self.start_writing(path, flags)
        await writer.write(data)
        await writer.finish()
        self.changes.count += 1
        return file

    async def start_writing(self, path: Path, flags: OpenFlags = REPLACE) -> tuple[File, Writer]:
        """Empties or makes a file, and where to write its content."""
        file = await self._change(path, lambda parent, name: parent.open(name, flags))
        return file, Writer(file)

    async def open(self, path: Path, flags: OpenFlags, *, at_end: bool) -> tuple[int, OpenFile]:
        """Opens a file; returns its size if wanted, else 0, and the file."""
        # With O_EXCL a link is in the way like anything else.
        follow = not flags & OpenFlags.EXCLUSIVE
        opening = self._change if flags & OpenFlags.WRITE else self._at
        file = await opening(
            path, lambda parent, name: parent.open(name, flags), follow_last=follow
        )
        return (await file.stat()).size if at_end else 0, OpenFile(file, self.changes)

    # Changes of the tree -----------------------------------------------------------------------

    async def make_directory(self, path: Path) -> None:
        """Makes one directory."""
        await self._at(path, lambda parent, name: parent.mkdir(name), follow_last=False)

    async def make_directories(self, path: Path) -> None:
        """Makes a directory and those above it, as far as they are missing."""
        for depth in range(len(path)):
            try:
                await self.make_directory(path[: depth + 1])
            except AlreadyExists:
                continue

    async def remove(self, path: Path, expect: Expect) -> None:
        """Removes a name; of a link, the link."""
        await self._change(
            path, lambda parent, name: parent.remove(name, expect), follow_last=False
        )

    async def symlink(self, path: Path, target: str) -> None:
        """Makes a symbolic link."""
        await self._at(path, lambda parent, name: parent.symlink(name, target), follow_last=False)

    async def set_attributes(self, path: Path, change: Attributes) -> None:
        """Changes attributes of what `path` leads to; `NotFound` also when there is no change."""
        found = await self.find(path)
        if change == Attributes():
            return
        if found.target is not None:
            path = (await self.place(path)).path
        if not path:
            await self.root.set_attributes(change)
            return
        await self._at(path, lambda parent, name: parent.set_attributes(change, name))


async def all_entries(directory: Directory) -> list[Entry]:
    """All entries of a directory, by page after page."""
    entries: list[Entry] = []
    more, after = True, ""
    while more:
        page = await directory.list(after)
        entries.extend(page.entries)
        after = entries[-1].name if entries else ""
        more = page.more and bool(page.entries)
    return entries
