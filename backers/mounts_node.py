"""Nodes of one tree out of several volumes: a volume's own, under ids of the tree.

Invariants:

* A node knows which mount it is of (`Part`), and nothing of where it is: a renaming changes
  nothing for it.  Directories with mounts below them are in `capstore.backers.mounts_place`.
* A call is one call of the volume, so it happens as the volume's does.
* Both sides of a rename or link are of one mount, and neither has a name that is fixed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from capstore.backers.mounts_table import ON_THE_WAY, Place
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
    Volume,
)
from capstore.backers.node_ids import combined_id
from capstore.schema.errors import (
    AlreadyExists,
    Busy,
    CrossVolume,
    IsDirectory,
    ReadOnly,
    Unsupported,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX

if TYPE_CHECKING:
    from capstore.backers.mounts import MountsVolume


@dataclass(frozen=True, slots=True)
class Part:
    """A volume as a part of the tree: `source`, under the `number` of its mount.

    `frozen`: as a snapshot shows it.
    """

    volume: MountsVolume
    number: int
    source: Volume
    frozen: bool = False

    @property
    def on_the_way(self) -> bool:
        """Whether this is no volume's, but made up of the names of places."""
        return self.number == ON_THE_WAY

    def made_up(self) -> Part:
        """What stands for directories on the way that the volume does not have."""
        return replace(self, number=ON_THE_WAY)

    def as_snapshot(self) -> Part:
        """The same in a snapshot."""
        return replace(self, frozen=True)

    @property
    def read_only(self) -> bool:
        """Whether every change is refused."""
        return self.frozen or self.on_the_way or self.source.read_only

    def check_writable(self) -> None:
        """Raises `Closed`, `ReadOnly`."""
        self.volume.check_open()
        if self.read_only:
            raise ReadOnly("this part of the tree does not change")

    def stat(self, stat: Stat) -> Stat:
        """The volume's `stat` as the tree tells it."""
        # Not `_replace`, which takes twice as long, and every entry of a listing goes here.
        return Stat._make((*stat[:2], combined_id(stat[2], self.number), *stat[3:]))

    def entry(self, entry: Entry) -> Entry:
        """The volume's `entry` as the tree tells it."""
        name, stat, target = entry
        return Entry(name, self.stat(stat), target)


class Mounted(NamedTuple):
    """The root of a mount, live or of a snapshot."""

    part: Part
    root: DirectoryNode


Mounts = Mapping[int, Mounted]


async def all_of(calls: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Makes all calls, one after another, whatever fails; then raises the first error."""
    failed: Exception | None = None
    for call in calls:
        try:
            await call()
        except Exception as error:  # noqa: BLE001 - raised when the others had their turn
            failed = failed or error
    if failed is not None:
        raise failed


async def snapshot_of(part: Part, directory: DirectoryNode) -> DirectoryNode:
    """A snapshot of a volume's `directory`; what does not change is its own, if it has none."""
    try:
        return await directory.snapshot()
    except Unsupported:
        if part.read_only:
            return directory
        raise


class MountedFile(FileNode):
    """An open file of a volume."""

    def __init__(self, part: Part, inner: FileNode) -> None:
        self.part = part
        self.inner = inner

    def __repr__(self) -> str:
        return f"<MountedFile {self.part.number} {self.inner!r}>"

    async def stat(self) -> Stat:
        return self.part.stat(await self.inner.stat())

    async def sync(self) -> None:
        await self.inner.sync()

    async def size(self) -> int:
        return await self.inner.size()

    async def read_into(self, offset: int, view: memoryview) -> int:
        return await self.inner.read_into(offset, view)

    async def read(self, offset: int, length: int) -> Buffer:
        return await self.inner.read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        await self.inner.write(offset, data)

    async def append(self, data: Buffer) -> int:
        return await self.inner.append(data)

    async def truncate(self, size: int) -> None:
        await self.inner.truncate(size)

    async def set_attributes(self, change: Attributes) -> None:
        await self.inner.set_attributes(change)

    async def close(self) -> None:
        await self.inner.close()


class MountedDirectory(DirectoryNode):
    """A directory of a volume, with no mount below it."""

    def __init__(self, part: Part, inner: DirectoryNode) -> None:
        self.part = part
        self.inner = inner

    def __repr__(self) -> str:
        return f"<MountedDirectory {self.part.number} {self.inner!r}>"

    def fixed(self, name: str) -> Place | None:
        """The place called `name` in this directory, if there is one."""
        return None

    def _partner(self, target: DirectoryNode) -> MountedDirectory:
        """A second directory that takes part in a change; raises `ReadOnly`, `CrossVolume`."""
        self.part.check_writable()
        if isinstance(target, MountedDirectory) and target.part.volume is self.part.volume:
            target.part.check_writable()
            if target.part.number == self.part.number:
                return target
        raise CrossVolume("the target is not of this volume")

    async def stat(self) -> Stat:
        return self.part.stat(await self.inner.stat())

    async def sync(self) -> None:
        await self.inner.sync()

    async def lookup(self, name: str) -> Entry:
        return self.part.entry(await self.inner.lookup(name))

    async def list(self, after: str = "", limit: int = PAGE_ENTRIES_MAX) -> Page:
        page = await self.inner.list(after, limit)
        part = self.part
        return Page([part.entry(entry) for entry in page.entries], page.more)

    async def open(self, name: str, flags: OpenFlags = OpenFlags.READ) -> FileNode:
        return MountedFile(self.part, await self.inner.open(name, flags))

    async def create(self, name: str, *, executable: bool = False) -> FileNode:
        return MountedFile(self.part, await self.inner.create(name, executable=executable))

    async def mkdir(self, name: str) -> DirectoryNode:
        return MountedDirectory(self.part, await self.inner.mkdir(name))

    async def sub(self, name: str) -> DirectoryNode:
        return MountedDirectory(self.part, await self.inner.sub(name))

    async def remove(self, name: str, expect: Expect = Expect.ANY) -> None:
        await self.inner.remove(name, expect)

    async def rename(
        self,
        name: str,
        target: DirectoryNode,
        new_name: str,
        mode: RenameMode = RenameMode.REPLACE,
    ) -> None:
        """As `DirectoryNode.rename`; `Busy` for a mount point and a directory on the way to one,
        unless it is renamed onto itself."""
        goal = self._partner(target)
        source, other = self.fixed(name), goal.fixed(new_name)
        if other is not None and mode is RenameMode.NO_REPLACE:
            raise AlreadyExists("the name is taken")
        if source is not None and source is other:
            return
        if source is not None or other is not None:
            raise busy()
        await self.inner.rename(name, goal.inner, new_name, mode)

    async def symlink(self, name: str, target: str) -> None:
        await self.inner.symlink(name, target)

    async def link(self, name: str, target: DirectoryNode, new_name: str) -> None:
        goal = self._partner(target)
        if self.fixed(name) is not None:
            raise IsDirectory("a directory has one name only")
        if goal.fixed(new_name) is not None:
            raise AlreadyExists("the name is taken")
        await self.inner.link(name, goal.inner, new_name)

    async def set_attributes(self, change: Attributes, name: str = "") -> None:
        await self.inner.set_attributes(change, name)

    async def usage(self) -> Usage:
        """As `DirectoryNode.usage`, of the volume that this directory is of."""
        return await self.inner.usage()

    async def snapshot(self) -> DirectoryNode:
        inner = await snapshot_of(self.part, self.inner)
        return MountedDirectory(self.part.as_snapshot(), inner)


def busy() -> Busy:
    """What answers a change of a fixed name."""
    return Busy("a mount point, or a directory on the way to one")
