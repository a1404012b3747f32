"""Pages of a host directory: sorted names, kept for the life of one walk.

Invariants:

* Entries that nobody touches appear exactly once in a walk: a page holds the names after the last
  one in their order, from a list of names that is read anew or was read during this walk.
* A first page always reads the directory.  Later pages may use the list that was read for the
  walk, for at most `_LIFE_SECONDS_MIN` or `_LIFE_COSTS` times what reading it took.  So a walk
  over a directory of any size reads it in amortized linear time, whatever happens to it
  meanwhile, and no timestamp has to be trusted.
* What this volume itself adds is in every page that begins afterwards (`Names.added`).  What other
  processes add may be missing from later pages for the life of a list.  Names that are gone are
  never in a page, since each entry is looked at for it.
"""

from __future__ import annotations

import heapq
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from capstore.backers.hostspell import Spelling, read_names
from capstore.backers.node import Entry, Page
from capstore.schema.errors import InvalidArgument
from capstore.schema.limits import PAGE_BYTES_MAX, PAGE_ENTRIES_MAX

_LIFE_SECONDS_MIN: Final = 1.0
_LIFE_COSTS: Final = 20
# So many additions make a list that is read again cheaper than one that is merged.
_ADDED_MAX: Final = 1000
# Lists kept for walks under way, in one volume; an abandoned walk costs memory until then.
_WALKS_MAX: Final = 8

# Gives the entry of a name, or None when it is gone.
Look = Callable[[str], Entry | None]


class Names:
    """The names of one directory, shared by all nodes that hold it."""

    def __init__(self) -> None:
        self._reading = threading.Lock()
        self._adding = threading.Lock()
        self._sorted: list[str] | None = None
        self._until = 0.0
        # None while nobody could need it: no list is kept or being read.
        self._added: set[str] | None = None
        # Whether names went since the list was read.
        self._has_losses = False
        self.spelling = Spelling()

    def added(self, name: str) -> None:
        """Notes a name that was just made; called after the system call that made it."""
        with self._adding:
            if self._added is not None and len(self._added) <= _ADDED_MAX:
                self._added.add(name)

    @contextmanager
    def making(self, name: str) -> Iterator[None]:
        """The context of the system call that makes `name`."""
        with self.spelling.making(name):
            yield
        self.added(name)

    def gone(self, name: str) -> None:
        """Notes a name that was just removed, or moved."""
        self.spelling.gone(name)
        with self._adding:
            self._has_losses = self._added is not None

    def is_listed(self, directory: int, name: str) -> bool:
        """Whether the entry that `name` finds now is the one that stands in the list.  Blocks.

        It may be another one, with another spelling, if names went since the list was read.
        Raises `OSError`.
        """
        return not self._has_losses or self.spelling.is_own(directory, name)

    def forget(self) -> None:
        """Drops the list."""
        with self._adding:
            self._sorted = self._added = None
            self._has_losses = False

    def after(self, directory: int, name: str) -> Iterator[str]:
        """The names after `name` in their order; some may be gone.  Blocks."""
        with self._reading:
            names, added = self._kept() if name else (None, [])
            if names is None:
                names = self._read(directory)
        start = bisect_right(names, name)
        later = (names[index] for index in range(start, len(names)))
        if not added:
            return later
        return _merged(later, (new for new in added if new > name))

    def _kept(self) -> tuple[list[str] | None, list[str]]:
        """The list if it may still be used, and what was added to the directory since."""
        with self._adding:
            added = self._added or ()
            usable = time.monotonic() < self._until and len(added) <= _ADDED_MAX
            return (self._sorted if usable else None), sorted(added) if usable else []

    def _read(self, directory: int) -> list[str]:
        with self._adding:
            # An addition whose system call comes after this is noted in the new set; one that
            # comes before is in what is read.
            self._sorted, self._added, self._has_losses = None, set(), False
        began = time.monotonic()
        names = read_names(directory)
        now = time.monotonic()
        with self._adding:
            if self._added is not None:
                self._sorted = names
                self._until = now + max(_LIFE_SECONDS_MIN, _LIFE_COSTS * (now - began))
        return names


def _merged(first: Iterator[str], second: Iterator[str]) -> Iterator[str]:
    previous = ""
    for name in heapq.merge(first, second):
        if name != previous:
            yield name
        previous = name


class Walks:
    """The directories whose lists are kept; the oldest one's is dropped when there are too many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[Names] = deque()

    def page(self, names: Names, directory: int, after: str, limit: int, look: Look) -> Page:
        """One page of the directory that `names` belongs to.  Blocks."""
        page = _page(names.after(directory, after), limit, look)
        if page.more:
            self._keep(names)
        else:
            self._drop(names)
        return page

    def _keep(self, names: Names) -> None:
        with self._lock:
            if names in self._kept:
                self._kept.remove(names)
            self._kept.append(names)
            oldest = self._kept.popleft() if len(self._kept) > _WALKS_MAX else None
        if oldest is not None:
            oldest.forget()

    def _drop(self, names: Names) -> None:
        with self._lock:
            if names in self._kept:
                self._kept.remove(names)
        names.forget()


def check_limit(limit: int) -> int:
    """`limit` as far as one page goes; raises `InvalidArgument` for less than one entry."""
    if limit < 1:
        raise InvalidArgument("a page has at least one entry")
    return min(limit, PAGE_ENTRIES_MAX)


def _page(names: Iterator[str], limit: int, look: Look) -> Page:
    """Up to `limit` entries and PAGE_BYTES_MAX bytes of names and targets, at least one entry."""
    entries: list[Entry] = []
    size = 0
    for name in names:
        if len(entries) == limit:
            return Page(entries, more=True)
        entry = look(name)
        if entry is None:
            continue
        size += len(name.encode()) + len((entry.target or "").encode())
        if entries and size > PAGE_BYTES_MAX:
            return Page(entries, more=True)
        entries.append(entry)
    return Page(entries, more=False)
