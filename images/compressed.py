"""Compressed files (gzip, bzip2, xz, Zstandard) as read-only devices with random access.

Invariants:

* Opening decompresses and verifies the whole once, unless seek points of an earlier time are
  given; after that a read decompresses the span that it is in, and a few spans are kept.
* Every span that is decompressed again is compared with the CRC32C of the first time: what does
  not match is `Corrupt`, never a wrong byte.
* Spans longer than `SPAN_BYTES_MAX` (an `xz` or `zstd` file is often one block or frame) are
  decompressed into a spool, once, and read from there.
* Memory is bounded, whatever the file holds: `SPAN_CACHE_BYTES_MAX` of spans, one span for each
  thread that reads, the seek points, and what the decompressors are allowed.

``docs/spec/compressed.md`` says more, and which library does what.
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import google_crc32c

from capstore.images import compressed_bz2, compressed_gz, compressed_xz, compressed_zst
from capstore.images.compressed_index import Index, Span, build, export, imported
from capstore.images.compressed_spool import Spool
from capstore.images.compressed_stream import Codec, Source
from capstore.images.device import BlockDevice
from capstore.images.devices_file import FileDevice
from capstore.schema.errors import Closed, Corrupt, ReadOnly, StorageError, Unsupported
from capstore.schema.limits import (
    CONTENT_BYTES_FLOOR,
    EXPANSION_MAX,
    SPAN_BYTES_MAX,
    SPAN_CACHE_BYTES_MAX,
    SPOOL_BYTES_FLOOR,
    SPOOL_EXPANSION_MAX,
)
from capstore.schema.nodes import Buffer

# Threads that want different spans seldom share a lock, those that want the same one always do.
_LOCKS: Final = 16
_HEAD_BYTES: Final = 16

_CODECS: Final[dict[str, Codec]] = {
    codec.kind: codec
    for codec in (
        compressed_gz.GzCodec(),
        compressed_bz2.Bz2Codec(),
        compressed_xz.XzCodec(),
        compressed_zst.ZstCodec(),
    )
}


def detect(head: bytes) -> str | None:
    """Which format a file is in that begins with `head`: ``gz``, ``bz2``, ``xz``, ``zst`` or None.

    Ten bytes are enough.
    """
    if head.startswith(compressed_gz.MAGIC + b"\x08"):
        return "gz"
    if head.startswith(compressed_bz2.MAGIC) and _is_bz2(head):
        return "bz2"
    if head.startswith(compressed_xz.MAGIC):
        return "xz"
    return "zst" if compressed_zst.is_frame(head) else None


def _is_bz2(head: bytes) -> bool:
    """Three letters alone are too little to tell it from a text."""
    marks = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
    return head[3:4] in b"123456789" and any(head[4:10] == mark[: len(head) - 4] for mark in marks)


def open_compressed(
    source: BlockDevice | str | Path,
    *,
    points: bytes | None = None,
    spool_directory: str | None = None,
    spool_bytes_max: int | None = None,
    content_bytes_max: int | None = None,
) -> CompressedDevice:
    """The content of the compressed file `source`; a device that is given is closed with it.

    `points` are what `export_points` gave for the same file: nothing is decompressed now, and
    `Corrupt` is raised if they are damaged or of another file; open it without them then.
    Otherwise the whole is decompressed and verified.

    Raises `Unsupported` for no known format, `Corrupt` if nothing of it can be read, `TooLarge`
    for more than `content_bytes_max` in all, for more than `spool_bytes_max` that would have to be
    spooled, and where a decompressor needs more memory than allowed, and what the file raises.
    The device that was given stays open then.
    """
    own = not isinstance(source, BlockDevice)
    device = source if isinstance(source, BlockDevice) else FileDevice.open(source, writable=False)
    try:
        codec = _codec(device)
        limit = content_bytes_max
        if limit is None:
            limit = max(CONTENT_BYTES_FLOOR, EXPANSION_MAX * device.size())
        default_max = max(SPOOL_BYTES_FLOOR, SPOOL_EXPANSION_MAX * device.size())
        spool = Spool(spool_directory, spool_bytes_max, default_max)
        try:
            if points is not None:
                index = imported(points, codec.kind, device, limit)
                if any(span.length > SPAN_BYTES_MAX for span in index.spans):
                    spool.prepare()
            else:
                index = build(codec, device, spool, limit)
                if index.damage and not index.size:
                    raise Corrupt(index.damage)
        except BaseException:
            spool.close()
            raise
    except BaseException:
        if own:
            device.close()
        raise
    return CompressedDevice(device, codec, index, spool)


def first_bytes(device: BlockDevice, length: int) -> bytes:
    """Up to `length` bytes that the content of the compressed file on `device` begins with.

    Fewer where the content ends, or damage ends it.  Raises `Unsupported` for no known format,
    `TooLarge` where a decompressor needs more memory than allowed, and what the device raises.
    """
    content = b""
    with suppress(Corrupt):
        for event in _codec(device).walk(Source(device)):
            if isinstance(event, bytes):
                content += event
            if len(content) >= length:
                break
    return content[:length]


def _codec(device: BlockDevice) -> Codec:
    kind = detect(device.read(0, min(_HEAD_BYTES, device.size())))
    if kind is None:
        raise Unsupported("no compressed format that is known")
    return _CODECS[kind]


class CompressedDevice(BlockDevice):
    """The content of a compressed file; `open_compressed` makes it."""

    def __init__(self, device: BlockDevice, codec: Codec, index: Index, spool: Spool) -> None:
        """Takes over `device` and `spool`."""
        self._device = device
        self._codec = codec
        self._index = index
        self._spool = spool
        self._starts = [span.start for span in index.spans]
        self._size = index.size
        self._closed = False
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached_bytes = 0
        self._cache_lock = threading.Lock()
        self._span_locks = [threading.Lock() for _ in range(_LOCKS)]
        # Spools one span after the other, each once, also when that fails.
        self._spool_lock = threading.Lock()
        self._failed: dict[int, str] = {}

    def __repr__(self) -> str:
        words = [self.kind, f"{self._size} bytes", f"{len(self._starts)} spans"]
        words += ["damaged"] * (self.damage is not None) + ["closed"] * self._closed
        return f"CompressedDevice({', '.join(words)})"

    @property
    def kind(self) -> str:
        """``gz``, ``bz2``, ``xz`` or ``zst``."""
        return self._index.kind

    @property
    def damage(self) -> str | None:
        """What ended the content before its time, None if nothing did."""
        return self._index.damage

    @property
    def verified(self) -> int:
        """How many bytes, from the first on, were decompressed to the end of what the format has
        checksums for, with nothing wrong (it may have none: ``zstd --no-check``).

        Less than the size only where the compressed file is cut off.
        """
        return self._index.verified

    def export_points(self) -> bytes:
        """The seek points for a later `open_compressed`; raises as reading the file does."""
        self.size()
        return export(self._index, self._device)

    def size(self) -> int:
        if self._closed:
            raise Closed("the device is closed")
        return self._size

    def read_into(self, offset: int, view: memoryview) -> None:
        view = view.cast("B")
        self.check_range(offset, len(view))
        done = 0
        while done < len(view):
            number = bisect.bisect_right(self._starts, offset + done) - 1
            span = self._index.spans[number]
            at = offset + done - span.start
            length = min(len(view) - done, span.length - at)
            self._read(number, span, at, view[done : done + length])
            done += length

    def read_now(self, offset: int, view: memoryview) -> bool:
        view = view.cast("B")
        self.check_range(offset, len(view))
        done = 0
        while done < len(view):
            number = bisect.bisect_right(self._starts, offset + done) - 1
            data = self._cached(number)
            if data is None:
                return False
            at = offset + done - self._starts[number]
            length = min(len(view) - done, len(data) - at)
            view[done : done + length] = memoryview(data)[at : at + length]
            done += length
        return True

    def write(self, offset: int, data: Buffer) -> None:
        self.check_range(offset, memoryview(data).nbytes)
        raise ReadOnly("compressed files are not written")

    def resize(self, size: int) -> None:
        self.size()
        raise ReadOnly("compressed files are not written")

    def flush(self) -> None:
        self.size()

    def close(self) -> None:
        with self._cache_lock:
            self._closed = True
            self._cache.clear()
            self._cached_bytes = 0
        self._spool.close()
        self._device.close()

    def _read(self, number: int, span: Span, at: int, view: memoryview) -> None:
        if span.length > SPAN_BYTES_MAX or span.start in self._index.spooled:
            self._spool.read_into(self._spooled(span) + at, view)
            return
        data = self._cached(number)
        if data is None:
            # Who waits here finds the span in the cache.
            with self._span_locks[number % _LOCKS]:
                data = self._cached(number)
                if data is None:
                    data = b"".join(self._decoded(span))
                    self._keep(number, data)
        view[:] = memoryview(data)[at : at + len(view)]

    def _cached(self, number: int) -> bytes | None:
        with self._cache_lock:
            data = self._cache.get(number)
            if data is not None:
                self._cache.move_to_end(number)
            return data

    def _keep(self, number: int, data: bytes) -> None:
        with self._cache_lock:
            if self._closed:
                raise Closed("the device is closed")
            self._cache[number] = data
            self._cached_bytes += len(data)
            while self._cached_bytes > SPAN_CACHE_BYTES_MAX:
                _, old = self._cache.popitem(last=False)
                self._cached_bytes -= len(old)

    def _spooled(self, span: Span) -> int:
        """Where in the spool the span is, after it has been put there."""
        with self._spool_lock:
            if span.start in self._failed:
                raise Corrupt(self._failed[span.start])
            offset = self._index.spooled.get(span.start)
            if offset is None:
                offset, used = self._spool.end, self._spool.used
                try:
                    for piece in self._decoded(span):
                        self._spool.append(piece)
                    self._spool.finish()
                except StorageError as error:
                    if isinstance(error, Corrupt):
                        self._failed[span.start] = error.message
                    with suppress(StorageError):
                        self._spool.cut(offset, used)
                    raise
                self._index.spooled[span.start] = offset
            return offset

    def _decoded(self, span: Span) -> Iterator[bytes]:
        """The pieces of the span; raises `Corrupt` behind the last if they are not what they were.

        So nothing may be given away before the end.
        """
        left = span.length
        crc = 0
        for more in self._codec.decode(Source(self._device), span.point):
            piece = more[:left]
            crc = int(google_crc32c.extend(crc, piece))
            left -= len(piece)
            yield piece
            if not left:
                break
        if left or crc != span.crc:
            raise Corrupt(f"the span at offset {span.start} of the content is not what it was")
