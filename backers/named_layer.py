"""Layers whose marks are names, as OCI image layers have them
(https://github.com/opencontainers/image-spec/blob/main/layer.md).

Invariants:

* A name that begins with ``.wh.`` is never shown.  ``.wh.NAME`` is a whiteout of ``NAME``, and
  ``.wh..wh..opq`` makes the directory that it is in opaque, whatever kind of node they are.  All
  others that begin with ``.wh..wh.`` mean nothing here.
* A whiteout is about the layers below: `x` beside ``.wh.x`` is there, and if it is a directory, it
  is opaque.
* A page reads what it shows and a few names more, however many marks there are elsewhere.

What `about` says of a directory is what is in it: whether a whiteout beside it makes it opaque is
known to who finds it by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from capstore.backers.layer import NO_MARK, WHITEOUT, Found, FoundPage, Layer, Mark
from capstore.backers.node import DirectoryNode, Entry, Node, NodeKind, Stat, Volume
from capstore.schema.errors import Denied, InvalidName, NotDirectory, NotFound
from capstore.schema.limits import NAME_BYTES_MAX, PAGE_ENTRIES_MAX
from capstore.schema.names import check_name

MARK: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
# The longest name that can have a whiteout.
COVERED_BYTES_MAX: Final = NAME_BYTES_MAX - len(MARK)
# Behind all names that begin with MARK, and before all others that are behind it.
_BEHIND_MARKS: Final = ".wh/"


def is_mark(name: str) -> bool:
    """Whether the stored `name` is none that a user sees."""
    return name.startswith(MARK)


def whiteout_of(name: str) -> str:
    """The whiteout of `name`.  Raises `InvalidName` where it would be too long."""
    return check_name(MARK + name)


def covered_by(stored: str) -> str | None:
    """What a stored name is a whiteout of; None if it is none."""
    name = stored.removeprefix(MARK)
    if name == stored or is_mark(name) or name in ("", ".", ".."):
        return None
    return name


async def peek(directory: DirectoryNode, name: str) -> Entry | None:
    """The entry, None for nothing, also where nothing can be called so."""
    try:
        return await directory.lookup(name)
    except (NotFound, InvalidName):
        return None


class NamedLayer(Layer):
    """A volume whose names are marks, too."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._root = volume.root

    @property
    def volume(self) -> Volume:
        return self._volume

    @property
    def root(self) -> DirectoryNode:
        return self._root

    def holds(self, name: str) -> bool:
        return not is_mark(name)

    async def find(self, directory: DirectoryNode, name: str) -> Found | None:
        if is_mark(name):
            return None
        try:
            entry = await directory.lookup(name)
        except NotFound:
            return WHITEOUT if await self._has_whiteout(directory, name) else None
        is_directory = entry.stat.kind is NodeKind.DIRECTORY
        beside = is_directory and await self._has_whiteout(directory, name)
        return await self._found(directory, entry, beside=beside)

    @staticmethod
    async def _has_whiteout(directory: DirectoryNode, name: str) -> bool:
        return await peek(directory, MARK + name) is not None

    async def _found(self, directory: DirectoryNode, entry: Entry, *, beside: bool) -> Found:
        """An entry with its mark; `beside` tells whether there is a whiteout of its name, too."""
        opaque = False
        if entry.stat.kind is NodeKind.DIRECTORY:
            opaque = beside or await _is_opaque_below(directory, entry.name)
        stat, mark = self._noted(entry.stat)
        if stat is not entry.stat:
            entry = entry._replace(stat=stat)
        return Found(entry, mark._replace(opaque=True) if opaque else mark)

    def _noted(self, stat: Stat) -> tuple[Stat, Mark]:
        """What is noted of a node elsewhere: its stat with all links, its mark but for `opaque`."""
        return stat, NO_MARK

    async def page(
        self, directory: DirectoryNode, after: str, limit: int, until: str = ""
    ) -> FoundPage:
        limit = min(limit, PAGE_ENTRIES_MAX)
        shown, marks = await _shown(directory, after, limit)
        if marks is None:
            covered = await _whiteouts(directory, after, limit)
        else:
            covered = _Part({name: None for name in _covered(marks) if name > after}, None)
        # Behind the end of a part that goes on, the other part is not the whole truth.
        end = min((part.end for part in (shown, covered) if part.end is not None), default=None)
        names = shown.found.keys() | covered.found.keys()
        if end is not None:
            names = {name for name in names if name <= end}
        found: list[tuple[str, Found]] = []
        for name in sorted(names)[:limit]:
            entry = shown.found.get(name)
            if entry is None:
                found.append((name, WHITEOUT))
            else:
                beside = name in covered.found
                found.append((name, await self._found(directory, entry, beside=beside)))
        return FoundPage(found, more=len(names) > limit or end is not None)

    async def about(self, node: Node) -> tuple[Stat, Mark]:
        stat = await node.stat()
        stat, mark = self._noted(stat)
        if isinstance(node, DirectoryNode) and await is_opaque(node):
            mark = mark._replace(opaque=True)
        return stat, mark


async def is_opaque(directory: DirectoryNode) -> bool:
    """Whether the directory has the mark in it; no for one that may not be looked into."""
    try:
        return await peek(directory, OPAQUE) is not None
    except Denied:
        return False


async def _is_opaque_below(directory: DirectoryNode, name: str) -> bool:
    try:
        inner = await directory.sub(name)
    except (NotFound, NotDirectory, Denied):
        # It went just now, or cannot be entered, so nobody will see what is in it.
        return False
    return await is_opaque(inner)


# Listings ----------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """Entries that are shown, or None for names that have whiteouts, behind a place; the last one's
    name as `end` if others may follow."""

    found: Mapping[str, Entry | None]
    end: str | None


def _covered(stored: Iterable[str]) -> list[str]:
    return [name for name in map(covered_by, stored) if name is not None]


async def _shown(
    directory: DirectoryNode, after: str, limit: int
) -> tuple[_Part, list[str] | None]:
    """At least `limit` entries that are shown, if there are so many, and all the directory's marks
    if they were on the way."""
    shown: dict[str, Entry | None] = {}
    marks: list[str] | None = [] if after < MARK else None
    more = True
    while more and len(shown) <= limit:
        page = await directory.list(after, max(1, limit - len(shown)))
        for entry in page.entries:
            if not is_mark(entry.name):
                shown[entry.name] = entry
            elif marks is not None:
                marks.append(entry.name)
        more = page.more
        if not more or not page.entries:
            break
        after = page.entries[-1].name
        if is_mark(after):
            after, marks = _BEHIND_MARKS, None
        elif after > MARK and len(shown) >= limit:
            # No name that follows is a mark, so it is certain that there is more to show.
            break
    if more and after < MARK:
        marks = None
    return _Part(shown, max(shown) if more and shown else None), marks


async def _whiteouts(directory: DirectoryNode, after: str, limit: int) -> _Part:
    """The names behind `after` that have whiteouts: all, or more than `limit`."""
    found: dict[str, Entry | None] = {}
    cursor = MARK + after
    # Most directories have none, and each entry that is read has its price.
    wanted = 1
    while len(found) <= limit:
        page = await directory.list(cursor, wanted)
        marks = [entry.name for entry in page.entries if is_mark(entry.name)]
        found.update(dict.fromkeys(_covered(marks)))
        if not page.more or not marks or len(marks) < len(page.entries):
            return _Part(found, None)
        cursor = marks[-1]
        if is_mark(cursor.removeprefix(MARK)):
            # What is reserved may be much, too.
            cursor = MARK + _BEHIND_MARKS
        wanted = limit + 1 - len(found)
    return _Part(found, max(found))
