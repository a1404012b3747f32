"""The index of a compressed file: spans that can be decompressed each for itself.

Invariants:

* Spans are in order and cover the content without gaps; each has a point to begin at and the
  CRC32C of its bytes, taken when the format's own checksums were verified.
* A span holds at least `SPAN_BYTES` if there are points enough, and at most `SPAN_BYTES_MAX`,
  unless it is spooled: then it is as long as it must be.
* Of what contradicts its checksum or its format nothing is in the index, back to where the format
  last vouched for the content.  What a file that is cut off still holds is in it: no checksum
  speaks of that (`verified` says from where on).
* Exported, the index has a magic, the sizes and checksums of the compressed file's ends, and a
  CRC32C over everything.  What is imported is checked as if it came from a stranger.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Final

import google_crc32c

from capstore.images.checksums import crc32c
from capstore.images.compressed_spool import Spool
from capstore.images.compressed_stream import Codec, Cut, Event, Mark, Point, Source
from capstore.images.device import BlockDevice
from capstore.schema.errors import Corrupt, TooLarge
from capstore.schema.limits import KIB, SPAN_BYTES_MAX, STATES_BYTES_FLOOR

SPAN_BYTES: Final = 512 * KIB
# Many small streams with little in them make a span after so much of the compressed file, for a
# read decodes them all.
_SPAN_SOURCE_BYTES: Final = 512 * KIB
STATE_BYTES_MAX: Final = 48 * KIB
_DAMAGE_BYTES_MAX: Final = 1024
_END_BYTES: Final = 64 * KIB

# Magic, kind, size of the compressed file, CRC32C of its ends, size and verified size of the
# content, number of spans, bytes of the damage's text, bytes of all states.
_HEADER: Final = struct.Struct("<8s4sQIQQIIQ")
_MAGIC: Final = b"CAPZIDX1"
# Length, offset in the compressed file, CRC32C, bytes of state.
_SPAN: Final = struct.Struct("<QQII")
_SEAL: Final = struct.Struct("<I")


@dataclass(slots=True)
class Span:
    """`length` bytes of content from `start` on, to be decoded from `point`."""

    start: int
    length: int
    point: Point
    crc: int


@dataclass(slots=True)
class Index:
    """What is known of a compressed file; `spooled` maps starts of spans to spool offsets."""

    kind: str
    spans: list[Span]
    verified: int
    damage: str | None
    spooled: dict[int, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The bytes of content."""
        return self.spans[-1].start + self.spans[-1].length if self.spans else 0


class _Builder:
    """Makes spans of what a walk yields."""

    def __init__(self, spool: Spool, size_max: int) -> None:
        self._spool = spool
        self._size_max = size_max
        self._closed: list[Span] = []
        self._states = 0
        self._span: Span | None = None
        # What the open span holds, until it is clear that it need not be spooled.
        self._pending: list[bytes] = []
        self._spooled: dict[int, int] = {}
        self._size = 0
        # The state when the format last vouched for the content.
        self._vouched: tuple[int, Span | None, int] = (0, None, 0)

    def take(self, event: Event) -> None:
        if isinstance(event, Point):
            self._point(event)
        elif isinstance(event, Mark):
            span = self._span
            copy = span and Span(span.start, span.length, span.point, span.crc)
            self._vouched = (len(self._closed), copy, self._size)
        else:
            self._add(event)

    def _point(self, point: Point) -> None:
        span = self._span
        if span is not None and span.length:
            far = point.source - span.point.source >= _SPAN_SOURCE_BYTES
            if span.length < SPAN_BYTES and not far:
                return
            states = self._states + len(span.point.state) + len(point.state)
            if states > STATES_BYTES_FLOOR + point.source:
                return
            self._close()
        self._span = Span(self._size, 0, point, 0)

    def _add(self, piece: bytes) -> None:
        span = self._span
        if span is None:
            raise Corrupt("the content begins with no point")
        if self._size + len(piece) > self._size_max:
            raise TooLarge(f"the decompressed data is more than {self._size_max} bytes")
        span.crc = int(google_crc32c.extend(span.crc, piece))
        span.length += len(piece)
        self._size += len(piece)
        if span.start in self._spooled:
            self._spool.append(piece)
            return
        self._pending.append(piece)
        if span.length > SPAN_BYTES_MAX:
            self._spooled[span.start] = self._spool.end
            for earlier in self._pending:
                self._spool.append(earlier)
            self._pending.clear()

    def _close(self) -> None:
        if self._span is not None and self._span.length:
            self._closed.append(self._span)
            self._states += len(self._span.point.state)
        self._span = None
        self._pending.clear()

    def finish(self, kind: str, damage: str | None, *, roll_back: bool) -> Index:
        count, span, verified = self._vouched
        if roll_back:
            del self._closed[count:]
            self._span = span
        self._close()
        if self._spooled:
            self._spool.finish()
        spooled = {
            span.start: self._spooled[span.start]
            for span in self._closed
            if span.start in self._spooled
        }
        return Index(kind, self._closed, verified, damage, spooled)


def build(codec: Codec, device: BlockDevice, spool: Spool, size_max: int) -> Index:
    """Decompresses and verifies the whole of `device` once.

    Raises `TooLarge` over `size_max` bytes of content or the spool's limit, and what the device
    raises.  Damage is noted in the index.
    """
    builder = _Builder(spool, size_max)
    damage: str | None = None
    roll_back = False
    try:
        for event in codec.walk(Source(device)):
            builder.take(event)
    except Cut as error:
        damage = error.message
    except Corrupt as error:
        damage, roll_back = error.message, True
    return builder.finish(codec.kind, damage, roll_back=roll_back)


def export(index: Index, device: BlockDevice) -> bytes:
    """The index of `device` as bytes, without what is spooled."""
    damage = (index.damage or "").encode()[:_DAMAGE_BYTES_MAX]
    states = b"".join(span.point.state for span in index.spans)
    rows = b"".join(
        _SPAN.pack(span.length, span.point.source, span.crc, len(span.point.state))
        for span in index.spans
    )
    head = _HEADER.pack(
        _MAGIC,
        index.kind.encode(),
        device.size(),
        _ends_sum(device),
        index.size,
        index.verified,
        len(index.spans),
        len(damage),
        len(states),
    )
    body = head + damage + rows + states
    return body + _SEAL.pack(crc32c(body))


def imported(data: bytes, kind: str, device: BlockDevice, size_max: int) -> Index:
    """The index that `export` made of the same device.

    Raises `Corrupt` for anything else; the caller then builds it anew.
    """
    if len(data) < _HEADER.size + _SEAL.size:
        raise Corrupt("the seek points are cut off")
    if crc32c(data[: -_SEAL.size]) != _SEAL.unpack_from(data, len(data) - _SEAL.size)[0]:
        raise Corrupt("the seek points do not match their checksum")
    magic, kind_, source, ends, size, verified, count, damaged, stated = _HEADER.unpack_from(data)
    rows_at = _HEADER.size + damaged
    states_at = rows_at + count * _SPAN.size
    if magic != _MAGIC or len(data) != states_at + stated + _SEAL.size:
        raise Corrupt("these are no seek points")
    if kind_.rstrip(b"\0") != kind.encode() or source != device.size():
        raise Corrupt("the seek points are of another file")
    if ends != _ends_sum(device):
        raise Corrupt("the seek points are of another file")
    rows = list(_SPAN.iter_unpack(data[rows_at:states_at]))
    _check_rows(rows, source, size, verified, stated, size_max)
    damage = data[_HEADER.size : rows_at].decode(errors="replace") if damaged else None
    return Index(kind, _spans(rows, data, states_at), verified, damage)


def _check_rows(
    rows: list[tuple[int, ...]], source: int, size: int, verified: int, stated: int, size_max: int
) -> None:
    sound = (
        sum(row[0] for row in rows) == size <= size_max
        and verified <= size
        and sum(row[3] for row in rows) == stated
        and all(row[0] > 0 and row[1] < source and row[3] <= STATE_BYTES_MAX for row in rows)
        and all(a[1] <= b[1] for a, b in pairwise(rows))
    )
    if not sound:
        raise Corrupt("the seek points do not fit the file")


def _spans(rows: Iterable[tuple[int, ...]], data: bytes, states_at: int) -> list[Span]:
    rows = list(rows)
    starts = accumulate((row[0] for row in rows), initial=0)
    states = accumulate((row[3] for row in rows), initial=states_at)
    return [
        Span(start, length, Point(source, data[at : at + state]), crc)
        for start, at, (length, source, crc, state) in zip(starts, states, rows, strict=False)
    ]


def _ends_sum(device: BlockDevice) -> int:
    """The CRC32C of the first and last bytes."""
    size = device.size()
    length = min(size, _END_BYTES)
    return crc32c(device.read(0, length) + device.read(size - length, length))
