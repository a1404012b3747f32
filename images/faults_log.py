"""What was done to a device, as data, and how it changes an image.

Invariants: an operation is immutable, and says all that is needed to do it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from capstore.schema.nodes import Buffer

# What a disk writes as a whole.
SECTOR_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Write:
    """`data` was written at `offset`."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """The device was cut or extended to `size` bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class Flush:
    """A flush returned: everything before it is durable."""


Operation = Write | Resize | Flush
Change = Write | Resize


def apply_log(log: Iterable[Operation], base: Buffer) -> bytes:
    """The image after the whole of `log`, without a crash."""
    image = bytearray(base)
    for operation in log:
        if isinstance(operation, Resize):
            resize(image, operation.size, cut=True)
        elif isinstance(operation, Write):
            put(image, operation.offset, operation.data)
    return bytes(image)


def put(image: bytearray, offset: int, data: bytes) -> None:
    """Writes into the image, which gets longer as it has to, with zeros between."""
    if data and len(image) < offset:
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data


def resize(image: bytearray, size: int, *, cut: bool) -> None:
    """Makes the image at least `size` bytes long, and with `cut` at most."""
    if len(image) < size:
        image.extend(bytes(size - len(image)))
    elif cut:
        del image[size:]


def sector_count(write: Write) -> int:
    """How many sectors of the device the write touches."""
    if not write.data:
        return 0
    return (write.offset + len(write.data) - 1) // SECTOR_BYTES - write.offset // SECTOR_BYTES + 1


def sector_range(write: Write, sector: int) -> tuple[int, int]:
    """What of the write's data is in the `sector`-th of the sectors that it touches."""
    start = (write.offset // SECTOR_BYTES + sector) * SECTOR_BYTES - write.offset
    return max(0, start), min(len(write.data), start + SECTOR_BYTES)
