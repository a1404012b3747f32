"""What a CAPOSST1 store holds: the front table, and what was changed since.

Invariants:

* A `View` is looked at as a whole: whoever has one finds each key once, in the newest place that
  has it.  Only the newest part of it changes, by single operations of a dictionary.
* None in `newer` or `frozen` is a tombstone: the key is gone, whatever is below.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, NamedTuple, TypeVar

from capstore.images.checksums import crc32c
from capstore.images.st1_entry import Entry
from capstore.images.st1_keys import SortedKeys
from capstore.images.st1_table import Table

V = TypeVar("V")

Changes = dict[bytes, Entry | None]

# Entries of the table that were found lately.
CACHED_ENTRIES_MAX: Final = 131_072
_CACHED_PARTS_MAX: Final = 8
_MISSING: Final = Entry(0, 0, 0, 0, 0, 0, 0, 0)
_ROWS: Final = 64


class View(NamedTuple):
    """`newer` over `frozen` (which a shadow is being made of, else nothing) over `table`."""

    table: Table
    newer: Changes
    order: SortedKeys
    frozen: Changes
    frozen_order: SortedKeys
    cache: dict[bytes, Entry]

    def find(self, key: bytes) -> Entry | None:
        """What is under a stored key.  Raises `Corrupt`, `WouldWait`."""
        entry = self.newer.get(key, _MISSING)
        if entry is not _MISSING:
            return entry
        if self.frozen:
            entry = self.frozen.get(key, _MISSING)
            if entry is not _MISSING:
                return entry
        return self.cache.get(key) or self._find_below(key)

    def _find_below(self, key: bytes) -> Entry | None:
        entry = self.table.find(key, crc32c(key))
        if entry is not None and len(entry.parts) <= _CACHED_PARTS_MAX:
            if len(self.cache) >= CACHED_ENTRIES_MAX:
                self.cache.clear()
            self.cache[key] = entry
        return entry

    def is_new(self, key: bytes) -> bool:
        """Whether nothing was said of a key since the table, or since what is frozen."""
        return key not in self.newer

    def pairs(self, lower: bytes, prefix: bytes) -> Iterator[tuple[bytes, Entry]]:
        """The stored keys from `lower` on that begin with `prefix`, in order, with their entries.

        Raises `Corrupt`, `WouldWait`."""
        changed = _Cursor(self._changed(lower, prefix), None)
        table = _Cursor(self._rows(lower, prefix), 0)
        while changed.key or table.key:
            if not changed.key or (table.key and table.key < changed.key):
                yield table.key, self.table.entry(table.value)
                table.advance()
                continue
            if table.key == changed.key:
                table.advance()
            if changed.value is not None:
                yield changed.key, changed.value
            changed.advance()

    def _changed(self, lower: bytes, prefix: bytes) -> Iterator[tuple[bytes, Entry | None]]:
        """What was changed, in order; tombstones too."""
        newer = _Cursor(_keys(self.order, lower, prefix), None)
        older = _Cursor(_keys(self.frozen_order, lower, prefix), None)
        while newer.key or older.key:
            key = min(newer.key or older.key, older.key or newer.key)
            entry = self.newer.get(key, _MISSING)
            if entry is _MISSING:
                entry = self.frozen.get(key)
            yield key, entry
            for cursor in (newer, older):
                if cursor.key == key:
                    cursor.advance()

    def _rows(self, lower: bytes, prefix: bytes) -> Iterator[tuple[bytes, int]]:
        table = self.table
        for row in range(table.bisect(lower), table.entries):
            key = table.key(row)
            if not key.startswith(prefix):
                return
            yield key, row


class _Cursor(Generic[V]):
    """Where one of several sources is; at its end `key` is empty."""

    __slots__ = ("_end", "_source", "key", "value")

    def __init__(self, source: Iterator[tuple[bytes, V]], end: V) -> None:
        self._source = source
        self._end = (b"", end)
        self.key, self.value = next(source, self._end)

    def advance(self) -> None:
        self.key, self.value = next(self._source, self._end)


def _keys(order: SortedKeys, lower: bytes, prefix: bytes) -> Iterator[tuple[bytes, None]]:
    while keys := order.since(lower, _ROWS):
        for key in keys:
            if not key.startswith(prefix):
                return
            yield key, None
        lower = keys[-1] + b"\0"


def view_over(table: Table, changes: Changes) -> View:
    """A view of a table and what was changed since."""
    return View(table, changes, SortedKeys(changes), {}, SortedKeys(), {})
