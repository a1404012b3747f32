"""Images that differ in few sectors, kept as numbers of sectors.

Of a crash there are thousands of images, each nearly the same as the next.  Here a sector's bytes
are kept once, under a number, and an image is a row of such numbers: copying one, comparing two and
telling them apart cost hundreds of times less than with their bytes, and nothing is left to
checksums.

Invariants: a number stands for the same bytes as long as its `Sectors` are there; images are
compared and copied among those of the same `Sectors` only.  Behind the end of an image its last
sector is zeros.
"""

from __future__ import annotations

from array import array
from typing import Final

from capstore.images.faults_log import SECTOR_BYTES
from capstore.schema.nodes import Buffer

_ZEROS: Final = bytes(SECTOR_BYTES)
# An unsigned number of four bytes.
_TYPE: Final = "I"


class Sectors:
    """Sectors by their numbers; zeros are number 0."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {_ZEROS: 0}
        self.contents: list[bytes] = [_ZEROS]

    def __len__(self) -> int:
        return len(self.contents)

    def numbers_of(self, data: bytes) -> array[int]:
        """The numbers of the sectors of `data`, the last of which is filled up with zeros."""
        known, contents = self._numbers, self.contents
        found = array(_TYPE)
        for at in range(0, len(data), SECTOR_BYTES):
            sector = data[at : at + SECTOR_BYTES]
            number = known.get(sector)
            if number is None:
                # The last one of all may be short.
                sector = sector.ljust(SECTOR_BYTES, b"\0")
                number = known.setdefault(sector, len(contents))
                if number == len(contents):
                    contents.append(sector)
            found.append(number)
        return found


class SectorImage:
    """An image: `numbers` of its sectors, `length` in bytes."""

    __slots__ = ("length", "numbers", "sectors")

    def __init__(self, sectors: Sectors, data: Buffer = b"") -> None:
        self.sectors = sectors
        self.length = len(data)
        self.numbers = sectors.numbers_of(bytes(data))

    def __repr__(self) -> str:
        return f"SectorImage({self.length} bytes)"

    def __len__(self) -> int:
        return self.length

    def __bytes__(self) -> bytes:
        return self.read(0, self.length)

    @property
    def key(self) -> bytes:
        """Equal for equal images, and for no others."""
        return self.length.to_bytes(8, "little") + self.numbers.tobytes()

    def copy(self) -> SectorImage:
        """The same image, to be changed by itself."""
        copy = SectorImage.__new__(SectorImage)
        copy.sectors, copy.length, copy.numbers = self.sectors, self.length, self.numbers[:]
        return copy

    def read(self, offset: int, length: int) -> bytes:
        """The bytes there are of `length` at `offset`."""
        end = min(offset + length, self.length)
        first, last = span(offset, end - offset)
        raw = self._sectors_between(first, last)
        start = first * SECTOR_BYTES
        return raw if end - offset == len(raw) else raw[offset - start : end - start]

    def _sectors_between(self, first: int, last: int) -> bytes:
        return b"".join(map(self.sectors.contents.__getitem__, self.numbers[first:last]))

    def write(self, offset: int, data: bytes, numbers: array[int] | None = None) -> None:
        """Writes `data`; the image gets longer as it has to, with zeros between.

        `numbers` are those of the sectors of `data`, where they are known.
        """
        if not data:
            return
        end = offset + len(data)
        if end > self.length:
            self.resize(end)
        first, last = span(offset, len(data))
        if offset % SECTOR_BYTES or (end % SECTOR_BYTES and end < self.length):
            start = first * SECTOR_BYTES
            raw = bytearray(self._sectors_between(first, last))
            raw[offset - start : end - start] = data
            numbers = self.sectors.numbers_of(bytes(raw))
        elif numbers is None:
            numbers = self.sectors.numbers_of(data)
        self.numbers[first:last] = numbers

    def resize(self, size: int) -> None:
        """Cuts the image, or extends it with zeros."""
        count = -(-size // SECTOR_BYTES)
        if size >= self.length:
            self.numbers.extend([0] * (count - len(self.numbers)))
        else:
            del self.numbers[count:]
            if inside := size % SECTOR_BYTES:
                kept = self.sectors.contents[self.numbers[-1]][:inside]
                self.numbers[-1] = self.sectors.numbers_of(kept)[0]
        self.length = size


def span(offset: int, length: int) -> tuple[int, int]:
    """The first of the sectors that `length` bytes at `offset` touch, and the one behind them."""
    if length <= 0:
        return offset // SECTOR_BYTES, offset // SECTOR_BYTES
    return offset // SECTOR_BYTES, -(-(offset + length) // SECTOR_BYTES)
