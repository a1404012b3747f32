"""What the upper layer of an overlay says about those below, as an OCI image layer says it.

Invariants:

* Applied to the tree of the lower layers, the entries give the overlay's tree: kinds, contents,
  targets, executable bits, times, and which names are names of one node.
* A directory comes before what is in it.  In a directory the marks come first, then the entries;
  both in the order of the names' bytes.
* A node that is told is told under all names that the overlay shows it under, also those that are
  lower layers': links to what is in another layer are not understood by all.
* What is told depends on what the trees show, and not on how that came about: a mark that hides
  nothing is left out, a renamed directory is told with all that is in it.
* Nothing is changed, and nobody changes the overlay meanwhile.  What is kept grows with the depth
  of the tree, the length of a page, and the number of lower names of nodes that are told.

Source: https://github.com/opencontainers/image-spec/blob/main/layer.md.  Entries that replace one
of another kind need no whiteout there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Final, NamedTuple

from capstore.backers.layer import Found, Layer
from capstore.backers.named_layer import OPAQUE, is_mark, whiteout_of
from capstore.backers.node import DirectoryNode, Entry, FileNode, NodeKind, OpenFlags, Stat
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_union import UPPER, Kept, Seen, Stack, shown
from capstore.schema.errors import Corrupt, InvalidArgument, InvalidName, StorageError, TooLarge
from capstore.schema.limits import IMAGE_DEPTH_MAX, PAGE_ENTRIES_MAX

Path = tuple[str, ...]
# Paths as a tree of names.
Names = dict[str, "Names"]

_MARK: Final = Stat(NodeKind.FILE, size=0, node_id=0, version=0)


class Told(NamedTuple):
    """An entry of the layer: `entry` at `path`, the root's empty; `seen` is None for a mark."""

    path: Path
    entry: Entry
    seen: Seen | None = None


class _Place(NamedTuple):
    """A directory on the way, as the overlay has it.

    `whole`: all that it shows is told, since nothing of what was in its place stays; `covers` says
    that a directory was.  `names` are those below it that are told though they are lower layers'.
    """

    path: Path
    stack: Stack
    whole: bool
    covers: bool
    names: Names

    @property
    def upper(self) -> DirectoryNode | None:
        """The upper layer's piece."""
        return self.stack[0].node if self.stack and self.stack[0].number == UPPER else None

    @property
    def base(self) -> Stack:
        """What of the lower layers' tree stays in its place."""
        if self.whole:
            return ()
        return self.stack if self.upper is None else self.stack[1:]


class _Step(NamedTuple):
    """An entry on the way, with the directory that it is."""

    seen: Seen
    at: _Place
    below: _Place | None

    @property
    def is_told(self) -> bool:
        """Whether it is told for its own sake."""
        return self.at.whole or self.seen.is_upper


class Export:
    """The layer that the upper one of `overlay` is over its lower ones."""

    def __init__(self, overlay: OverlayVolume) -> None:
        """Raises `InvalidArgument` for an overlay without an upper layer."""
        self._union = overlay.tree.union
        if self._union.upper is None:
            raise InvalidArgument("the overlay has no upper layer")
        self._top: Layer = self._union.upper

    async def told(self) -> AsyncGenerator[Told, None]:
        """All entries of the layer.

        Raises `InvalidName` for names that a layer cannot say: those that begin with ``.wh.``, and
        removed ones too long for a whiteout; `TooLarge` over `IMAGE_DEPTH_MAX` deep; and what the
        layers raise, with the path in front.
        """
        root = await self._root()
        root = root._replace(names=await self._lower_names(root))
        stat, mark = await self._top.about(root.stack[0].node)
        yield Told((), Entry("", shown(stat, UPPER, mark.origin)))
        async for mark_name in self._marks(root):
            yield _marked(root, mark_name)
        async with aclosing(_depth_first(root, self._named)) as steps:
            async for step in steps:
                name = step.seen.entry.name
                path = (*step.at.path, name)
                if is_mark(name):
                    raise InvalidName(f"{_shown(path)}: in a layer such a name is a mark")
                yield Told(path, step.seen.entry, step.seen)
                if step.below is not None:
                    async for mark_name in self._marks(step.below):
                        yield _marked(step.below, mark_name)

    async def open(self, seen: Seen) -> FileNode:
        """Opens a file that is told."""
        return await self._union.open(seen, OpenFlags.READ)

    # Directories ---------------------------------------------------------------------------------

    async def _root(self) -> _Place:
        stack = await self._union.root()
        _, mark = await self._top.about(self._top.root)
        return _Place((), stack, mark.opaque, covers=mark.opaque, names={})

    async def _below(self, at: _Place, seen: Seen) -> _Place:
        """The directory that was seen."""
        name = seen.entry.name
        path = (*at.path, name)
        if len(path) > IMAGE_DEPTH_MAX:
            raise TooLarge(f"a tree is at most {IMAGE_DEPTH_MAX} levels deep")
        stack = await self._union.descend(at.stack, name)
        mark = seen.found.mark
        moved = seen.is_upper and (mark.opaque or bool(mark.redirect))
        covers = False
        if moved:
            hidden = await self._union.look(at.base, name)
            covers = hidden is not None and hidden.kind is NodeKind.DIRECTORY
        return _Place(path, stack, at.whole or moved, covers, at.names.get(name, {}))

    async def _step(self, at: _Place, seen: Seen) -> _Step:
        below = await self._below(at, seen) if seen.kind is NodeKind.DIRECTORY else None
        return _Step(seen, at, below)

    async def _own(self, at: _Place) -> AsyncIterator[tuple[str, Found]]:
        """What the upper layer has in a directory, whiteouts included."""
        after, more = "", at.upper is not None
        while more and at.upper is not None:
            page = await self._top.page(at.upper, after, PAGE_ENTRIES_MAX)
            for found in page.found:
                yield found
            after = page.found[-1][0] if page.found else after
            more = page.more

    async def _shown(self, at: _Place) -> AsyncGenerator[_Step, None]:
        """All that a directory shows."""
        kept: dict[int, Kept] = {}
        after, more = "", True
        while more:
            page, more = await self._union.page(at.stack, after, PAGE_ENTRIES_MAX, kept)
            for seen in page:
                yield await self._step(at, seen)
            after = page[-1].entry.name if page else after

    async def _named(self, at: _Place) -> AsyncGenerator[_Step, None]:
        """What of a directory is told."""
        if at.whole:
            async for step in self._shown(at):
                yield step
            return
        waiting = sorted(at.names, reverse=True)
        async for name, found in self._own(at):
            while waiting and waiting[-1] < name:
                yield await self._lower(at, waiting.pop())
            if waiting and waiting[-1] == name:
                waiting.pop()
            if found.entry is not None:
                yield await self._step(at, _seen(at, found.entry, found))
        while waiting:
            yield await self._lower(at, waiting.pop())

    async def _lower(self, at: _Place, name: str) -> _Step:
        """What lower layers show as `name`, and the upper one does not hide."""
        seen = await self._union.look(at.stack, name)
        assert seen is not None  # noqa: S101 - it was there just now, and nothing changes
        return await self._step(at, seen)

    # Marks ---------------------------------------------------------------------------------------

    async def _marks(self, at: _Place) -> AsyncIterator[str]:
        """The marks in a directory that hide something."""
        if at.covers:
            yield OPAQUE
        base = at.base
        if not base:
            return
        async for name, found in self._own(at):
            if found.entry is None and await self._union.look(base, name) is not None:
                path = (*at.path, name)
                if is_mark(name):
                    raise InvalidName(f"{_shown(path)}: in a layer such a name is a mark")
                try:
                    yield whiteout_of(name)
                except InvalidName as error:
                    raise InvalidName(f"{_shown(path)}: too long for a whiteout") from error

    # Names of lower layers -----------------------------------------------------------------------

    async def _lower_names(self, root: _Place) -> Names:
        """The names of lower layers that nodes which are told have, too."""
        names: Names = {}
        if not await self._can_share(root):
            return names
        nodes: dict[int, tuple[list[Path], bool]] = {}
        async with aclosing(_depth_first(root, self._shown)) as steps:
            async for step in steps:
                seen = step.seen
                if step.below is not None or not (seen.is_linked or seen.entry.stat.link_count > 1):
                    continue
                paths, is_told = nodes.get(seen.node_id, ([], False))
                if not step.is_told:
                    paths.append((*step.at.path, seen.entry.name))
                nodes[seen.node_id] = paths, is_told or step.is_told or seen.is_linked
        for paths, is_told in nodes.values():
            for path in paths if is_told else ():
                _enter(names, path)
        return names

    async def _can_share(self, root: _Place) -> bool:
        """Whether lower layers may show a node that is told; looks at what is told, and at what
        that hides."""
        async with aclosing(_depth_first(root, self._suspects)) as steps:
            async for step in steps:
                mark = step.seen.found.mark
                if not step.seen.is_upper or mark.below or mark.redirect:
                    return True
        return False

    async def _suspects(self, at: _Place) -> AsyncGenerator[_Step, None]:
        """What the upper layer has in a directory, and what it hides that lower layers may show
        under other names, too: a copy that lost its name here lives under those."""
        async for name, found in self._own(at):
            hidden = await self._union.look(at.base, name)
            if hidden is not None and _is_shared(hidden, found):
                yield _Step(hidden, at, None)
            if found.entry is not None:
                yield await self._step(at, _seen(at, found.entry, found))


def _is_shared(hidden: Seen, found: Found) -> bool:
    """Whether what is hidden has other names, or may hold what has."""
    if hidden.kind is not NodeKind.DIRECTORY:
        return hidden.is_linked or hidden.entry.stat.link_count > 1
    entry = found.entry
    return found.mark.opaque or entry is None or entry.stat.kind is not NodeKind.DIRECTORY


def _seen(at: _Place, entry: Entry, found: Found) -> Seen:
    """What the upper layer has, as `Union.look` finds it."""
    stat = shown(entry.stat, UPPER, found.mark.origin)
    return Seen(Entry(entry.name, stat, entry.target), found, at.stack[0])


def _marked(at: _Place, name: str) -> Told:
    return Told((*at.path, name), Entry(name, _MARK))


def _enter(names: Names, path: Path) -> None:
    for name in path:
        names = names.setdefault(name, {})


def _shown(path: Path) -> str:
    return f'"/{"/".join(path)}"'


async def _depth_first(
    root: _Place, level: Callable[[_Place], AsyncGenerator[_Step, None]]
) -> AsyncGenerator[_Step, None]:
    """All below `root` that `level` gives of a directory, each directory before what is in it."""
    stack = [(root, level(root))]
    entered: set[int] = set()
    try:
        while stack:
            at, steps = stack[-1]
            try:
                step = await anext(steps, None)
            except StorageError as error:
                raise StorageError.of(error.code, f"{_shown(at.path)}: {error.message}") from error
            if step is None:
                await stack.pop()[1].aclose()
                continue
            yield step
            if step.below is not None:
                if step.seen.node_id in entered:
                    path = step.below.path
                    raise Corrupt(f"{_shown(path)}: this directory is at another place, too")
                entered.add(step.seen.node_id)
                stack.append((step.below, level(step.below)))
    finally:
        for _, steps in reversed(stack):
            await steps.aclose()
