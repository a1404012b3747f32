"""``capstore image compact`` and ``verify --repair``: what changes an image in its place.

Invariants: only what the crash contract of the format makes safe is done, by the engine's own
operations, so that an interruption loses nothing; an image that is damaged or served by somebody
stays as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from capstore.backers.spec import Spec
from capstore.backers.workers import in_worker
from capstore.images.devices import FileDevice
from capstore.images.formats import format_of
from capstore.images.wf1_compact import compact, repair
from capstore.images.wf1_open import open_wf1
from capstore.schema.errors import StorageError, Unsupported
from capstore.schema.sizes import format_size
from capstore.tools.console import local_error, out
from capstore.tools.image.epoch import source_date_epoch


async def compacted(file: str, *, quiet: bool) -> None:
    """Makes the image `file` as small as what is in it.

    Raises what opening it raises, `Unsupported` for a format that is not written in place.
    """
    path = _path_of(file)
    before = path.stat().st_size
    await in_worker(lambda: _compact(path))
    after = path.stat().st_size
    if not quiet:
        out(f"{format_size(before)} -> {format_size(after)}")


def _compact(path: Path) -> None:
    with _written(path) as device:
        compact(open_wf1(device, clock=_clock()))


def repaired(file: str) -> None:
    """Removes what a crash left in the image `file`; raises as `compacted`."""
    with _written(_path_of(file)) as device:
        repair(device, clock=_clock(), entropy=os.urandom)


def _path_of(file: str) -> Path:
    """The file of an image whose format is written in place.  Raises `Unsupported`."""
    path, kind = Path(file), "wf1"
    if not path.exists() and file.startswith("wf1:"):
        spec = Spec.parse(file)
        spec.check_options(())
        path = Path(spec.argument)
    else:
        try:
            kind = format_of(path)
        except StorageError as error:
            raise local_error(error, file) from error
    if kind != "wf1":
        raise Unsupported(f"an image of the format {kind} is not changed: build another one")
    return path


@contextmanager
def _written(path: Path) -> Iterator[FileDevice]:
    try:
        device = FileDevice.open(path)
        try:
            yield device
        finally:
            device.close()
    except StorageError as error:
        raise local_error(error, str(path)) from error


def _clock() -> Callable[[], int]:
    """The time, or that of SOURCE_DATE_EPOCH where it is set."""
    epoch = source_date_epoch()
    return time.time_ns if epoch is None else lambda: epoch
