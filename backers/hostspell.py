"""By which names the entries of a host directory are found: by those that it lists, and no others.

Where case does not count (FAT, exFAT, NTFS, ext4 with `chattr +F`, what a Mac or Windows shares)
the host finds an entry by many names.  To hidden names, quotas, locks and watches a name is one
thing, so here it is found by one.

Invariants:

* A name that the directory does not list finds nothing, and what would replace, or be, the entry
  that the host finds by it is refused.  So what is made by a name that the host changes (FAT drops
  dots at the end) is found by the changed one.
* Asked for that are, in this order: the directory's flags (`tells_apart`); for a name in ASCII with
  letters, whether the host finds anything with the other case of all of them, for whoever ignores
  case finds an entry by that, too; and the names that the directory lists.
* What was read is believed for `_LIFE_SECONDS_MIN`, or `_LIFE_COSTS` times what reading took: for
  so long an entry that others give another spelling is found by the old one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
import unicodedata
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Final

from capstore.backers.hostfd import filesystem_of, reopen_directory, stat_at
from capstore.schema.errors import InvalidName
from capstore.schema.names import from_bytes, to_bytes

# linux/magic.h.  These have no directories in which case does not count.
_NEVER: Final = frozenset({0x9123683E, 0x858458F6})  # Btrfs, ramfs
# These have, and say which: ext4, F2FS, bcachefs; tmpfs has since it answers.
_BY_FLAG: Final = frozenset({0xEF53, 0xF2F52010, 0xCA451A4E, 0x01021994})
_TMPFS: Final = 0x01021994
_XFS: Final = 0x58465342

# linux/fs.h; it says `long` and gives an int.
_GET_FLAGS: Final = 0x80086601
_FLAGS: Final = struct.Struct("=I4x")
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
        self._reading = threading.Lock()
        self._lock = threading.Lock()
        self._listed: set[str] = set()
        self._until = 0.0
        # How many readings were begun, and the last of them that is in `_listed`.
        self._begun = self._done = 0
        # Names that went: how many, and which of them since a reading that is under way began.
        self._losses = 0
        self._lost: set[str] | None = None

    # On the loop, too ----------------------------------------------------------------------------

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

    # In worker threads ---------------------------------------------------------------------------

    def is_own(self, directory: int, name: str) -> bool:
        """Whether the entry that `name` finds is called so.

        Raises `FileNotFoundError` where it finds none, and `PermissionError` where the directory
        cannot be read, and something is found by another spelling.
        """
        if self.tells_apart(directory) or self.knows(name):
            return True
        stat_at(directory, to_bytes(name))
        return is_own_name(
            name, lambda other: _is_there(directory, other), lambda: self._read(directory)
        )

    def require(self, directory: int, name: str) -> None:
        """Raises `FileNotFoundError` where no entry is called `name`; as `is_own`."""
        if not self.is_own(directory, name):
            raise FileNotFoundError(errno.ENOENT, "listed with another spelling")

    def is_taken(self, directory: int, name: str) -> bool:
        """Whether an entry is called `name`; as `is_own`.

        Raises `FileExistsError` where another one is found by it.
        """
        try:
            if self.is_own(directory, name):
                return True
        except FileNotFoundError:
            return False
        raise FileExistsError(errno.EEXIST, "there, with another spelling")

    @contextmanager
    def making(self, name: str) -> Iterator[None]:
        """The context of the system call that makes `name`."""
        losses = self._losses
        yield
        if _is_plain(name):
            with self._lock:
                if self._listed and losses == self._losses:
                    self._listed.add(name)

    def gone(self, name: str) -> None:
        """Notes a name that no entry may have any more."""
        with self._lock:
            self._losses += 1
            self._listed.discard(name)
            if self._lost is not None:
                self._lost.add(name)

    def _read(self, directory: int) -> Container[str]:
        """What the directory lists, or did for somebody else while this waited."""
        came = self._begun
        with self._reading:
            if self._done > came:
                return self._listed
            self._begun += 1
            lost: set[str] = set()
            with self._lock:
                self._lost = lost
            began = time.monotonic()
            try:
                listed = set(read_names(directory))
            finally:
                with self._lock:
                    self._lost = None
            now = time.monotonic()
            with self._lock:
                # What went behind the reading is not in `_listed` either way.
                self._listed = listed - lost
                self._until = now + max(_LIFE_SECONDS_MIN, _LIFE_COSTS * (now - began))
                self._done = self._begun
            return listed


def is_own_name(
    name: str, is_there: Callable[[str], bool], listed: Callable[[], Container[str]]
) -> bool:
    """Whether the entry that `name` finds is called so, in any directory.

    `is_there` says whether another name finds anything, `listed` what the directory lists.  Raises
    what they do: where the directory may not be read (`PermissionError`) only if another spelling
    finds something.
    """
    other = other_case(name)
    if other is not None and not is_there(other):
        return True
    try:
        return name in listed()
    except PermissionError:
        if any(map(is_there, _others(name))):
            raise
        return True


def other_case(name: str) -> str | None:
    """The name that finds an entry called `name`, too, if it is found by others; None for one of
    which that cannot be said."""
    other = name.swapcase()
    return other if name.isascii() and other != name else None


def _others(name: str) -> set[str]:
    """Other spellings of `name`, of those that filesystems are known not to tell apart."""
    forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")}
    # FAT drops dots and spaces at the end, Unicode's folding for names what is not to be seen.
    seen = "".join(each for each in name if unicodedata.category(each) != "Cf")
    ends = {f"{name}.", name.rstrip(". "), f"{name}\u00ad", seen}
    return {name.swapcase(), *forms, *ends} - {name, "", ".", ".."}


def _is_plain(name: str) -> bool:
    """Whether every filesystem that takes the name lists it as it is."""
    return name.isascii() and name == name.lower() and not name.endswith((".", " "))


def _is_there(directory: int, name: str) -> bool:
    try:
        stat_at(directory, to_bytes(name))
    except InvalidName:
        return False
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
            return False
        raise
    return True


def is_respelled(directory: int, name: str, new_name: str) -> bool:
    """Whether `new_name` finds no other entry than `name`, and differs from that in case only."""
    folded = new_name.lower()
    return [each for each in read_names(directory) if each.lower() == folded] == [name]


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

    What overlayfs says is said of its upper layer alone, so it is not asked.  Raises `OSError`.
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
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return kind == _TMPFS
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
    return False


def _asked(directory: int, request: int, size: int) -> bytes:
    # Each directory that is opened is asked, so it is done with little ado.
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return fcntl.ioctl(fd, request, bytes(size))
    finally:
        os.close(fd)
