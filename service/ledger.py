"""Quotas of trees: what each change of files and names takes and gives back.

A quota counts what a tree grows by through its capability: bytes of files and of the targets of
links, and one node for each name.

Invariants:

* Changes of one file, and of one name, that are accounted for run one after the other, so that what
  each replaces is known.  Names are locked before files, so two never wait for each other.
* What is reserved is at least what the change takes; what a failed change of a file took is looked
  up, and where that cannot be, or a name may have been made, the room stays taken.
* A file that was removed while it is open through a capability under a quota takes its room until
  the last such capability lets go of it.
* What makes or takes away names runs to its end: who is cancelled meanwhile is so behind it.

As for stores, what others do, who are under no quota, is not counted for those who are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

from capstore.backers.node import DirectoryNode, Entry, FileNode, NodeKind, OpenFlags, Stat
from capstore.schema.errors import (
    AlreadyExists,
    Busy,
    NotFound,
    StorageError,
    StorageIOError,
    TooLarge,
)
from capstore.service.quota import Book, KeyLocks, give_back, reserve, uninterrupted

__all__ = [
    "Hold",
    "Ledger",
    "change_file",
    "create_file",
    "hold_of",
    "link",
    "make",
    "move",
    "open_file",
    "remove",
]

T = TypeVar("T")
Books = Sequence[Book]

# Who loses so many races in a row with those who are not accounted for is told so.
_RACES_MAX = 100


class _OpenFile:
    """A file that is open through capabilities under quotas."""

    __slots__ = ("holds", "nameless", "taken")

    def __init__(self) -> None:
        self.holds = 0
        self.nameless = False
        # What it takes of books though it has no name any more.
        self.taken: dict[Book, int] = {}

    def took(self, books: Books, size: int) -> None:
        """It has lost its name, or changed without one."""
        self.nameless = True
        for book in books:
            self.taken[book] = max(0, self.taken.get(book, 0) + size)


class Ledger:
    """What is known of the nodes of one tree, or the keys of one store, while they are used."""

    __slots__ = ("_files", "locks")

    def __init__(self) -> None:
        self.locks = KeyLocks()
        self._files: dict[int, _OpenFile] = {}

    def hold(self, stat: Stat, books: Books) -> Hold:
        """Notes that a file is open, until the result is dropped."""
        file = self._files.get(stat.node_id)
        if file is None:
            file = self._files[stat.node_id] = _OpenFile()
            if not stat.link_count:
                # It was removed between being opened and this: what was given back is taken again.
                file.took(books, stat.size)
                give_back(books, -stat.size, 0)
        file.holds += 1
        return Hold(self, stat.node_id)

    def let_go(self, node_id: int) -> None:
        """One who had the file open has it no more."""
        file = self._files[node_id]
        file.holds -= 1
        if not file.holds:
            del self._files[node_id]
            for book, size in file.taken.items():
                book.add(-size, 0)

    def grew(self, node_id: int, books: Books, size: int) -> None:
        """An open file has so many more bytes, or fewer, which `books` have."""
        file = self._files.get(node_id)
        if file is not None and file.nameless:
            file.took(books, size)

    def lost(self, stat: Stat, books: Books) -> None:
        """A name of the node is gone; it was as `stat` has it."""
        size = stat.size if stat.link_count <= 1 and stat.kind is not NodeKind.DIRECTORY else 0
        file = self._files.get(stat.node_id)
        if size and file is not None:
            file.took(books, size)
            size = 0
        elif file is not None and stat.link_count <= 1:
            file.nameless = True
        give_back(books, size, 1)

    @asynccontextmanager
    async def names(self, *names: tuple[int, str]) -> AsyncIterator[None]:
        """Holds names, each in the directory with this id."""
        keys = [b"n" + _word(directory) + name.encode() for directory, name in names]
        if len(keys) == 1:
            async with self.locks.one(keys[0]):
                yield
        else:
            async with self.locks.held(keys):
                yield

    def node(self, node_id: int) -> AbstractAsyncContextManager[None]:
        """Holds a node; to be asked for behind names."""
        return self.locks.one(b"f" + _word(node_id))


class Hold:
    """That a file is open; `drop`, or dropping it, ends that."""

    __slots__ = ("_ledger", "node_id")

    def __init__(self, ledger: Ledger, node_id: int) -> None:
        self._ledger: Ledger | None = ledger
        self.node_id = node_id

    def drop(self) -> None:
        """The file is not open any more; again does nothing."""
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.let_go(self.node_id)

    def __del__(self) -> None:
        self.drop()


def _word(number: int) -> bytes:
    return number.to_bytes(8, "big")


# Files -------------------------------------------------------------------------------------------


async def change_file(
    ledger: Ledger,
    books: Books,
    node_id: int,
    file: FileNode,
    size_max: int,
    size_after: Callable[[int], int],
    change: Callable[[], Awaitable[T]],
) -> T:
    """Does `change`, which gives a file of some size another one.

    Raises `TooLarge` where it would grow beyond `size_max` (0 is no bound), `QuotaExceeded`, and
    what the change raises.
    """
    async with ledger.node(node_id):
        before = await file.size()
        growth = size_after(before) - before
        if size_max and growth > 0 and before + growth > size_max:
            raise TooLarge(f"a file has at most {size_max} bytes here")
        room = max(0, growth)
        reserve(books, room, 0)
        try:
            result = await change()
        except BaseException:
            # Also where it was cancelled: nothing of it is under way any more.
            growth = room
            try:
                growth = await uninterrupted(_growth_of_failure(file, before, room))
            finally:
                _grew(ledger, node_id, books, room, growth)
            raise
        _grew(ledger, node_id, books, room, growth)
        return result


def _grew(ledger: Ledger, node_id: int, books: Books, room: int, growth: int) -> None:
    """A file grew by `growth` bytes, for which `room` was taken."""
    if room != growth:
        give_back(books, room - growth, 0)
    ledger.grew(node_id, books, growth)


async def _growth_of_failure(file: FileNode, before: int, room: int) -> int:
    """By how much a file grew though the change failed; all that might be where nobody knows."""
    try:
        return max(-before, min(room, await file.size() - before))
    except StorageError:
        return room


# Names -------------------------------------------------------------------------------------------


async def make(
    ledger: Ledger,
    books: Books,
    name: tuple[int, str],
    size: int,
    change: Callable[[], Awaitable[T]],
) -> T:
    """Does `change`, which makes a name where none is, of a node that takes `size` bytes.

    Raises `QuotaExceeded`, and what the change raises.
    """

    async def run() -> T:
        async with ledger.names(name):
            return await _made(books, size, change)

    return await uninterrupted(run())


async def _made(books: Books, size: int, change: Callable[[], Awaitable[T]]) -> T:
    reserve(books, size, 1)
    try:
        return await change()
    except StorageIOError:
        # Nobody knows whether it was made.
        raise
    except BaseException:
        give_back(books, size, 1)
        raise


async def open_file(
    ledger: Ledger, books: Books, directory: DirectoryNode, at: tuple[int, str], flags: OpenFlags
) -> tuple[FileNode, Hold]:
    """Opens a file as `DirectoryNode.open`; raises as that, and `QuotaExceeded`."""

    async def run() -> tuple[FileNode, Hold]:
        async with ledger.names(at):
            for _ in range(_RACES_MAX):
                file = await _opened(ledger, books, directory, at[1], flags)
                if file is not None:
                    # Nobody who is accounted for takes the name away, so it is not the last.
                    return file, ledger.hold(await file.stat(), books)
        raise Busy("the name comes and goes")

    # Where nothing changes there is nothing to be done to its end.
    changes = flags & (OpenFlags.CREATE | OpenFlags.TRUNCATE)
    return await (uninterrupted(run()) if changes else run())


async def hold_of(ledger: Ledger, books: Books, file: FileNode) -> Hold:
    """Notes that a file is open, until the result is dropped."""
    node_id = (await file.stat()).node_id
    async with ledger.node(node_id):
        # Now nobody who is accounted for takes its names away.
        return ledger.hold(await file.stat(), books)


async def create_file(
    ledger: Ledger,
    books: Books,
    directory: DirectoryNode,
    at: tuple[int, str],
    *,
    executable: bool,
) -> tuple[FileNode, Hold]:
    """Makes a file as `DirectoryNode.create`; raises as that, and `QuotaExceeded`."""

    async def run() -> tuple[FileNode, Hold]:
        async with ledger.names(at):
            file = await _made(books, 0, lambda: directory.create(at[1], executable=executable))
            return file, ledger.hold(await file.stat(), books)

    return await uninterrupted(run())


async def _opened(
    ledger: Ledger, books: Books, directory: DirectoryNode, name: str, flags: OpenFlags
) -> FileNode | None:
    """The file, open; None where somebody made or removed it meanwhile, who is not accounted
    for."""
    if not flags & (OpenFlags.CREATE | OpenFlags.TRUNCATE):
        return await directory.open(name, flags)
    entry = await _entry(directory, name)
    if entry is None and flags & OpenFlags.CREATE:
        exclusive = flags | OpenFlags.EXCLUSIVE
        try:
            return await _made(books, 0, lambda: directory.open(name, exclusive))
        except AlreadyExists:
            if flags & OpenFlags.EXCLUSIVE:
                raise
            return None
    if entry is None or flags & OpenFlags.EXCLUSIVE:
        # It says what is wrong.
        return await directory.open(name, flags & ~OpenFlags.CREATE if entry is None else flags)
    try:
        return await _cut(ledger, books, directory, entry, flags & ~OpenFlags.CREATE)
    except NotFound:
        return None


async def _cut(
    ledger: Ledger, books: Books, directory: DirectoryNode, entry: Entry, flags: OpenFlags
) -> FileNode:
    """Opens a file that is there, and gives back what is cut."""
    if not flags & OpenFlags.TRUNCATE:
        return await directory.open(entry.name, flags)
    node_id = entry.stat.node_id
    async with ledger.node(node_id):
        # What the lock kept waiting may have changed it.
        now = await _entry(directory, entry.name)
        file = await directory.open(entry.name, flags)
        if now is not None and now.stat.node_id == node_id:
            give_back(books, now.stat.size, 0)
            ledger.grew(node_id, books, -now.stat.size)
    return file


async def _entry(directory: DirectoryNode, name: str) -> Entry | None:
    try:
        return await directory.lookup(name)
    except NotFound:
        return None


async def link(
    ledger: Ledger,
    books: Books,
    directory: DirectoryNode,
    source: tuple[int, str],
    target: tuple[int, str],
    change: Callable[[], Awaitable[None]],
) -> None:
    """Does `change`, which gives what is at `source` in `directory` the name `target`, too."""

    async def run() -> None:
        async with ledger.names(source, target):
            entry = await directory.lookup(source[1])
            async with ledger.node(entry.stat.node_id):
                await _made(books, 0, change)

    await uninterrupted(run())


async def remove(
    ledger: Ledger,
    books: Books,
    directory: DirectoryNode,
    at: tuple[int, str],
    change: Callable[[], Awaitable[None]],
) -> None:
    """Does `change`, which removes a name, and gives back what it took."""

    async def run() -> None:
        async with ledger.names(at):
            await _losing(ledger, books, directory, at[1], None, change)

    await uninterrupted(run())


async def move(
    ledger: Ledger,
    books: Books,
    source: tuple[DirectoryNode, int, str],
    target: tuple[DirectoryNode, int, str],
    change: Callable[[], Awaitable[None]],
    *,
    replaces: bool,
) -> None:
    """Does `change`, which moves a name, and if it `replaces` another one gives back what that one
    took."""

    async def run() -> None:
        async with ledger.names(source[1:], target[1:]):
            if not replaces:
                await change()
                return
            entry = await _entry(source[0], source[2])
            moved = None if entry is None else entry.stat.node_id
            await _losing(ledger, books, target[0], target[2], moved, change)

    await uninterrupted(run())


async def _losing(
    ledger: Ledger,
    books: Books,
    directory: DirectoryNode,
    name: str,
    moved: int | None,
    change: Callable[[], Awaitable[None]],
) -> None:
    """Does `change`, by which `name` loses its node, if there is one and it is not the one that is
    `moved` there."""
    entry = await _entry(directory, name)
    if entry is None or entry.stat.node_id == moved:
        await change()
        return
    async with ledger.node(entry.stat.node_id):
        now = await _entry(directory, name)
        await change()
        if now is not None and now.stat.node_id == entry.stat.node_id:
            ledger.lost(now.stat, books)
