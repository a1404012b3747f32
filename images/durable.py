"""Small files that are replaced as a whole or not at all.

Invariants: after a crash at any point the file holds what it held before or all of what it was to
hold, and once `replace_file` has returned it holds the latter.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def replace_file(
    path: Path, content: bytes | Callable[[BinaryIO], None], *, mode: int = 0o600
) -> None:
    """Puts `content`, or what it writes, in the place of the file `path`.  Blocks on the disk.

    A new file beside the old one is written and flushed, then takes its name, then the directory
    is flushed.  Raises OSError, and what `content` raises, with the old file as it was; only when
    that last flush fails is the new one there, and may be gone after a crash.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes the names in the directory `path` durable.  Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
