"""Headers of cpio archives in the newc, crc and odc formats.

Invariants: a header is believed only if every number in it is one, its name ends with a NUL and
what it describes is a kind of file; there is no checksum.

Sources: ``Documentation/driver-api/early-userspace/buffer-format.rst`` of Linux (newc, crc);
POSIX.1-2001 ``pax``, "cpio Interchange Format" (odc).
"""

from __future__ import annotations

import binascii
import re
import stat
import struct
from typing import Final, NamedTuple

from capstore.images.tar_scan import Scanner
from capstore.schema.limits import CPIO_NAME_BYTES_MAX

NEWC_MAGIC: Final = b"070701"
CRC_MAGIC: Final = b"070702"
ODC_MAGIC: Final = b"070707"
MAGICS: Final = (NEWC_MAGIC, CRC_MAGIC, ODC_MAGIC)
MAGIC_BYTES: Final = 6
NEWC_BYTES: Final = 110
ODC_BYTES: Final = 76
TRAILER: Final = b"TRAILER!!!"
# ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize,
# check
_NEWC: Final = struct.Struct(">13I")
# dev, ino, mode, uid, gid, nlink, rdev, mtime, namesize, filesize
_ODC: Final = re.compile(rb"070707" + rb"([0-7]{6})" * 7 + rb"([0-7]{11})([0-7]{6})([0-7]{11})")
_KINDS: Final = frozenset(
    (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    )
)


class CpioHeader(NamedTuple):
    """One header; `data` is the offset of the `size` bytes, `end` that of the next header.

    `inode` identifies the file among those of its archive, `mtime` is in seconds, `check` None
    unless the format has one.
    """

    path: bytes
    inode: tuple[int, ...]
    mode: int
    nlink: int
    mtime: int
    size: int
    check: int | None
    data: int
    end: int


def cpio_header(scanner: Scanner, offset: int) -> CpioHeader | None:
    """The header at `offset`; None if there is none, or only a part.

    Raises what the device raises.
    """
    raw = scanner.take(offset, NEWC_BYTES)
    magic = raw[:MAGIC_BYTES]
    if magic == ODC_MAGIC:
        header = _odc(scanner, offset, raw)
    elif magic in MAGICS and len(raw) == NEWC_BYTES:
        header = _newc(scanner, offset, raw)
    else:
        return None
    if header is None or (header.path != TRAILER and stat.S_IFMT(header.mode) not in _KINDS):
        return None
    return header


def _newc(scanner: Scanner, offset: int, raw: bytes) -> CpioHeader | None:
    try:
        numbers = _NEWC.unpack(binascii.unhexlify(raw[MAGIC_BYTES:]))
    except ValueError:
        return None
    inode, mode, _, _, nlink, mtime, size, major, minor, _, _, name_size, check = numbers
    path = _path(scanner, offset + NEWC_BYTES, name_size)
    if path is None:
        return None
    data = offset + NEWC_BYTES + name_size
    data += -(data - offset) % 4
    check_value = check if raw.startswith(CRC_MAGIC) else None
    end = data + size + -size % 4
    return CpioHeader(path, (inode, major, minor), mode, nlink, mtime, size, check_value, data, end)


def _odc(scanner: Scanner, offset: int, raw: bytes) -> CpioHeader | None:
    match = _ODC.match(raw)
    if match is None:
        return None
    device, inode, mode, _, _, nlink, _, mtime, name_size, size = (
        int(field, 8) for field in match.groups()
    )
    path = _path(scanner, offset + ODC_BYTES, name_size)
    if path is None:
        return None
    data = offset + ODC_BYTES + name_size
    # Eighteen bits do not tell all inodes of a disk apart: two names of one file also agree in
    # what else is known of it.
    identity = (inode, device, mode, mtime, size)
    return CpioHeader(path, identity, mode, nlink, mtime, size, None, data, data + size)


def _path(scanner: Scanner, offset: int, size: int) -> bytes | None:
    """The name of `size` bytes at `offset`, which a NUL ends and further ones may pad."""
    if not 1 <= size <= CPIO_NAME_BYTES_MAX:
        return None
    raw = scanner.take(offset, size)
    if len(raw) != size or raw[-1]:
        return None
    return raw.rstrip(b"\0")
