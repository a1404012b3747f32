"""Opening and making the file of a writable image.

Invariants: a new image gets its name when it is whole and durable, so a crash leaves no half of
one there; it never takes the place of a file that is there already.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from capstore.images.device import BlockDevice
from capstore.images.devices import FileDevice
from capstore.images.durable import sync_directory
from capstore.schema.errors import NotFound, from_os_error


def open_device(
    path: str | os.PathLike[str],
    *,
    make: Callable[[BlockDevice], None] | None,
    read_only: bool,
) -> FileDevice:
    """The locked file at `path`; one that is not there is made, if `make` says with what.

    Raises what `FileDevice.open` and `make` raise, and what the host says about the file."""
    try:
        return FileDevice.open(path, writable=not read_only)
    except NotFound:
        if make is None:
            raise
    _make(Path(path), make)
    # Whoever was faster has made it, and is told from us by the lock.
    return FileDevice.open(path)


def _make(path: Path, make: Callable[[BlockDevice], None]) -> None:
    """Makes a new image at `path`, if nothing is there."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    device = FileDevice.open(beside, create=True)
    try:
        make(device)
        with suppress(FileExistsError):
            os.link(beside, path)
    except OSError as error:
        raise from_os_error(error, "create") from None
    finally:
        device.close()
        with suppress(OSError):
            beside.unlink()
    try:
        sync_directory(path.parent)
    except OSError as error:
        raise from_os_error(error, "create") from None
