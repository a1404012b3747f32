"""Directories with mounts below them, and those on the way to one that no volume has.

Invariants:

* A directory with a place was reached by names that are fixed, so its path is what it was.
* Names of places are fixed: they show what is mounted or on the way, whatever the volume has
  there, and they are not made, removed, moved or replaced.
* A directory that no volume had when it was reached stays as empty and read-only as it was.
"""

from __future__ import annotations

from capstore.backers.mounts_node import (
    Mounted,
    MountedDirectory,
    Mounts,
    Part,
    all_of,
    busy,
    snapshot_of,
)
from capstore.backers.mounts_table import Place
from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    Entry,
    Expect,
    FileNode,
    NodeKind,
    OpenFlags,
    Page,
    RenameMode,
    Stat,
    Usage,
)
from capstore.schema.errors import AlreadyExists, IsDirectory, NotDirectory, NotFound, ReadOnly
from capstore.schema.limits import PAGE_BYTES_MAX, PAGE_ENTRIES_MAX
from capstore.schema.names import check_name


def directory_at(
    part: Part, inner: DirectoryNode, place: Place, mounts: Mounts
) -> MountedDirectory:
    """The directory at `place`; `mounts` has at least those below it."""
    if not place.children:
        return MountedDirectory(part, inner)
    return PlaceDirectory(part, inner, place, mounts)


class PlaceDirectory(MountedDirectory):
    """A directory with mounts below it: a volume's, or an `EmptyDirectory`."""

    def __init__(self, part: Part, inner: DirectoryNode, place: Place, mounts: Mounts) -> None:
        super().__init__(part, inner)
        self.place = place
        self._mounts = mounts

    def __repr__(self) -> str:
        return f"<PlaceDirectory {self.part.number} {self.place.path} {self.inner!r}>"

    def fixed(self, name: str) -> Place | None:
        return self.place.children.get(name)

    def _refuse_taken(self, name: str) -> None:
        """For what makes `name`: raises `ReadOnly`, `AlreadyExists` if it is fixed."""
        if name in self.place.children:
            self.part.check_writable()
            raise AlreadyExists("the name is taken")

    # Looking -------------------------------------------------------------------------------------

    async def lookup(self, name: str) -> Entry:
        child = self.fixed(name)
        if child is None:
            return await super().lookup(name)
        found: Entry | None = None
        if child.mount is None:
            try:
                found = await self.inner.lookup(name)
            except NotFound:
                found = None
        return await self._entry_at(child, found)

    async def _entry_at(self, place: Place, found: Entry | None) -> Entry:
        """What stands at a place in this directory, where the volume has `found`."""
        if place.mount is not None:
            part, root = self._mounts[place.mount]
            return Entry(place.name, part.stat(await root.stat()))
        if found is not None and found.stat.kind is NodeKind.DIRECTORY:
            return self.part.entry(found)
        return Entry(place.name, self.part.made_up().stat(place.stat))

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        """As `DirectoryNode.list`: what the volume has, and over it the places."""
        page = await self.inner.list(after, limit)
        found = {entry.name: entry for entry in page.entries}
        # What the volume has behind its page is not known; places there are for the next one.
        last = page.entries[-1].name if page.more and page.entries else None
        children = self.place.children
        shown = [name for name in children if name > after and (last is None or name <= last)]
        names = sorted({*found, *shown})
        entries: list[Entry] = []
        room = PAGE_BYTES_MAX
        for name in names[: max(1, min(limit, PAGE_ENTRIES_MAX))]:
            child = children.get(name)
            if child is None:
                entry = self.part.entry(found[name])
            else:
                entry = await self._entry_at(child, found.get(name))
            room -= len(name.encode()) + len((entry.target or "").encode())
            if room < 0 and entries:
                break
            entries.append(entry)
        return Page(entries, page.more or len(entries) < len(names))

    async def sub(self, name: str) -> DirectoryNode:
        child = self.fixed(name)
        return await super().sub(name) if child is None else await self._directory_at(child)

    async def _directory_at(self, place: Place) -> MountedDirectory:
        """The directory at a place in this one."""
        self.part.volume.check_open()
        if place.mount is not None:
            return directory_at(*self._mounts[place.mount], place, self._mounts)
        try:
            inner = await self.inner.sub(place.name)
        except (NotFound, NotDirectory):
            empty = EmptyDirectory(self.part, place)
            return PlaceDirectory(self.part.made_up(), empty, place, self._mounts)
        return PlaceDirectory(self.part, inner, place, self._mounts)

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        if name not in self.place.children:
            return await super().open(name, flags)
        if flags.check().writes:
            self.part.check_writable()
        if OpenFlags.EXCLUSIVE in flags:
            raise AlreadyExists("the name is taken")
        raise IsDirectory("a directory")

    async def snapshot(self) -> DirectoryNode:
        """Each volume as it is when its turn comes: there is no one moment of all of them."""
        inner = await snapshot_of(self.part, self.inner)
        mounts: dict[int, Mounted] = {}
        for number in self.place.mounts_below():
            part, root = self._mounts[number]
            mounts[number] = Mounted(part.as_snapshot(), await snapshot_of(part, root))
        return PlaceDirectory(self.part.as_snapshot(), inner, self.place, mounts)

    # Changing ------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """As `Node.sync`: of this directory and all volumes below that write."""
        self.part.volume.check_open()
        below = [self._mounts[number] for number in self.place.mounts_below()]
        directories = [Mounted(self.part, self.inner), *below]
        await all_of(inner.sync for part, inner in directories if not part.read_only)

    async def create(self, name: str, *, executable: bool = False) -> FileNode:
        self._refuse_taken(name)
        return await super().create(name, executable=executable)

    async def mkdir(self, name: str) -> DirectoryNode:
        self._refuse_taken(name)
        return await super().mkdir(name)

    async def symlink(self, name: str, target: str) -> None:
        self._refuse_taken(name)
        await super().symlink(name, target)

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        """As `DirectoryNode.remove`; `Busy` for a mount point and what is on the way to one."""
        if name in self.place.children:
            self.part.check_writable()
            if expect is Expect.NOT_DIRECTORY:
                raise IsDirectory("a directory")
            raise busy()
        await super().remove(name, expect)

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        child = self.fixed(name)
        if child is None:
            await super().set_attributes(change, name)
        else:
            await (await self._directory_at(child)).set_attributes(change)


class EmptyDirectory(DirectoryNode):
    """A directory on the way that no volume has: without entries of its own, and read-only."""

    def __init__(self, part: Part, place: Place) -> None:
        """`part` is that of the volume which does not have it."""
        self._part = part
        self._place = place

    def __repr__(self) -> str:
        return f"<EmptyDirectory {self._place.path}>"

    def _check(self, *names: str) -> None:
        """Raises `Closed`, `InvalidName`."""
        self._part.volume.check_open()
        for name in names:
            check_name(name)

    def _missing(self, name: str) -> NotFound:
        self._check(name)
        return NotFound("no entry of this name")

    def _refusal(self, *names: str) -> ReadOnly:
        self._check(*names)
        return ReadOnly("no volume has this directory")

    async def stat(self) -> Stat:
        self._check()
        return self._place.stat

    async def sync(self) -> None:
        self._check()

    async def lookup(self, name: str) -> Entry:
        raise self._missing(name)

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        self._check()
        return Page([], more=False)

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        raise self._refusal(name) if flags.check().writes else self._missing(name)

    async def create(self, name: str, *, executable: bool = False) -> FileNode:
        raise self._refusal(name)

    async def mkdir(self, name: str) -> DirectoryNode:
        raise self._refusal(name)

    async def sub(self, name: str) -> DirectoryNode:
        raise self._missing(name)

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        raise self._refusal(name)

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        raise self._refusal(name, new_name)

    async def symlink(self, name: str, target: str) -> None:
        raise self._refusal(name)

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        raise self._refusal(name, new_name)

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        raise self._refusal(*filter(None, [name]))

    async def usage(self) -> Usage:
        """As `DirectoryNode.usage`, of the volume that does not have this directory."""
        return await self._part.source.usage()

    async def snapshot(self) -> DirectoryNode:
        return self
