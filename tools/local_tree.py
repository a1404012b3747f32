"""A directory of this machine as an end of a copy.

Invariants:

* Names that come from a service reach nothing outside the directory that the user named: each is
  one checked segment, used relative to a descriptor, and every directory on the way is opened
  without following links.  So nothing is written through a link that the service made.
* A file appears under its name when it is complete: it is written beside it and renamed.  What
  was there (a link included) is replaced, never written to.
* Links are read and made, never followed.  FIFOs, sockets and devices are not opened.
* Every call that may wait for a device runs in a worker thread: one hop for a small file.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat as modes
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from capstore.backers.hostfd import OwnedFd
from capstore.backers.node import Buffer, Entry, NodeKind, Provenance, Stat
from capstore.backers.workers import in_worker
from capstore.schema.errors import IsDirectory, NotDirectory, StorageError, Unsupported
from capstore.schema.limits import TRANSFER_BYTES_MAX
from capstore.schema.names import check_name, from_bytes, to_bytes
from capstore.tools.console import local_error
from capstore.tools.remote_tree import temporary_name
from capstore.tools.trees import Content, carried

T = TypeVar("T")

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PAGE: Final = 1000
_KINDS: Final = {
    modes.S_IFREG: NodeKind.FILE,
    modes.S_IFDIR: NodeKind.DIRECTORY,
    modes.S_IFLNK: NodeKind.SYMLINK,
}


@dataclass(frozen=True, slots=True)
class LocalDirectory:
    """The directory at `names` below the held descriptor `base`, which the user calls `typed`."""

    base: int
    typed: bytes
    names: tuple[bytes, ...] = ()

    def sub(self, name: bytes) -> LocalDirectory:
        """The directory `name` in it."""
        return LocalDirectory(self.base, self.typed, (*self.names, name))

    def called(self, name: bytes = b"") -> bytes:
        """What the user would call it, or the entry `name` in it: for messages only."""
        names = (*self.names, name) if name else self.names
        return os.path.normpath(os.path.join(self.typed, *names))  # noqa: PTH118 - bytes

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of it, no link followed.  Raises OSError."""
        descriptor = os.open(".", _DIRECTORY, dir_fd=self.base)
        try:
            for name in self.names:
                below = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def local_directory(path: Path) -> Iterator[LocalDirectory]:
    """The directory that the user calls `path`, links followed.  Raises OSError."""
    descriptor = os.open(path, _DIRECTORY)
    try:
        yield LocalDirectory(descriptor, os.fsencode(path))
    finally:
        os.close(descriptor)


async def _on_disk(function: Callable[[], T], path: bytes) -> T:
    """`function` in a worker thread; what it raises about `path` as a `StorageError`."""
    try:
        return await in_worker(function)
    except (OSError, StorageError) as error:
        raise local_error(error, path) from error


def _raw(name: str) -> bytes:
    """The bytes of a name, which is one segment."""
    return to_bytes(check_name(name))


# Reading ---------------------------------------------------------------------------------------


def local_entry(directory: int, raw: bytes) -> Entry:
    """What the name is, no link followed.  Raises OSError."""
    found = os.stat(raw, dir_fd=directory, follow_symlinks=False)
    kind = _KINDS.get(modes.S_IFMT(found.st_mode), NodeKind.SPECIAL)
    target = os.readlink(raw, dir_fd=directory) if kind is NodeKind.SYMLINK else None
    return Entry(
        from_bytes(raw),
        Stat(
            kind=kind,
            size=found.st_size if kind is not NodeKind.DIRECTORY else 0,
            node_id=found.st_ino,
            version=0,
            modified=found.st_mtime_ns,
            provenance=Provenance.HOST_FILESYSTEM,
            executable=kind is NodeKind.FILE and bool(found.st_mode & 0o100),
            link_count=found.st_nlink,
        ),
        None if target is None else from_bytes(target),
    )


def _local_page(directory: LocalDirectory, names: Sequence[bytes]) -> list[Entry]:
    page = []
    with directory.opened() as descriptor:
        for raw in names:
            with suppress(FileNotFoundError):
                page.append(local_entry(descriptor, raw))
    return page


def _local_names(directory: LocalDirectory) -> list[bytes]:
    with directory.opened() as descriptor, os.scandir(descriptor) as entries:
        return sorted(os.fsencode(entry.name) for entry in entries)


def _open_file(directory: LocalDirectory, raw: bytes) -> OwnedFd:
    """A regular file.  Raises OSError, `IsDirectory`, `Unsupported`."""
    with directory.opened() as parent:
        file = OwnedFd(os.open(raw, _OLD, dir_fd=parent))
    mode = os.fstat(file.fileno()).st_mode
    if modes.S_ISDIR(mode):
        raise IsDirectory("this is a directory")
    if not modes.S_ISREG(mode):
        raise Unsupported("this is no regular file")
    return file


def _read_piece(descriptor: int, length: int) -> bytes:
    """`length` bytes, less only at the end."""
    pieces = []
    while length:
        piece = os.read(descriptor, length)
        if not piece:
            break
        pieces.append(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _begin_reading(directory: LocalDirectory, raw: bytes) -> tuple[bytes, OwnedFd | None]:
    """The first piece, and the file if there may be more."""
    file = _open_file(directory, raw)
    first = _read_piece(file.fileno(), TRANSFER_BYTES_MAX)
    return first, file if len(first) == TRANSFER_BYTES_MAX else None


async def _pieces_of(file: OwnedFd, path: bytes) -> AsyncIterator[bytes]:
    """What there is left to read."""
    while piece := await _on_disk(lambda: _read_piece(file.fileno(), TRANSFER_BYTES_MAX), path):
        yield piece


def content_of_stdin() -> Content:
    """All that there is to read from stdin."""
    return Content(b"", _pieces_of_stdin(OwnedFd(os.dup(0))))


async def _pieces_of_stdin(file: OwnedFd) -> AsyncIterator[bytes]:
    # A worker cannot be cancelled, so none waits for what may never come: the loop does.
    await _readable(file.fileno())
    while piece := await _on_disk(lambda: _read_available(file.fileno()), b"stdin"):
        yield piece
        await _readable(file.fileno())


async def _readable(descriptor: int) -> None:
    """Returns when a read would not wait."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:
        # A regular file, say: epoll does not take what never makes anybody wait.
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def _read_available(descriptor: int) -> bytes:
    """What is there, up to one transfer: a pipe gives it in pieces that are not worth a hop.

    Empty at the end only, if there was something to read.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    pieces = [os.read(descriptor, TRANSFER_BYTES_MAX)]
    length = len(pieces[0])
    while pieces[-1] and length < TRANSFER_BYTES_MAX and poll.poll(0):
        pieces.append(os.read(descriptor, TRANSFER_BYTES_MAX - length))
        length += len(pieces[-1])
    return b"".join(pieces)


# Writing ---------------------------------------------------------------------------------------


class _Arriving:
    """A file under a temporary name that becomes `name`, or nothing.

    Every method blocks on the disk and raises OSError.  One that is dropped is abandoned.
    """

    def __init__(self, directory: LocalDirectory, name: bytes, stat: Stat) -> None:
        self._name = name
        self._modified = carried(stat).modified
        self._temporary = temporary_name().encode()
        # The umask applies, as for everything else that is made here.
        mode = 0o777 if stat.executable else 0o666
        with directory.opened() as parent:
            self._parent = OwnedFd(os.dup(parent))
            self._file = OwnedFd(os.open(self._temporary, _NEW, mode, dir_fd=parent))

    def write(self, pieces: Sequence[Buffer]) -> None:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(self._file.fileno(), view) :]

    def finish(self) -> None:
        if self._modified is not None:
            os.utime(self._file.fileno(), ns=(self._modified, self._modified))
        parent = self._parent.fileno()
        os.rename(self._temporary, self._name, src_dir_fd=parent, dst_dir_fd=parent)
        self._close()

    def abandon(self) -> None:
        """Removes what did not become a file; after `finish` it does nothing."""
        if not self._parent.closed:
            with suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._parent.fileno())
            self._close()

    def _close(self) -> None:
        self._file.close()
        self._parent.close()

    def __del__(self) -> None:
        # It was made in a worker, and whoever waited for it was cancelled.
        if hasattr(self, "_file"):
            self.abandon()


def _store(directory: LocalDirectory, name: bytes, content: Buffer, stat: Stat) -> None:
    """A whole small file."""
    arriving = _Arriving(directory, name, stat)
    try:
        arriving.write([content])
        arriving.finish()
    finally:
        arriving.abandon()


def _make_directory(parent: LocalDirectory, name: bytes) -> LocalDirectory:
    with parent.opened() as descriptor, suppress(FileExistsError):
        os.mkdir(name, dir_fd=descriptor)
    made = parent.sub(name)
    try:
        with made.opened():
            return made
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise NotDirectory("something that is no directory is there") from error
        raise


def _make_link(directory: LocalDirectory, name: bytes, target: bytes, stat: Stat) -> None:
    with directory.opened() as parent:
        temporary = temporary_name().encode()
        os.symlink(target, temporary, dir_fd=parent)
        try:
            modified = carried(stat).modified
            if modified is not None:
                os.utime(temporary, ns=(modified, modified), dir_fd=parent, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            os.unlink(temporary, dir_fd=parent)
            raise


def _set_time(directory: LocalDirectory, modified: int) -> None:
    with directory.opened() as descriptor:
        os.utime(descriptor, ns=(modified, modified))


class LocalTree:
    """Directories of this machine, to read from and to write to."""

    def sub(self, directory: LocalDirectory, name: str) -> LocalDirectory:
        return directory.sub(_raw(name))

    async def pages(self, directory: LocalDirectory) -> AsyncGenerator[Sequence[Entry], None]:
        path = directory.called()
        names = await _on_disk(lambda: _local_names(directory), path)
        for start in range(0, len(names), _PAGE):
            part = names[start : start + _PAGE]
            yield await _on_disk(partial(_local_page, directory, part), path)

    async def content(self, directory: LocalDirectory, entry: Entry) -> Content:
        raw = _raw(entry.name)
        path = directory.called(raw)
        first, file = await _on_disk(lambda: _begin_reading(directory, raw), path)
        return Content(first, None if file is None else _pieces_of(file, path))

    async def directory(self, parent: LocalDirectory, name: str) -> LocalDirectory:
        raw = _raw(name)
        return await _on_disk(lambda: _make_directory(parent, raw), parent.called(raw))

    async def file(self, parent: LocalDirectory, name: str, content: Content, stat: Stat) -> None:
        raw = _raw(name)
        path = parent.called(raw)
        if content.rest is None:
            await _on_disk(lambda: _store(parent, raw, content.first, stat), path)
            return
        arriving = await _on_disk(lambda: _Arriving(parent, raw, stat), path)
        try:
            async for pieces in _gathered(content):
                await _on_disk(partial(arriving.write, pieces), path)
            await _on_disk(arriving.finish, path)
        finally:
            await _on_disk(arriving.abandon, path)

    async def symlink(self, parent: LocalDirectory, name: str, target: str, stat: Stat) -> None:
        raw, raw_target = _raw(name), to_bytes(target)
        path = parent.called(raw)
        await _on_disk(lambda: _make_link(parent, raw, raw_target, stat), path)

    async def finish(self, directory: LocalDirectory, stat: Stat) -> None:
        modified = carried(stat).modified
        if modified is not None:
            await _on_disk(lambda: _set_time(directory, modified), directory.called())


async def _gathered(content: Content) -> AsyncIterator[list[Buffer]]:
    """The pieces of `content` in batches that are worth a hop to a worker."""
    batch, size = [content.first], len(content.first)
    if content.rest is not None:
        async for piece in content.rest:
            if size >= TRANSFER_BYTES_MAX:
                yield batch
                batch, size = [], 0
            batch.append(piece)
            size += len(piece)
    yield batch
