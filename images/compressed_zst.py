"""Zstandard files (RFC 8878): frames one after the other, skippable ones among them.

Invariants: a point is the start of a frame.  A frame's own checksum, where it has one, and its
content size are verified by the library.  A frame may ask for a window of `_WINDOW_LOG_MAX` bits,
as the `zstd` command allows without further options.
"""

from __future__ import annotations

import sys
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

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"  # behind a byte from 0x50 to 0x5f
_SKIPPABLE_HEADER_BYTES: Final = 8
# Both are of RFC 8878, section 3.1.1.
_CHECKSUM_FLAG: Final = 4  # in the byte behind the magic
_CHECKSUM_BYTES: Final = 4
_WINDOW_LOG_MAX: Final = 27
_FIRST_READ_BYTES: Final = 2048


def is_frame(head: bytes) -> bool:
    """Whether a frame of either kind begins with `head`."""
    return head.startswith(MAGIC) or _is_skippable(head)


def _is_skippable(head: bytes) -> bool:
    return len(head) >= 4 and head[0] >> 4 == 5 and head[1:4] == _SKIPPABLE_MAGIC


class ZstCodec(Codec):
    """Zstandard."""

    kind = "zst"

    def walk(self, source: Source) -> Iterator[Event]:
        at = 0
        vouched = True
        while at < source.size:
            head = source.read(at, 4)
            if len(head) < 4 and not source.only_zeros(at):
                raise Cut(f"the frame at offset {at} is cut off")
            if not is_frame(head):
                # Four bytes too many may be a checksum, and the flag that announced it damaged.
                if not vouched and _is_boundary(source, at + _CHECKSUM_BYTES):
                    raise Corrupt(f"the zstd frame before offset {at} is damaged")
                yield VERIFIED
                if at and source.only_zeros(at):
                    return
                raise Corrupt(f"no zstd frame at offset {at}")
            yield Point(at)
            vouched = _is_skippable(head) or bool(source.read(at, 5)[-1] & _CHECKSUM_FLAG)
            at = yield from _frame(source, at)
            if vouched or _is_boundary(source, at):
                yield VERIFIED

    def decode(self, source: Source, point: Point) -> Iterator[bytes]:
        at = point.source
        while at < source.size:
            at = yield from _frame(source, at)


def _is_boundary(source: Source, at: int) -> bool:
    """Whether a frame may end at `at`: the file does, or another frame begins."""
    return at == source.size or is_frame(source.read(at, 4))


def _frame(source: Source, at: int) -> Generator[bytes, None, int]:
    """The content of the frame at `at`; returns where it ends."""
    if _is_skippable(source.read(at, 4)):
        head = source.exactly(at, _SKIPPABLE_HEADER_BYTES, "the skippable frame")
        end = at + _SKIPPABLE_HEADER_BYTES + int.from_bytes(head[4:], "little")
        if end > source.size:
            raise Cut(f"the skippable frame at offset {at} is cut off")
        return end
    what = f"the zstd frame at offset {at}"
    decompressor = zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
    )
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for chunk in source.chunks(at, source.size, _FIRST_READ_BYTES):
            taken += len(chunk)
            yield chunk

    yield from pump(decompressor, chunks(), (zstd.ZstdError,), what)
    if not decompressor.eof:
        raise Cut(f"{what} is cut off")
    return at + taken - len(decompressor.unused_data)
