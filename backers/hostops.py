"""Operations on a held directory of the host that take one system call or a few.  All block.

Invariants:

* Each works on descriptors and single segments, and raises `OSError` or `StorageError`.
* One that needs several calls undoes what it cannot finish, and one that needs two looks at an
  entry says `Busy` when somebody changes the entry between them `RACES_MAX` times in a row.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from pathlib import Path
from typing import Final

from capstore.backers.hostfd import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    HostStat,
    OwnedFd,
    look_fd,
    open_at,
    own_path,
    rename_at,
    reopen,
    stat_at,
    stat_fd,
)
from capstore.backers.hostnode import require_file
from capstore.backers.node import Expect, RenameMode, Usage
from capstore.schema.errors import (
    Busy,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    StorageError,
    Unsupported,
)
from capstore.schema.limits import SYMLINK_TARGET_BYTES_MAX
from capstore.schema.names import to_bytes

OPEN_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY
# How often an entry may change its kind under a call that needs two looks at it.
RACES_MAX: Final = 16
_RENAME_FLAGS: Final = {
    RenameMode.REPLACE: 0,
    RenameMode.NO_REPLACE: RENAME_NOREPLACE,
    RenameMode.EXCHANGE: RENAME_EXCHANGE,
}


def raw_target(target: str) -> bytes:
    """The stored bytes of a link's target; raises `InvalidArgument`."""
    try:
        raw = to_bytes(target)
    except (StorageError, UnicodeEncodeError):
        raise InvalidArgument("a link's target is valid UTF-8") from None
    if not 1 <= len(raw) <= SYMLINK_TARGET_BYTES_MAX or b"\0" in raw:
        raise InvalidArgument(
            f"a link's target has 1 to {SYMLINK_TARGET_BYTES_MAX} bytes and no NUL"
        )
    return raw


def open_node(node: int, flags: int) -> tuple[OwnedFd, HostStat]:
    """Opens the file that the O_PATH descriptor `node` holds, if it is a file."""
    found = look_fd(node)
    require_file(found)
    return reopen(node, flags), found


def open_existing(directory: int, raw: bytes, flags: int) -> tuple[OwnedFd, HostStat]:
    """Opens the file `raw`; refuses anything else without opening it."""
    with open_at(directory, raw, os.O_PATH) as node:
        return open_node(node.fileno(), flags)


def open_directory(directory: int, raw: bytes) -> tuple[OwnedFd, HostStat]:
    """Opens the directory `raw`; NotADirectoryError for anything else, links included."""
    node = open_at(directory, raw, OPEN_DIRECTORY)
    return node, look_fd(node.fileno())


def refuse_directory(directory: int, raw: bytes) -> None:
    """Raises `IsDirectory` if the entry is one: EPERM alone does not tell."""
    if modes.S_ISDIR(stat_at(directory, raw).mode):
        raise IsDirectory("this is a directory")


def remove(directory: int, raw: bytes, expect: Expect) -> None:
    """Removes the entry `raw` as `DirectoryNode.remove` says."""
    for _ in range(RACES_MAX):
        try:
            if expect is not Expect.DIRECTORY:
                _unlink(directory, raw)
                return
        except IsDirectory:
            if expect is Expect.NOT_DIRECTORY:
                raise
        try:
            _rmdir(directory, raw)
        except NotDirectory:
            if expect is Expect.DIRECTORY:
                raise
        else:
            return
    raise Busy("the name changes its kind all the time")


def _unlink(directory: int, raw: bytes) -> None:
    try:
        os.unlink(raw, dir_fd=directory)
    except IsADirectoryError:
        raise IsDirectory("this is a directory") from None
    except PermissionError:
        refuse_directory(directory, raw)
        raise


def _rmdir(directory: int, raw: bytes) -> None:
    try:
        os.rmdir(raw, dir_fd=directory)
    except NotADirectoryError:
        raise NotDirectory("this is no directory") from None
    except FileExistsError:  # as some filesystems put it
        raise NotEmpty("the directory has entries") from None


def rename(source: int, old: bytes, goal: int, new: bytes, mode: RenameMode) -> None:
    """Renames as `DirectoryNode.rename` says; `Unsupported` if the filesystem lacks `mode`."""
    try:
        rename_at(source, old, goal, new, _RENAME_FLAGS[mode])
    except FileExistsError:
        if mode is RenameMode.NO_REPLACE:
            raise
        raise NotEmpty("the target has entries") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        if mode is not RenameMode.REPLACE and not _into_itself(source, old, goal, new, mode):
            raise Unsupported("the host's filesystem has no such rename") from None
        raise InvalidArgument("a directory does not move into itself") from None


def rename_to_free(source: int, old: bytes, goal: int, new: bytes) -> None:
    """Renames to a name that was free just now; FileExistsError where it is not, if the filesystem
    can tell."""
    try:
        rename_at(source, old, goal, new, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        rename(source, old, goal, new, RenameMode.REPLACE)


def _into_itself(source: int, old: bytes, goal: int, new: bytes, mode: RenameMode) -> bool:
    """Whether one of the entries is a directory that holds the other side."""
    if _is_above(source, old, goal):
        return True
    return mode is RenameMode.EXCHANGE and _is_above(goal, new, source)


def _is_above(directory: int, raw: bytes, below: int) -> bool:
    """Whether the entry `raw` is the directory `below` or one above it.

    The one place that looks upwards; it opens nothing and tells only yes or no.
    """
    entry = stat_at(directory, raw)
    at = os.dup(below)
    try:
        previous = None
        while True:
            here = stat_fd(at)
            if (here.device, here.inode) == (entry.device, entry.inode):
                return True
            if (here.device, here.inode) == previous:
                return False
            previous = (here.device, here.inode)
            above = os.open("..", OPEN_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = above
    finally:
        os.close(at)


def usage_of(fd: int) -> Usage:
    """The use of the filesystem that holds `fd`."""
    found = os.fstatvfs(fd)
    return Usage(
        total_bytes=found.f_blocks * found.f_frsize,
        used_bytes=(found.f_blocks - found.f_bfree) * found.f_frsize,
        free_bytes=found.f_bavail * found.f_frsize,
        total_nodes=found.f_files,
        used_nodes=found.f_files - found.f_ffree,
    )


def open_as_permitted(node: int, *, read_only: bool) -> tuple[OwnedFd, HostStat, bool]:
    """Opens for writing, or for reading where the host permits no more."""
    if not read_only:
        try:
            return *open_node(node, os.O_RDWR), True
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
                raise
    return *open_node(node, os.O_RDONLY), False


def check_proc(fd: int) -> None:
    """Raises `Unsupported` where /proc is not mounted; `own_path` stands on it."""
    try:
        Path(own_path(fd)).readlink()
    except FileNotFoundError:
        raise Unsupported("serving a host directory needs /proc") from None
