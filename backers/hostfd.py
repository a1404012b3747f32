"""System calls on held descriptors: what `os` has no words for, and what may leak.

Invariants:

* A descriptor belongs to one `OwnedFd`.  It is closed exactly once, and never while a call that
  leased it is under way, so a number is never used after the host gave it to another file.
* A name is one segment below a held directory.  No call here follows a symbolic link, leads
  upwards or takes a longer path: `openat2` refuses it, and where the kernel has no `openat2` the
  check of the segment and O_NOFOLLOW do.
* Errors are `OSError`; `capstore.backers.hostnode` maps them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Final, NamedTuple, Self

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

# linux/openat2.h
_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_RESOLVE_CACHED: Final = 0x20
_RESOLVE: Final = _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS
# Automounts and mount points may lead to a slow device, so they are not for the event loop.
_RESOLVE_AT_ONCE: Final = _RESOLVE | _RESOLVE_CACHED | _RESOLVE_NO_XDEV

# openat2 answers EAGAIN when a rename raced with it; only so often in a row.
_RACES_MAX: Final = 64

# Numbers of system calls: openat2 has one number everywhere, renameat2 is in libc since glibc 2.28.
_SYS_OPENAT2: Final = 437
_SYS_RENAMEAT2: Final = {"x86_64": 316, "aarch64": 276}.get(platform.machine())

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_EMPTY_PATH: Final = 0x1000
_STATX_BASIC_AND_BTIME: Final = 0xFFF
_STATX_BTIME: Final = 0x800
_FALLOC_FL_KEEP_SIZE: Final = 1
_NANOSECONDS: Final = 1_000_000_000

# Filesystems whose metadata, once cached, is answered from memory.  On others (network, FUSE) even
# fstat may ask a server.
_LOCAL_FILESYSTEMS: Final = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # Btrfs
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0x794C7630,  # overlayfs
        0xF2F52010,  # F2FS
        0xCA451A4E,  # bcachefs
        0x2FC12FC1,  # ZFS
    }
)

_libc: Final = ctypes.CDLL(None, use_errno=True)


class OwnedFd:
    """A descriptor that closes exactly once: by `close`, or when nobody holds the object."""

    __slots__ = ("__weakref__", "_closing", "_fd", "_leases", "_lock")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._leases = 0
        self._closing = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"OwnedFd({'closed' if self._closing else self._fd})"

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    def fileno(self) -> int:
        """The descriptor, for a call that ends before anybody can close it.  Raises OSError."""
        if self._closing:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._fd

    @contextmanager
    def lease(self) -> Iterator[int]:
        """The descriptor, kept open until the block ends even if `close` is called meanwhile."""
        with self._lock:
            fd = self.fileno()
            self._leases += 1
        try:
            yield fd
        finally:
            with self._lock:
                self._leases -= 1
                self._close_unless_leased()

    def close(self) -> None:
        """Closes the descriptor as soon as no call uses it; calling it again does nothing."""
        with self._lock:
            self._closing = True
            self._close_unless_leased()

    def _close_unless_leased(self) -> None:
        if self._closing and not self._leases and self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@dataclass(slots=True)
class Support:
    """What the kernel can do; found out once, changed by tests that want the other way."""

    openat2: bool
    cached: bool
    statx: bool


@cache
def support() -> Support:
    """What this kernel, under this seccomp filter, can do."""
    probe = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    return Support(
        openat2=_answers(lambda: _openat2(_AT_FDCWD, b".", probe, 0, _RESOLVE)),
        cached=_answers(lambda: _openat2(_AT_FDCWD, b".", probe, 0, _RESOLVE_AT_ONCE)),
        statx=_answers(lambda: _statx(_AT_FDCWD, b".", 0)),
    )


def _answers(call: Callable[[], object]) -> bool:
    """Whether `call` is there at all: not cut off by an old kernel or a seccomp filter."""
    try:
        result = call()
    except OSError as error:
        return error.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL)
    if isinstance(result, int):
        os.close(result)
    return True


# Opening ---------------------------------------------------------------------------------------


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_syscall_openat2 = ctypes.CDLL(None, use_errno=True).syscall
_syscall_openat2.restype = ctypes.c_long
_syscall_openat2.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_OpenHow),
    ctypes.c_size_t,
)


def _openat2(dir_fd: int, name: bytes, flags: int, mode: int, resolve: int) -> int:
    how = _OpenHow(flags, mode, resolve)
    fd: int = _syscall_openat2(_SYS_OPENAT2, dir_fd, name, how, ctypes.sizeof(how))
    if fd < 0:
        raise _last_error()
    return fd


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def check_segment(name: bytes) -> bytes:
    """`name` itself if it is a single segment; a second look, whatever callers checked."""
    if b"/" in name or b"\0" in name or name in (b"", b".", b".."):
        raise OSError(errno.EINVAL, "not a single segment")
    return name


def open_at(dir_fd: int, name: bytes, flags: int, mode: int = 0) -> OwnedFd:
    """Opens the entry `name` of the directory `dir_fd`, never what a link points to.

    With O_PATH a symbolic link is opened itself, else it is ELOOP (ENOTDIR with O_DIRECTORY).
    May block; raises EAGAIN when renames raced with it too often.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    check_segment(name)
    if not support().openat2:
        return OwnedFd(os.open(name, flags, mode, dir_fd=dir_fd))
    for attempt in range(_RACES_MAX):
        try:
            return OwnedFd(_openat2(dir_fd, name, flags, mode, _RESOLVE))
        except (BlockingIOError, InterruptedError):
            if attempt == _RACES_MAX - 1:
                raise
    raise AssertionError("unreachable")


def open_at_once(dir_fd: int, name: bytes, flags: int) -> OwnedFd | None:
    """As `open_at` if the kernel's cache can answer without blocking, else None.

    None says nothing about the entry; `open_at` in a worker thread will tell.
    """
    known = support()
    if not known.openat2 or not known.cached:
        return None
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return OwnedFd(_openat2(dir_fd, check_segment(name), flags, 0, _RESOLVE_AT_ONCE))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EINTR, errno.EXDEV):
            return None
        raise


def reopen(fd: int, flags: int) -> OwnedFd:
    """Opens the very file that the O_PATH descriptor `fd` holds, whatever its name is now.

    This is why a device never gets opened: looking and opening cannot mean two files.
    """
    return OwnedFd(os.open(own_path(fd), flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK))


def reopen_directory(fd: int) -> OwnedFd:
    """A readable description of the directory `fd`, with a position of its own."""
    return OwnedFd(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd))


def own_path(fd: int) -> str:
    """A name of the open file `fd` for calls that take a name only."""
    return f"/proc/self/fd/{fd}"


# Looking ---------------------------------------------------------------------------------------


class HostStat(NamedTuple):
    """What the host says of a node; times in ns since 1970, `created` 0 if not recorded."""

    mode: int
    links: int
    device: int
    inode: int
    size: int
    blocks: int
    accessed: int
    modified: int
    changed: int
    created: int


# struct statx up to the device number, without its padding.
_STATX: Final = struct.Struct("=I 12x I 8x H 2x 3Q 8x qI4x qI4x qI4x qI4x 8x 2I")
_StatxBuffer = ctypes.c_char * 256

_libc_statx = getattr(_libc, "statx", None)
if _libc_statx is not None:
    _libc_statx.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    )


def stat_fd(fd: int) -> HostStat:
    """What the host says of the open file `fd`, O_PATH or not."""
    if support().statx:
        return _statx(fd, b"", _AT_EMPTY_PATH)
    return _plain_stat(os.fstat(fd))


def look_fd(fd: int) -> HostStat:
    """As `stat_fd` without the birth time, at a tenth of the cost: for what every open asks."""
    return _plain_stat(os.fstat(fd))


def stat_at(dir_fd: int, name: bytes) -> HostStat:
    """What the host says of the entry `name`, of a link itself.  May block."""
    check_segment(name)
    if support().statx:
        return _statx(dir_fd, name, _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT)
    return _plain_stat(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))


def _statx(fd: int, name: bytes, flags: int) -> HostStat:
    if _libc_statx is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    buffer = _StatxBuffer()
    if _libc_statx(fd, name, flags, _STATX_BASIC_AND_BTIME, buffer):
        raise _last_error()
    fields = _STATX.unpack_from(buffer)
    mask, links, mode, inode, size, blocks, at, at_ns, bt, bt_ns, ct, ct_ns, mt, mt_ns = fields[:14]
    return HostStat(
        mode=mode,
        links=links,
        device=os.makedev(fields[14], fields[15]),
        inode=inode,
        size=size,
        blocks=blocks,
        accessed=at * _NANOSECONDS + at_ns,
        modified=mt * _NANOSECONDS + mt_ns,
        changed=ct * _NANOSECONDS + ct_ns,
        created=bt * _NANOSECONDS + bt_ns if mask & _STATX_BTIME else 0,
    )


def _plain_stat(found: os.stat_result) -> HostStat:
    return HostStat(
        mode=found.st_mode,
        links=found.st_nlink,
        device=found.st_dev,
        inode=found.st_ino,
        size=found.st_size,
        blocks=found.st_blocks,
        accessed=found.st_atime_ns,
        modified=found.st_mtime_ns,
        changed=found.st_ctime_ns,
        created=0,
    )


def is_local(fd: int) -> bool:
    """Whether the filesystem of `fd` answers what is cached without asking anybody."""
    return filesystem_of(fd) in _LOCAL_FILESYSTEMS


def filesystem_of(fd: int) -> int:
    """The number of the filesystem that holds `fd`, of linux/magic.h."""
    buffer = (ctypes.c_long * 64)()
    if _libc.fstatfs(fd, buffer):
        raise _last_error()
    return buffer[0] & 0xFFFFFFFF


# Changing --------------------------------------------------------------------------------------

_libc_renameat2 = getattr(_libc, "renameat2", None)


def rename_at(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """Renames with RENAME_NOREPLACE or RENAME_EXCHANGE, or plainly with 0.

    Raises EINVAL where the filesystem knows no such flag, too.
    """
    check_segment(old)
    check_segment(new)
    if flags == 0:
        os.rename(old, new, src_dir_fd=old_dir, dst_dir_fd=new_dir)
    elif _libc_renameat2 is not None:
        if _libc_renameat2(old_dir, old, new_dir, new, ctypes.c_uint(flags)):
            raise _last_error()
    elif _SYS_RENAMEAT2 is not None:
        number = ctypes.c_long(_SYS_RENAMEAT2)
        if _libc.syscall(number, old_dir, old, new_dir, new, ctypes.c_uint(flags)):
            raise _last_error()
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def sync_filesystem(fd: int) -> None:
    """Writes out the whole filesystem of `fd`; `fd` must not be O_PATH.

    Reports failures of write-back since `fd` was opened.
    """
    if _libc.syncfs(fd):
        raise _last_error()


def reserve(fd: int, offset: int, size: int) -> None:
    """Allocates a range of a file without changing what it reads as.

    Raises only for want of space; a filesystem that cannot do it does nothing.
    """
    if _libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(size)):
        error = _last_error()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise error
