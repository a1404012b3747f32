"""Checking a CAPOSST1 image: every seal, every rule between records, and every value.

Invariants:

* Nothing is written.  A finding does not end the check of what it has nothing to do with.
* What is checked is the state that opening would give: the front table, and the log behind it as
  far as it is believed.
* Work is bounded by the tables and the values; memory by some bytes for each value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from capstore.images import st1
from capstore.images.checksums import crc32c
from capstore.images.device import BlockDevice
from capstore.images.frames import torn_tail
from capstore.images.records import BLOCK_BYTES, ST1_ENTRY, ST1_SUPERBLOCK
from capstore.images.segments import TABLE
from capstore.images.st1_entry import Entry, Part
from capstore.images.st1_log import FORMAT
from capstore.images.st1_recovery import Recovered, recover
from capstore.images.st1_state import view_over
from capstore.images.tree import Finding
from capstore.schema.errors import Corrupt, StorageError

_STEP_ROWS = 1024


def verify(device: BlockDevice, *, values: bool = True) -> Iterator[Finding]:
    """The findings, in the order of superblocks, log, table, entries, values, space."""
    torn = list(verify_superblocks(device))
    try:
        found = recover(device)
    except StorageError as error:
        yield from (replace(finding, repairable=False) for finding in torn)
        yield Finding("store", error.message)
        return
    yield from torn
    yield from verify_log(device, found)
    yield from verify_content(device, found, values=values)


def verify_content(
    device: BlockDevice, found: Recovered, *, values: bool = True
) -> Iterator[Finding]:
    """Those of `verify` that are about table, entries and values."""
    sealed = True
    for at, message in found.table.check_pages():
        sealed = False
        yield Finding("table", message, at)
    # What rests on damaged pages is damaged, and has been named.
    if not sealed:
        return
    for finding in _rows(found):
        sealed = False
        yield finding
    if sealed:
        yield from _Entries(device, found).verify(values=values)


def verify_superblocks(device: BlockDevice) -> Iterator[Finding]:
    """Those that are damaged; the one that is not the newest may point to what was reused since."""
    for slot, lba in enumerate(st1.SUPERBLOCK_LBAS):
        at = lba * BLOCK_BYTES
        if device.size() < at + BLOCK_BYTES:
            yield Finding(f"superblock {slot}", "it is cut off", at)
            continue
        raw = device.read(at, BLOCK_BYTES)
        if not any(raw):
            # A store that was just made has one only.
            continue
        try:
            ST1_SUPERBLOCK.unpack(raw, "the superblock", at)
        except Corrupt as error:
            yield Finding(f"superblock {slot}", error.message, at, repairable=True)


def verify_log(device: BlockDevice, found: Recovered) -> Iterator[Finding]:
    """A torn tail, where there is one."""
    at = torn_tail(device, found.superblock, found.space.geometry, found.position, FORMAT)
    if at is None and found.discarded:
        at = found.space.geometry.start(found.position.segment) + found.position.offset
    if at is not None:
        message = "the log has a torn tail: changes that were under way when the store stopped"
        yield Finding("log", message, at, repairable=True)


def _rows(found: Recovered) -> Iterator[Finding]:
    """Entries of the table that are damaged, or not in order."""
    table = found.table
    for first in range(0, table.entries, _STEP_ROWS):
        raw = table.rows(first, min(_STEP_ROWS, table.entries - first))
        for index in ST1_ENTRY.unsealed(raw).tolist():
            yield Finding(f"entry {first + index}", "a wrong checksum", table.where(first + index))
        try:
            table.check_keys(raw, first, table.keys(raw, first))
        except Corrupt as error:
            yield Finding("table", error.message, table.where(first))


class _Entries:
    """The entries that opening would give, in order."""

    def __init__(self, device: BlockDevice, found: Recovered) -> None:
        self._device = device
        self._found = found
        self._geometry = found.space.geometry
        self._view = view_over(found.table, found.changes)
        # What was counted: entries, names, parts, bytes of keys; and the pieces of values.
        self._counts = [0, 0, 0, 0]
        self._places: list[int] = []
        self._lengths: list[int] = []

    def verify(self, *, values: bool) -> Iterator[Finding]:
        """Findings about entries, their values, and what they make in all."""
        pairs = self._view.pairs(b"", b"")
        while True:
            try:
                key, entry = next(pairs)
            except StopIteration:
                break
            except Corrupt as error:
                yield Finding("table", error.message)
                return
            yield from self._entry(key, entry, values=values)
        if tuple(self._counts) != self._found.counts:
            yield Finding("store", "it does not hold what it counted")
        yield from self._overlaps()
        yield from self._usage()
        yield from self._index()

    def _entry(self, key: bytes, entry: Entry, *, values: bool) -> Iterator[Finding]:
        count = self._counts
        count[0] += 1
        count[1] += key[:1] == st1.NAMES
        count[2] += len(entry.parts)
        count[3] += len(key)
        label = f"object {key[1:].hex()}" if key[:1] == st1.OBJECTS else "a name"
        if entry.version > self._found.version:
            yield Finding(label, "a version that was not given yet")
        parts = entry.parts or [Part(entry.place, 0, entry.size, entry.sum)]
        for part in parts:
            if part.length:
                self._places.append(part.place)
                self._lengths.append(part.length)
            if self._found.space.use[self._geometry.at(part.place)] == TABLE and part.length:
                yield Finding(label, "its value lies in the table", part.place)
        if values:
            for at, message in self._value(key, entry, parts):
                yield Finding(label, message, at)

    def _value(self, key: bytes, entry: Entry, parts: Sequence[Part]) -> Iterator[tuple[int, str]]:
        """Where a value is not what was put, and what is wrong."""
        digest = hashlib.sha256()
        for part in parts:
            data = self._device.read(part.place, part.length)
            if crc32c(data) != part.sum:
                yield part.place, "its value has a wrong checksum"
                return
            digest.update(data)
        if entry.is_hashed and digest.digest() != key[1:]:
            yield parts[0].place, "its value is not what its hash says"

    def _overlaps(self) -> Iterator[Finding]:
        places = np.array(self._places, dtype=np.int64)
        lengths = np.array(self._lengths, dtype=np.int64)
        order = np.argsort(places, kind="stable")
        places, ends = places[order], (places + lengths)[order]
        for index in np.flatnonzero(places[1:] < ends[:-1]).tolist():
            yield Finding("values", "two values share bytes", int(places[index + 1]))

    def _usage(self) -> Iterator[Finding]:
        """What the table says is live, beside what it leads to."""
        live = np.zeros(self._found.space.count, dtype=np.int64)
        table = self._found.table
        for row in range(table.entries):
            entry = table.entry(row)
            for part in entry.parts or [Part(entry.place, 0, entry.size, entry.sum)]:
                live[self._geometry.at(part.place)] += part.length
        told = np.zeros(len(live), dtype=np.int64)
        told[: len(table.head.usage)] = table.head.usage
        for segment in np.flatnonzero(live != told).tolist():
            yield Finding("table", f"segment {segment} has not as much live as it says")

    def _index(self) -> Iterator[Finding]:
        """Rows that looking up their keys does not find."""
        table = self._found.table
        for row in range(table.entries):
            if table.row_of(table.key(row)) != row:
                yield Finding(f"entry {row}", "the index does not lead to it", table.where(row))
