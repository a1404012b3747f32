"""A file in the making: beside its place until it is whole, then there at once.

Invariants: until `Output.commit` has returned, nothing is at the place but what was there before;
when the context is left without it, nothing that was made stays.  Everything blocks on the disk.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from capstore.backers.hostfd import RENAME_NOREPLACE, rename_at
from capstore.images.durable import sync_directory
from capstore.schema.errors import AlreadyExists, IsDirectory, Unsupported
from capstore.tools.console import local

# Of the place's name in that of the folder beside it: both have to be names.
_PREFIX_CHARS_MAX: Final = 50


class Output:
    """The file that is to be at `place`; it is made at `path`, in a folder of its own (`scratch`)
    that may hold what else the making needs."""

    def __init__(self, place: Path, scratch: Path, *, force: bool) -> None:
        self.place = place
        self.scratch = scratch
        self.path = scratch / "image"
        self._force = force

    def commit(self) -> None:
        """Puts the file in its place, durably.

        Raises OSError, and `AlreadyExists` if somebody else has put something there meanwhile."""
        # The umask applies, as for any file that is made for a person: this asks what it is.
        self.path.chmod(_mode_of_new_files(self.scratch))
        _sync_file(self.path)
        if self._force:
            self.path.replace(self.place)
        else:
            _rename_to_nothing(self.path, self.place)
        sync_directory(self.place.parent)


def _rename_to_nothing(path: Path, place: Path) -> None:
    source, target = (os.open(at.parent, os.O_RDONLY | os.O_DIRECTORY) for at in (path, place))
    try:
        rename_to_nothing(source, os.fsencode(path.name), target, os.fsencode(place.name))
    except FileExistsError:
        raise _is_there(place) from None
    finally:
        os.close(source)
        os.close(target)


def rename_to_nothing(source: int, old: bytes, target: int, new: bytes) -> None:
    """Renames the file `old` in the directory `source` to `new` in `target`, where nothing is.

    Raises OSError, FileExistsError where something is there.
    """
    try:
        rename_at(source, old, target, new, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        # This filesystem cannot rename so; those that cannot (NFS) have hard links.
        os.link(old, new, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        os.unlink(old, dir_fd=source)


def _mode_of_new_files(scratch: Path) -> int:
    probe = scratch / "mode"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)
        probe.unlink()


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_there(place: Path) -> AlreadyExists:
    return AlreadyExists(f"{local(str(place))} is there: use --force to replace it")


def _check_place(place: Path, *, force: bool) -> None:
    if place.is_dir() and not place.is_symlink():
        raise IsDirectory(f"{local(str(place))} is a directory")
    if not os.path.lexists(place):
        return
    if not force:
        raise _is_there(place)
    if not place.is_file() and not place.is_symlink():
        raise Unsupported(f"{local(str(place))} is no regular file: it is not replaced")


@contextmanager
def making(place: Path, *, force: bool) -> Iterator[Output]:
    """A file that is to be at `place`, replacing one that is there only with `force`.

    A symbolic link there is replaced and not followed.  Raises OSError, `AlreadyExists`,
    `IsDirectory`, and `Unsupported` for a device or such.
    """
    _check_place(place, force=force)
    prefix = f".{place.name[:_PREFIX_CHARS_MAX]}."
    scratch = Path(tempfile.mkdtemp(prefix=prefix, suffix=".new", dir=place.parent))
    try:
        yield Output(place, scratch, force=force)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
