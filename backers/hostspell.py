"""By which names the entries of a host directory are found: by those that it lists, and no others.

Where case does not count (FAT, exFAT, NTFS, ext4 with `chattr +F`, what a Mac or Windows shares)
the host finds an entry by many names.  To hidden names, quotas, locks and watches a name is one
thing, so here it is found by one.

Invariants:

* A name that the directory does not list finds nothing, and what would replace or be the entry that
  the host finds by it is refused.
* Only a directory that is known to tell all names apart (`tells_apart`) is not read for that.  What
  was read is believed for `_LIFE_SECONDS_MIN`, or `_LIFE_COSTS` times what reading took: for so
  long an entry that others give another spelling is found by the old one.
* Of a directory that may be passed through but not read, names are taken as they are if the host
  finds nothing by their other spellings (`_others`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
import unicodedata
from typing import Final

from capstore.backers.hostfd import filesystem_of, reopen_directory, stat_at
from capstore.schema.names import from_bytes, to_bytes

# linux/magic.h.  These have no directories in which case does not count.
_NEVER: Final = frozenset({0x9123683E, 0x858458F6})  # Btrfs, ramfs
# These have, and say which: ext4, tmpfs, overlayfs, F2FS, bcachefs.
_BY_FLAG: Final = frozenset({0xEF53, 0x01021994, 0x794C7630, 0xF2F52010, 0xCA451A4E})
_XFS: Final = 0x58465342

# linux/fs.h
_GET_FLAGS: Final = 0x80086601
_FLAGS: Final = struct.Struct("=Q")
_CASEFOLD: Final = 0x40000000
# xfs_fs.h: struct xfs_fsop_geom_v1, and of its flags that case does not count in ASCII.
_GET_GEOMETRY: Final = 0x80705864
_GEOMETRY: Final = struct.Struct("=92xI16x")
_NO_CASE: Final = 1 << 13

IOCTLS: Final = (_GET_FLAGS, _GET_GEOMETRY)

_LIFE_SECONDS_MIN: Final = 1.0
_LIFE_COSTS: Final = 20


class Spelling:
    """What is known of the names of one directory."""

    def __init__(self) -> None:
        self._tells_apart: bool | None = None
        self._lock = threading.Lock()
        self._listed: set[str] = set()
        self._until = 0.0
        # Of names that went; what was read beside that is not to be believed later.
        self._losses = 0

    def tells_apart(self, directory: int) -> bool:
        """Whether every entry is known to be found by its own name only.

        Waits for a filesystem that is not local.  Raises `OSError`.
        """
        if self._tells_apart is None:
            self._tells_apart = tells_apart(directory)
        return self._tells_apart

    def knows(self, name: str) -> bool:
        """Whether `name`, or nothing, is what `name` finds, as far as is known; asks nobody."""
        return self._tells_apart is True or (
            name in self._listed and time.monotonic() < self._until
        )

    def is_own(self, directory: int, name: str) -> bool:
        """Whether the entry that `name` finds is called so.  Blocks.

        Raises `FileNotFoundError` where it finds none, and `PermissionError` where the directory
        cannot be read, and something else is found by another spelling.
        """
        if self.tells_apart(directory) or self.knows(name):
            return True
        stat_at(directory, to_bytes(name))
        try:
            return name in self._read(directory)
        except PermissionError:
            if any(_is_there(directory, other) for other in _others(name)):
                raise
            return True

    def require(self, directory: int, name: str) -> None:
        """Raises `FileNotFoundError` where no entry is called `name`; as `is_own`.  Blocks."""
        if not self.is_own(directory, name):
            raise FileNotFoundError(errno.ENOENT, "listed with another spelling")

    def require_free(self, directory: int, name: str, *, instead_of: str = "") -> None:
        """Raises `FileExistsError` where `name` finds an entry that is not called so.  Blocks.

        But one that is called `instead_of`, and differs in case only, may get the name.
        """
        try:
            if self.is_own(directory, name):
                return
        except FileNotFoundError:
            return
        if instead_of:
            alike = [each for each in self._read(directory) if each.lower() == name.lower()]
            if alike == [instead_of]:
                return
        raise FileExistsError(errno.EEXIST, "there, with another spelling")

    def added(self, name: str) -> None:
        """Notes a name that was just made."""
        with self._lock:
            if self._listed:
                self._listed.add(name)

    def gone(self, name: str) -> None:
        """Notes a name that no entry may have any more."""
        with self._lock:
            self._losses += 1
            self._listed.discard(name)

    def _read(self, directory: int) -> set[str]:
        """The names of the directory, from now on believed."""
        with self._lock:
            losses = self._losses
        began = time.monotonic()
        listed = set(read_names(directory))
        now = time.monotonic()
        with self._lock:
            if losses == self._losses:
                self._listed = listed
                self._until = now + max(_LIFE_SECONDS_MIN, _LIFE_COSTS * (now - began))
        return listed


def read_names(directory: int) -> list[str]:
    """All names of a directory in the order of their bytes; none if it was removed.  Blocks.

    A stored name whose escaped form is longer than a name may be is shown all the same, though
    nothing can be done with it: hiding it would make a copy look complete that is not.
    """
    try:
        with reopen_directory(directory) as fd:
            found = os.listdir(fd.fileno())  # noqa: PTH208 - a Path would be a path
    except FileNotFoundError:
        return []
    # Characters in their order are UTF-8 in the order of its bytes.
    return sorted(name if name.isascii() else from_bytes(os.fsencode(name)) for name in found)


def tells_apart(directory: int) -> bool:
    """Whether a directory is known to find each entry by its own name only, byte by byte.

    Raises `OSError`.
    """
    kind = filesystem_of(directory)
    if kind in _NEVER:
        return True
    try:
        if kind in _BY_FLAG:
            (flags,) = _FLAGS.unpack(_asked(directory, _GET_FLAGS, _FLAGS.size))
            return not flags & _CASEFOLD
        if kind == _XFS:
            (flags,) = _GEOMETRY.unpack(_asked(directory, _GET_GEOMETRY, _GEOMETRY.size))
            return not flags & _NO_CASE
    except OSError as error:
        # A kernel that does not know the question knows no such directories on them either.
        return error.errno in (errno.ENOTTY, errno.EOPNOTSUPP)
    return False


def _asked(directory: int, request: int, size: int) -> bytes:
    # Each directory that is opened is asked, so it is done with little ado.
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return fcntl.ioctl(fd, request, bytes(size))
    finally:
        os.close(fd)


def _others(name: str) -> set[str]:
    """Other spellings of `name`, of those that filesystems are known not to tell apart."""
    forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")}
    return {name.swapcase(), *forms} - {name}


def _is_there(directory: int, name: str) -> bool:
    try:
        stat_at(directory, to_bytes(name))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return False
        raise
    return True
