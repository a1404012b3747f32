"""Where DEFLATE blocks begin, which is where decompression can begin, found by indexed_gzip.

Invariants:

* What is found here is a hint: the walk of a gzip file tries each before it relies on it, and goes
  on without where there is none.  Whatever the library raises ends the hints, and nothing else.
* The library is asked for one stretch of `_STRETCH_BYTES` of the compressed file at a time, since
  it keeps a window of 32 KiB for each start that it finds; it never sees an index that was
  stored, for it does not survive a forged one.
* To begin at a bit in the middle of a byte, empty DEFLATE blocks are put before it that fill the
  bits up to there (`aligned`); so both the library and zlib can begin anywhere.
"""

from __future__ import annotations

import io
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import indexed_gzip  # type: ignore[import-untyped]  # it has no annotations

from capstore.images.compressed_stream import Source
from capstore.schema.limits import KIB, MIB

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Starts are about so far apart in the decompressed bytes.
SPACING_BYTES: Final = 512 * KIB
# DEFLATE expands 1032 times at most: 4 MiB give at most 8256 starts, with 258 MiB of windows.
_STRETCH_BYTES: Final = 4 * MIB
# Less than this holds at most about as much as `SPACING_BYTES`.
_WORTHWHILE_BYTES: Final = 512
_READ_BYTES: Final = 64 * KIB
_HEADER: Final = b"\x1f\x8b\x08" + bytes(6) + b"\xff"

# The library's export: "GZIDX", version, flags, sizes, spacing, window size, number of points;
# then the points (compressed and decompressed offset, bits used of the byte before, has a window).
_EXPORT_HEADER: Final = struct.Struct("<5sBBQQIII")
_EXPORT_POINT: Final = struct.Struct("<QQBB")

# Its own exceptions are OSErrors and ValueErrors.
_ERRORS: Final = (OSError, ValueError, EOFError, MemoryError)


@dataclass(frozen=True, slots=True)
class BlockStart:
    """A block begins at `bit` (from the lowest) of the byte `source`, its bytes at `content`."""

    content: int
    source: int
    bit: int = 0


def _fill(bit: int) -> tuple[int, int]:
    """Empty DEFLATE blocks whose length in bits is `bit` modulo 8: (the bits, their number).

    An empty block of fixed codes has 10 bits.  For an odd number one of dynamic codes goes first,
    with 91 bits (RFC 1951, section 3.2.7): code lengths for 1 and 18 alone, one code for the end
    of block, two for distances.
    """
    bits = length = 0

    def put(value: int, width: int) -> None:
        nonlocal bits, length
        bits |= value << length
        length += width

    if bit % 2:
        put(0b100, 3)  # not the last block; dynamic codes
        put(0, 5)  # 257 literal and length codes
        put(1, 5)  # 2 distance codes
        put(14, 4)  # 18 code length codes, in the order of the RFC: 18 is the third, 1 the last
        for index in range(18):
            put(index in (2, 17), 3)
        # Canonical codes of one bit: 0 for the length 1, 1 for a run of zeros.
        put(0b1 | (138 - 11) << 1, 8)
        put(0b1 | (118 - 11) << 1, 8)
        put(0, 3)  # the end of block and both distances have codes of one bit
        put(0, 1)  # the end of block
    while length % 8 != bit:
        put(0b010, 10)
    return bits, length


_FILLS: Final = tuple(_fill(bit) for bit in range(8))


def aligned(first: int, bit: int) -> bytes:
    """What DEFLATE data that begins at `bit` of the byte `first` begins with, when whole bytes
    are needed: empty blocks, and the rest of `first` behind them."""
    bits, length = _FILLS[bit]
    return (bits | first >> bit << length).to_bytes(length // 8 + 1, "little")


class _Stretch(io.RawIOBase):
    """A gzip file for the library: `head`, then the compressed file from `start` to `end`."""

    def __init__(self, source: Source, head: bytes, start: int, end: int) -> None:
        self._source = source
        self._head = head
        self._start = start
        self.size = len(head) + end - start
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        length = self.size - self._at if size < 0 else min(size, self.size - self._at)
        if length <= 0:
            return b""
        data = self._head[self._at : self._at + length]
        if not data:
            data = self._source.read(self._start + self._at - len(self._head), length)
        self._at += len(data)
        return data


class _Head(io.RawIOBase):
    """Keeps what is written before the windows, and lets those go."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._wanted = _EXPORT_HEADER.size

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        if len(self.data) < self._wanted:
            self.data += data
            if self._wanted == _EXPORT_HEADER.size <= len(self.data):
                self._wanted += _EXPORT_HEADER.unpack_from(self.data)[-1] * _EXPORT_POINT.size
        return len(data)


class BlockStarts:
    """The starts ahead of a walk; the walk says where it is whenever it could begin there."""

    def __init__(self, source: Source) -> None:
        # A reader of its own, for it goes ahead of the walk.
        self._source = source.again()
        self._ahead: deque[BlockStart] = deque()
        self._surveyed = 0
        self._next: tuple[BlockStart, bytes] | None = None

    def at_member(self, here: BlockStart) -> None:
        """A member's blocks begin at `here`."""
        self._drop(here.content)
        # The survey of earlier members went far enough into this one to see what it is like.
        seen = here.source + _STRETCH_BYTES // 4 < self._surveyed
        self._next = None if self._ahead or seen else (here, b"")

    def after(self, content: int) -> BlockStart | None:
        """The first start that is at `content` or behind it, as far as is known."""
        if self._next and content - self._next[0].content >= SPACING_BYTES // 2:
            # Not before: small members have no starts that are of use.
            self._survey(*self._next)
            self._next = None
        self._drop(content - 1)
        return self._ahead[0] if self._ahead else None

    def reached(self, here: BlockStart, window: bytes) -> None:
        """The walk is at `here`, with up to 32 KiB in `window` before it."""
        self._drop(here.content)
        if not self._ahead:
            self._next = (here, window)

    def _drop(self, content: int) -> None:
        while self._ahead and self._ahead[0].content <= content:
            self._ahead.popleft()

    def _survey(self, here: BlockStart, window: bytes) -> None:
        end = min(self._source.size, here.source + _STRETCH_BYTES)
        if end - here.source < _WORTHWHILE_BYTES:
            return
        self._surveyed = end
        head = _HEADER
        if window:
            size = len(window).to_bytes(2, "little")
            head += b"\0" + size + bytes(byte ^ 0xFF for byte in size) + window
        first = self._source.read(here.source, 1)[0]
        head += aligned(first, here.bit)
        stretch = _Stretch(self._source, head, here.source + 1, end)
        # The byte that holds the first bit is the last one of the head.
        shift = here.source + 1 - len(head)
        for offset, content, bits in _starts(stretch):
            start = BlockStart(
                here.content + content - len(window),
                offset + shift - (bits > 0),
                -bits % 8,
            )
            if start.content > here.content and here.source < start.source < end:
                self._ahead.append(start)


def _starts(stretch: _Stretch) -> Iterator[tuple[int, int, int]]:
    """(compressed offset, decompressed offset, bits of the byte before), ascending."""
    export = _Head()
    # Most stretches end in the middle of a member, which is an error to it.
    try:
        with indexed_gzip.IndexedGzipFile(
            fileobj=stretch,
            spacing=SPACING_BYTES,
            readbuf_size=_READ_BYTES,
            skip_crc_check=True,
        ) as file:
            with suppress(*_ERRORS):
                file.build_full_index()
            file.export_index(fileobj=export)
    except _ERRORS:
        return
    last = 0
    for row in _points(bytes(export.data)):
        offset, content, bits, has_window = row
        # The library also notes where members begin, and the end of the stretch.
        if has_window and bits < 8 and content > last and offset < stretch.size:
            last = content
            yield offset, content, bits


def _points(export: bytes) -> Iterator[tuple[int, int, int, int]]:
    if len(export) < _EXPORT_HEADER.size:
        return
    count = _EXPORT_HEADER.unpack_from(export)[-1]
    end = _EXPORT_HEADER.size + count * _EXPORT_POINT.size
    if len(export) < end:
        return
    for row in _EXPORT_POINT.iter_unpack(export[_EXPORT_HEADER.size : end]):
        yield row[0], row[1], row[2], row[3]
