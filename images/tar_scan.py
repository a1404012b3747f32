"""Reading an archive once from its start: many small pieces out of few large reads.

Invariants: memory is one buffer of at most `CHUNK_BYTES_MAX`, or one piece if that is longer.
What is skipped is not read, as far as large reads pay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from capstore.images.device import BlockDevice
from capstore.schema.errors import Corrupt
from capstore.schema.limits import KIB, MIB

CHUNK_BYTES_MIN: Final = 16 * KIB
CHUNK_BYTES_MAX: Final = 1 * MIB
# Up to so many bytes for each piece that is taken, reading all of them is as fast as seeking.
_BYTES_PER_PIECE_MAX: Final = 64 * KIB

Progress = Callable[[int], None]


def no_progress(offset: int) -> None:
    """Tells nobody that the scan has come to `offset`."""


class Scanner:
    """Pieces of `device` by ascending offsets; `progress` is called with each read's offset."""

    def __init__(self, device: BlockDevice, progress: Progress) -> None:
        self.size = device.size()
        self._device = device
        self._progress = progress
        self._start = 0
        self._buffer = b""
        self._chunk = CHUNK_BYTES_MIN
        self._taken = 1

    def take(self, offset: int, length: int) -> bytes:
        """The `length` bytes at `offset`; fewer at the end.  Raises what the device raises."""
        at = offset - self._start
        end = at + length
        if at >= 0 and end <= len(self._buffer):
            self._taken += 1
            return self._buffer[at:end]
        return self._load(offset, min(length, self.size - offset))

    def _load(self, offset: int, length: int) -> bytes:
        if length <= 0:
            return b""
        self._progress(offset)
        # Short members are read together; of long ones little more than their headers.
        dense = self._taken * _BYTES_PER_PIECE_MAX >= self._chunk
        chunk = self._chunk * 2 if dense else self._chunk // 2
        self._chunk = max(CHUNK_BYTES_MIN, min(chunk, CHUNK_BYTES_MAX))
        self._taken = 0
        try:
            raw = self._device.read(offset, min(max(length, self._chunk), self.size - offset))
        except Corrupt:
            # The damage may be behind what is asked for.
            self._chunk = CHUNK_BYTES_MIN
            raw = self._device.read(offset, length)
        self._start, self._buffer = offset, raw
        return raw[:length]
