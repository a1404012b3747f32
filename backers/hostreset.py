"""Emptying a directory of the host in one step: ``capstore image reset`` of ``dir:PATH``.

Invariants:

* The directory is full or empty, with the same mode and owner, whenever anybody looks at its path,
  also behind a crash: a new one is made beside it and exchanged with it (renameat2, EXCHANGE).
* The old tree is removed behind that, under the name that the new one had.  What a killed reset
  leaves under that name goes with the next one; nothing else is called so.
* A directory of the tree is never entered through a symbolic link.  Everything blocks on the disk.
* Both directories are locked (flock) meanwhile, so there is one reset at a time, and none of a
  directory whose lock somebody shares.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat as modes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from capstore.backers.hostfd import RENAME_EXCHANGE, OwnedFd, open_at, rename_at
from capstore.backers.hostnode import os_errors
from capstore.schema.errors import Busy, InvalidArgument, NotDirectory, Unsupported
from capstore.schema.limits import NAME_BYTES_MAX

MOUNTS: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(rb"\\([0-3][0-7]{2})")
_SUFFIX: Final = b".capstore-reset"
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# What the kernel says of a mount point, and of a filesystem that cannot exchange.
_MOUNTED: Final = frozenset({errno.EBUSY, errno.EXDEV})
_CANNOT: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class Content(NamedTuple):
    """What is below a directory: how many nodes, each name counted, and how many bytes of files."""

    nodes: int
    size: int


def content_below(path: str, *, hidden: str) -> Content:
    """What is below the directory `path`, but in `hidden`, a name in it.

    What cannot be looked at is not counted.  Raises what `reset_directory` raises before it does
    anything, but `Busy`.
    """
    nodes = size = 0
    with os_errors("open the directory"), OwnedFd(_opened(_checked(path))) as root:
        waiting = ["."]
        while waiting:
            at = waiting.pop()
            # Behind the root, what cannot be entered is passed over.
            with suppress(OSError), _listed(root.fileno(), at) as found:
                for entry in found:
                    if at == "." and entry.name == hidden:
                        continue
                    nodes += 1
                    stat = entry.stat(follow_symlinks=False)
                    if modes.S_ISDIR(stat.st_mode):
                        waiting.append(f"{at}/{entry.name}")
                    elif modes.S_ISREG(stat.st_mode):
                        size += stat.st_size
    return Content(nodes, size)


@contextmanager
def _listed(root: int, at: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    with OwnedFd(os.open(at, _OPEN_DIRECTORY, dir_fd=root)) as fd, os.scandir(fd.fileno()) as found:
        yield found


def _opened(path: Path) -> int:
    return os.open(path, _OPEN_DIRECTORY)


def _checked(path: str) -> Path:
    """Where the directory really is.

    Raises OSError, `NotDirectory`, and `Unsupported` for what cannot be exchanged."""
    if "\0" in path:
        raise InvalidArgument("a path holds no NUL")
    real = Path(os.path.realpath(path, strict=True))
    if not real.is_dir():
        raise NotDirectory("no directory")
    if real == real.parent:
        raise Unsupported("the root of the host cannot be exchanged with another directory")
    _check_no_mounts(real)
    return real


def reset_directory(path: str) -> None:
    """Removes everything below the directory `path`, links in which are followed, in one step.

    It is durable, and the space is free, when this returns; what raises after the step has left
    some of the old tree beside it.  Raises `Busy` while somebody shares its lock or resets it,
    `Unsupported` for a mount point and where the filesystem cannot exchange, `NotFound`,
    `NotDirectory`, `Denied`, and what else the host says.
    """
    with os_errors("reset the directory"):
        real = _checked(path)
        name = os.fsencode(real.name)
        with (
            OwnedFd(_opened(real.parent)) as parent,
            open_at(parent.fileno(), name, _OPEN_DIRECTORY) as old,
        ):
            _lock(old.fileno())
            _Reset(parent.fileno(), name, old.fileno()).run()


def beside(name: bytes) -> bytes:
    """What is called so while the directory `name` beside it is reset."""
    whole = b"." + name + _SUFFIX
    if len(whole) <= NAME_BYTES_MAX:
        return whole
    return b"." + hashlib.sha256(name).hexdigest().encode() + _SUFFIX


def _lock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy("somebody serves the directory, or resets it") from None


class _Reset:
    """The reset of the directory `name` in `parent`, which is open as `old`, and locked."""

    def __init__(self, parent: int, name: bytes, old: int) -> None:
        self._parent = parent
        self._name = name
        self._beside = beside(name)
        self._old = os.fstat(old)

    def run(self) -> None:
        """Does it."""
        _remove(self._parent, self._beside)
        os.mkdir(self._beside, 0o700, dir_fd=self._parent)
        try:
            with open_at(self._parent, self._beside, _OPEN_DIRECTORY) as new:
                self._prepare(new.fileno())
                self._exchange()
                os.fsync(self._parent)
                _remove(self._parent, self._beside)
        except BaseException:
            # Empty if nothing was exchanged.
            with suppress(OSError):
                os.rmdir(self._beside, dir_fd=self._parent)
            raise

    def _prepare(self, new: int) -> None:
        """Has the new directory be what the old one is."""
        _lock(new)
        made = os.fstat(new)
        if (made.st_uid, made.st_gid) != (self._old.st_uid, self._old.st_gid):
            os.fchown(new, self._old.st_uid, self._old.st_gid)
        os.fchmod(new, modes.S_IMODE(self._old.st_mode))
        os.fsync(new)

    def _exchange(self) -> None:
        there = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
        if (there.st_dev, there.st_ino) != (self._old.st_dev, self._old.st_ino):
            raise Busy("somebody has put another directory there")
        try:
            rename_at(self._parent, self._beside, self._parent, self._name, RENAME_EXCHANGE)
        except OSError as error:
            if error.errno in _MOUNTED:
                raise Unsupported("a mount point cannot be exchanged") from None
            if error.errno in _CANNOT:
                raise Unsupported("this filesystem cannot exchange two directories") from None
            raise


def _check_no_mounts(path: Path) -> None:
    """Raises `Unsupported` where something is mounted at the path or below it: what is removed
    afterwards shall not be that."""
    below = os.fsencode(path) + b"/"
    with suppress(FileNotFoundError), MOUNTS.open("rb") as mounts:
        for line in mounts:
            # The fifth field; what would break it is written as octal digits.
            at = _OCTAL.sub(lambda digits: bytes([int(digits[1], 8)]), line.split(b" ", 5)[4])
            if (at + b"/").startswith(below):
                raise Unsupported("a filesystem is mounted there, or below")


# Removing -----------------------------------------------------------------------------------------


def _remove(parent: int, name: bytes) -> None:
    """Removes `name` in `parent`, if it is there, and all below it, however deep that is."""
    try:
        top = _entered(parent, name)
    except FileNotFoundError:
        return
    with top:
        # Directories with entries move up here first, so that there is one level only.
        while _strip(top.fileno(), top.fileno()):
            pass
    os.rmdir(name, dir_fd=parent)


def _strip(directory: int, top: int) -> bool:
    """Empties a directory, whose own ones move to `top` if they have entries; whether there was
    anything in it."""
    found = False
    with os.scandir(directory) as entries:
        for entry in entries:
            found = True
            name = os.fsencode(entry.name)
            if not entry.is_dir(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
            elif directory != top:
                with suppress(FileNotFoundError), _entered(directory, name):
                    os.rename(name, secrets.token_hex(12), src_dir_fd=directory, dst_dir_fd=top)
            else:
                _remove_flat(top, name)
    return found


def _remove_flat(top: int, name: bytes) -> None:
    with suppress(FileNotFoundError), _entered(top, name) as inside:
        while _strip(inside.fileno(), top):
            pass
        os.rmdir(name, dir_fd=top)


def _entered(parent: int, name: bytes) -> OwnedFd:
    """A directory of the old tree, open, which its owner may change."""
    try:
        fd = open_at(parent, name, _OPEN_DIRECTORY)
    except PermissionError:
        with open_at(parent, name, os.O_PATH | os.O_DIRECTORY) as node:
            Path(f"/proc/self/fd/{node.fileno()}").chmod(0o700)
        fd = open_at(parent, name, _OPEN_DIRECTORY)
    try:
        if os.fstat(fd.fileno()).st_mode & 0o300 != 0o300:
            os.fchmod(fd.fileno(), 0o700)
    except BaseException:
        fd.close()
        raise
    return fd
