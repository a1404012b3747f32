"""What the compressed formats have in common: walking a file once, and decoding from a point.

Invariants:

* A walk yields what a file holds, in order: a `Point` where decoding can begin, decompressed
  bytes, and `VERIFIED` where the format's own checksums have vouched for all bytes so far (or it
  has none).  It ends when the file does, by `Cut` where the file ends too early, by `Corrupt`
  where something is wrong.
* No piece of decompressed bytes is longer than `PIECE_BYTES`, so a bomb takes no memory.
* What libraries raise becomes `Corrupt`, or `TooLarge` where they need more memory than allowed.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from capstore.images.device import BlockDevice
from capstore.schema.errors import Corrupt, TooLarge
from capstore.schema.limits import KIB

# The most that one call to a decompressor gives.
PIECE_BYTES: Final = 256 * KIB
# What is read of the compressed file at once.
_READ_BYTES: Final = 256 * KIB
_ZEROS: Final = bytes(_READ_BYTES)


class Cut(Corrupt):
    """The compressed file ends in the middle of something."""


class Mark(enum.Enum):
    """What a walk yields beside points and bytes."""

    VERIFIED = "verified"


VERIFIED: Final = Mark.VERIFIED


@dataclass(frozen=True, slots=True)
class Point:
    """Decoding can begin at the byte `source` of the compressed file, given `state`."""

    source: int
    state: bytes = b""


Event = Point | bytes | Mark


class Source:
    """The compressed file, for one reader that goes forward in small steps: reads ahead."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self.size = device.size()
        self._start = 0
        self._buffer = b""

    def again(self) -> Source:
        """Another reader of the same file."""
        return Source(self._device)

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes at `offset`, fewer where the file ends before."""
        length = max(0, min(length, self.size - offset))
        at = offset - self._start
        if not 0 <= at <= len(self._buffer) - length:
            ahead = min(max(length, _READ_BYTES), self.size - offset)
            self._buffer = self._device.read(offset, ahead) if ahead > 0 else b""
            self._start, at = offset, 0
        return self._buffer[at : at + length]

    def exactly(self, offset: int, length: int, what: str) -> bytes:
        """As `read`; raises `Cut` where bytes are missing."""
        data = self.read(offset, length)
        if len(data) < length:
            raise Cut(f"{what} at offset {offset} is cut off")
        return data

    def chunks(self, offset: int, end: int, first: int = _READ_BYTES) -> Iterator[bytes]:
        """What is between `offset` and `end`, in pieces that grow from `first` bytes on.

        Small ones first, since what is behind the end of a small stream is read in vain.
        """
        while offset < end and (data := self.read(offset, min(first, end - offset))):
            yield data
            offset += len(data)
            first = min(2 * first, _READ_BYTES)

    def zeros_end(self, offset: int) -> int:
        """Where the zeros end that begin at `offset`, as tapes and block devices pad files."""
        for chunk in self.chunks(offset, self.size):
            if chunk != _ZEROS[: len(chunk)]:
                return offset + len(chunk) - len(chunk.lstrip(b"\0"))
            offset += len(chunk)
        return offset

    def only_zeros(self, offset: int) -> bool:
        """Whether nothing but zeros follows."""
        return self.zeros_end(offset) == self.size


class Codec(ABC):
    """One compressed format."""

    kind: str

    @abstractmethod
    def walk(self, source: Source) -> Iterator[Event]:
        """The whole file, verified; see above."""

    @abstractmethod
    def decode(self, source: Source, point: Point) -> Iterator[bytes]:
        """The bytes from `point` on, to the end of the file or to where one stops asking.

        Any point is safe: a forged one gives `Corrupt` or wrong bytes, which the caller has a
        checksum for.  Raises `Corrupt`, `TooLarge`, and what the device raises.
        """


class Decompressor(Protocol):
    """What the decompressors of bz2, lzma and zstd share."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def pump(
    decompressor: Decompressor,
    chunks: Iterator[bytes],
    errors: tuple[type[Exception], ...],
    what: str,
) -> Iterator[bytes]:
    """What `decompressor` makes of `chunks`, until either is at its end.

    `errors` are what the library raises for damage; `what` names the structure.
    """
    while not decompressor.eof:
        data = b""
        if decompressor.needs_input:
            data = next(chunks, b"")
            if not data:
                return
        try:
            piece = decompressor.decompress(data, PIECE_BYTES)
        except MemoryError:
            raise TooLarge(f"{what} needs more memory than there is") from None
        except errors as error:
            # Both liblzma and libzstd name the memory when their limit is what stopped them.
            if "memory" in str(error).lower():
                raise TooLarge(f"{what} needs more memory than allowed") from None
            raise Corrupt(f"{what} is damaged") from None
        if piece:
            yield piece
