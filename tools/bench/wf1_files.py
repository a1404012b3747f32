"""Who takes part in the wf1 cases: files in a CAPOSWF1 volume, in a directory, in SQLite.

Invariants:

* All keep their files on one disk, in a directory each, and what one of them says is durable is so
  by its own means: nobody is asked for less than the others.
* A workload is written once, as coroutines.  Those of capstore wait on an event loop; those of
  whoever blocks never wait, and each of many has a thread of its own.
* The directory's durable creation is that of POSIX: the file is flushed, and then its directory,
  without which the name may be gone after a crash.  `LocalFileOnly` leaves the second out, which
  ext4 and XFS forgive (their journals commit the name along with the file), and no standard does.
* SQLite has one connection behind a lock: as fast as it gets, since only one transaction writes at
  a time whoever waits for it.  A file is a row; a long file is a row for each block of a stream.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from capstore.backers.node import FileNode, OpenFlags
from capstore.backers.wf1 import Wf1Volume
from capstore.images.devices import FileDevice
from capstore.images.wf1 import ROOT
from capstore.images.wf1_open import format_wf1, open_wf1
from capstore.images.wf1_state import GONE
from capstore.tools.bench.workers import Worker, driven, gathered, in_threads

CAPSTORE, ENGINE, LOCAL, LOCAL_FILE_ONLY, SQLITE = (
    "capstore",
    "engine",
    "local",
    "local-file-only",
    "sqlite",
)
# The name of what is long.
LARGE = "large"


class Files(ABC):
    """An open set of files with one directory, in a host directory: what was left there by one of
    the same kind, or none."""

    name: ClassVar[str]

    def run(self, workers: Sequence[Worker]) -> int:
        """Does all of `workers` at once; how many units that was."""
        return in_threads(workers)

    @abstractmethod
    async def create(self, name: str, data: bytes) -> None:
        """Makes a file, durable when this returns."""

    @abstractmethod
    async def put(self, name: str, data: bytes) -> None:
        """Makes a file, durable with the next `sync`."""

    @abstractmethod
    async def sync(self) -> None:
        """Makes durable what was `put`, and what was done with what is long."""

    @abstractmethod
    async def read(self, name: str) -> int:
        """Reads a whole file; counts the bytes."""

    @abstractmethod
    async def replace(self, old: str, new: str, data: bytes) -> None:
        """Removes a file and makes another, durable when this returns."""

    @abstractmethod
    async def read_and_append(self, name: str, data: bytes) -> int:
        """Reads a whole file, then appends to it, durable when this returns; counts what it
        read."""

    @abstractmethod
    async def write_large(self, block: bytes, count: int) -> None:
        """Writes `LARGE` from its beginning, a block at a time; durable with `sync`."""

    @abstractmethod
    async def read_large(self, block_bytes: int) -> int:
        """Reads `LARGE` from its beginning, a block at a time; counts the bytes."""

    @abstractmethod
    async def overwrite(self, offset: int, data: bytes) -> None:
        """Writes somewhere in `LARGE`, within one block of `write_large`; durable with `sync`."""

    @abstractmethod
    def close(self) -> None:
        """Ends it."""


Maker = Callable[[Path], AbstractContextManager[Files]]


class Capstore(Files):
    """The backer, on an event loop that runs only while a workload does."""

    name = CAPSTORE

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self._volume = self._runner.run(Wf1Volume.open(folder / "files.wf1", create=True))
        self._root = self._volume.root
        self._large: FileNode | None = None

    def run(self, workers: Sequence[Worker]) -> int:
        return self._runner.run(gathered(workers))

    async def create(self, name: str, data: bytes) -> None:
        file = await self._root.create(name)
        await file.write(0, data)
        await file.sync()
        await file.close()

    async def put(self, name: str, data: bytes) -> None:
        file = await self._root.create(name)
        await file.write(0, data)
        await file.close()

    async def sync(self) -> None:
        await self._volume.sync()

    async def read(self, name: str) -> int:
        file = await self._root.open(name)
        got = len(await file.read(0, await file.size()))
        await file.close()
        return got

    async def replace(self, old: str, new: str, data: bytes) -> None:
        await self._root.remove(old)
        await self.create(new, data)

    async def read_and_append(self, name: str, data: bytes) -> int:
        file = await self._root.open(name, OpenFlags.WRITE)
        got = len(await file.read(0, await file.size()))
        await file.append(data)
        await file.sync()
        await file.close()
        return got

    async def _opened(self) -> FileNode:
        if self._large is None:
            self._large = await self._root.open(LARGE, OpenFlags.WRITE | OpenFlags.CREATE)
        return self._large

    async def write_large(self, block: bytes, count: int) -> None:
        file = await self._opened()
        for number in range(count):
            await file.write(number * len(block), block)

    async def read_large(self, block_bytes: int) -> int:
        file = await self._opened()
        view = memoryview(bytearray(block_bytes))
        done = 0
        while got := await file.read_into(done, view):
            done += got
        return done

    async def overwrite(self, offset: int, data: bytes) -> None:
        await (await self._opened()).write(offset, data)

    def close(self) -> None:
        self._large = None
        try:
            self._runner.run(self._volume.close())
        finally:
            self._runner.close()


class Engine(Files):
    """The engine by itself, in one thread and without an event loop."""

    name = ENGINE

    def __init__(self, folder: Path) -> None:
        path = folder / "files.wf1"
        device = FileDevice.open(path, create=not path.exists())
        if not device.size():
            format_wf1(device)
        self._engine = open_wf1(device)

    def run(self, workers: Sequence[Worker]) -> int:
        # One thread's at a time: one after another.
        return sum(map(driven, workers))

    async def create(self, name: str, data: bytes) -> None:
        self._engine.write(self._engine.create(ROOT, name), 0, data)
        self._engine.sync()

    async def put(self, name: str, data: bytes) -> None:
        self._engine.write(self._engine.create(ROOT, name), 0, data)

    async def sync(self) -> None:
        self._engine.sync()

    async def read(self, name: str) -> int:
        state = self._engine.state
        number = state.child(ROOT, name)
        node = state.node(number)
        if node is None:
            return 0
        buffer = bytearray(node.size)
        return self._engine.read_into(state, number, 0, memoryview(buffer))

    async def replace(self, old: str, new: str, data: bytes) -> None:
        self._engine.remove(ROOT, old)
        await self.create(new, data)

    async def read_and_append(self, name: str, data: bytes) -> int:
        got = await self.read(name)
        self._engine.append(self._engine.state.child(ROOT, name), data)
        self._engine.sync()
        return got

    @cached_property
    def _large(self) -> int:
        found = self._engine.state.child(ROOT, LARGE)
        return self._engine.create(ROOT, LARGE) if found == GONE else found

    async def write_large(self, block: bytes, count: int) -> None:
        for number in range(count):
            self._engine.write(self._large, number * len(block), block)

    async def read_large(self, block_bytes: int) -> int:
        view = memoryview(bytearray(block_bytes))
        done = 0
        while got := self._engine.read_into(self._engine.state, self._large, done, view):
            done += got
        return done

    async def overwrite(self, offset: int, data: bytes) -> None:
        self._engine.write(self._large, offset, data)

    def close(self) -> None:
        self._engine.close()


class Local(Files):
    """A directory of the host, whose files and names are flushed."""

    name = LOCAL
    _flushes_names: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._large = -1

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC, 0o600, dir_fd=self._folder)

    async def create(self, name: str, data: bytes) -> None:
        descriptor = self._open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if self._flushes_names:
            os.fsync(self._folder)

    async def put(self, name: str, data: bytes) -> None:
        descriptor = self._open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    async def sync(self) -> None:
        if self._large >= 0:
            os.fsync(self._large)
        else:
            os.sync()

    async def read(self, name: str) -> int:
        descriptor = self._open(name, os.O_RDONLY)
        try:
            return len(os.read(descriptor, os.fstat(descriptor).st_size))
        finally:
            os.close(descriptor)

    async def replace(self, old: str, new: str, data: bytes) -> None:
        os.unlink(old, dir_fd=self._folder)
        await self.create(new, data)

    async def read_and_append(self, name: str, data: bytes) -> int:
        descriptor = self._open(name, os.O_RDWR | os.O_APPEND)
        try:
            got = len(os.read(descriptor, os.fstat(descriptor).st_size))
            os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return got

    def _opened(self) -> int:
        if self._large < 0:
            self._large = self._open(LARGE, os.O_RDWR | os.O_CREAT)
        return self._large

    async def write_large(self, block: bytes, count: int) -> None:
        descriptor = self._opened()
        for number in range(count):
            os.pwrite(descriptor, block, number * len(block))

    async def read_large(self, block_bytes: int) -> int:
        descriptor = self._opened()
        view = memoryview(bytearray(block_bytes))
        done = 0
        while got := os.preadv(descriptor, [view], done):
            done += got
        return done

    async def overwrite(self, offset: int, data: bytes) -> None:
        os.pwrite(self._opened(), data, offset)

    def close(self) -> None:
        if self._large >= 0:
            os.close(self._large)
        os.close(self._folder)


class LocalFileOnly(Local):
    """The same without flushing the directory."""

    name = LOCAL_FILE_ONLY
    _flushes_names = False


class Sqlite(Files):
    """A table of SQLite, from name to content; write-ahead log, synchronous FULL."""

    name = SQLITE

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            folder / "files.sqlite", isolation_level=None, check_same_thread=False
        )
        self._execute("PRAGMA journal_mode = WAL")
        self._execute("PRAGMA synchronous = FULL")
        self._execute(
            "CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, data BLOB NOT NULL)"
        )

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            self._execute("BEGIN IMMEDIATE")

    async def create(self, name: str, data: bytes) -> None:
        with self._lock:
            self._execute("INSERT INTO files VALUES (?, ?)", name, data)

    async def put(self, name: str, data: bytes) -> None:
        self._begin()
        self._execute("INSERT INTO files VALUES (?, ?)", name, data)

    async def sync(self) -> None:
        if self._connection.in_transaction:
            self._execute("COMMIT")

    def _content(self, name: str) -> bytes:
        row = self._execute("SELECT data FROM files WHERE name = ?", name).fetchone()
        return b"" if row is None else bytes(row[0])

    async def read(self, name: str) -> int:
        with self._lock:
            return len(self._content(name))

    async def replace(self, old: str, new: str, data: bytes) -> None:
        with self._lock:
            self._begin()
            self._execute("DELETE FROM files WHERE name = ?", old)
            self._execute("INSERT INTO files VALUES (?, ?)", new, data)
            self._execute("COMMIT")

    async def read_and_append(self, name: str, data: bytes) -> int:
        with self._lock:
            content = self._content(name)
            self._execute("UPDATE files SET data = ? WHERE name = ?", content + data, name)
        return len(content)

    async def write_large(self, block: bytes, count: int) -> None:
        self._begin()
        for number in range(count):
            values = (f"{LARGE}-{number:08}", block)
            self._execute("INSERT OR REPLACE INTO files VALUES (?, ?)", *values)

    async def read_large(self, block_bytes: int) -> int:
        done = number = 0
        while got := len(self._content(f"{LARGE}-{number:08}")):
            done += got
            number += 1
        return done

    @cached_property
    def _row_bytes(self) -> int:
        return len(self._content(f"{LARGE}-{0:08}"))

    async def overwrite(self, offset: int, data: bytes) -> None:
        number, at = divmod(offset, self._row_bytes)
        self._begin()
        query = "SELECT rowid FROM files WHERE name = ?"
        (row,) = self._execute(query, f"{LARGE}-{number:08}").fetchone()
        with self._connection.blobopen("files", "data", row) as blob:
            blob.seek(at)
            blob.write(data)

    def close(self) -> None:
        self._connection.close()


def maker(kind: Callable[[Path], Files]) -> Maker:
    """How a contestant is made in a folder, and ended."""

    @contextmanager
    def made(folder: Path) -> Iterator[Files]:
        with closing(kind(folder)) as files:
            yield files

    return made
