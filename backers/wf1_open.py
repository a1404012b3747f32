"""Opening and making the file of a CAPOSWF1 volume.

Invariants: a new image gets its name when it is whole and durable, so a crash leaves no half of
one there; it never takes the place of a file that is there already.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from capstore.images.devices import FileDevice
from capstore.images.durable import sync_directory
from capstore.images.wf1_engine import Clock
from capstore.images.wf1_open import format_wf1
from capstore.schema.errors import NotFound, from_os_error


def open_device(
    path: str | os.PathLike[str],
    *,
    create: bool,
    size: int | None,
    read_only: bool,
    clock: Clock,
) -> FileDevice:
    """The locked file at `path`; with `create`, one that is not there is made, as `Wf1Volume.open`
    says."""
    try:
        return FileDevice.open(path, writable=not read_only)
    except NotFound:
        if not create:
            raise
    _make(Path(path), size, clock)
    # Whoever was faster has made it, and is told from us by the lock.
    return FileDevice.open(path)


def _make(path: Path, size: int | None, clock: Clock) -> None:
    """Makes an empty volume at `path`, if nothing is there."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.new")
    device = FileDevice.open(beside, create=True)
    try:
        format_wf1(device, size=size, clock=clock)
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
