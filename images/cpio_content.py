"""The content of a member of a crc cpio archive, verified before it is given.

Invariants: no byte is given before the sum of all of them was found right.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from capstore.images.device import BlockDevice
from capstore.images.tree import Content
from capstore.schema.errors import Corrupt
from capstore.schema.limits import MIB

_PIECE_BYTES: Final = 1 * MIB


class SummedContent(Content):
    """`size` bytes at `offset` of `device`, whose sum modulo 2^32 is `checksum`.

    The first read reads all of them; one thread or several may do so.
    """

    def __init__(self, device: BlockDevice, size: int, offset: int, checksum: int) -> None:
        """Raises `Corrupt` for bytes outside the device."""
        if size < 0 or offset < 0 or offset + size > device.size():
            raise Corrupt(f"cpio content at offset {offset} is cut off")
        self.size = size
        self._device = device
        self._offset = offset
        self._checksum = checksum
        self._verified = False

    def read_into(self, offset: int, view: memoryview) -> int:
        got = self._clip(offset, view)
        if not self._verified:
            self._verify()
        if got:
            self._device.read_into(self._offset + offset, view[:got])
        return got

    def read_now(self, offset: int, view: memoryview) -> int | None:
        got = self._clip(offset, view)
        if not self._verified:
            return None
        if got and not self._device.read_now(self._offset + offset, view[:got]):
            return None
        return got

    def _verify(self) -> None:
        total = 0
        buffer = memoryview(bytearray(min(self.size, _PIECE_BYTES)))
        for at in range(0, self.size, _PIECE_BYTES):
            piece = buffer[: min(_PIECE_BYTES, self.size - at)]
            self._device.read_into(self._offset + at, piece)
            total += int(np.frombuffer(piece, np.uint8).sum(dtype=np.uint64))
        if total % (1 << 32) != self._checksum:
            raise Corrupt(f"cpio content at offset {self._offset} has a wrong checksum")
        self._verified = True
