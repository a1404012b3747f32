"""Names that a directory of an image does not have, told without a search.

Whoever puts images on top of one another looks for most names in vain in most of them, and a search
that ends nowhere costs more than one that finds.

Invariants: what is kept was read from entries whose seals fit, so that a name whose checksum is not
among theirs is not there.  It is bounded, and only for directories where it has been of use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from capstore.images.checksums import crc32c
from capstore.images.records import RO1_ENTRY

# Searches in vain before the names of a directory are read.
_MISSES_BEFORE: Final = 4
# More names would keep others waiting while they are read.
_DIRECTORY_NAMES_MAX: Final = 16_384
_NAMES_MAX: Final = 262_144
_DIRECTORIES_MAX: Final = 65_536


class NameSums:
    """Checksums of the names in some directories.  For several threads at once."""

    def __init__(self) -> None:
        self._misses: dict[int, int] = {}
        self._sums: dict[int, frozenset[int]] = {}
        self._names = 0

    def exclude(self, directory: int, raw: bytes) -> bool:
        """Whether it is certain that the directory has no such name."""
        sums = self._sums.get(directory)
        return sums is not None and crc32c(raw) not in sums

    def missed(self, directory: int, count: int, read: Callable[[], memoryview]) -> None:
        """A name was looked for in vain among the `count` that the directory has; `read` gives the
        records of their entries."""
        misses = self._misses.get(directory, 0) + 1
        if len(self._misses) >= _DIRECTORIES_MAX:
            self._misses.clear()
        self._misses[directory] = misses
        if misses == _MISSES_BEFORE and count <= _DIRECTORY_NAMES_MAX:
            self._keep(directory, count, read())

    def _keep(self, directory: int, count: int, records: memoryview) -> None:
        if len(RO1_ENTRY.unsealed(records)):
            # Looking for a name says what is damaged, and only where that matters.
            return
        table = RO1_ENTRY.table(records)
        if not (table["directory"] == directory).all():
            return
        if self._names + count > _NAMES_MAX:
            self._sums.clear()
            self._names = 0
        self._names += count
        self._sums[directory] = frozenset(table["nameSum"].tolist())
