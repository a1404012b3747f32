"""The members of a cpio archive, or of several in a row: one walk that fills an index.

Invariants:

* Content is never read, only placed.
* Names of one inode are names of one node, within one archive.  In newc and crc the content comes
  with one of them, by custom the last; in odc with each.
* Where no header is, the walk searches for the next one and notes it; what is found behind the
  last archive (a compressed one, say) is noted and not served.

Source: ``Documentation/driver-api/early-userspace/buffer-format.rst`` of Linux, whose unpacker
decides where readers disagree (``docs/spec/cpio.md``).
"""

from __future__ import annotations

import re
import stat
from typing import Final

from capstore.images.cpio_header import MAGIC_BYTES, MAGICS, TRAILER, CpioHeader, cpio_header
from capstore.images.device import BlockDevice
from capstore.images.index import IndexBuilder
from capstore.images.tar_scan import Progress, Scanner, no_progress
from capstore.schema.errors import Corrupt, Unsupported
from capstore.schema.limits import (
    CPIO_NAME_BYTES_MAX,
    CPIO_SEARCH_BYTES_MAX,
    KIB,
    SYMLINK_TARGET_BYTES_MAX,
)
from capstore.schema.nodes import NodeKind, Provenance

_PIECE_BYTES: Final = 64 * KIB
_MAGIC: Final = re.compile(b"|".join(MAGICS))
_OLD_BINARY: Final = (b"\xc7\x71", b"\x71\xc7")
_SECOND: Final = 1_000_000_000
_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x5d\0\0": "lzma",
    b"\x89LZO": "lzo",
}


def index_cpio(
    device: BlockDevice, index: IndexBuilder, *, progress: Progress = no_progress
) -> None:
    """Puts the members of the archives on `device` into `index`; `progress` gets byte offsets.

    Raises `Corrupt` for what is no cpio archive, `Unsupported` for the old binary format,
    `TooLarge` from `index`, and what `device` raises before the first member; anything else that
    is wrong is a finding.
    """
    _Walk(Scanner(device, progress), index).run()


class _Walk:
    def __init__(self, scanner: Scanner, index: IndexBuilder) -> None:
        self._scanner = scanner
        self._index = index
        self._search_left = CPIO_SEARCH_BYTES_MAX
        # Nodes of this archive that have several names, with size and checksum of their content.
        self._linked: dict[tuple[int, ...], tuple[int, int, int | None]] = {}
        self._any = False

    def run(self) -> None:
        start = self._between(0)
        if start is None:
            raise Corrupt("this is no cpio archive: there is nothing but zeros")
        offset = start
        try:
            while (following := self._step(offset)) is not None:
                offset = following
        except Corrupt as error:
            # Only the device raises this, and the first bytes where they are no header.
            if not self._any:
                raise
            self._index.refuse(b"", f"the archive cannot be read on: {error.message}", offset)

    def _step(self, offset: int) -> int | None:
        """Takes in the header at `offset`; gives the next one's offset, None at the end."""
        header = cpio_header(self._scanner, offset)
        if header is None:
            return self._no_header(offset)
        self._any = True
        if header.path == TRAILER:
            self._linked.clear()
            return self._between(header.end)
        if b"\0" in header.path:
            self._index.refuse(header.path, "its name has a NUL", offset)
        else:
            self._member(header, offset)
        if header.data + header.size > self._scanner.size:
            return None  # the member that is cut off says it
        return header.end

    # Where there is no header ------------------------------------------------------------------

    def _between(self, offset: int) -> int | None:
        """The offset of what follows the zeros between archives, None where nothing does."""
        while piece := self._scanner.take(offset, _PIECE_BYTES):
            rest = piece.lstrip(b"\0")
            offset += len(piece) - len(rest)
            if rest:
                return self._following(offset)
            self._search_left -= len(piece)
            if self._search_left < 0:
                self._index.refuse(b"", "too many zeros; the rest is not shown", offset)
                return None
        return None

    def _following(self, offset: int) -> int | None:
        """`offset` if an archive begins there; else notes what does, once there was an archive."""
        start = self._scanner.take(offset, MAGIC_BYTES)
        if start in MAGICS or not self._any:
            return offset
        names = [name for magic, name in _COMPRESSED.items() if start.startswith(magic)]
        what = f"{names[0]} compressed data" if names else "something that is no cpio archive"
        reason = f"{what} follows the last archive and is not shown"
        self._index.refuse(b"", reason, offset)
        return None

    def _no_header(self, offset: int) -> int | None:
        if not self._any:
            start = self._scanner.take(offset, MAGIC_BYTES)
            if start[:2] in _OLD_BINARY:
                raise Unsupported("cpio archives in the old binary format are not supported")
            if start not in MAGICS:
                raise Corrupt(f"this is no cpio archive: no header at offset {offset}")
        if offset >= self._scanner.size:
            self._index.refuse(b"", "the archive ends without its trailer", offset)
            return None
        self._index.refuse(b"", "a header is damaged or cut off", offset)
        found = self._search(offset + 1)
        if found is None and not self._any:
            raise Corrupt(f"this is no cpio archive: the header at offset {offset} is damaged")
        return found

    def _search(self, offset: int) -> int | None:
        """The offset of the next header at or behind `offset`, if there is one."""
        while True:
            piece = self._scanner.take(offset, _PIECE_BYTES)
            if len(piece) < MAGIC_BYTES:
                return None
            if self._search_left < len(piece):
                reason = "no header within the bytes that are searched; the rest is not shown"
                self._index.refuse(b"", reason, offset)
                return None
            for match in _MAGIC.finditer(piece):
                self._search_left -= CPIO_NAME_BYTES_MAX
                if cpio_header(self._scanner, offset + match.start()) is not None:
                    return offset + match.start()
            self._search_left -= len(piece)
            offset += len(piece) - MAGIC_BYTES + 1

    # Members -----------------------------------------------------------------------------------

    def _member(self, header: CpioHeader, offset: int) -> None:
        kind = stat.S_IFMT(header.mode)
        if kind == stat.S_IFREG:
            self._file(header, offset)
        elif kind == stat.S_IFLNK:
            self._symlink(header, offset)
        else:
            self._add(
                header, NodeKind.DIRECTORY if kind == stat.S_IFDIR else NodeKind.SPECIAL, offset
            )

    def _add(self, header: CpioHeader, kind: NodeKind, offset: int, target: bytes = b"") -> None:
        node = self._index.node(
            kind,
            modified=header.mtime * _SECOND,
            provenance=Provenance.CPIO_HEADER,
            target=target,
        )
        self._index.bind(header.path, node, offset)

    def _symlink(self, header: CpioHeader, offset: int) -> None:
        if header.size > SYMLINK_TARGET_BYTES_MAX:
            reason = f"its target is longer than {SYMLINK_TARGET_BYTES_MAX} bytes"
            self._index.refuse(header.path, reason, offset)
            return
        target = self._scanner.take(header.data, header.size)
        if len(target) != header.size or not target or b"\0" in target:
            reason = "it is a symbolic link whose target is none"
            self._index.refuse(header.path, reason, offset)
            return
        self._add(header, NodeKind.SYMLINK, offset, target)

    def _file(self, header: CpioHeader, offset: int) -> None:
        """A regular file, or another name of one."""
        known = self._linked.get(header.inode) if header.nlink > 1 else None
        if known is None:
            node = self._new_file(header, offset)
        else:
            node, size, check = known
            if header.size and not size:
                self._index.set_content(node, header.size, self._rows(header))
                self._facts_of_content(node, header, offset)
            elif header.size and (header.size, header.check) != (size, check):
                # Two files, whose inodes the format's numbers do not tell apart.
                node = self._new_file(header, offset)
        self._index.bind(header.path, node, offset)

    def _new_file(self, header: CpioHeader, offset: int) -> int:
        node = self._index.node(
            NodeKind.FILE,
            size=header.size,
            modified=header.mtime * _SECOND,
            provenance=Provenance.CPIO_HEADER,
            executable=bool(header.mode & 0o111),
            extents=self._rows(header),
        )
        self._facts_of_content(node, header, offset)
        return node

    def _facts_of_content(self, node: int, header: CpioHeader, offset: int) -> None:
        """What goes with the content: its checksum, whether it is there, and who else has it."""
        if header.size and header.check is not None:
            self._index.table.set_check(node, header.check)
        if header.data + header.size > self._scanner.size:
            message = "the archive ends before the file does"
            self._index.damage(node, f"cpio member at offset {offset}: {message}")
        if header.nlink > 1:
            self._linked[header.inode] = (node, header.size, header.check)

    def _rows(self, header: CpioHeader) -> list[tuple[int, int, int]]:
        if not header.size or header.data + header.size > self._scanner.size:
            return []
        return [(0, header.size, header.data)]
