"""Sparse members of tar archives: which bytes of the file stand where in the archive.

Invariants: a map is believed only if its regions ascend, do not overlap, lie inside the file and
add up to what the archive holds; anything else is `Corrupt`, and so is a region that begins in
the middle of a block, on whose place tars do not agree.

Source: the GNU tar manual, "Storing Sparse Files" (formats old GNU, 0.0, 0.1 and 1.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from capstore.images.tar_header import BLOCK_BYTES, number, padded
from capstore.images.tar_pax import Keywords, parse_decimal
from capstore.images.tar_scan import CHUNK_BYTES_MIN, Scanner
from capstore.schema.errors import Corrupt, StorageError, TooLarge, Unsupported
from capstore.schema.limits import SPARSE_MAP_BYTES_MAX, SPARSE_REGIONS_MAX

_ENTRY_BYTES: Final = 24
_HEADER_MAP: Final = slice(386, 482)
_HEADER_MORE_AT: Final = 482
_HEADER_REAL: Final = slice(483, 495)
_BLOCK_MAP: Final = slice(0, 504)
_BLOCK_MORE_AT: Final = 504
_SPARSE_KEYWORDS: Final = frozenset(
    b"GNU.sparse." + word for word in (b"size", b"realsize", b"map", b"numblocks", b"major")
)

Rows = list[tuple[int, int, int]]


def regions(numbers: Sequence[int], size: int, data: int, stored: int) -> Rows:
    """Extents of a file of `size` bytes from its map.

    `numbers` are offset and length of each region in turn; the regions' bytes stand at `data` in
    the archive, one behind another, `stored` bytes in all.  Raises `Corrupt`.
    """
    if len(numbers) % 2:
        raise Corrupt("its sparse map has a region without a length")
    rows: Rows = []
    at, end = data, 0
    for offset, length in zip(numbers[::2], numbers[1::2], strict=True):
        if offset < end or length > size - offset:
            raise Corrupt("its sparse map overlaps itself or exceeds the file")
        end = offset + length
        if not length:
            continue
        if (at - data) % BLOCK_BYTES:
            raise Corrupt("its sparse map has a region that begins within a block")
        rows.append((offset, length, at))
        at += length
    if stored not in (at - data, padded(at - data)):
        raise Corrupt("its sparse map does not add up to what the archive holds")
    return rows


class OldMap(NamedTuple):
    """What an old GNU header says: `regions` and `size` of the file, or `error`; where its map
    ends, as far as it was read, and the data begins."""

    regions: list[int]
    size: int
    end: int
    error: StorageError | None


def old_gnu_map(scanner: Scanner, offset: int) -> OldMap:
    """The map of the old GNU header at `offset`, with the blocks that continue it."""
    block = scanner.take(offset, BLOCK_BYTES)
    size = number(block[_HEADER_REAL])
    more = block[_HEADER_MORE_AT]
    end = offset + BLOCK_BYTES
    try:
        found = _entries(block[_HEADER_MAP])
        while more:
            block = scanner.take(end, BLOCK_BYTES)
            if len(block) != BLOCK_BYTES:
                raise Corrupt("its sparse map is cut off")
            end += BLOCK_BYTES
            found += _entries(block[_BLOCK_MAP])
            _check_count(len(found) // 2)
            more = block[_BLOCK_MORE_AT]
        if size is None or not 0 <= size < 1 << 63:
            raise Corrupt("its sparse map has no file size")
    except (Corrupt, TooLarge) as error:
        return OldMap([], 0, end, error)
    return OldMap(found, size, end, None)


def _entries(raw: bytes) -> list[int]:
    found: list[int] = []
    for at in range(0, len(raw), _ENTRY_BYTES):
        offset, length = raw[at : at + 12], raw[at + 12 : at + 24]
        if not length[0]:
            break
        pair = number(offset), number(length)
        if pair[0] is None or pair[1] is None or min(pair[0], pair[1]) < 0:
            raise Corrupt("its sparse map has a number that is none")
        found += (pair[0], pair[1])
    return found


def is_sparse(keywords: Keywords) -> bool:
    """Whether a pax header says that its member is sparse."""
    return not _SPARSE_KEYWORDS.isdisjoint(keywords)


def pax_rows(scanner: Scanner, keywords: Keywords, data: int, stored: int) -> tuple[Rows, int]:
    """Extents and size of the sparse file whose member has `stored` bytes at `data`.

    Raises `Corrupt` and `TooLarge` for a map that is none, `Unsupported` for an unknown format.
    """
    real = keywords.get(b"GNU.sparse.realsize", keywords.get(b"GNU.sparse.size", b""))
    size = parse_decimal(real, "the size of a sparse file")
    major = keywords.get(b"GNU.sparse.major", b"0")
    minor = keywords.get(b"GNU.sparse.minor", b"0")
    if (major, minor) == (b"1", b"0"):
        numbers, length = _map_in_data(scanner, data, stored)
        return regions(numbers, size, data + length, stored - length), size
    if major != b"0":
        raise Unsupported("its sparse map has an unknown format")
    text = keywords.get(b"GNU.sparse.map", b"")
    numbers = [parse_decimal(part, "a sparse map's entry") for part in text.split(b",") if text]
    _check_count(len(numbers) // 2)
    count = keywords.get(b"GNU.sparse.numblocks")
    if count is not None and parse_decimal(count, "a sparse map's count") * 2 != len(numbers):
        raise Corrupt("its sparse map is not as long as it says")
    return regions(numbers, size, data, stored), size


def _map_in_data(scanner: Scanner, data: int, stored: int) -> tuple[list[int], int]:
    """The map of format 1.0, which stands before the data, and its length with the padding."""
    raw = bytearray()
    lines, wanted = 0, 1
    while lines < wanted:
        room = min(stored, SPARSE_MAP_BYTES_MAX) - len(raw)
        piece = scanner.take(data + len(raw), min(CHUNK_BYTES_MIN, room)) if room > 0 else b""
        if not piece:
            raise Corrupt("its sparse map is cut off or too long")
        raw += piece
        lines += piece.count(b"\n")
        if wanted == 1 and lines:
            count = parse_decimal(bytes(raw[: raw.index(b"\n")]), "a sparse map's count")
            _check_count(count)
            wanted += 2 * count
    text = bytes(raw).split(b"\n", wanted)[:wanted]
    numbers = [parse_decimal(part, "a sparse map's entry") for part in text[1:]]
    length = padded(sum(len(part) + 1 for part in text))
    if length > stored:
        raise Corrupt("its sparse map is cut off")
    return numbers, length


def _check_count(count: int) -> None:
    if count > SPARSE_REGIONS_MAX:
        raise TooLarge(f"its sparse map has more than {SPARSE_REGIONS_MAX} regions")
