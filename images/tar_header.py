"""One block of a tar archive that is a header: reading it, and writing it as ustar has it.

Invariants: a block is a header only if its checksum is right, so no flipped bit in one goes
unnoticed.  A number that is none is `None`, never a guess and never an exception.

Sources: POSIX.1-2017 ``pax``, "ustar Interchange Format"; the GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple
from zlib import adler32

BLOCK_BYTES: Final = 512
# The largest number that eleven octal digits hold.
OCTAL_MAX: Final = 8**11 - 1
ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
GNU_MAGIC: Final = b"ustar  \0"
_USTAR_MAGIC: Final = b"ustar\0"
# name, mode, size, mtime, checksum, type, link, magic and version, prefix
_FIELDS: Final = struct.Struct("100s8s16x12s12s8sc100s8s80x155s12x")
_CHECKSUM_AT: Final = 148
_OCTAL: Final = re.compile(rb"\0?[ ]*([0-7]*)(?:[ \0].*)?", re.DOTALL)


class Header(NamedTuple):
    """The fields that matter; `path` and `link` as stored, `size` None where it is none.

    `mode` and `mtime` are fields for `number`: not every header has use for them.
    """

    path: bytes
    mode: bytes
    size: int | None
    mtime: bytes
    flag: bytes
    link: bytes
    magic: bytes


def parse_header(block: bytes) -> Header | None:
    """The header that `block` is; None if it is none: too short, or its checksum is wrong."""
    if len(block) != BLOCK_BYTES:
        return None
    name, mode, size, mtime, checksum, flag, link, magic, prefix = _FIELDS.unpack(block)
    # The low half of an Adler-32 is 1 + the sum of the bytes modulo 65521, and 256 bytes sum to
    # less.  The checksum itself counts as eight spaces: 256.
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF)
    total += 255 - (adler32(checksum) & 0xFFFF)
    stored = number(checksum)
    if stored != total and (stored is None or stored != _signed_sum(block, total)):
        return None
    path = name.split(b"\0", 1)[0]
    if prefix[0] and magic.startswith(_USTAR_MAGIC):
        path = prefix.split(b"\0", 1)[0] + b"/" + path
    return Header(path, mode, number(size), mtime, flag, link.split(b"\0", 1)[0], magic)


def _signed_sum(block: bytes, total: int) -> int:
    """The checksum as tars computed it where characters are signed."""
    checksum = block[_CHECKSUM_AT : _CHECKSUM_AT + 8]
    counted = block.translate(None, bytes(range(128)))
    return total - 256 * (len(counted) - len(checksum.translate(None, bytes(range(128)))))


def number(field: bytes) -> int | None:
    """The number in a field: octal, or GNU's base 256; 0 for an empty one, None for none."""
    digits = field.strip(b" \0")
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            return None
    first = field[0]
    if first in (0x80, 0xFF):
        # Two's complement without the bit that says that it is one.
        value = int.from_bytes(field[1:], "big")
        return value if first == 0x80 else value - (1 << 8 * (len(field) - 1))
    match = _OCTAL.fullmatch(field)
    return int(match[1] or b"0", 8) if match else None


def padded(size: int) -> int:
    """`size` in whole blocks, in bytes."""
    return size + -size % BLOCK_BYTES


def ustar_header(
    flag: bytes, name: bytes, *, mode: int, size: int = 0, seconds: int = 0, link: bytes = b""
) -> bytes:
    """A ustar header, owned by root; what a field does not hold is cut, or 0 for a number."""
    size = size if size <= OCTAL_MAX else 0
    seconds = min(max(0, seconds), OCTAL_MAX)
    start = name[:100].ljust(100, b"\0") + b"%07o\0" % mode + b"0000000\0" * 2
    start += b"%011o\0%011o\0" % (size, seconds)
    end = flag + link[:100].ljust(100, b"\0") + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2
    end = end.ljust(BLOCK_BYTES - len(start) - 8, b"\0")
    return start + b"%06o\0 " % (sum(start) + sum(end) + 8 * ord(" ")) + end
