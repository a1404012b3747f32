"""``capstore image compact`` and ``verify --repair``: what changes an image in its place.

Invariants: only what the crash contract of the format makes safe is done, by the engine's own
operations, so that an interruption loses nothing; an image that is damaged or served by somebody
stays as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from capstore.backers.workers import in_worker
from capstore.images import (
    st1_compact,
    st1_recovery,
    st1_verify,
    wf1_compact,
    wf1_recovery,
    wf1_verify,
)
from capstore.images.device import BlockDevice
from capstore.images.devices import FileDevice
from capstore.images.st1_open import open_st1
from capstore.images.tree import Finding
from capstore.images.wf1_open import open_wf1
from capstore.schema.errors import StorageError, Unsupported
from capstore.schema.sizes import format_size
from capstore.tools.console import local_error, out
from capstore.tools.image.epoch import source_date_epoch
from capstore.tools.image.source import Halves, halves_of


async def compacted(file: str, *, quiet: bool) -> None:
    """Makes the image `file` as small as what is in it.

    Raises what opening it raises, `Unsupported` for a format that is not written in place.
    """
    before, after = await in_worker(lambda: _compact(_halves_of(file)))
    if not quiet:
        out(f"{format_size(before)} -> {format_size(after)}")


def _compact(halves: Halves) -> tuple[int, int]:
    """How many bytes the image had, and has."""
    with _written(Path(halves.path)) as device:
        before = device.size()
        _check(device, halves)
        if halves.store:
            engine = open_st1(device, clock=_clock())
            st1_compact.compact(engine)
            engine.sync()
        if halves.tree:
            wf1_compact.compact(open_wf1(device, clock=_clock()))
        return before, device.size()


def repaired(file: str) -> None:
    """Removes what a crash left in the image `file`; raises as `compacted`.

    Where it left nothing, nothing is written."""
    halves = _halves_of(file)
    with _written(Path(halves.path)) as device:
        _check(device, halves)
        if halves.store and _is_torn(st1_verify.verify(device, values=False)):
            st1_compact.repair(device, clock=_clock(), entropy=os.urandom)
        if halves.tree and _is_torn(wf1_verify.verify(device)):
            wf1_compact.repair(device, clock=_clock(), entropy=os.urandom)


def _is_torn(findings: Iterable[Finding]) -> bool:
    return any(finding.repairable for finding in findings)


def _check(device: BlockDevice, halves: Halves) -> None:
    """Raises `Corrupt` or `Unsupported`, with nothing written, unless both halves can be opened."""
    if halves.store and halves.tree:
        st1_recovery.recover(device)
        wf1_recovery.recover(device)


def _halves_of(file: str) -> Halves:
    """What is in an image whose formats are written in place.  Raises `Unsupported`."""
    halves = halves_of(file)
    if not halves.store and halves.tree != "wf1":
        raise Unsupported(f"an image of the format {halves.tree} is not changed: build another one")
    return halves


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
