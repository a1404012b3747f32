"""A tree of files in a POSIX pax archive: what any tar reads, with what tar cannot say beside it.

Invariants:

* An archive is written and read in one dialect: a global header, then for each member a pax header
  and a ustar header.  Other archives are refused with `Corrupt` even where they are well formed,
  so that a save never replaces somebody else's tar file.
* Each header's last keyword is the CRC-32 of everything the member consists of, content included;
  the global header counts the members.  A changed, cut or extended archive is `Corrupt`.
* Places are told by ids: `Member.parent_id` names a directory that came before, and the last part
  of the path names the entry.  Nothing that is read is ever used as a path.
* Reading holds one header and one block of content in memory, each of bounded size, and never
  more content than the caller's `Budget` allows.

The codec is its own rather than `tarfile`'s: that keeps every member in memory, lets ValueError
and OverflowError of hostile archives through, and reads forged headers of any size at once.
GNU tar and `tarfile` are the oracles of its tests.

Vendor keywords (`CAPSTORE.` in front): in the global header ``format``, ``volume`` (hexadecimal),
``nodes`` and ``changes`` (counters), ``members``; in a member ``node``, ``parent``, ``version``,
``created`` (ns since 1970), ``name`` where the path is not the true one, ``provenance`` where the
times are not the volume's own, the marks of an overlay's layer (``opaque``, ``redirect``,
``origin``, ``below``) where there are any, and ``crc32``.  A whiteout is an empty file called
``.wh.NAME`` of a type of its own; a node that has no name stands in ``./@unnamed``, with 0 as its
parent.  Format 1 had no provenance, marks, whiteouts and nodes without names.
"""

from __future__ import annotations

import enum
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Final

from capstore.images.paxtree_keywords import Keywords
from capstore.images.tar_header import BLOCK_BYTES, OCTAL_MAX, ustar_header
from capstore.images.tar_pax import pax_record, time_text
from capstore.schema.errors import (
    Corrupt,
    InvalidName,
    NoSpace,
    StorageIOError,
    TooLarge,
    Unsupported,
)
from capstore.schema.limits import KIB, NAME_BYTES_MAX, SYMLINK_TARGET_BYTES_MAX
from capstore.schema.names import check_name
from capstore.schema.nodes import Provenance

FORMAT: Final = 2
# Content is handed on in pieces of at most this.
PIECE_BYTES: Final = 64 * KIB
# A pax header holds a path, a target and a dozen numbers.
_HEADER_BYTES_MAX: Final = 16 * KIB
# Directories whose path is longer are shown in `_DEEP`: every path would otherwise be written
# once for each node below it, and other tars stop at PATH_MAX.
_PATH_BYTES_MAX: Final = 2 * KIB
_DEEP: Final = "./@deep"
_UNNAMED: Final = "./@unnamed"
_WHITEOUT: Final = ".wh."
_CRC_RECORD_BYTES: Final = len("27 CAPSTORE.crc32=01234567\n")


class MemberKind(enum.Enum):
    """What a member is; values are ustar's type flags.

    A whiteout has that of contiguous files, which other tars take for a file.
    """

    FILE = b"0"
    LINK = b"1"
    SYMLINK = b"2"
    DIRECTORY = b"5"
    WHITEOUT = b"7"


@dataclass(frozen=True, slots=True)
class Header:
    """What belongs to the tree as a whole.

    `volume_id` names the volume, `nodes` and `changes` are its counters, `members` says how many
    members follow.
    """

    volume_id: bytes
    nodes: int
    changes: int
    members: int


@dataclass(frozen=True, slots=True)
class Member:
    """One name in the tree, and the node behind it unless that came before (`MemberKind.LINK`).

    `parent_id` is the directory it is in, 0 for the root and for a node without a name, whose
    name is empty; `content` gives `size` bytes and, when reading, must be used before the next
    member; times are in ns since 1970; `linked` says that further names of the node may follow.
    `opaque`, `redirect`, `origin` and `below` are an overlay's marks.  A whiteout has a parent and
    a name, and nothing else.
    """

    kind: MemberKind
    node_id: int
    parent_id: int
    name: str
    version: int = 0
    created: int = 0
    modified: int = 0
    executable: bool = False
    size: int = 0
    target: str = ""
    linked: bool = False
    provenance: Provenance = Provenance.WALL_CLOCK
    opaque: bool = False
    redirect: str = ""
    origin: int = 0
    below: int = 0
    content: Iterable[bytes | bytearray | memoryview] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a reader is ready to take: bytes in all, in one file, and members."""

    total_bytes_max: int
    file_bytes_max: int
    members_max: int


# Writing ------------------------------------------------------------------------------------------


def write_tree(stream: BinaryIO, header: Header, members: Iterable[Member]) -> None:
    """Writes the archive; directories must come before what is in them.

    Content is read twice, first for its checksum.  Raises OSError from `stream` as it comes.
    """
    _Writer(stream).write(header, members)


class _Writer:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._directories: dict[int, str] = {}
        self._linked: dict[int, str] = {}

    def write(self, header: Header, members: Iterable[Member]) -> None:
        keywords = {
            "CAPSTORE.format": str(FORMAT),
            "CAPSTORE.volume": header.volume_id.hex(),
            "CAPSTORE.nodes": str(header.nodes),
            "CAPSTORE.changes": str(header.changes),
            "CAPSTORE.members": str(header.members),
        }
        self._write_keywords(b"g", keywords, b"", ())
        for member in members:
            self._write_member(member)
        self._stream.write(bytes(2 * BLOCK_BYTES))

    def _write_member(self, member: Member) -> None:
        if member.kind is MemberKind.WHITEOUT:
            self._write_whiteout(member)
            return
        path, name = self._place(member)
        keywords = {"path": path, "mtime": time_text(member.modified)}
        if member.kind is MemberKind.SYMLINK:
            keywords["linkpath"] = member.target
        elif member.kind is MemberKind.LINK:
            keywords["linkpath"] = self._linked[member.node_id]
        if member.size > OCTAL_MAX:
            keywords["size"] = str(member.size)
        keywords["CAPSTORE.node"] = str(member.node_id)
        keywords["CAPSTORE.parent"] = str(member.parent_id)
        keywords["CAPSTORE.version"] = str(member.version)
        keywords["CAPSTORE.created"] = str(member.created)
        if name:
            keywords["CAPSTORE.name"] = name
        if member.kind is not MemberKind.LINK:
            keywords |= _marks(member)
        block = _ustar(member.kind.value, path, member.size, member.executable, member.modified)
        self._write_keywords(b"x", keywords, block, member.content)
        self._stream.write(block)
        for piece in member.content:
            self._stream.write(piece)
        self._stream.write(bytes(-member.size % BLOCK_BYTES))

    def _write_whiteout(self, member: Member) -> None:
        # Shown in as many bytes as a name may have; the true name is beside it.
        shown = (_WHITEOUT + member.name).encode()[:NAME_BYTES_MAX].decode(errors="ignore")
        keywords = {
            "path": self._directories[member.parent_id] + shown,
            "CAPSTORE.parent": str(member.parent_id),
            "CAPSTORE.name": member.name,
        }
        block = _ustar(member.kind.value, keywords["path"], 0)
        self._write_keywords(b"x", keywords, block, ())
        self._stream.write(block)

    def _place(self, member: Member) -> tuple[str, str]:
        """The path to show, and the true name if that is not in it."""
        if member.parent_id:
            path, name = self._directories[member.parent_id] + member.name, ""
        else:
            path, name = _nameless_path(member.kind, member.node_id), ""
        if member.kind is MemberKind.DIRECTORY and member.parent_id:
            path += "/"
            if len(path.encode()) > _PATH_BYTES_MAX:
                path, name = f"{_DEEP}/{member.node_id}/", member.name
        if member.kind is MemberKind.DIRECTORY:
            self._directories[member.node_id] = path
        elif member.linked:
            self._linked.setdefault(member.node_id, path)
        return path, name

    def _write_keywords(
        self,
        flag: bytes,
        keywords: dict[str, str],
        block: bytes,
        content: Iterable[bytes | bytearray | memoryview],
    ) -> None:
        payload = b"".join(pax_record(key, value.encode()) for key, value in keywords.items())
        check = zlib.crc32(block, zlib.crc32(payload))
        for piece in content:
            check = zlib.crc32(piece, check)
        payload += pax_record("CAPSTORE.crc32", b"%08x" % check)
        self._stream.write(_ustar(flag, "capstore", len(payload)))
        self._stream.write(payload + bytes(-len(payload) % BLOCK_BYTES))


def _marks(member: Member) -> dict[str, str]:
    """The keywords that most members do without."""
    keywords = {}
    if member.provenance is not Provenance.WALL_CLOCK:
        keywords["CAPSTORE.provenance"] = member.provenance.value
    if member.opaque:
        keywords["CAPSTORE.opaque"] = "1"
    if member.redirect:
        keywords["CAPSTORE.redirect"] = member.redirect
    for key, number in (("origin", member.origin), ("below", member.below)):
        if number:
            keywords[f"CAPSTORE.{key}"] = str(number)
    return keywords


def _ustar(flag: bytes, path: str, size: int, executable: bool = False, modified: int = 0) -> bytes:
    """A ustar header; what does not fit is in the pax header before it."""
    directory = flag == MemberKind.DIRECTORY.value
    mode = 0o755 if executable or directory else 0o644
    return ustar_header(flag, path.encode()[:99], mode=mode, size=size, seconds=modified // 10**9)


# Reading ------------------------------------------------------------------------------------------


def read_tree(stream: BinaryIO, budget: Budget) -> tuple[Header, Iterator[Member]]:
    """The header of an archive and its members, directories before what is in them.

    Raises, also while the members and their contents are iterated, `Corrupt` for anything that
    `write_tree` did not write, `Unsupported` for a newer format, `NoSpace` and `TooLarge` for more
    than `budget` allows, and `StorageIOError` where the stream cannot be read.
    """
    reader = _Reader(stream, budget)
    header = reader.read_header()
    return header, reader.members(header.members)


class _Reader:
    def __init__(self, stream: BinaryIO, budget: Budget) -> None:
        self._stream = stream
        self._budget = budget
        self._room = budget.total_bytes_max
        self._checked = True

    def read_header(self) -> Header:
        flag, size, _ = self._header_block()
        if flag != b"g":
            raise Corrupt("no saved tree: the archive was not written by capstore")
        payload, check = self._payload(size)
        keywords = Keywords(payload)
        if keywords.number("CAPSTORE.format") > FORMAT:
            raise Unsupported("the saved tree has a newer format")
        if zlib.crc32(payload) != check:
            raise Corrupt("the archive's header has a wrong checksum")
        header = Header(
            volume_id=keywords.hexadecimal("CAPSTORE.volume"),
            nodes=keywords.number("CAPSTORE.nodes"),
            changes=keywords.number("CAPSTORE.changes"),
            members=keywords.number("CAPSTORE.members"),
        )
        keywords.end()
        if header.members > self._budget.members_max:
            raise NoSpace("the saved tree has more nodes than the volume may have")
        return header

    def members(self, count: int) -> Iterator[Member]:
        for _ in range(count):
            if not self._checked:
                raise Corrupt("a member's content was skipped")
            yield self._member()
        if not self._checked or any(self._take(2 * BLOCK_BYTES)) or self._read(1):
            raise Corrupt("the archive does not end after its last member")

    def _member(self) -> Member:
        flag, size, _ = self._header_block()
        if flag != b"x":
            raise Corrupt("a member does not begin with a pax header")
        payload, check = self._payload(size)
        keywords = Keywords(payload)
        flag, size, block = self._header_block()
        try:
            kind = MemberKind(flag)
        except ValueError:
            raise Corrupt("a member of an unknown type") from None
        if keywords.has("size"):
            size = keywords.number("size")
        if size and kind is not MemberKind.FILE:
            raise Corrupt("only a file has content")
        if size > self._budget.file_bytes_max:
            raise TooLarge("a saved file is longer than a file of the volume may be")
        self._room -= size
        if self._room < 0:
            raise NoSpace("the saved tree is larger than the volume")
        running = zlib.crc32(block, zlib.crc32(payload))
        member = _decoded(kind, size, block[100:108] == b"0000755\0", keywords)
        if not size:
            self._check(running, check)
            return member
        self._checked = False
        return replace(member, content=self._content(size, running, check))

    def _content(self, size: int, running: int, check: int) -> Iterator[bytes]:
        left = size
        while left:
            piece = self._take(min(left, PIECE_BYTES))
            running = zlib.crc32(piece, running)
            left -= len(piece)
            yield piece
        if any(self._take(-size % BLOCK_BYTES)):
            raise Corrupt("a member's padding is not empty")
        self._check(running, check)
        self._checked = True

    @staticmethod
    def _check(running: int, check: int) -> None:
        if running != check:
            raise Corrupt("a member has a wrong checksum")

    def _header_block(self) -> tuple[bytes, int, bytes]:
        """The type flag, size and bytes of the next ustar header."""
        block = self._take(BLOCK_BYTES)
        expected = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        if block[148:156] != b"%06o\0 " % expected or block[257:265] != b"ustar\x0000":
            raise Corrupt("a block that is no header")
        digits = block[124:135]
        if not re.fullmatch(rb"[0-7]{11}", digits):
            raise Corrupt("a header whose size is no number")
        return block[156:157], int(digits, 8), block

    def _payload(self, size: int) -> tuple[bytes, int]:
        """The records of a pax header without the last, and the checksum that is in the last."""
        if not _CRC_RECORD_BYTES <= size <= _HEADER_BYTES_MAX:
            raise Corrupt("a pax header of an impossible size")
        raw = self._take(size)
        if any(self._take(-size % BLOCK_BYTES)):
            raise Corrupt("a header's padding is not empty")
        match = re.fullmatch(rb"27 CAPSTORE\.crc32=([0-9a-f]{8})\n", raw[-_CRC_RECORD_BYTES:])
        if match is None:
            raise Corrupt("no saved tree: a header without checksum")
        return raw[:-_CRC_RECORD_BYTES], int(match[1], 16)

    def _take(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        raw = self._read(size)
        if len(raw) != size:
            raise Corrupt("the archive is cut short")
        return raw

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except OSError:
            raise StorageIOError("the archive cannot be read") from None


def _decoded(kind: MemberKind, size: int, executable: bool, keywords: Keywords) -> Member:
    path = keywords.text("path")
    if kind is MemberKind.WHITEOUT:
        return _decoded_whiteout(path, size, keywords)
    linkpath = ""
    if kind in (MemberKind.SYMLINK, MemberKind.LINK):
        linkpath = keywords.text("linkpath")
    parent_id = keywords.number("CAPSTORE.parent")
    if kind is MemberKind.LINK and not parent_id:
        raise Corrupt("a further name that is none")
    member = Member(
        kind=kind,
        node_id=keywords.number("CAPSTORE.node"),
        parent_id=parent_id,
        name=_name_of(path, keywords) if parent_id else "",
        version=keywords.number("CAPSTORE.version"),
        created=keywords.integer("CAPSTORE.created"),
        modified=keywords.time("mtime"),
        executable=executable and kind is MemberKind.FILE,
        size=size,
        target=linkpath if kind is MemberKind.SYMLINK else "",
    )
    if kind is not MemberKind.LINK:
        member = _marked(member, keywords)
    keywords.end()
    if not parent_id and path != _nameless_path(kind, member.node_id):
        raise Corrupt("a root that is not called so")
    if not member.node_id or member.node_id == parent_id:
        raise Corrupt("a node with an impossible id")
    if kind is MemberKind.SYMLINK and not _is_target(member.target):
        raise Corrupt("a link whose target is none")
    return member


def _marked(member: Member, keywords: Keywords) -> Member:
    """`member` with what most members do without."""
    provenance = member.provenance
    if keywords.has("CAPSTORE.provenance"):
        try:
            provenance = Provenance(keywords.text("CAPSTORE.provenance"))
        except ValueError:
            raise Corrupt("times of an unknown provenance") from None
    opaque = keywords.mark("CAPSTORE.opaque")
    if opaque > 1:
        raise Corrupt("a mark that is none")
    redirect = ""
    if keywords.has("CAPSTORE.redirect"):
        redirect = keywords.text("CAPSTORE.redirect")
    return replace(
        member,
        provenance=provenance,
        opaque=bool(opaque),
        redirect=redirect,
        origin=keywords.mark("CAPSTORE.origin", bits=64),
        below=keywords.mark("CAPSTORE.below"),
    )


def _decoded_whiteout(path: str, size: int, keywords: Keywords) -> Member:
    parent_id = keywords.number("CAPSTORE.parent")
    if size or not parent_id or not keywords.has("CAPSTORE.name"):
        raise Corrupt("a whiteout that is none")
    name = _name_of(path, keywords)
    keywords.end()
    return Member(MemberKind.WHITEOUT, 0, parent_id, name)


def _nameless_path(kind: MemberKind, node_id: int) -> str:
    """The path to show for the root, or a node without a name."""
    return "./" if kind is MemberKind.DIRECTORY else f"{_UNNAMED}/{node_id}"


def _name_of(path: str, keywords: Keywords) -> str:
    """The name of an entry, from its path unless a keyword says it."""
    parts = path.removesuffix("/").split("/")
    if len(parts) < 2 or parts[0] != ".":
        raise Corrupt("a path that does not begin at the root")
    name = keywords.text("CAPSTORE.name") if keywords.has("CAPSTORE.name") else parts[-1]
    try:
        for part in [*parts[1:], name]:
            check_name(part)
    except InvalidName:
        raise Corrupt("a path with a part that is no name") from None
    return name


def _is_target(target: str) -> bool:
    return 0 < len(target.encode()) <= SYMLINK_TARGET_BYTES_MAX and "\0" not in target
