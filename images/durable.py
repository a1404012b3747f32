"""Small files that are replaced as a whole or not at all.

Invariants:

* After a crash at any point the file holds what it held before or all of what it was to hold, and
  once `replace_file` has returned it holds the latter.
* Of a `HeldFile` no path is looked up: it stays in the directory that was opened, wherever that is
  moved to, whatever is put in its place.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class HeldFile:
    """The file `name` in the directory that is open as `folder`."""

    folder: int
    name: str

    def read_bytes(self) -> bytes:
        """All of it.  Raises OSError."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(self.name, flags, dir_fd=self.folder), "rb") as file:
            return file.read()


def replace_file(
    path: Path | HeldFile, content: bytes | Callable[[BinaryIO], None], *, mode: int = 0o600
) -> None:
    """Puts `content`, or what it writes, in the place of the file `path`.  Blocks on the disk.

    A new file beside the old one is written and flushed, then takes its name, then the directory
    is flushed.  Raises OSError, and what `content` raises, with the old file as it was; only when
    that last flush fails is the new one there, and may be gone after a crash.
    """
    if isinstance(path, HeldFile):
        _replace(path, content, mode)
        return
    folder = os.open(path.parent, _OPEN_DIRECTORY)
    try:
        _replace(HeldFile(folder, path.name), content, mode)
    finally:
        os.close(folder)


def _replace(file: HeldFile, content: bytes | Callable[[BinaryIO], None], mode: int) -> None:
    beside = f".{file.name}.{secrets.token_hex(6)}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(beside, flags, mode, dir_fd=file.folder)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(beside, file.name, src_dir_fd=file.folder, dst_dir_fd=file.folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(beside, dir_fd=file.folder)
        raise
    os.fsync(file.folder)


def sync_directory(path: Path) -> None:
    """Makes the names in the directory `path` durable.  Raises OSError."""
    descriptor = os.open(path, _OPEN_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
