"""CRC32C (Castagnoli, RFC 3720), by google-crc32c.

Invariants: the argument may be any contiguous buffer; nothing of it is kept.
"""

from __future__ import annotations

import google_crc32c
import numpy as np

from capstore.schema.nodes import Buffer

# The library takes bytes at once and other buffers only through numpy, which costs a microsecond.
_COPIED_BYTES_MAX = 4096


def crc32c(data: Buffer) -> int:
    """The CRC32C of `data`."""
    if isinstance(data, bytes):
        return int(google_crc32c.value(data))
    view = memoryview(data)
    if view.nbytes <= _COPIED_BYTES_MAX:
        return int(google_crc32c.value(view.tobytes()))
    return int(google_crc32c.value(np.frombuffer(view, np.uint8)))
