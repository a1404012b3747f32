"""Content from a lower layer into the upper one.

Invariants: memory is two pieces, whatever the file's length; pieces of zeros are not written, so a
hole stays one, also where the lower layer cannot say where its holes are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from capstore.backers.node import Buffer, FileNode
from capstore.backers.workers import finished
from capstore.schema.errors import StorageError
from capstore.schema.limits import KIB, TRANSFER_BYTES_MAX

# A hole shorter than this is written: more, shorter writes would cost more than they save.
_HOLE_BYTES: Final = 64 * KIB
_ZEROS: Final = bytes(_HOLE_BYTES)


async def copy_content(source: FileNode, target: FileNode, length: int) -> None:
    """Writes the first `length` bytes of `source` into `target`, which is empty."""
    offset = written = 0
    reading = _reading(source, 0, length)
    try:
        while reading is not None:
            data = memoryview(await reading)
            if not len(data):
                break
            # The next piece is read while this one is written.
            reading = _reading(source, offset + len(data), length)
            for start, end in _filled(data):
                await target.write(offset + start, data[start:end])
                written = offset + end
            offset += len(data)
    finally:
        await _dropped(reading)
    if written < offset:
        await target.truncate(offset)


def _reading(source: FileNode, offset: int, end: int) -> asyncio.Future[Buffer] | None:
    """A read that is under way; None at the end."""
    if offset >= end:
        return None
    return asyncio.ensure_future(source.read(offset, min(end - offset, TRANSFER_BYTES_MAX)))


async def _dropped(reading: asyncio.Future[Buffer] | None) -> None:
    """Ends a read that nobody waits for."""
    if reading is None:
        return
    reading.cancel()
    # What failed is told by who waited for it.
    with suppress(StorageError, asyncio.CancelledError):
        await finished(reading)


def _filled(data: memoryview) -> Iterator[tuple[int, int]]:
    """The stretches of `data` that are not zeros, by pieces."""
    start: int | None = None
    for at in range(0, len(data), _HOLE_BYTES):
        piece = data[at : at + _HOLE_BYTES]
        if piece == _ZEROS[: len(piece)]:
            if start is not None:
                yield start, at
                start = None
        elif start is None:
            start = at
    if start is not None:
        yield start, len(data)
