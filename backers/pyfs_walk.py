"""Pages of a PyFilesystem2 directory: it lists whole directories, in an order of its own.

Invariants:

* A page is made of a scan that began after it was asked for, or of one from this walk (`after` is
  not empty) that no change made through the volume came after, of a bounded age.  Entries that
  nobody touches appear exactly once in a walk, for each page holds the names behind the last one.
* A scan keeps at most `PYFS_SCAN_ENTRIES_MAX` entries, and at most `PYFS_SCANS_MAX` scans are kept,
  so memory does not grow with what is listed.  A walk over a larger directory scans it several
  times.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from capstore.backers.node import Entry, Page
from capstore.schema.limits import PAGE_BYTES_MAX, PYFS_SCAN_ENTRIES_MAX, PYFS_SCANS_MAX

# What others do shows after so many seconds, or so many times what a scan took.
_LIFE_SECONDS_MIN: Final = 1.0
_LIFE_COSTS: Final = 20


@dataclass(frozen=True, slots=True)
class _Scan:
    """Entries in their order behind `after`; `whole` says that there are no more."""

    entries: list[Entry]
    after: str
    whole: bool
    changes: int
    until: float


class Scans:
    """The scans of a volume that walks under way use, by the id of the directory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, _Scan] = OrderedDict()

    def page(
        self, directory: int, after: str, limit: int, changes: int, entries: Iterable[Entry]
    ) -> Page:
        """Up to `limit` of `entries` behind `after`, which are taken only where a scan is needed.

        `changes` is a counter that grows with every change made through the volume.
        """
        scan = self._kept.pop(directory, None) if after else None
        if scan is None or not _serves(scan, after, changes):
            scan = _scan(entries, after, changes)
        page = _page(scan, after, limit)
        if page.more:
            self._kept[directory] = scan
            if len(self._kept) > PYFS_SCANS_MAX:
                self._kept.popitem(last=False)
        return page


def _serves(scan: _Scan, after: str, changes: int) -> bool:
    if scan.changes != changes or time.monotonic() > scan.until or after < scan.after:
        return False
    return scan.whole or after < scan.entries[-1].name


def _scan(entries: Iterable[Entry], after: str, changes: int) -> _Scan:
    began = time.monotonic()
    found = heapq.nsmallest(
        PYFS_SCAN_ENTRIES_MAX + 1,
        (entry for entry in entries if entry.name > after),
        key=lambda entry: entry.name,
    )
    now = time.monotonic()
    life = max(_LIFE_SECONDS_MIN, _LIFE_COSTS * (now - began))
    whole = len(found) <= PYFS_SCAN_ENTRIES_MAX
    return _Scan(found[:PYFS_SCAN_ENTRIES_MAX], after, whole, changes, now + life)


def _page(scan: _Scan, after: str, limit: int) -> Page:
    """Up to `limit` entries and PAGE_BYTES_MAX bytes of names and targets, at least one entry."""
    start = bisect_right(scan.entries, after, key=lambda entry: entry.name)
    page: list[Entry] = []
    size = 0
    for entry in scan.entries[start : start + limit]:
        size += len(entry.name.encode()) + len((entry.target or "").encode())
        if page and size > PAGE_BYTES_MAX:
            break
        page.append(entry)
    return Page(page, more=not scan.whole or start + len(page) < len(scan.entries))
