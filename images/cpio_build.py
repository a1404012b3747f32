"""Building a cpio archive in the newc format, as the Linux kernel unpacks it.

Invariants: everything belongs to root; inodes count from 1 in the order of the calls; files have
mode 0644 or 0755, directories 0755, symbolic links 0777.  The content of a file with several names
stands with the first of them: every reader takes that, and the last is not known while writing.
How many names there are is written into the headers in the end, so an archive with hard links
needs an output that can be sought.

Source: ``Documentation/driver-api/early-userspace/buffer-format.rst`` of Linux.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from capstore.images.builder import Facts, Path, TreeBuilder, check_named, check_target
from capstore.images.cpio_header import NEWC_MAGIC, TRAILER
from capstore.images.tar_output import Output, stored_bytes, stored_path
from capstore.schema.errors import InvalidArgument, TooLarge, Unsupported
from capstore.schema.limits import CPIO_NAME_BYTES_MAX
from capstore.schema.nodes import Buffer

_NUMBER_MAX: Final = (1 << 32) - 1
_SECOND: Final = 1_000_000_000
# Where a header has its number of links: behind magic, ino, mode, uid and gid.
_NLINK_AT: Final = 6 + 4 * 8
_END_BYTES: Final = 512


@dataclass(slots=True)
class _Original:
    """A file that may get further names; `headers` are the offsets of those it has."""

    inode: int
    mode: int
    seconds: int
    target: bytes | None = None
    headers: list[int] = field(default_factory=list)


class CpioBuilder(TreeBuilder):
    """Writes an archive to `stream`, which stays open; putting it in place is the caller's.

    Besides what every builder raises: `Unsupported` for times outside 1970 to 2106 and paths over
    4095 bytes, `TooLarge` for files over 4 GiB.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._output = Output(stream)
        self._originals: dict[bytes, _Original] = {}
        self._inodes = 0

    def directory(self, path: Path, facts: Facts) -> None:
        self._header(path, self._new(path, facts, stat.S_IFDIR | 0o755), 0, nlink=2)

    def begin_file(self, path: Path, facts: Facts, size: int) -> None:
        check_named(path)
        if size > _NUMBER_MAX:
            raise TooLarge(f'"{path[-1]}" is longer than a file in a cpio archive may be')
        mode = stat.S_IFREG | (0o755 if facts.executable else 0o644)
        original = self._new(path, facts, mode)
        self._header(path, original, size)
        self._originals[stored_path(path)] = original
        self._output.begin(size, -size % 4)

    def write(self, data: Buffer) -> None:
        self._output.content(data)

    def end_file(self) -> None:
        self._output.end()

    def symlink(self, path: Path, facts: Facts, target: str) -> None:
        check_target(path, target)
        original = self._new(path, facts, stat.S_IFLNK | 0o777)
        original.target = stored_bytes(target, path)
        self._symlink(path, original)
        self._originals[stored_path(path)] = original

    def link(self, path: Path, original: Path) -> None:
        """A further name; of a symbolic link, which has one in a cpio archive, a second one."""
        check_named(path)
        known = self._originals.get(stored_path(original))
        if known is None:
            raise InvalidArgument("a further name of a file that did not come before")
        if known.target is not None:
            self._inodes += 1
            again = _Original(self._inodes, known.mode, known.seconds, known.target)
            self._symlink(path, again)
        else:
            self._header(path, known, 0)

    def finish(self) -> None:
        trailer = _header_bytes(TRAILER, 0, 0, 1, 0, 0)
        self._output.write(trailer)
        self._output.write(bytes(-self._output.offset % _END_BYTES))
        for original in self._originals.values():
            if len(original.headers) > 1:
                for offset in original.headers:
                    self._output.patch(offset + _NLINK_AT, b"%08x" % len(original.headers))
        self._output.flush()

    def abort(self) -> None:
        """Nothing is kept that would have to be dropped."""

    def _new(self, path: Path, facts: Facts, mode: int) -> _Original:
        seconds = facts.modified // _SECOND
        if not 0 <= seconds <= _NUMBER_MAX:
            name = path[-1] if path else ""
            raise Unsupported(f'"{name}" has a time that a cpio archive cannot hold')
        self._inodes += 1
        return _Original(self._inodes, mode, seconds)

    def _symlink(self, path: Path, original: _Original) -> None:
        target = original.target or b""
        self._header(path, original, len(target))
        self._output.write(target + bytes(-len(target) % 4))

    def _header(self, path: Path, original: _Original, size: int, *, nlink: int = 1) -> None:
        name = stored_path(path) or b"."
        if len(name) >= CPIO_NAME_BYTES_MAX or name == TRAILER:
            raise Unsupported(f'"{path[-1]}" has a path that a cpio archive cannot hold')
        header = _header_bytes(name, original.inode, original.mode, nlink, original.seconds, size)
        original.headers.append(self._output.offset)
        self._output.write(header)


def _header_bytes(name: bytes, inode: int, mode: int, nlink: int, seconds: int, size: int) -> bytes:
    """A header with its name, padded."""
    numbers = (inode, mode, 0, 0, nlink, seconds, size, 0, 0, 0, 0, len(name) + 1, 0)
    raw = NEWC_MAGIC + b"".join(b"%08x" % number for number in numbers) + name + b"\0"
    return raw + bytes(-len(raw) % 4)
