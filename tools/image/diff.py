"""``capstore image diff``: two trees, entry by entry; of two images with stores these, too.

Invariants:

* Both trees are walked side by side in the order of their names' bytes; what is kept grows with
  their depth and the length of a page.
* Content is compared piece by piece, and only where kind and size agree.
* Times are compared where both sides recorded them, as exactly as the coarser of the two does;
  modes are not compared with FAT's, which has none.
* What cannot be compared is said, and the rest is compared all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from capstore.backers.node import Buffer, Entry, NodeKind, Provenance, Stat
from capstore.backers.workers import in_worker
from capstore.schema.errors import StorageError, TransportError, Unsupported
from capstore.tools.console import about, complain, explained, out, printable
from capstore.tools.image.array import ArrayWriter
from capstore.tools.image.source import (
    Folder,
    Step,
    Tree,
    contents_of,
    entries_of,
    opened_tree,
)
from capstore.tools.image.storediff import LETTERS, ObjectDifference, StoreComparison
from capstore.tools.image.stores import opened_store
from capstore.tools.progress import Meter, metered
from capstore.tools.trees import Content
from capstore.tools.walk import first_of

EQUAL, DIFFERENT, TROUBLE = 0, 1, 2

# In ns; what is not here records them exactly, or as its writer did.
_GRANULARITY: Final = {
    Provenance.FAT_DIRECTORY_ENTRY: 2 * 10**9,
    Provenance.CPIO_HEADER: 10**9,
}

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that is not the same on both sides; `what` says in what it differs."""

    change: str
    path: Path
    what: tuple[str, ...] = ()

    def line(self) -> str:
        """As text."""
        said = f" ({', '.join(self.what)})" if self.what else ""
        return f"{LETTERS[self.change]} {printable('/'.join(self.path) or '.')}{said}"

    def json(self) -> dict[str, object]:
        """As ``--json`` shows it."""
        return {"change": self.change, "path": "/".join(self.path), "what": list(self.what)}


async def diff(a: str, b: str, *, ignore_times: bool, json: bool, quiet: bool) -> int:
    """Compares what `a` and `b` name; returns the exit code."""
    array = ArrayWriter() if json else None
    found = False
    try:
        async with (
            metered("diff", quiet=quiet) as meter,
            aclosing(_differences(a, b, meter, ignore_times=ignore_times)) as differences,
        ):
            async for difference in differences:
                found = True
                if array is not None:
                    array.add(difference.json())
                else:
                    out(difference.line())
    except (StorageError, TransportError, OSError, BaseExceptionGroup) as error:
        complain(explained(first_of(error)))
        return TROUBLE
    if array is not None:
        array.finish()
    if meter.failures:
        return TROUBLE
    return DIFFERENT if found else EQUAL


async def _differences(
    a: str, b: str, meter: Meter, *, ignore_times: bool
) -> AsyncGenerator[Difference | ObjectDifference, None]:
    """Those of the stores, where both have one, then those of the trees.

    Raises `Unsupported` for a tree and a store, and what opening them raises."""
    one, other = await in_worker(lambda: (contents_of(a), contents_of(b)))
    have_stores = one.store and other.store
    if have_stores:
        async with opened_store(one) as mine, opened_store(other) as yours:
            stores = StoreComparison(mine.engine, yours.engine, meter, ignore_times=ignore_times)
            async for difference in stores.differences():
                yield difference
    if one.tree is not None and other.tree is not None:
        async with opened_tree(a) as this, opened_tree(b) as that:
            trees = Comparison(meter, ignore_times=ignore_times)
            async for entry in trees.differences(this, that):
                yield entry
    elif not have_stores:
        raise Unsupported("one is a tree of files, the other a store of objects")


@dataclass(slots=True)
class _Side:
    """The entries of one directory; `used` says that the next one is to be fetched."""

    entries: AsyncGenerator[Step, None]
    upcoming: Step | None = None
    used: bool = True

    async def fill(self) -> None:
        if self.used:
            self.upcoming = await anext(self.entries, None)
            self.used = False


@dataclass(slots=True)
class _Level:
    """One directory on the way down, on one side or both: its entries, and the next one."""

    path: Path
    sides: tuple[_Side, _Side]

    async def close(self) -> None:
        for side in self.sides:
            await side.entries.aclose()


class Comparison:
    """Compares trees; `meter` counts what it reads and what could not be compared."""

    def __init__(self, meter: Meter, *, ignore_times: bool) -> None:
        self._meter = meter
        self._ignore_times = ignore_times

    async def differences(self, one: Tree, other: Tree) -> AsyncIterator[Difference]:
        """What is different, in the order of a walk."""
        what = self._of_stats(one.entry, other.entry)
        if what:
            yield Difference("modified", (), what)
        stack = [_Level((), (_side((), one.root), _side((), other.root)))]
        try:
            while stack:
                pair = await self._next(stack[-1])
                if pair is None:
                    await stack.pop().close()
                    continue
                difference = await self._compare(pair)
                if difference is not None:
                    yield difference
                below = _below(pair)
                if below is not None:
                    stack.append(below)
        finally:
            for level in reversed(stack):
                await level.close()

    async def _next(self, level: _Level) -> tuple[Step | None, Step | None] | None:
        """The next entry of either side, or of both if they have one name; None at the end."""
        try:
            for side in level.sides:
                await side.fill()
        except StorageError as error:
            # What else is in this directory cannot be told from what is missing in it.
            self._failed(level.path, error)
            return None
        one, other = (side.upcoming for side in level.sides)
        if one is None and other is None:
            return None
        if one is not None and other is not None:
            mine, yours = one.entry.name.encode(), other.entry.name.encode()
            one, other = (one if mine <= yours else None), (other if yours <= mine else None)
        for side, step in zip(level.sides, (one, other), strict=True):
            if step is not None:
                side.used = True
        return one, other

    def _failed(self, path: Path, error: StorageError) -> None:
        self._meter.failed(explained(about(path, error)))

    async def _compare(self, pair: tuple[Step | None, Step | None]) -> Difference | None:
        self._meter.entries += 1
        one, other = pair
        if one is None and other is not None:
            return Difference("added", other.path)
        if one is not None and other is None:
            return Difference("deleted", one.path)
        if one is None or other is None:
            raise ValueError("a pair has at least one side")
        what = self._of_stats(one.entry, other.entry)
        stats = one.entry.stat, other.entry.stat
        if stats[0].kind is stats[1].kind is NodeKind.FILE and stats[0].size == stats[1].size:
            try:
                if not await self._same_content(one, other):
                    what = ("content", *what)
            except StorageError as error:
                self._failed(one.path, error)
        return Difference("modified", one.path, what) if what else None

    def _of_stats(self, one: Entry, other: Entry) -> tuple[str, ...]:
        """In what two entries differ, as far as can be said without reading."""
        mine, yours = one.stat, other.stat
        if mine.kind is not yours.kind:
            return ("kind",)
        is_file = mine.kind is NodeKind.FILE
        found = {
            "size": is_file and mine.size != yours.size,
            "mode": is_file and _mode_differs(mine, yours),
            "time": not self._ignore_times and _time_differs(mine, yours),
            "target": one.target != other.target,
        }
        return tuple(what for what, differs in found.items() if differs)

    async def _same_content(self, one: Step, other: Step) -> bool:
        contents = [await step.content() for step in (one, other)]
        mine, yours = (_Reader(content, self._meter) for content in contents)
        async with aclosing(mine), aclosing(yours):
            while True:
                pieces = await asyncio.gather(mine.some(), yours.some())
                length = min(map(len, pieces))
                if not length:
                    return not any(map(len, pieces))
                if pieces[0][:length] != pieces[1][:length]:
                    return False
                mine.take(length)
                yours.take(length)


def _mode_differs(one: Stat, other: Stat) -> bool:
    if Provenance.FAT_DIRECTORY_ENTRY in (one.provenance, other.provenance):
        return False
    return one.executable != other.executable


def _time_differs(one: Stat, other: Stat) -> bool:
    if Provenance.UNKNOWN in (one.provenance, other.provenance):
        return False
    grain = max(_GRANULARITY.get(stat.provenance, 1) for stat in (one, other))
    return one.modified // grain != other.modified // grain


def _side(path: Path, root: Folder | None) -> _Side:
    return _Side(entries_of(root, path) if root is not None else _nothing())


async def _nothing() -> AsyncGenerator[Step, None]:
    return
    yield


def _below(pair: tuple[Step | None, Step | None]) -> _Level | None:
    """The directory that either side is, or both are."""
    folders = [
        step.folder.sub(step.entry.name) if step is not None and step.is_directory else None
        for step in pair
    ]
    path = next(step.path for step in pair if step is not None)
    if folders == [None, None]:
        return None
    return _Level(path, (_side(path, folders[0]), _side(path, folders[1])))


class _Reader:
    """The content of a file, in pieces of which as much is taken as wanted."""

    def __init__(self, content: Content, meter: Meter) -> None:
        self._piece = memoryview(content.first)
        self._rest = content.rest
        self._meter = meter

    async def some(self) -> memoryview:
        """What is there, at least a byte but at the end."""
        while not self._piece and self._rest is not None:
            piece: Buffer | None = await anext(self._rest, None)
            if piece is None:
                self._rest = None
            else:
                self._piece = memoryview(piece)
        return self._piece

    def take(self, length: int) -> None:
        """Goes on behind the next `length` bytes."""
        self._meter.bytes += length
        self._piece = self._piece[length:]

    async def aclose(self) -> None:
        """Lets go of what was not read."""
        if isinstance(self._rest, AsyncGenerator):
            await self._rest.aclose()
