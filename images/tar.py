"""The members of a tar archive: one walk from header to header that fills an index.

Invariants:

* Content is never read, only placed; the walk reads headers, and what extends them, once.
* What is damaged concerns its own member.  A header whose checksum is wrong is a finding, and the
  walk goes on at the next header; so does a number or a name that is none.
* A member whose extended header was lost or broken is not served: what it is called is not known.
* The work is bounded: payloads, sparse maps and the search for a next header have limits.

Sources: POSIX.1-2017 ``pax``; the GNU tar manual.  Where writers and readers disagree, GNU tar
decides (``docs/spec/tar.md`` says where).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from capstore.images.device import BlockDevice
from capstore.images.index import IndexBuilder
from capstore.images.tar_header import (
    BLOCK_BYTES,
    GNU_MAGIC,
    ZERO_BLOCK,
    Header,
    number,
    padded,
    parse_header,
)
from capstore.images.tar_pax import Keywords, parse_decimal, parse_records, parse_time
from capstore.images.tar_scan import Progress, Scanner, no_progress
from capstore.images.tar_sparse import Rows, is_sparse, old_gnu_map, pax_rows, regions
from capstore.schema.errors import Corrupt, StorageError, TooLarge, Unsupported
from capstore.schema.limits import KIB, LONG_NAME_BYTES_MAX, PAX_BYTES_MAX, TAR_SEARCH_BYTES_MAX
from capstore.schema.nodes import NodeKind, Provenance

# What looking at one far place counts as in that.
_JUMP_BYTES: Final = 256 * KIB
# A path or target in a global header: it is looked at again for every member.
GLOBAL_PATH_BYTES_MAX: Final = 4096
_INT64_MAX: Final = (1 << 63) - 1
_SECOND: Final = 1_000_000_000
_MAGIC_AT: Final = slice(257, 262)
_SIZE_AT: Final = slice(124, 136)
_FLAG_AT: Final = slice(156, 157)
_PLAIN_FLAGS: Final = frozenset(b"%c" % flag for flag in b"\x0001234567")


def index_tar(
    device: BlockDevice, index: IndexBuilder, *, progress: Progress = no_progress
) -> None:
    """Puts the members of the archive on `device` into `index`; `progress` gets byte offsets.

    Raises `Corrupt` for what is no tar archive, `TooLarge` from `index`, and what `device` raises
    before the first member; anything else that is wrong is a finding.
    """
    _Walk(Scanner(device, progress), index).run()


@dataclass(slots=True)
class _Extension:
    """What headers before a member said about it: `error` if that was not understood."""

    keywords: Keywords = field(default_factory=dict)
    path: bytes | None = None
    link: bytes | None = None
    error: StorageError | None = None


class _Subject(NamedTuple):
    """A member as all its headers together have it; `data` is the offset of its `size` bytes."""

    header: Header
    offset: int
    path: bytes
    link: bytes
    data: int
    size: int
    executable: bool
    modified: int
    provenance: Provenance
    keywords: Keywords


_NO_KEYWORDS: Final[Keywords] = {}


class _Walk:
    def __init__(self, scanner: Scanner, index: IndexBuilder) -> None:
        self._scanner = scanner
        self._index = index
        self._globals: Keywords = {}
        self._extension: _Extension | None = None
        self._search_left = TAR_SEARCH_BYTES_MAX
        self._any = False
        self._truncated = False

    def run(self) -> None:
        offset = 0
        try:
            while (following := self._step(offset)) is not None:
                offset = following
        except Corrupt as error:
            # Only the device raises this, and the first block where it is no header.
            if not self._any:
                raise
            self._index.refuse(b"", f"the archive cannot be read on: {error.message}", offset)

    def _step(self, offset: int) -> int | None:
        """Takes in the header at `offset`; gives the next one's offset, None at the end."""
        block = self._scanner.take(offset, BLOCK_BYTES)
        header = parse_header(block)
        if header is None:
            return self._no_header(offset, block)
        self._any = True
        size = header.size
        if size is None or not 0 <= size <= _INT64_MAX:
            self._extension = None
            self._index.refuse(header.path, "its size is no number", offset)
            return self._search(offset)
        return _HANDLERS.get(header.flag, _Walk._other)(self, header, offset, size)

    # Where there is no header ------------------------------------------------------------------

    def _no_header(self, offset: int, block: bytes) -> int | None:
        if self._extension is not None and (len(block) < BLOCK_BYTES or block == ZERO_BLOCK):
            self._extension = None
            self._index.refuse(b"", "an extended header without a member", offset)
        if len(block) < BLOCK_BYTES:
            self._cut(offset, block)
            return None
        if block == ZERO_BLOCK:
            self._end(offset)
            return None
        if not self._any and block[_MAGIC_AT] != b"ustar":
            raise Corrupt("this is no tar archive: the block at offset 0 is no header")
        self._index.refuse(b"", "a header has a wrong checksum", offset)
        # Any header but a member's own may have said something about the member that follows.
        lost = Corrupt("the header before it, which may have named it, is damaged")
        plain = block[_FLAG_AT] in _PLAIN_FLAGS
        self._extension = None if plain else _Extension(error=lost)
        found = self._search(offset)
        if found is None and not self._any:
            raise Corrupt("this is no tar archive: no header has a right checksum")
        return found

    def _cut(self, offset: int, block: bytes) -> None:
        if not self._any and block.strip(b"\0"):
            raise Corrupt("this is no tar archive: it is shorter than a header")
        if self._truncated:
            return  # the member that is cut off says it
        if block:
            self._index.refuse(b"", "a header is cut off", offset)
        else:
            self._index.refuse(b"", "the archive ends without its end mark", offset)

    def _end(self, offset: int) -> None:
        """One block of zeros ends an archive, as GNU tar has it; there should be two."""
        second = self._scanner.take(offset + BLOCK_BYTES, BLOCK_BYTES)
        if second.strip(b"\0"):
            reason = "a single block of zeros ends the archive, though something follows"
            self._index.refuse(b"", reason, offset)

    def _search(self, offset: int) -> int | None:
        """The offset of the next header behind a damaged one at `offset`, if there is one."""
        size = number(self._scanner.take(offset, BLOCK_BYTES)[_SIZE_AT])
        at = offset + BLOCK_BYTES
        if self._search_left >= BLOCK_BYTES and size is not None and 0 <= size <= _INT64_MAX:
            if self._is_header(at + padded(size)):
                return at + padded(size)
            self._search_left -= _JUMP_BYTES
        while at < self._scanner.size:
            if self._search_left < BLOCK_BYTES:
                reason = "no header within the bytes that are searched; the rest is not shown"
                self._index.refuse(b"", reason, at)
                return None
            self._search_left -= BLOCK_BYTES
            if self._is_header(at):
                return at
            at += BLOCK_BYTES
        return None

    def _is_header(self, offset: int) -> bool:
        return parse_header(self._scanner.take(offset, BLOCK_BYTES)) is not None

    # Headers about a following member ----------------------------------------------------------

    def _payload(self, offset: int, size: int, size_max: int) -> bytes:
        if size > size_max:
            raise TooLarge(f"an extended header has more than {size_max} bytes")
        payload = self._scanner.take(offset + BLOCK_BYTES, size)
        if len(payload) < size:
            raise Corrupt("an extended header is cut off")
        return payload

    def _pax(self, header: Header, offset: int, size: int) -> int:
        extension = self._extended()
        try:
            extension.keywords |= parse_records(self._payload(offset, size, PAX_BYTES_MAX))
        except (Corrupt, TooLarge) as error:
            extension.error = error
        return offset + BLOCK_BYTES + padded(size)

    def _pax_global(self, header: Header, offset: int, size: int) -> int:
        try:
            keywords = parse_records(self._payload(offset, size, PAX_BYTES_MAX))
        except (Corrupt, TooLarge) as error:
            self._index.refuse(b"", error.message, offset)
            keywords = {}
        for key, value in keywords.items():
            if key in _GLOBAL and len(value) > GLOBAL_PATH_BYTES_MAX:
                reason = f"a global header has a value over {GLOBAL_PATH_BYTES_MAX} bytes"
                self._index.refuse(b"", reason, offset)
            elif value:
                self._globals[key] = value
            else:
                self._globals.pop(key, None)
        # What describes one member alone makes no sense for all; the rest is not used.
        self._globals = {key: self._globals[key] for key in _GLOBAL & self._globals.keys()}
        return offset + BLOCK_BYTES + padded(size)

    def _long(self, header: Header, offset: int, size: int) -> int:
        extension = self._extended()
        try:
            text = self._payload(offset, size, LONG_NAME_BYTES_MAX).split(b"\0", 1)[0]
        except (Corrupt, TooLarge) as error:
            extension.error = error
        else:
            if header.flag == b"L":
                extension.path = text
            else:
                extension.link = text
        return offset + BLOCK_BYTES + padded(size)

    def _extended(self) -> _Extension:
        if self._extension is None:
            self._extension = _Extension()
        return self._extension

    # Members -----------------------------------------------------------------------------------

    def _file(self, header: Header, offset: int, size: int) -> int:
        member = self._subject(header, offset, size)
        if member is None:
            return offset + BLOCK_BYTES + padded(size)
        if member.path.endswith(b"/"):
            # So the oldest tars mark directories.
            self._add(NodeKind.DIRECTORY, member)
        elif member.keywords and is_sparse(member.keywords):
            self._sparse(member)
        else:
            size, data = member.size, member.data
            rows = [(0, size, data)] if size else []
            self._content(member, size, rows, data + size)
        return member.data + padded(member.size)

    def _content(self, member: _Subject, size: int, rows: Rows, end: int) -> None:
        """A file of `size` bytes, of which those in the archive reach to `end`."""
        if end > self._scanner.size:
            self._truncated = True
            self._damaged(member, size, "the archive ends before the file does")
            return
        node = self._index.node(
            NodeKind.FILE,
            size=size,
            modified=member.modified,
            provenance=member.provenance,
            executable=member.executable,
            extents=rows,
        )
        self._index.bind(member.path, node, member.offset)

    def _damaged(self, member: _Subject, size: int, reason: str) -> None:
        node = self._index.node(
            NodeKind.FILE,
            size=size,
            modified=member.modified,
            provenance=member.provenance,
            executable=member.executable,
        )
        self._index.damage(node, f"tar member at offset {member.offset}: {reason}")
        self._index.bind(member.path, node, member.offset)

    def _sparse(self, member: _Subject) -> None:
        try:
            rows, size = pax_rows(self._scanner, member.keywords, member.data, member.size)
        except (Corrupt, TooLarge, Unsupported) as error:
            self._damaged(member, 0, error.message)
            return
        self._content(member, size, rows, member.data + member.size)

    def _old_sparse(self, header: Header, offset: int, size: int) -> int | None:
        if header.magic != GNU_MAGIC:
            self._extension = None
            self._index.refuse(header.path, "it is sparse in a way of star's", offset)
            return offset + BLOCK_BYTES + padded(size)
        member = self._subject(header, offset, size)
        found = old_gnu_map(self._scanner, offset)
        if found.error is not None:
            if member is not None:
                self._damaged(member, 0, found.error.message)
            # Each block of the map may be a header with a map that goes over the same blocks.
            self._search_left -= found.end - offset
            return self._search(offset)
        if member is None:
            return found.end + padded(size)
        try:
            rows = regions(found.regions, found.size, found.end, member.size)
        except Corrupt as error:
            self._damaged(member, found.size, error.message)
        else:
            self._content(member, found.size, rows, found.end + member.size)
        return found.end + padded(member.size)

    def _link(self, header: Header, offset: int, size: int) -> int:
        member = self._subject(header, offset, size)
        if member is not None:
            node = None if b"\0" in member.link else self._index.find(member.link)
            if node is None:
                self._damaged(member, 0, "it is a hard link to what is not in the archive")
            elif self._index.table.is_directory(node):
                self._damaged(member, 0, "it is a hard link to a directory")
            else:
                self._index.bind(member.path, node, offset)
        return self._behind(member, offset, size)

    def _symlink(self, header: Header, offset: int, size: int) -> int:
        member = self._subject(header, offset, size)
        if member is not None:
            if not member.link or b"\0" in member.link:
                reason = "it is a symbolic link whose target is none"
                self._index.refuse(member.path, reason, offset)
            else:
                self._add(NodeKind.SYMLINK, member, member.link)
        return self._behind(member, offset, size)

    def _directory(self, header: Header, offset: int, size: int) -> int:
        member = self._subject(header, offset, size)
        if member is not None:
            self._add(NodeKind.DIRECTORY, member)
        return self._behind(member, offset, size)

    def _special(self, header: Header, offset: int, size: int) -> int:
        member = self._subject(header, offset, size)
        if member is not None:
            self._add(NodeKind.SPECIAL, member)
        return self._behind(member, offset, size)

    def _dump_directory(self, header: Header, offset: int, size: int) -> int:
        """A directory of an incremental archive: its content is a list of names."""
        member = self._subject(header, offset, size)
        if member is not None:
            self._add(NodeKind.DIRECTORY, member)
        return offset + BLOCK_BYTES + padded(size)

    def _label(self, header: Header, offset: int, size: int) -> int:
        return offset + BLOCK_BYTES + padded(size)

    def _other(self, header: Header, offset: int, size: int) -> int:
        """Types of vendors are not served; POSIX has the unknown rest be files."""
        if not b"A" <= header.flag <= b"Z":
            return self._file(header, offset, size)
        self._extension = None
        kind = header.flag.decode()
        self._index.refuse(header.path, f"its type {kind} is not supported", offset)
        return offset + BLOCK_BYTES + padded(size)

    def _add(self, kind: NodeKind, member: _Subject, target: bytes = b"") -> None:
        node = self._index.node(
            kind, modified=member.modified, provenance=member.provenance, target=target
        )
        self._index.bind(member.path, node, member.offset)

    def _behind(self, member: _Subject | None, offset: int, size: int) -> int:
        """The next offset after a member of a kind that has no content.

        Some writers give the size of a link's target or of a directory, with nothing stored; pax
        may store a link's content again.  What follows tells.
        """
        size = member.size if member is not None else size
        at = offset + BLOCK_BYTES
        if not size:
            return at
        following = self._scanner.take(at, BLOCK_BYTES)
        if not following.strip(b"\0") or parse_header(following) is not None:
            return at
        return at + padded(size)

    # What the headers say together -------------------------------------------------------------

    def _subject(self, header: Header, offset: int, size: int) -> _Subject | None:
        """The member of `header` with what extends it, which is used up; None if it is refused."""
        extension, self._extension = self._extension, None
        path, link, keywords = header.path, header.link, _NO_KEYWORDS
        seconds = number(header.mtime)
        modified = None if seconds is None else seconds * _SECOND
        if extension is not None or self._globals:
            extension = extension or _Extension()
            keywords = _merged(self._globals, extension.keywords)
            path, link = _names(header, extension, keywords)
            modified = parse_time(keywords[b"mtime"]) if b"mtime" in keywords else modified
            try:
                size = _checked_size(path, size, extension, keywords)
            except StorageError as error:
                self._index.refuse(path, error.message, offset)
                return None
        mode = _mode(header.mode)
        if mode is None:
            self._index.refuse(path, "its mode is no number; it is served", offset)
        provenance = Provenance.TAR_HEADER
        if modified is None or not -_INT64_MAX <= modified <= _INT64_MAX:
            self._index.refuse(path, "its time is none; it is served", offset)
            modified, provenance = 0, Provenance.UNKNOWN
        executable = mode is not None and mode & 0o111 != 0
        data = offset + BLOCK_BYTES
        return _Subject(
            header, offset, path, link, data, size, executable, modified, provenance, keywords
        )


# An archive has few modes and many members.
_mode = lru_cache(maxsize=64)(number)


def _merged(shared: Keywords, own: Keywords) -> Keywords:
    """Keywords of a member; an empty value takes back what was said before."""
    if not shared and b"" not in own.values():
        return own
    return {key: value for key, value in (shared | own).items() if value}


def _names(header: Header, extension: _Extension, keywords: Keywords) -> tuple[bytes, bytes]:
    """Path and link: pax has the last word, then GNU's long names, then the header."""
    path = header.path if extension.path is None else extension.path
    link = header.link if extension.link is None else extension.link
    path = keywords.get(b"GNU.sparse.name", keywords.get(b"path", path))
    return path, keywords.get(b"linkpath", link)


def _checked_size(path: bytes, size: int, extension: _Extension, keywords: Keywords) -> int:
    """The size; raises what is wrong with the member's extended headers."""
    if extension.error is not None:
        raise extension.error
    if b"\0" in path:
        raise Corrupt("its path has a NUL")
    value = keywords.get(b"size")
    return size if value is None else parse_decimal(value, "a size in a pax header")


_GLOBAL: Final = frozenset((b"path", b"linkpath", b"size", b"mtime"))
_Handler = Callable[[_Walk, Header, int, int], int | None]
_HANDLERS: Final[dict[bytes, _Handler]] = {
    b"\0": _Walk._file,
    b"0": _Walk._file,
    b"1": _Walk._link,
    b"2": _Walk._symlink,
    b"3": _Walk._special,
    b"4": _Walk._special,
    b"5": _Walk._directory,
    b"6": _Walk._special,
    b"7": _Walk._file,
    b"D": _Walk._dump_directory,
    b"K": _Walk._long,
    b"L": _Walk._long,
    b"S": _Walk._old_sparse,
    b"V": _Walk._label,
    b"X": _Walk._pax,
    b"g": _Walk._pax_global,
    b"x": _Walk._pax,
}
