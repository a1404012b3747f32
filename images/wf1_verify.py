"""Checking a CAPOSWF1 image: every seal, every rule between records.

Invariants:

* Nothing is written.  A finding does not end the check of what it has nothing to do with.
* What is checked is the state that opening would give: the checkpoint, and the log behind it as far
  as it is believed.
* Work is bounded by the tables; memory by some bytes for each name and each extent.
* Bytes of files are not read: whoever reads them checks them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from capstore.images import wf1
from capstore.images.device import BlockDevice
from capstore.images.frames import torn_tail
from capstore.images.records import (
    BLOCK_BYTES,
    WF1_ENTRY,
    WF1_EXTENT,
    WF1_NODE,
    WF1_SUPERBLOCK,
    Record,
)
from capstore.images.tree import Finding
from capstore.images.wf1_base import PAGE_BYTES
from capstore.images.wf1_log import FORMAT
from capstore.images.wf1_recovery import Recovered, recover
from capstore.images.wf1_verify_space import verify_extents
from capstore.images.wf1_verify_tree import verify_tree
from capstore.schema.errors import Corrupt, StorageError

_WHAT: Final = {WF1_NODE: "node record", WF1_ENTRY: "entry record", WF1_EXTENT: "extent record"}


def verify(device: BlockDevice) -> Iterator[Finding]:
    """The findings, in the order of superblocks, log, tables, tree, space."""
    torn = list(verify_superblocks(device))
    try:
        found = recover(device)
    except StorageError as error:
        yield from (replace(finding, repairable=False) for finding in torn)
        yield Finding("volume", error.message)
        return
    yield from torn
    yield from verify_log(device, found)
    yield from verify_content(device, found)


def verify_content(device: BlockDevice, found: Recovered) -> Iterator[Finding]:
    """Those of `verify` that are about tables, tree and space."""
    sealed = True
    for finding in _tables(device, found):
        sealed = False
        yield finding
    # What rests on damaged records is damaged, and has been named.
    if sealed:
        yield from verify_tree(found)
        yield from verify_extents(found)


def verify_superblocks(device: BlockDevice) -> Iterator[Finding]:
    """Those that are damaged; the one that is not the newest may point to what was reused since."""
    for slot, lba in enumerate(wf1.SUPERBLOCK_LBAS):
        at = lba * BLOCK_BYTES
        if device.size() < at + BLOCK_BYTES:
            yield Finding(f"superblock {slot}", "it is cut off", at)
            continue
        raw = device.read(at, BLOCK_BYTES)
        if not any(raw):
            # A volume that was just made has one only.
            continue
        try:
            WF1_SUPERBLOCK.unpack(raw, "the superblock", at)
        except Corrupt as error:
            yield Finding(f"superblock {slot}", error.message, at, repairable=True)


# Tables ------------------------------------------------------------------------------------------


def _tables(device: BlockDevice, found: Recovered) -> Iterator[Finding]:
    """Records of the checkpoint whose seals do not fit."""
    counts, starts = found.tables.head.counts, found.tables.head.starts
    yield from _sealed(device, found, WF1_NODE, starts[0], counts.nodes)
    yield from _sealed(device, found, WF1_ENTRY, starts[1], counts.entries)
    yield from _sealed(device, found, WF1_EXTENT, starts[2], counts.extents)


def _sealed(
    device: BlockDevice, found: Recovered, record: Record, start: int, count: int
) -> Iterator[Finding]:
    end = start + count * record.size
    for offset in range(start, end, PAGE_BYTES):
        # A record never crosses from one page to the next, nor a page from one segment to another.
        place = found.tables.place(offset)
        page = device.read(place, min(PAGE_BYTES, end - offset))
        for index in record.unsealed(page).tolist():
            number = (offset - start) // record.size + index
            at = place + index * record.size
            yield Finding(f"{_WHAT[record]} {number}", "a wrong checksum", at)


# The log -----------------------------------------------------------------------------------------


def verify_log(device: BlockDevice, found: Recovered) -> Iterator[Finding]:
    """A torn tail, where there is one."""
    at = torn_tail(device, found.superblock, found.space.geometry, found.position, FORMAT)
    if at is not None:
        message = "the log has a torn tail: changes that were under way when the volume stopped"
        yield Finding("log", message, at, repairable=True)


assert all(PAGE_BYTES % record.size == 0 for record in _WHAT)  # noqa: S101
