"""bzip2 files: streams of blocks that begin at any bit, each block for itself.

Invariants:

* A point is the start of a block; its state is the bit in the byte, and the stream's level.
* A block is decoded by libbz2 as the only one of a stream that is made for it, so its CRC is
  verified; where it ends is found by looking for the next block or the end of the stream.  Should
  the 48 bits that mark these stand inside a block by chance (or by malice), that block does not
  decode, and the search goes on behind them, a few times.
* The walk verifies the CRC that combines those of the blocks at the end of each stream.
"""

from __future__ import annotations

import bz2
from collections.abc import Generator, Iterator
from typing import Final

from capstore.images.compressed_stream import (
    VERIFIED,
    Codec,
    Cut,
    Event,
    Point,
    Source,
    pump,
)
from capstore.schema.errors import Corrupt
from capstore.schema.limits import KIB, MIB

MAGIC: Final = b"BZh"
_BLOCK_MAGIC: Final = 0x314159265359
_END_MAGIC: Final = 0x177245385090
_MAGIC_BITS: Final = 48
_CRC_BITS: Final = 32
_LEVELS: Final = b"123456789"
# A block has at most 900,000 symbols of at most 20 bits and small tables.
_BLOCK_BYTES_MAX: Final = 4 * MIB
_FIRST_READ_BYTES: Final = 4 * KIB
_FALSE_ENDS_MAX: Final = 4


def _needles() -> list[tuple[bytes, int, int]]:
    """Both marks at each bit of a byte: (the whole bytes in it, the bit, bits before them)."""
    needles = []
    for magic in (_BLOCK_MAGIC, _END_MAGIC):
        for bit in range(8):
            before = -bit % 8
            whole = (_MAGIC_BITS - before) // 8
            after = _MAGIC_BITS - before - 8 * whole
            bits = (magic >> after) & ((1 << 8 * whole) - 1)
            needles.append((bits.to_bytes(whole), magic, before))
    return needles


_NEEDLES: Final = _needles()


class Bz2Codec(Codec):
    """bzip2."""

    kind = "bz2"

    def walk(self, source: Source) -> Iterator[Event]:
        at = 0
        while at < source.size:
            head = source.read(at, 4)
            if at and not head.startswith(MAGIC[: len(head)]) and source.only_zeros(at):
                return
            level = _level(head, at)
            combined = 0
            bit = 8 * at + 32
            while _bits(source, bit, _MAGIC_BITS, "a block") == _BLOCK_MAGIC:
                crc = _bits(source, bit + _MAGIC_BITS, _CRC_BITS, "a block")
                combined = (combined << 1 | combined >> 31) & 0xFFFFFFFF ^ crc
                yield Point(bit // 8, bytes([bit % 8, level]))
                bit = yield from _block(source, bit, level, crc)
                yield VERIFIED
            at = _stream_end(source, bit, combined)

    def decode(self, source: Source, point: Point) -> Iterator[bytes]:
        if len(point.state) != 2:
            raise Corrupt("no point in a bzip2 stream")
        shift, level = point.state
        bit = 8 * point.source + shift
        while True:
            crc = _bits(source, bit + _MAGIC_BITS, _CRC_BITS, "a block")
            bit = yield from _block(source, bit, level, crc)
            while _bits(source, bit, _MAGIC_BITS, "a block") == _END_MAGIC:
                at = -(-(bit + _MAGIC_BITS + _CRC_BITS) // 8)
                level = _level(source.read(at, 4), at)
                bit = 8 * at + 32


def _level(head: bytes, at: int) -> int:
    if not head.startswith(MAGIC[: len(head)]):
        raise Corrupt(f"no bzip2 stream at offset {at}")
    if len(head) < 4:
        raise Cut(f"the stream header at offset {at} is cut off")
    if head[3] not in _LEVELS:
        raise Corrupt(f"the stream header at offset {at} has no level")
    return head[3]


def _bits(source: Source, bit: int, count: int, what: str) -> int:
    """The `count` bits from `bit` of the file on, as a number."""
    start, end = bit // 8, -(-(bit + count) // 8)
    number = int.from_bytes(source.exactly(start, end - start, what))
    return number >> (8 * end - bit - count) & ((1 << count) - 1)


def _stream_end(source: Source, bit: int, combined: int) -> int:
    """Checks the end of a stream; returns the offset behind it."""
    if _bits(source, bit, _MAGIC_BITS, "the stream's end") != _END_MAGIC:
        raise Corrupt(f"neither a block nor the stream's end at offset {bit // 8}")
    if _bits(source, bit + _MAGIC_BITS, _CRC_BITS, "the stream's end") != combined:
        raise Corrupt(f"the CRC of the stream that ends at offset {bit // 8} is wrong")
    return -(-(bit + _MAGIC_BITS + _CRC_BITS) // 8)


def _block(source: Source, bit: int, level: int, crc: int) -> Generator[bytes, None, int]:
    """The content of the block at `bit`; returns the bit behind it."""
    what = f"the bzip2 block at offset {bit // 8}"
    end = bit
    for _ in range(_FALSE_ENDS_MAX):
        end = _find_mark(source, max(end + 1, bit + _MAGIC_BITS + _CRC_BITS), bit, what)
        stream = _lone_stream(source, bit, end, level, crc)
        decompressor = bz2.BZ2Decompressor()
        some = False
        try:
            for piece in pump(decompressor, iter([stream]), (OSError, ValueError), what):
                some = True
                yield piece
        except Corrupt:
            # libbz2 reads a block to its end before it gives anything of it.
            if some:
                raise
            continue
        if decompressor.eof and not decompressor.unused_data:
            return end
        if some:
            break
    raise Corrupt(f"{what} is damaged")


def _lone_stream(source: Source, bit: int, end: int, level: int, crc: int) -> bytes:
    """A stream with nothing but the block from `bit` to `end`."""
    body = _bits(source, bit, end - bit, "a block")
    stream = int.from_bytes(MAGIC + bytes([level]))
    stream = stream << (end - bit) | body
    stream = (stream << _MAGIC_BITS | _END_MAGIC) << _CRC_BITS | crc
    length = 32 + end - bit + _MAGIC_BITS + _CRC_BITS
    return (stream << -length % 8).to_bytes(-(-length // 8))


def _find_mark(source: Source, start: int, block: int, what: str) -> int:
    """The first bit from `start` on where a block or the stream's end begins."""
    length = _FIRST_READ_BYTES
    limit = block // 8 + _BLOCK_BYTES_MAX
    while True:
        # One byte before: a mark may begin inside it.
        offset = max(0, start // 8 - 1)
        data = source.read(offset, length)
        found = _first_mark(data, start - 8 * offset)
        if found is not None:
            return 8 * offset + found
        if offset + len(data) >= source.size:
            raise Cut(f"{what} is cut off")
        if offset + length > limit:
            raise Corrupt(f"{what} has no end")
        length *= 4


def _first_mark(data: bytes, start: int) -> int | None:
    """The first bit of `data` from `start` on where a mark is."""
    best: int | None = None
    limit = len(data)
    for needle, magic, before in _NEEDLES:
        at = max(0, (start + before) // 8 - 1)
        while (at := data.find(needle, at, limit)) >= 0:
            bit = 8 * at - before
            if bit >= start and _is_mark(data, bit, magic):
                if best is None or bit < best:
                    best = bit
                    limit = min(limit, at + 8)
                break
            at += 1
    return best


def _is_mark(data: bytes, bit: int, magic: int) -> bool:
    first, end = bit // 8, -(-(bit + _MAGIC_BITS) // 8)
    if end > len(data):
        return False
    number = int.from_bytes(data[first:end]) >> (8 * end - bit - _MAGIC_BITS)
    return number & ((1 << _MAGIC_BITS) - 1) == magic
