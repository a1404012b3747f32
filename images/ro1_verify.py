"""Checking the structure of a CAPOSRO1 image: every seal, every rule between records.

Invariants: memory is bounded by a slice of a table, not by the image; a finding does not end the
check of what it has nothing to do with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from capstore.images import ro1
from capstore.images.device import BlockDevice
from capstore.images.records import BLOCK_BYTES, RO1_ENTRY, RO1_EXTENT, RO1_NODE, Record
from capstore.images.ro1 import Span
from capstore.images.tree import Finding
from capstore.schema.errors import Corrupt, StorageError
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.nodes import NodeKind

if TYPE_CHECKING:
    from capstore.images.ro1_tree import Ro1Tree

_SLICE_RECORDS: Final = 1 << 16


def verify(tree: Ro1Tree, device: BlockDevice) -> Iterator[Finding]:
    """The findings, in the order of superblocks, seals, nodes.

    Bytes of files are not read: whoever reads them checks them.
    """
    yield from _superblocks(device)
    superblock = tree.superblock
    for span, record in (
        (superblock.nodes, RO1_NODE),
        (superblock.entries, RO1_ENTRY),
        (superblock.extents, RO1_EXTENT),
    ):
        yield from _seals(tree, span, record)
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


def _seals(tree: Ro1Tree, span: Span, record: Record) -> Iterator[Finding]:
    for first in range(0, span.count, _SLICE_RECORDS):
        count = min(_SLICE_RECORDS, span.count - first)
        at = span.start + first * record.size
        for index in record.unsealed(tree.view[at : at + count * record.size]):
            number = first + int(index)
            where = span.start + number * record.size
            yield Finding(f"{record.name} {number}", "a wrong checksum", where)


def verify_nodes(tree: Ro1Tree) -> Iterator[Finding]:
    """What is wrong with the tree: its directories, and where its files are."""
    next_entry = 0
    for number in range(tree.superblock.nodes.count):
        try:
            node = tree.node(number)
        except Corrupt:
            continue  # its seal is a finding already
        kind = ro1.KINDS[node.kind]
        if kind is NodeKind.DIRECTORY:
            if node.first != next_entry and node.count:
                yield Finding(f"node {number}", "its entries do not follow those before")
            next_entry = node.first + node.count
            yield from _directory(tree, number)
        elif kind is NodeKind.FILE:
            try:
                tree.content(number)
            except StorageError as error:
                yield Finding(f"node {number}", error.message)
    if next_entry != tree.superblock.entries.count:
        yield Finding("entries", "there are some that no directory has")


def _directory(tree: Ro1Tree, number: int) -> Iterator[Finding]:
    after = ""
    try:
        while True:
            page = tree.list(number, after, PAGE_ENTRIES_MAX)
            for entry in page.entries:
                child = tree.node(entry.stat.node_id)
                if entry.stat.kind is NodeKind.DIRECTORY and child.parent != number:
                    yield Finding(f"node {entry.stat.node_id}", "is said to be elsewhere")
            if not page.more:
                return
            after = page.entries[-1].name
    except StorageError as error:
        yield Finding(f"directory {number}", error.message)
