"""gzip files (RFC 1952): members one after the other, each a DEFLATE stream (RFC 1951).

Invariants:

* A point is the start of a member, with an empty state, or a DEFLATE block's start inside one: its
  state is the bit in the byte, then the window of what came before, compressed.
* The walk verifies each member's CRC-32 and length.  It decompresses with zlib; where blocks begin,
  which zlib does not tell Python, `compressed_gz_points` knows, and each point is tried before
  it is used.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from typing import Final

from capstore.images.compressed_gz_points import BlockStart, BlockStarts, aligned
from capstore.images.compressed_stream import (
    PIECE_BYTES,
    VERIFIED,
    Codec,
    Cut,
    Event,
    Point,
    Source,
)
from capstore.schema.errors import Corrupt, TooLarge
from capstore.schema.limits import KIB

MAGIC: Final = b"\x1f\x8b"
WINDOW_BYTES: Final = 32 * KIB
# RFC 1952 has no bound for the name and the comment.
HEADER_TEXT_BYTES_MAX: Final = 128 * KIB
_FIXED_HEADER_BYTES: Final = 10
_TRAILER_BYTES: Final = 8
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT, _FRESERVED = 2, 4, 8, 16, 0xE0
_FIRST_READ_BYTES: Final = 2 * KIB
# How much of what a point gives is compared when it is tried.
_TRIAL_BYTES: Final = 256


class GzCodec(Codec):
    """gzip."""

    kind = "gz"

    def walk(self, source: Source) -> Iterator[Event]:
        at = 0
        starts = BlockStarts(source)
        walked = _Walked()
        while at < source.size:
            if at and source.read(at, 1) == b"\0" and source.only_zeros(at):
                return
            yield Point(at)
            at = yield from _member(source, at, starts, walked)
            yield VERIFIED

    def decode(self, source: Source, point: Point) -> Iterator[bytes]:
        at = point.source
        if point.state:
            inflater = _Inflater(source, at, point.state[0], _unpacked(point.state[1:]))
            yield from inflater.pieces()
            at = inflater.end() + _TRAILER_BYTES
        while at < source.size:
            inflater = _Inflater(source, _header_end(source, at))
            yield from inflater.pieces()
            at = inflater.end() + _TRAILER_BYTES


class _Walked:
    """The content that a walk has given, for the checks and windows."""

    def __init__(self) -> None:
        self.content = 0
        self.window = b""
        self.crc = 0
        self.size = 0

    def begin(self) -> None:
        """A member begins."""
        self.window, self.crc, self.size = b"", 0, 0

    def add(self, piece: bytes) -> None:
        self.crc = zlib.crc32(piece, self.crc)
        self.size += len(piece)
        self.content += len(piece)
        before = b"" if len(piece) >= WINDOW_BYTES else self.window
        self.window = (before + piece)[-WINDOW_BYTES:]

    def trailer(self) -> bytes:
        return self.crc.to_bytes(4, "little") + (self.size & 0xFFFFFFFF).to_bytes(4, "little")


def _member(
    source: Source, at: int, starts: BlockStarts, walked: _Walked
) -> Generator[Event, None, int]:
    """The member at `at`; returns where it ends."""
    begin = _header_end(source, at)
    inflater = _Inflater(source, begin)
    walked.begin()
    starts.at_member(BlockStart(walked.content, begin))
    while True:
        start = starts.after(walked.content)
        if start and start.content == walked.content:
            piece = inflater.piece(PIECE_BYTES)
            if _is_true(source, start, walked.window, piece):
                yield Point(start.source, _state(start, walked.window))
                starts.reached(start, walked.window)
            else:
                starts.after(walked.content + 1)
        else:
            limit = start.content - walked.content if start else PIECE_BYTES
            piece = inflater.piece(min(PIECE_BYTES, limit))
        if not piece:
            break
        walked.add(piece)
        yield piece
    end = inflater.end()
    if source.exactly(end, _TRAILER_BYTES, "the trailer of a member") != walked.trailer():
        raise Corrupt(f"the member at offset {at} does not match its CRC-32 and length")
    return end + _TRAILER_BYTES


def _is_true(source: Source, start: BlockStart, window: bytes, piece: bytes) -> bool:
    """Whether beginning at `start` gives `piece`, as far as that is looked at."""
    wanted = piece[:_TRIAL_BYTES]
    try:
        trial = _Inflater(source, start.source, start.bit, window)
        got = b""
        while len(got) < len(wanted) and (more := trial.piece(len(wanted) - len(got))):
            got += more
    except Corrupt:
        return False
    return got == wanted


def _state(start: BlockStart, window: bytes) -> bytes:
    # Level 1: windows of text halve, and there is one for each half MiB.
    return bytes([start.bit]) + zlib.compress(window, 1)


def _unpacked(packed: bytes) -> bytes:
    """The window of a state that may be forged."""
    try:
        window = zlib.decompressobj().decompress(packed, WINDOW_BYTES)
    except zlib.error:
        raise Corrupt("no window in a point") from None
    return window


class _Inflater:
    """A DEFLATE stream from the byte `at`, there from `bit`, with `window` before it."""

    def __init__(self, source: Source, at: int, bit: int = 0, window: bytes = b"") -> None:
        if bit > 7:
            raise Corrupt("no bit in a point")
        self._zlib = zlib.decompressobj(-15, zdict=window) if window else zlib.decompressobj(-15)
        self._chunks = source.chunks(at, source.size, _FIRST_READ_BYTES)
        self._fed = self._start = at
        self._tail = b""
        self._bit = bit

    def piece(self, limit: int) -> bytes:
        """Up to `limit` bytes more, none at the end of the stream."""
        while not self._zlib.eof:
            data = self._tail or self._next()
            try:
                piece = self._zlib.decompress(data, limit)
            except MemoryError:
                raise TooLarge("there is no memory to decompress with") from None
            except zlib.error:
                what = f"the DEFLATE stream at offset {self._start}"
                raise Corrupt(f"{what} is damaged before offset {self._fed}") from None
            self._tail = self._zlib.unconsumed_tail
            if piece:
                return piece
            if not data and not self._zlib.eof:
                raise Cut(f"the DEFLATE stream at offset {self._start} is cut off")
        return b""

    def _next(self) -> bytes:
        data = next(self._chunks, b"")
        if data and self._fed == self._start and self._bit:
            head = aligned(data[0], self._bit)
            self._fed += len(data)
            return head + data[1:]
        self._fed += len(data)
        return data

    def pieces(self) -> Iterator[bytes]:
        """All that is left."""
        while piece := self.piece(PIECE_BYTES):
            yield piece

    def end(self) -> int:
        """The offset behind the stream, at its end."""
        return self._fed - len(self._zlib.unused_data)


def _header_end(source: Source, at: int) -> int:
    """Checks the header of the member at `at`; returns where its data begins."""
    head = source.read(at, _FIXED_HEADER_BYTES)
    if not head.startswith(MAGIC[: len(head)]):
        raise Corrupt(f"no gzip member at offset {at}")
    if len(head) < _FIXED_HEADER_BYTES:
        raise Cut(f"the header of the member at offset {at} is cut off")
    flags = head[3]
    if head[2] != 8 or flags & _FRESERVED:
        raise Corrupt(f"the member at offset {at} has an unknown method or flags")
    end = at + _FIXED_HEADER_BYTES
    if flags & _FEXTRA:
        end += 2 + int.from_bytes(source.exactly(end, 2, "a header"), "little")
    for flag in (_FNAME, _FCOMMENT):
        if flags & flag:
            end = _text_end(source, end)
    if flags & _FHCRC:
        stored = int.from_bytes(source.exactly(end, 2, "a header"), "little")
        if zlib.crc32(source.exactly(at, end - at, "a header")) & 0xFFFF != stored:
            raise Corrupt(f"the header of the member at offset {at} does not match its CRC")
        end += 2
    return end


def _text_end(source: Source, at: int) -> int:
    length = _FIRST_READ_BYTES
    while (zero := (data := source.read(at, length)).find(b"\0")) < 0:
        if len(data) < length:
            raise Cut(f"the header text at offset {at} is cut off")
        if length >= HEADER_TEXT_BYTES_MAX:
            raise Corrupt(f"the header text at offset {at} has no end")
        length *= 2
    return at + zero + 1
