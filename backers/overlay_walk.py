"""Walking through a layer, whatever it is: each directory once, marks and whiteouts included.

Invariants:

* Entries come in the order of their names' bytes, those of a directory behind it, if it is entered.
* What cannot be read is a `Finding` in its place, and the walk goes on behind it.
* What is kept is a page for each level of the path, and the ids of directories.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from capstore.backers.layer import Found, Layer
from capstore.backers.node import DirectoryNode, NodeKind
from capstore.backers.overlay_union import Kept, Seen, Stack, Union
from capstore.images.tree import Finding
from capstore.schema.errors import Closed, Corrupt, StorageError
from capstore.schema.limits import IMAGE_DEPTH_MAX

A = TypeVar("A")

_PAGE_ENTRIES: Final = 256


class _Level(Generic[A]):
    """A directory on the way down."""

    __slots__ = ("about", "above", "after", "directory", "found", "more", "name")

    def __init__(self, directory: DirectoryNode, name: str, above: _Level[A] | None, about: A):
        self.directory = directory
        self.name = name
        self.above = above
        self.about = about
        self.after = ""
        self.more = True
        self.found: Iterator[tuple[str, Found]] = iter(())

    async def next(self, layer: Layer) -> tuple[str, Found] | None:
        """The next that is found; None at the end.  Raises what listing raises, once."""
        while (item := next(self.found, None)) is None and self.more:
            self.more = False
            page = await layer.page(self.directory, self.after, _PAGE_ENTRIES)
            if page.more and (not page.found or page.found[-1][0] <= self.after):
                raise Corrupt("its listing does not end")
            self.found = iter(page.found)
            if page.more:
                self.after, self.more = page.found[-1][0], True
        return item

    def path(self, *last: str) -> tuple[str, ...]:
        names = list(last)
        level: _Level[A] | None = self
        while level is not None and level.above is not None:
            names.append(level.name)
            level = level.above
        return (*reversed(names[len(last) :]), *last)


class Step(NamedTuple, Generic[A]):
    """One thing that was found, as `name` in `directory`; `about` is what that was entered with."""

    level: _Level[A]
    name: str
    found: Found

    @property
    def directory(self) -> DirectoryNode:
        """Where it is."""
        return self.level.directory

    @property
    def about(self) -> A:
        """What the directory was entered with."""
        return self.level.about

    @property
    def where(self) -> str:
        """Its path from the root."""
        return where_of(self.level.path(self.name))


def where_of(path: Sequence[str]) -> str:
    """A path as findings name it."""
    return "/" + "/".join(path)


class Walk(Generic[A]):
    """A walk through `layer`, whose directories are entered with something about each."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._levels: list[_Level[A]] = []
        self._entered: set[int] = set()

    def begin(self, root: DirectoryNode, about: A) -> None:
        """Enters the root."""
        self._levels.append(_Level(root, "", None, about))

    async def next(self) -> Step[A] | Finding | None:
        """The next thing there is, or what cannot be read; None at the end.  Raises `Closed`."""
        while self._levels:
            level = self._levels[-1]
            try:
                item = await level.next(self._layer)
            except Closed:
                raise
            except StorageError as error:
                return Finding(where_of(level.path()), error.message)
            if item is not None:
                return Step(level, *item)
            self._levels.pop()
        return None

    async def enter(self, step: Step[A], about: A) -> None:
        """Goes on in the directory that was found.

        Raises `Corrupt` for one that was entered before or is too deep, and what opening raises.
        """
        entry = step.found.entry
        if entry is None or entry.stat.node_id in self._entered:
            raise Corrupt("this directory is at another place in the layer, too")
        if len(self._levels) > IMAGE_DEPTH_MAX:
            raise Corrupt(f"a tree is at most {IMAGE_DEPTH_MAX} levels deep")
        directory = await step.directory.sub(step.name)
        self._entered.add(entry.stat.node_id)
        self._levels.append(_Level(directory, step.name, step.level, about))

    async def try_to_enter(self, step: Step[A], about: A) -> None:
        """As `enter`, but what raises is passed over."""
        try:
            await self.enter(step, about)
        except Closed:
            raise
        except StorageError:
            return


# All layers together ------------------------------------------------------------------------------


class _Merged:
    """A directory of all layers on the way down."""

    __slots__ = ("after", "kept", "more", "seen", "stack")

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.after = ""
        self.more = True
        self.seen: Iterator[Seen] = iter(())
        self.kept: dict[int, Kept] = {}

    async def next(self, union: Union) -> Seen | None:
        """The next that users see; None at the end."""
        while (seen := next(self.seen, None)) is None and self.more:
            page, self.more = await union.page(self.stack, self.after, _PAGE_ENTRIES, self.kept)
            self.seen = iter(page)
            if page:
                self.after = page[-1].entry.name
        return seen


async def merged(union: Union, *, strictly: bool = True) -> AsyncIterator[Seen]:
    """All that users see, depth first.

    Raises `Corrupt` for a directory that is at two places, which if not `strictly` is entered at
    the first alone, and what reading raises.
    """
    levels = [_Merged(await union.root())]
    entered: set[int] = set()
    while levels:
        seen = await levels[-1].next(union)
        if seen is None:
            levels.pop()
            continue
        yield seen
        if seen.kind is NodeKind.DIRECTORY:
            if seen.node_id in entered or len(levels) > IMAGE_DEPTH_MAX:
                if strictly:
                    raise Corrupt("a directory is at another place, too, or too deep")
                continue
            entered.add(seen.node_id)
            levels.append(_Merged(await union.descend(levels[-1].stack, seen.entry.name)))
