"""Checking the structure of a CAPOSRO1 image: every seal, every rule between records.

Invariants: memory is bounded by a slice of a table, not by the image; a finding does not end the
check of what it has nothing to do with.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Final

from capstore.images import ro1
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES, RO1_ENTRY, RO1_EXTENT, RO1_NODE
from capstore.images.ro1 import Span
from capstore.images.tree import Finding
from capstore.schema.errors import Corrupt, StorageError
from capstore.schema.nodes import NodeKind

if TYPE_CHECKING:
    from capstore.images.ro1_tree import Ro1Tree

_SLICE_RECORDS: Final = 1 << 16


def verify(tree: Ro1Tree, device: BlockDevice) -> Iterator[Finding]:
    """The findings, in the order of superblocks, extents, label, nodes.

    Bytes of files are not read: whoever reads them checks them.
    """
    yield from _superblocks(device)
    superblock = tree.superblock
    yield from _extent_seals(tree, superblock.extents)
    try:
        _ = tree.label
    except Corrupt as error:
        yield Finding("label", error.message)
    yield from verify_nodes(tree)


def _superblocks(device: BlockDevice) -> Iterator[Finding]:
    for slot, lba in enumerate(ro1.SUPERBLOCK_LBAS):
        try:
            ro1.superblock_at(device, lba)
        except StorageError as error:
            yield Finding(f"superblock {slot}", error.message, lba * BLOCK_BYTES)


def _extent_seals(tree: Ro1Tree, span: Span) -> Iterator[Finding]:
    for first in range(0, span.count, _SLICE_RECORDS):
        count = min(_SLICE_RECORDS, span.count - first)
        at = span.start + first * RO1_EXTENT.size
        for index in RO1_EXTENT.unsealed(tree.view[at : at + count * RO1_EXTENT.size]):
            number = first + int(index)
            where = span.start + number * RO1_EXTENT.size
            yield Finding(f"extent {number}", "a wrong checksum", where)


def verify_nodes(tree: Ro1Tree) -> Iterator[Finding]:
    """What is wrong with the tree: its directories, and where its files are."""
    extents = tree.superblock.extents.count
    next_entry = claimed = 0
    for number in range(tree.superblock.nodes.count):
        try:
            node = tree.node(number)
        except Corrupt as error:
            where = tree.superblock.nodes.start + number * RO1_NODE.size
            yield Finding(f"node {number}", error.message, where)
            continue
        kind = ro1.KINDS[node.kind]
        if kind is NodeKind.DIRECTORY:
            next_entry = yield from _directory(tree, number, next_entry)
        elif kind is NodeKind.FILE:
            own = 0 if node.flags & ro1.DAMAGED else node.count
            before, claimed = claimed, claimed + own
            if claimed > extents:
                # Each would be looked at once for each file that claims it.
                if before <= extents:
                    yield Finding("extents", "files claim more of them than there are")
                continue
            try:
                tree.content(number)
            except StorageError as error:
                yield Finding(f"node {number}", error.message)
    if next_entry != tree.superblock.entries.count:
        yield Finding("entries", "there are some that no directory has")


def _directory(tree: Ro1Tree, number: int, next_entry: int) -> Generator[Finding, None, int]:
    """Checks the directory, whose entries should begin at `next_entry`; returns where they end."""
    try:
        low, high = tree.range_of(number)
    except Corrupt as error:
        yield Finding(f"directory {number}", error.message)
        return next_entry
    if low != next_entry and low != high:
        yield Finding(f"directory {number}", "its entries do not follow those before")
    if low < next_entry:
        # Each entry is looked at once, also where directories claim the same ones.
        return next_entry
    last = b""
    for entry in range(low, high):
        where = tree.superblock.entries.start + entry * RO1_ENTRY.size
        try:
            raw, _ = tree.named_entry(entry, number)
        except Corrupt as error:
            yield Finding(f"directory {number}", error.message, where)
            continue
        if raw <= last:
            yield Finding(f"directory {number}", f"entry {entry} is out of order", where)
        last = raw
    return high
