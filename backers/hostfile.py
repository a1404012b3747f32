"""An open file of a host directory volume.

Invariants:

* A read that the page cache can answer happens on the loop, everything else in a worker thread.
* A change that fails for want of space leaves the file as it was: what it appended is cut off
  again, and before bytes inside a sparse file are overwritten, their space is reserved.  What
  remains is a filesystem that copies on write and cannot reserve (Btrfs, ZFS) and is full: there
  an overwrite may stop in the middle.
* Appends do not overlap, other processes' included: the kernel chooses the offset and says which.
  Cutting off a failed append is safe against this volume's other handles; if another process
  appended behind it in that moment, the failed part stays.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final, TypeVar

from capstore.backers.hostfd import (
    HostStat,
    OwnedFd,
    look_fd,
    reopen_directory,
    reserve,
    stat_fd,
    sync_filesystem,
)
from capstore.backers.hostnode import (
    Host,
    InodeLock,
    change_attributes,
    check_attributes,
    node_stat,
    os_errors,
)
from capstore.backers.node import Attributes, Buffer, FileNode, Stat
from capstore.backers.workers import Lane, in_worker
from capstore.schema.errors import (
    Closed,
    InvalidArgument,
    ReadOnly,
    StorageError,
    StorageIOError,
    TooLarge,
)
from capstore.schema.limits import TRANSFER_BYTES_MAX

T = TypeVar("T")

# The last offset that a file of the host can have.
_OFFSET_MAX: Final = (1 << 63) - 1
# st_blocks counts these, whatever the filesystem's own blocks are.
_BLOCK_BYTES: Final = 512


class HostFile(FileNode):
    """An open regular file; `parent` is the directory it was opened through."""

    def __init__(
        self, host: Host, fd: OwnedFd, found: HostStat, parent: OwnedFd, *, writable: bool
    ) -> None:
        self._host = host
        self._fd = host.own(fd)
        self._parent = parent
        self._device = found.device
        self._inode: InodeLock | None = host.lock_of(found) if writable else None
        self._at_once = host.answers_at_once(found.device)
        # Until the filesystem says that it cannot: tmpfs, FUSE and others know no RWF_NOWAIT.
        self._cached_reads = True
        # Changes of one file wait for its lock anyway.
        self._lane = Lane()
        self._lost = False
        self._last: Stat | None = None

    def __repr__(self) -> str:
        rights = "rw" if self._inode else "r"
        return f"HostFile({self._fd!r}, {rights})"

    @property
    def host(self) -> Host:
        """The volume's state."""
        return self._host

    @property
    def owned(self) -> OwnedFd:
        """The descriptor, still the file's own."""
        return self._fd

    # Looking

    async def stat(self) -> Stat:
        """As `Node.stat`; after `close` what was known at its time."""
        self._host.check()
        if self._fd.closed and self._last is not None:
            return self._last
        found = await self._looked()
        return node_stat(found, self._host.device)

    async def size(self) -> int:
        """The length in bytes."""
        self._check()
        if not self._at_once:
            return (await self._looked()).size
        with os_errors("stat"):
            return os.fstat(self._fd.fileno()).st_size

    async def _looked(self) -> HostStat:
        if not self._at_once:
            return await self._run("stat", stat_fd)
        with os_errors("stat"):
            return stat_fd(self._fd.fileno())

    # Reading

    async def read_into(self, offset: int, view: memoryview) -> int:
        """As `FileNode.read_into`."""
        self._check()
        if offset < 0:
            raise InvalidArgument("an offset is not negative")
        if offset >= _OFFSET_MAX or not view.nbytes:
            return 0
        got, done = self._read_cached(offset, view)
        if done:
            return got
        return got + await self._run("read", lambda fd: _read(fd, offset + got, view[got:]))

    def _read_cached(self, offset: int, view: memoryview) -> tuple[int, bool]:
        """What the page cache holds, and whether that is all there is to read.

        One transfer at most: copying more would keep the loop waiting.
        """
        got = 0
        if not self._cached_reads or view.nbytes > TRANSFER_BYTES_MAX:
            return got, False
        with os_errors("read"):
            fd = self._fd.fileno()
            try:
                while got < view.nbytes:
                    count = os.preadv(fd, [view[got:]], offset + got, os.RWF_NOWAIT)
                    if not count:
                        return got, True
                    got += count
            except BlockingIOError:
                return got, False
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                self._cached_reads = False
                return got, False
        return got, True

    # Changing

    async def write(self, offset: int, data: Buffer) -> None:
        """As `FileNode.write`."""
        lock = self._check_write()
        if offset < 0:
            raise InvalidArgument("an offset is not negative")
        view = memoryview(data).cast("B")
        if offset + len(view) > _OFFSET_MAX:
            raise TooLarge("beyond what a file can hold")
        if view:
            await self._change("write", lambda fd: _write(fd, offset, view, lock))

    async def append(self, data: Buffer) -> int:
        """As `FileNode.append`."""
        lock = self._check_write()
        view = memoryview(data).cast("B")
        if not view:
            return await self.size()
        return await self._change("append", lambda fd: _append(fd, view, lock))

    async def truncate(self, size: int) -> None:
        """As `FileNode.truncate`."""
        lock = self._check_write()
        if size < 0:
            raise InvalidArgument("a size is not negative")
        if size > _OFFSET_MAX:
            raise TooLarge("beyond what a file can hold")
        await self._change("truncate", lambda fd: _truncate(fd, size, lock))

    async def set_attributes(self, change: Attributes) -> None:
        """As `FileNode.set_attributes`."""
        self._check_write()
        check_attributes(change)
        await self._change("set attributes", lambda fd: change_attributes(fd, change))

    # Ending

    async def sync(self) -> None:
        """As `Node.sync`; covers the name it was opened by, too.

        The directory it was opened through is synced after it, so that a new file's name is as
        durable as its content.  Directories above, and names given to it later, are changes of
        directories: `DirectoryNode.sync` covers them.

        The kernel reports a failed write-back once; the handle answers it for good.
        """
        self._check()
        if self._host.read_only:
            return
        if self._lost:
            raise StorageIOError("an earlier sync failed; what it covered may be lost")
        try:
            await self._run("sync", self._sync)
        except StorageIOError:
            self._lost = True
            raise

    def _sync(self, fd: int) -> None:
        os.fsync(fd)
        with self._parent.lease() as parent:
            try:
                directory = reopen_directory(parent)
            except PermissionError:  # one that may be passed through but not read
                sync_filesystem(fd)
                return
            with directory:
                os.fsync(directory.fileno())

    async def close(self) -> None:
        """As `FileNode.close`; what is under way ends first."""
        if self._fd.closed:
            return
        try:
            self._last = await self.stat()
        except StorageError:
            self._last = None  # stat will answer `Closed`
        finally:
            self._fd.close()

    def _check(self) -> None:
        self._host.check()
        if self._fd.closed:
            raise Closed("the file is closed")

    def _check_write(self) -> InodeLock:
        self._check()
        if self._inode is None:
            raise ReadOnly("the file was not opened for writing")
        return self._inode

    async def _change(self, what: str, call: Callable[[int], T]) -> T:
        def noted(fd: int) -> T:
            with self._parent.lease() as parent:
                self._host.will_change(self._device, parent)
            return call(fd)

        return await self._lane.run(self._leased(what, noted))

    async def _run(self, what: str, call: Callable[[int], T]) -> T:
        """Runs `call` with the descriptor in a worker."""
        return await in_worker(self._leased(what, call))

    def _leased(self, what: str, call: Callable[[int], T]) -> Callable[[], T]:
        """`call` with the descriptor, which `close` does not take away meanwhile."""

        def leased() -> T:
            with os_errors(what), self._fd.lease() as fd:
                return call(fd)

        return leased


# In worker threads -----------------------------------------------------------------------------


def _read(fd: int, offset: int, view: memoryview) -> int:
    """Fills `view` up to the end of the file."""
    got = 0
    while got < view.nbytes:
        count = os.preadv(fd, [view[got:]], offset + got)
        if not count:
            break
        got += count
    return got


def _write(fd: int, offset: int, view: memoryview, lock: InodeLock) -> None:
    with lock.lock:
        before = look_fd(fd)
        inside = min(len(view), before.size - offset)
        if inside > 0 and before.blocks * _BLOCK_BYTES < before.size:
            reserve(fd, offset, inside)
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(fd, view[done:], offset + done)
        except OSError:
            if offset + done > before.size:
                os.ftruncate(fd, before.size)
            raise


def _append(fd: int, view: memoryview, lock: InodeLock) -> int:
    """Appends; returns the offset, which the kernel leaves as the descriptor's position.

    Nothing else here uses the position, so what is read there belongs to this append.
    """
    with lock.lock:
        start = done = 0
        try:
            while done < len(view):
                count = os.pwritev(fd, [view[done:]], -1, os.RWF_APPEND)
                at = os.lseek(fd, 0, os.SEEK_CUR) - count
                if not done:
                    start = at
                elif at != start + done:
                    os.ftruncate(fd, at)
                    raise OSError(errno.EIO, "another process appended in the middle")
                done += count
        except OSError:
            if done and os.fstat(fd).st_size == start + done:
                os.ftruncate(fd, start)
            raise
        return start


def _truncate(fd: int, size: int, lock: InodeLock) -> None:
    with lock.lock:
        os.ftruncate(fd, size)
