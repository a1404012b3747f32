"""Nodes, names and extents of CAPOSWF1 as records, in frames of the log and in checkpoints alike.

Invariants: what is decoded was sealed, and is checked before it is used: kinds, names, targets and
numbers that cannot be are `Corrupt`, with the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from capstore.images import ro1, wf1
from capstore.images.checksums import crc32c
from capstore.images.records import BLOCK_BYTES, WF1_ENTRY, WF1_EXTENT, WF1_NODE
from capstore.images.segments import Geometry
from capstore.images.wf1_content import CHUNK_BYTES, Extent
from capstore.images.wf1_state import Node
from capstore.schema.errors import Corrupt, InvalidArgument, InvalidName, TooLarge
from capstore.schema.limits import SYMLINK_TARGET_BYTES_MAX
from capstore.schema.names import check_name

SIZE_MAX: Final = (1 << 63) - 1
_PROVENANCE_CODES: Final = {of.value: code for of, code in ro1.PROVENANCE_CODES.items()}

_sealed_node: Final = WF1_NODE.sealer(
    "id",
    "size",
    "created",
    "modified",
    "version",
    "parent",
    "first",
    "kind",
    "flags",
    "provenance",
    "links",
    "count",
    "textSum",
    "below",
    "origin",
    "redirectAt",
    "redirectBytes",
)
_sealed_entry: Final = WF1_ENTRY.sealer("directory", "node", "nameAt", "nameSum", "nameBytes")
_sealed_extent: Final = WF1_EXTENT.sealer(
    "fileOffset", "lba", "sum", "storedLess1", "skip", "lengthLess1"
)


class Encoder:
    """Tables in the making; `heap_at` is how much of the heap is before this part of it."""

    def __init__(self, heap_at: int = 0) -> None:
        self._heap_at = heap_at
        self.nodes: list[bytes] = []
        self.entries: list[bytes] = []
        self.extents: list[bytes] = []
        self.heap = bytearray()

    @property
    def records(self) -> int:
        """How many records there are."""
        return len(self.nodes) + len(self.entries) + len(self.extents)

    @property
    def size(self) -> int:
        """How many bytes the tables have."""
        return (
            len(self.nodes) * WF1_NODE.size
            + len(self.entries) * WF1_ENTRY.size
            + len(self.extents) * WF1_EXTENT.size
            + len(self.heap)
        )

    def node(self, node: Node, first: int, count: int) -> None:
        """A node whose text or extents or entries are at `first`, `count` in number."""
        target, redirect = node.target.encode(), node.redirect.encode()
        at = self._heap_at + len(self.heap)
        self.nodes.append(
            _sealed_node(
                node.id,
                node.size,
                node.created,
                node.modified,
                node.version,
                node.parent,
                at if target else first,
                node.kind,
                node.flags,
                _PROVENANCE_CODES[node.provenance.value],
                node.links,
                len(target) if target else count,
                crc32c(target or redirect),
                node.below,
                node.origin,
                at if redirect else 0,
                len(redirect),
            )
        )
        self.heap += target or redirect

    def entry(self, directory: int, name: str, node: int) -> None:
        """A name."""
        raw = name.encode()
        at = self._heap_at + len(self.heap)
        self.entries.append(_sealed_entry(directory, node, at, crc32c(raw), len(raw)))
        self.heap += raw

    def extent(self, extent: Extent) -> None:
        """A part of a file."""
        self.extents.append(
            _sealed_extent(
                extent.offset,
                extent.lba,
                extent.sum,
                extent.stored - 1,
                extent.skip,
                extent.length - 1,
            )
        )

    def tables(self) -> bytes:
        """All of it: nodes, entries, extents, heap."""
        return b"".join((*self.nodes, *self.entries, *self.extents, bytes(self.heap)))


def text_place(record: Any) -> tuple[int, int]:
    """Where the text of a sealed node record is in the heap, and how many bytes it has."""
    if record.flags & wf1.REMOVED:
        return 0, 0
    if record.kind == wf1.SYMLINK:
        return record.first, record.count
    return record.redirectAt if record.redirectBytes else 0, record.redirectBytes


def node_of(record: Any, text: bytes, where: str) -> Node:
    """The node that a sealed record tells of; `text` is what is at its `text_place`.

    Raises `Corrupt`, which says `where`."""
    if record.kind not in wf1.KINDS or record.provenance not in ro1.PROVENANCES:
        raise Corrupt(f"{where} is of no known kind")
    if not wf1.ROOT <= record.id < SIZE_MAX or record.size > SIZE_MAX:
        raise Corrupt(f"{where} has numbers that no node has")
    if record.below and record.kind not in (wf1.FILE, wf1.SYMLINK):
        raise Corrupt(f"{where} is no file or link, but lower layers show it")
    if record.below and not record.links:
        raise Corrupt(f"{where} has no link for the layers below")
    if record.redirectBytes and record.kind != wf1.DIRECTORY:
        raise Corrupt(f"{where} has a redirect, but is no directory")
    target = redirect = ""
    if record.kind == wf1.SYMLINK:
        if not record.flags & wf1.REMOVED:
            target = _decoded_target(text, record.textSum, where)
    elif text:
        redirect = _decoded_redirect(text, record.textSum, where)
    return Node(
        id=record.id,
        kind=record.kind,
        flags=record.flags,
        links=record.links,
        size=record.size,
        created=record.created,
        modified=record.modified,
        provenance=ro1.PROVENANCES[record.provenance],
        version=record.version,
        parent=record.parent,
        target=target,
        content=None,
        redirect=redirect,
        origin=record.origin,
        below=record.below,
    )


def _decoded_text(raw: bytes, checksum: int, what: str) -> str:
    if crc32c(raw) != checksum:
        raise Corrupt(f"{what} with a wrong checksum")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Corrupt(f"{what} that is no UTF-8") from None


def _decoded_target(raw: bytes, checksum: int, where: str) -> str:
    text = _decoded_text(raw, checksum, f"{where} has a target")
    if not 0 < len(raw) <= SYMLINK_TARGET_BYTES_MAX or "\0" in text:
        raise Corrupt(f"{where} has a target that no link has")
    return text


def _decoded_redirect(raw: bytes, checksum: int, where: str) -> str:
    text = _decoded_text(raw, checksum, f"{where} has a redirect")
    try:
        return wf1.check_redirect(text)
    except (TooLarge, InvalidArgument):
        raise Corrupt(f"{where} has a redirect that no directory has") from None


def decoded_name(raw: bytes, checksum: int, where: str) -> str:
    """A name.  Raises `Corrupt`."""
    if crc32c(raw) != checksum:
        raise Corrupt(f"{where} has a name with a wrong checksum")
    try:
        return check_name(raw.decode())
    except (UnicodeDecodeError, InvalidName):
        raise Corrupt(f"{where} has no valid name") from None


def extent_of(record: Any, at: int, geometry: Geometry, segments: int) -> Extent:
    """The extent that a sealed record at offset `at` tells of.  Raises `Corrupt`."""
    stored = record.storedLess1 + 1
    extent = Extent(
        offset=record.fileOffset,
        length=record.lengthLess1 + 1,
        lba=record.lba,
        skip=record.skip,
        stored=stored,
        sum=record.sum,
    )
    segment = geometry.of_lba(extent.lba)
    end = extent.lba * BLOCK_BYTES + stored
    if (
        extent.skip + extent.length > stored
        or extent.end > SIZE_MAX
        or extent.offset // CHUNK_BYTES != (extent.end - 1) // CHUNK_BYTES
        or not 0 <= segment < segments
        or end > geometry.start(segment + 1)
    ):
        raise Corrupt(f"the extent at offset {at} lies where none can be")
    return extent


def check_extents(extents: Sequence[Extent], size: int, where: str) -> Sequence[Extent]:
    """`extents`, if they ascend, are disjoint and end within `size`; raises `Corrupt`."""
    at = 0
    for extent in extents:
        if extent.offset < at:
            raise Corrupt(f"{where} has extents that overlap")
        at = extent.end
    if at > size:
        raise Corrupt(f"{where} has extents behind its end")
    return extents
