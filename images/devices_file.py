"""Block devices that are files of the host: read and written by system calls, or mapped.

Invariants, beside those of `capstore.images.device`:

* A file has one writer or any number of readers, processes that use this module counted: a writer
  holds the file's exclusive lock (flock), a reader its shared lock, and who does not get one at
  once gets `Busy`.  The file's length is therefore known from its opening on.  What others do to
  the file all the same is noticed where bytes are missing (`StorageIOError`).
* Reads of a file are system calls, in a mapped file too: a page that cannot be had is an error of
  the call, and `read_now` can refuse to wait for one.
* A descriptor is closed once, and not under a call that uses it.
* Messages name no path.

A failed write-back is reported once and its pages may be dropped or marked clean, so neither
flushing again nor reading back shows what is on the disk (Rebello et al., "Can Applications
Recover from fsync Failures?", USENIX ATC 2020).  That is why devices latch.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from capstore.images.device import BlockDevice
from capstore.images.durable import sync_directory
from capstore.schema.errors import (
    Busy,
    Closed,
    InvalidArgument,
    NoSpace,
    NotFound,
    ReadOnly,
    StorageError,
    StorageIOError,
    from_os_error,
)
from capstore.schema.nodes import Buffer

# The longest file there can be: off_t has 63 bits.
FILE_BYTES_MAX: Final = (1 << 63) - 1

# What says that a file cannot be longer, by its disk, quota, filesystem or resource limit.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What says that a filesystem knows no RWF_NOWAIT.
_NOT_KNOWN: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
# fallocate(2): the length stays, and the range is a hole.
_KEEP_SIZE_AND_PUNCH_HOLE: Final = 0x01 | 0x02
_fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
# Directories cannot be opened for writing, sockets not at all.
_NO_IMAGE: Final = frozenset({errno.EISDIR, errno.ENXIO})


class _Descriptor:
    """A descriptor, closed once: by `close`, as soon as no `with` block uses it any more.

    Raises `Closed` on entry after `close`.
    """

    __slots__ = ("_closing", "_fd", "_lock", "_users")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._users = 0
        self._closing = False
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        return self._closing

    def __enter__(self) -> int:
        with self._lock:
            if self._closing:
                raise Closed("the device is closed")
            self._users += 1
            return self._fd

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._users -= 1
            self._release()

    def read_now(self, offset: int, view: memoryview) -> int:
        """What preadv(2) gives with RWF_NOWAIT; raises OSError, `Closed`.

        As it never waits for a device, holding the lock takes the place of counting, which would
        take longer than most such reads.
        """
        with self._lock:
            if self._closing:
                raise Closed("the device is closed")
            return os.preadv(self._fd, (view,), offset, os.RWF_NOWAIT)

    def close(self) -> None:
        with self._lock:
            self._closing = True
            self._release()

    def _release(self) -> None:
        if self._closing and not self._users and self._fd >= 0:
            fd, self._fd = self._fd, -1
            # The descriptor is gone in any case, and what was not flushed was not promised.
            with suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        self.close()


class _OpenFile(BlockDevice):
    """What files have in common: a locked descriptor of a known length, and reading."""

    def __init__(self, descriptor: _Descriptor, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        # Until the filesystem says that it cannot: tmpfs, FUSE and others know no RWF_NOWAIT.
        self._knows_nowait = True

    def size(self) -> int:
        if self._descriptor.closed:
            raise Closed("the device is closed")
        return self._size

    def read_into(self, offset: int, view: memoryview) -> None:
        self.check_range(offset, view.nbytes)
        try:
            self._read(offset, view.cast("B"), 0)
        except OSError as error:
            raise _io_error(error, "read") from None

    def read_now(self, offset: int, view: memoryview) -> bool:
        length = view.nbytes
        if offset < 0 or offset + length > self._size:
            self.check_range(offset, length)
        if not self._knows_nowait:
            return False
        try:
            got = self._descriptor.read_now(offset, view)
            if got < length:
                self._read(offset + got, view.cast("B")[got:], os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise _io_error(error, "read") from None
            self._knows_nowait = False
            return False
        return True

    def _read(self, offset: int, view: memoryview, flags: int) -> None:
        got = 0
        with self._descriptor as fd:
            while got < len(view):
                count = os.preadv(fd, [view[got:]], offset + got, flags)
                if not count:
                    raise StorageIOError(f"the file ends at {offset + got}, it was cut off")
                got += count

    def close(self) -> None:
        self._descriptor.close()


class FileDevice(_OpenFile):
    """A file or block device of the host, read and written by system calls.

    A write that the disk has no room for is `NoSpace`.  If none of its bytes was written, nothing
    has changed and the device goes on; if some were, it is latched, as after any other failure.
    Resizing reserves no space.
    """

    def __init__(self, descriptor: _Descriptor, size: int, *, writable: bool, fixed: bool) -> None:
        """For `open`."""
        super().__init__(descriptor, size)
        self._writable = writable
        self._fixed = fixed
        self._latched = False
        self._unflushed_bytes = 0
        # Until the first answer says otherwise: block devices and some filesystems do not.
        self._knows_reserve = True
        self._knows_holes = True

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = True,
        create: bool = False,
        fixed: bool = False,
    ) -> Self:
        """Opens and locks the regular file or block device `path`.

        `create` makes a new file, durably and readable by its owner only; the file must not be
        there.  `fixed` refuses every change of the length, as block devices always do.  To make
        a file of a fixed size, create and resize it, then open it with `fixed`.

        Raises `Busy` for a file that is in use (of a block device also by a mount), `NotFound`,
        `AlreadyExists`, `Denied`, `ReadOnly`, `InvalidArgument` for what is no such file, and
        `StorageIOError`.  Never waits for the other end of a pipe.
        """
        if create and not writable:
            raise InvalidArgument("a new file is opened for writing")
        descriptor, size, is_block = _open(path, writable=writable, create=create)
        device = cls(descriptor, size, writable=writable, fixed=fixed or is_block)
        device._knows_holes = not is_block
        return device

    def __repr__(self) -> str:
        words = [f"{self._size} bytes", "rw" if self._writable else "r"]
        words += ["fixed"] * self._fixed + ["latched"] * self._latched
        words += ["closed"] * self._descriptor.closed
        return f"FileDevice({', '.join(words)})"

    def write(self, offset: int, data: Buffer) -> None:
        self._check_change()
        view = memoryview(data).cast("B")
        self.check_range(offset, len(view))
        self._unflushed_bytes += len(view)
        done = 0
        try:
            with self._descriptor as fd:
                while done < len(view):
                    count = os.pwrite(fd, view[done:], offset + done)
                    if not count:
                        raise OSError(errno.EIO, os.strerror(errno.EIO))
                    done += count
        except OSError as error:
            self._latched = done > 0 or error.errno not in _FULL
            raise _io_error(error, "write") from None
        except BaseException:
            # An interrupt between two system calls may tear the write as well.
            self._latched = True
            raise

    def resize(self, size: int) -> None:
        self._check_change()
        if size < 0:
            raise InvalidArgument("a size is not negative")
        if size == self._size:
            return
        if self._fixed:
            raise NoSpace(f"the device has a fixed size of {self._size} bytes")
        if size > FILE_BYTES_MAX:
            raise NoSpace("longer than a file can be")
        try:
            with self._descriptor as fd:
                os.ftruncate(fd, size)
        except OSError as error:
            self._latched = error.errno not in _FULL
            raise _io_error(error, "resize") from None
        self._size = size

    @property
    def unflushed_bytes(self) -> int:
        return self._unflushed_bytes

    def reserve(self, offset: int, length: int) -> None:
        """By fallocate(2), where the filesystem has it."""
        self._check_change()
        self.check_range(offset, length)
        if not self._knows_reserve:
            return
        try:
            with self._descriptor as fd:
                os.posix_fallocate(fd, offset, length)
        except OSError as error:
            if error.errno in _FULL:
                raise NoSpace(f"reserve: {_reason(error)}") from None
            # A write will tell whatever else is wrong.
            self._knows_reserve = False

    def discard(self, offset: int, length: int) -> None:
        """By punching a hole, where the filesystem has them; on block devices nothing is done."""
        self._check_change()
        self.check_range(offset, length)
        if _fallocate is None or not self._knows_holes or not length:
            return
        with self._descriptor as fd:
            # What cannot be given back stays: nobody reads it.
            self._knows_holes = not _fallocate(fd, _KEEP_SIZE_AND_PUNCH_HOLE, offset, length)

    def flush(self) -> None:
        """As `BlockDevice.flush`.

        fdatasync is enough after a resize, too: it leaves out only what is not needed to read the
        data back, and a changed length is needed (fdatasync(2)).  The name of a file that this
        module created was made durable then.
        """
        self.size()
        if not self._writable:
            return
        self._check_change()
        self._unflushed_bytes = 0
        try:
            with self._descriptor as fd:
                os.fdatasync(fd)
        except OSError as error:
            self._latched = True
            # Not `NoSpace`, whatever the number: what was written is lost.
            raise StorageIOError(f"flush: {_reason(error)}") from None

    def _check_change(self) -> None:
        self.size()
        if not self._writable:
            raise ReadOnly("the device is open for reading only")
        if self._latched:
            raise StorageIOError("an earlier write or flush failed; nothing more is written")


class MappedDevice(_OpenFile):
    """A file that is read only, and mapped for those who work on its bytes in place (`view`).

    `view` has a hazard that a lock cannot take away: if a process that does not ask for locks
    cuts the file off, touching the pages behind its new end kills this process (SIGBUS).  Reading
    through the other methods is safe from that, and does not wait for pages in the middle of a
    Python instruction; so `view` is for small tables that are looked at often.

    What was made of `view` (slices, numpy arrays) stays valid after `close`: the mapping, and
    with it the shared lock, ends when nobody holds any of it.
    """

    def __init__(self, descriptor: _Descriptor, size: int, view: memoryview) -> None:
        """For `open`."""
        super().__init__(descriptor, size)
        self._view: memoryview | None = view

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Opens, locks and maps `path`; raises as `FileDevice.open`."""
        descriptor, size, _ = _open(path, writable=False, create=False)
        try:
            view = _mapped(descriptor, size)
        except BaseException:
            descriptor.close()
            raise
        return cls(descriptor, size, view)

    def __repr__(self) -> str:
        closed = ", closed" if self._descriptor.closed else ""
        return f"MappedDevice({self._size} bytes{closed})"

    @property
    def view(self) -> memoryview:
        """The whole, read-only and without a copy; touching it may wait for the disk.

        Looks at the file's length each time that it is asked for.  Raises `StorageIOError` when
        the file has become shorter, and `Closed`.
        """
        view = self._view
        try:
            with self._descriptor as fd:
                size = _length(fd, os.fstat(fd))
        except OSError as error:
            raise _io_error(error, "look at") from None
        if view is None:
            raise Closed("the device is closed")
        if size < self._size:
            raise StorageIOError(f"the file ends at {size}, it was cut off")
        return view

    def write(self, offset: int, data: Buffer) -> None:
        self._refuse()

    def resize(self, size: int) -> None:
        self._refuse()

    def _refuse(self) -> None:
        self.size()
        raise ReadOnly("the device is open for reading only")

    def flush(self) -> None:
        self.size()

    def close(self) -> None:
        # Dropped and not released: arrays made of it would refuse that, and a reader in another
        # thread would meet a dead view.
        self._view = None
        super().close()


# Opening ----------------------------------------------------------------------------------------


def _open(
    path: str | os.PathLike[str], *, writable: bool, create: bool
) -> tuple[_Descriptor, int, bool]:
    """The locked descriptor, the length in bytes, and whether it is a block device."""
    # O_NONBLOCK: opening a pipe must not wait for its other end before it can be refused.
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    flags |= os.O_RDWR if writable else os.O_RDONLY
    if writable:
        # With O_CREAT the file must be new; without, Linux refuses a block device in use by a
        # mount and ignores it for files (open(2)).
        flags |= os.O_EXCL
    if create:
        flags |= os.O_CREAT
    try:
        descriptor = _Descriptor(os.open(path, flags, 0o600))
    except OSError as error:
        if error.errno in _NO_IMAGE:
            raise InvalidArgument("neither a regular file nor a block device") from None
        raise from_os_error(error, "open") from None
    except ValueError:
        raise InvalidArgument("open: not a path") from None
    try:
        with descriptor as fd:
            size, is_block = _adopt(fd, path, exclusive=writable)
            if create:
                _sync_name(path)
    except BaseException as error:
        descriptor.close()
        if isinstance(error, OSError):
            raise from_os_error(error, "open") from None
        raise
    return descriptor, size, is_block


def _adopt(fd: int, path: str | os.PathLike[str], *, exclusive: bool) -> tuple[int, bool]:
    """Checks and locks what was opened.  Raises OSError and `StorageError`."""
    found = os.fstat(fd)
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise InvalidArgument("neither a regular file nor a block device")
    os.set_blocking(fd, True)
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy("the image is in use") from None
    # Whoever held the lock until now may have put another file in its place, or have changed it.
    try:
        named = Path(path).stat()
    except FileNotFoundError:
        raise NotFound("the image was removed while it was opened") from None
    found = os.fstat(fd)
    if (named.st_dev, named.st_ino) != (found.st_dev, found.st_ino):
        raise Busy("the image was replaced while it was opened")
    return _length(fd, found), stat.S_ISBLK(found.st_mode)


def _length(fd: int, found: os.stat_result) -> int:
    """The length in bytes; the stat of a block device does not say.  Raises OSError."""
    if stat.S_ISBLK(found.st_mode):
        return os.lseek(fd, 0, os.SEEK_END)
    return found.st_size


def _sync_name(path: str | os.PathLike[str]) -> None:
    """Makes a new file's name durable, or takes it back.  Raises OSError."""
    try:
        sync_directory(Path(path).parent)
    except OSError:
        with suppress(OSError):
            Path(path).unlink()
        raise


def _mapped(descriptor: _Descriptor, size: int) -> memoryview:
    if not size:  # mmap refuses to map nothing
        return memoryview(b"")
    try:
        with descriptor as fd:
            return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ))
    except OSError as error:
        raise _io_error(error, "map") from None
    except (ValueError, OverflowError):
        raise StorageIOError("map: the file was cut off, or is too long to map") from None


def _io_error(error: OSError, what: str) -> StorageError:
    """The error of a device: only these kinds leave it once it is open."""
    kind = NoSpace if error.errno in _FULL else StorageIOError
    return kind(f"{what}: {_reason(error)}")


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else "unknown error"
