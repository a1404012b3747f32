"""Buffers that reads pass through on their way into a message.

Invariants: a buffer is lent to one call at a time, and comes back when the call has ended; by the
node protocol nobody writes to it after that.  At most `_KEPT_MAX` are kept.

Why not read into the message itself: pycapnp 2.2's writable view of a message leaks a reference
each time, and memory fresh from the kernel costs more page by page than the copy does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from capstore.schema.limits import KIB, TRANSFER_BYTES_MAX

_KEPT_MAX = 16
# Below this the allocator has memory at hand.
_SMALL_BYTES = 64 * KIB

_kept: list[bytearray] = []


@contextmanager
def lent(size: int) -> Iterator[memoryview]:
    """A buffer of `size` bytes, at most `TRANSFER_BYTES_MAX`, with anything in it."""
    if size <= _SMALL_BYTES:
        yield memoryview(bytearray(size))
        return
    buffer = _kept.pop() if _kept else bytearray(TRANSFER_BYTES_MAX)
    try:
        yield memoryview(buffer)[:size]
    finally:
        if len(_kept) < _KEPT_MAX:
            _kept.append(buffer)
