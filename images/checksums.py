"""CRC32C (Castagnoli, RFC 3720), by google-crc32c, and the seals of records.

A seal is a CRC32C that is turned and shifted (the mask of LevelDB and of TFRecord): the CRC of
bytes that end with their own CRC is the same whatever they are, so a checksum of a table of such
records would be a checksum of nothing.

Invariants: the argument may be any contiguous buffer; nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import google_crc32c
import numpy as np
import numpy.typing as npt

from capstore.schema.nodes import Buffer

# The library takes bytes at once and other buffers only through numpy, which costs a microsecond.
_COPIED_BYTES_MAX = 4096


_MASK_SHIFT = 15
_MASK_DELTA = 0xA282EAD8
_MASK_BITS = 0xFFFFFFFF


def seal_of(body: bytes) -> int:
    """The seal of a record whose other bytes are `body`."""
    crc = int(google_crc32c.value(body))
    return (((crc >> _MASK_SHIFT) | (crc << 32 - _MASK_SHIFT)) + _MASK_DELTA) & _MASK_BITS


def seals_of(bodies: Iterable[bytes]) -> npt.NDArray[np.uint32]:
    """The seals of many records, for a fraction of what they cost one by one."""
    crcs = np.fromiter(map(google_crc32c.value, bodies), np.uint32)
    turned = crcs >> np.uint32(_MASK_SHIFT) | crcs << np.uint32(32 - _MASK_SHIFT)
    return turned + np.uint32(_MASK_DELTA)


def crc32c(data: Buffer) -> int:
    """The CRC32C of `data`."""
    if isinstance(data, bytes):
        return int(google_crc32c.value(data))
    view = memoryview(data)
    if view.nbytes <= _COPIED_BYTES_MAX:
        return int(google_crc32c.value(view.tobytes()))
    return int(google_crc32c.value(np.frombuffer(view, np.uint8)))
