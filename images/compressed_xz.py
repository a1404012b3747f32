"""xz files (The .xz File Format 1.2.1): streams of blocks, each stream with its index.

Invariants:

* A point is the start of a block; its state is the stream header, which says what check the
  blocks have.
* A block is decoded by liblzma as the first of a stream of its own, and liblzma verifies its
  check.  Where it ends is found without decoding: the last filter is always LZMA2, whose chunks
  say how long they are.
* The walk verifies the stream's index and footer against the blocks that it saw.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain
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
from capstore.schema.limits import DECODER_MEMORY_BYTES_MAX

MAGIC: Final = b"\xfd7zXZ\x00"
_FOOTER_MAGIC: Final = b"YZ"
# The size of the check of each type (section 2.1.1.2).
_CHECK_BYTES: Final = (0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64)
_STREAM_HEADER_BYTES: Final = 12
_VARINT_BYTES_MAX: Final = 9


class XzCodec(Codec):
    """xz."""

    kind = "xz"

    def walk(self, source: Source) -> Iterator[Event]:
        at = 0
        while at < source.size:
            if at and (after := _padding_end(source, at)) is not None:
                at = after
                continue
            at = yield from _stream(source, at)

    def decode(self, source: Source, point: Point) -> Iterator[bytes]:
        at, header = point.source, point.state
        while at < source.size:
            if source.read(at, 1) != b"\0":
                block = _find_block(source, at, header)
                yield from _decoded(source, block, header)
                at = block.end
                continue
            # The index and the footer were verified by the walk; only their length matters.
            end = source.zeros_end(_index_end(source, at) + _STREAM_HEADER_BYTES)
            if end >= source.size:
                return
            header = _stream_header(source, end)
            at = end + _STREAM_HEADER_BYTES


def _padding_end(source: Source, at: int) -> int | None:
    """Where the stream padding at `at` ends, None if there is none."""
    end = source.zeros_end(at)
    # Zeros that end with the file, a few short of four, are not the format, but harmless.
    if (end - at) % 4 and end < source.size:
        raise Corrupt(f"the stream padding at offset {at} is no multiple of four zeros")
    return end if end > at else None


def _stream_header(source: Source, at: int) -> bytes:
    header = source.read(at, _STREAM_HEADER_BYTES)
    if not header.startswith(MAGIC[: len(header)]):
        raise Corrupt(f"no xz stream at offset {at}")
    if len(header) < _STREAM_HEADER_BYTES:
        raise Cut(f"the stream header at offset {at} is cut off")
    if zlib.crc32(header[6:8]) != int.from_bytes(header[8:], "little"):
        raise Corrupt(f"the stream header at offset {at} does not match its CRC32")
    if header[6] or header[7] > 15:
        raise Corrupt(f"the stream header at offset {at} has unknown flags")
    return header


@dataclass(slots=True)
class _Records:
    """What the index of a stream has to say of the blocks that were seen."""

    count: int = 0
    size: int = 0
    crc: int = 0

    def add(self, unpadded: int, content: int) -> None:
        record = _varint(unpadded) + _varint(content)
        self.count += 1
        self.size += len(record)
        self.crc = zlib.crc32(record, self.crc)


def _stream(source: Source, at: int) -> Generator[Event, None, int]:
    """The stream at `at`; returns where it ends."""
    header = _stream_header(source, at)
    at += _STREAM_HEADER_BYTES
    records = _Records()
    while source.exactly(at, 1, "a block") != b"\0":
        yield Point(at, header)
        block = _find_block(source, at, header)
        yield from _decoded(source, block, header)
        yield VERIFIED
        records.add(block.unpadded, block.content)
        at = block.end
    end = _check_index(source, at, records)
    _check_footer(source, end, end - at, header)
    return end + _STREAM_HEADER_BYTES


@dataclass(slots=True)
class _Block:
    """A block from `start` to `end`; `cut` if the file ends before it does."""

    start: int
    end: int
    unpadded: int
    content: int
    cut: bool


def _find_block(source: Source, at: int, header: bytes) -> _Block:
    size = source.exactly(at, 1, "a block header")[0]
    if not size:
        raise Corrupt(f"no block at offset {at}")
    length = (size + 1) * 4
    head = source.exactly(at, length, "the block header")
    if zlib.crc32(head[:-4]) != int.from_bytes(head[-4:], "little"):
        raise Corrupt(f"the block header at offset {at} does not match its CRC32")
    end, content, cut = _chunks_end(source, at + length)
    check = _CHECK_BYTES[header[7] & 15]
    padded = end + -(end - at) % 4 + check
    cut = cut or padded > source.size
    return _Block(at, min(padded, source.size), end - at + check, content, cut)


def _chunks_end(source: Source, at: int) -> tuple[int, int, bool]:
    """Walks LZMA2 chunks: where they end, how much they hold, whether the file is cut off."""
    content = 0
    while head := source.read(at, 6):
        control = head[0]
        if control == 0:
            return at + 1, content, False
        if len(head) < 6:
            break
        if control >= 0x80:
            content += ((control & 0x1F) << 16) + int.from_bytes(head[1:3]) + 1
            # A chunk with new properties has one byte more.
            at += 5 + (control >= 0xC0) + int.from_bytes(head[3:5]) + 1
        elif control <= 2:
            length = int.from_bytes(head[1:3]) + 1
            content += length
            at += 3 + length
        else:
            raise Corrupt(f"no LZMA2 chunk at offset {at}")
    return source.size, content, True


def _decoded(source: Source, block: _Block, header: bytes) -> Iterator[bytes]:
    what = f"the xz block at offset {block.start}"
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=DECODER_MEMORY_BYTES_MAX)
    chunks = chain([header], source.chunks(block.start, block.end))
    size = 0
    for piece in pump(decompressor, chunks, (lzma.LZMAError,), what):
        size += len(piece)
        yield piece
    if block.cut:
        raise Cut(f"{what} is cut off")
    if size != block.content:
        raise Corrupt(f"{what} is damaged")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(source: Source, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = 0
    for index in range(_VARINT_BYTES_MAX):
        byte = source.exactly(at + index, 1, "the index")[0]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise Corrupt(f"the index has no number at offset {at}")


def _check_index(source: Source, at: int, records: _Records) -> int:
    """Compares the index at `at` with the blocks; returns where it ends."""
    count, begin = _read_varint(source, at + 1)
    if count != records.count:
        raise Corrupt(f"the index at offset {at} has another number of blocks than the stream")
    crc = 0
    for chunk in source.chunks(begin, begin + records.size):
        crc = zlib.crc32(chunk, crc)
    end = begin + records.size
    padding = source.exactly(end, -(end - at) % 4, "the index")
    if crc != records.crc or any(padding):
        raise Corrupt(f"the index at offset {at} does not match the blocks")
    end += len(padding)
    stored = int.from_bytes(source.exactly(end, 4, "the index"), "little")
    crc = 0
    for chunk in source.chunks(at, end):
        crc = zlib.crc32(chunk, crc)
    if crc != stored:
        raise Corrupt(f"the index at offset {at} does not match its CRC32")
    return end + 4


def _index_end(source: Source, at: int) -> int:
    count, end = _read_varint(source, at + 1)
    for _ in range(2 * count):
        _, end = _read_varint(source, end)
    return end + -(end - at) % 4 + 4


def _check_footer(source: Source, at: int, index_bytes: int, header: bytes) -> None:
    footer = source.exactly(at, _STREAM_HEADER_BYTES, "the stream footer")
    body = (index_bytes // 4 - 1).to_bytes(4, "little") + header[6:8]
    if footer != zlib.crc32(body).to_bytes(4, "little") + body + _FOOTER_MAGIC:
        raise Corrupt(f"the stream footer at offset {at} does not match the stream")
