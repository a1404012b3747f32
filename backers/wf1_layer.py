"""A CAPOSWF1 volume as a layer of an overlay, with marks in its nodes.

Invariants:

* A change is one operation of the engine, so it has happened as a whole or not at all, for those
  who look and behind a crash.
* Nodes that lower layers show are found by their origin from one scan of the nodes and from what
  has been done since; what is found so is looked at again before it is used.
* Directories and files keep the moment that they are of: a layer of a snapshot is read only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from capstore.backers.layer import NO_MARK, WHITEOUT, Found, FoundPage, Layer, Mark, Upper
from capstore.backers.node import DirectoryNode, FileNode, Node, OpenFlags, Stat
from capstore.backers.wf1 import View, Wf1Volume
from capstore.backers.wf1_node import (
    AT_ONCE_ENTRIES_MAX,
    Wf1Directory,
    Wf1File,
    entry_of,
    file_of,
    page_of,
    stat_of,
)
from capstore.images import wf1, wf1_marks, wf1_ops
from capstore.images.records import WF1_NODE
from capstore.images.wf1_engine import Engine
from capstore.images.wf1_state import Change, State
from capstore.images.wf1_state import Node as Record
from capstore.schema.errors import CrossVolume, InvalidArgument, NotFound
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.names import check_name

# So many records are looked at in one go: readers are not to be waited for longer than that.
_SLICE_RECORDS: Final = 1 << 15


def _stat_of(record: Record) -> Stat:
    """What is known of a node, with the names of lower layers among its links."""
    stat = stat_of(record)
    return stat._replace(link_count=record.names + record.below) if record.below else stat


def _mark_of(record: Record) -> Mark:
    # Most have none, and each lookup of an overlay asks.
    if not (record.origin or record.redirect or record.flags & wf1.OPAQUE):
        return NO_MARK
    return Mark(*wf1_marks.mark_of(record))


def _found(name: str, record: Record) -> Found:
    """What is at a name."""
    if record.kind == wf1.WHITEOUT:
        return WHITEOUT
    entry = entry_of(name, record)
    if record.below:
        entry = entry._replace(stat=_stat_of(record))
    return Found(entry, _mark_of(record))


class Wf1Layer(Layer):
    """The tree of `volume`, or of a snapshot of it."""

    def __init__(self, volume: Wf1Volume, root: Wf1Directory | None = None) -> None:
        """`root` is the volume's own if it is None, else one of `volume` or of a snapshot."""
        self._volume = volume
        self._root = volume.root if root is None else root
        # The nodes that lower layers show, by their origins: all of them when `_is_scanned`.
        self._linked: dict[int, int] = {}
        self._is_scanned = False
        self._scanning = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._root!r}>"

    @property
    def volume(self) -> Wf1Volume:
        return self._volume

    @property
    def root(self) -> Wf1Directory:
        return self._root

    def _own(self, node: Node) -> Wf1Directory | Wf1File:
        """A node of the layer's own.  Raises `CrossVolume`."""
        if not isinstance(node, Wf1Directory | Wf1File) or node.volume is not self._volume:
            raise CrossVolume("the node is not of this layer")
        return node

    async def find(self, directory: DirectoryNode, name: str) -> Found | None:
        own = self._own(directory)
        number = own.number
        record = await self._volume.look(
            lambda _, state: wf1_ops.at_name(state, number, name), own.view
        )
        return None if record is None else _found(name, record)

    async def page(
        self, directory: DirectoryNode, after: str, limit: int, until: str = ""
    ) -> FoundPage:
        """Up to `limit` of what the directory has behind `after`, as much as fits in a page."""
        own = self._own(directory)
        limit = max(1, min(limit, PAGE_ENTRIES_MAX))
        found, more = await self._volume.look(
            lambda _, state: page_of(state, own.number, after, limit, until, whiteouts=True),
            own.view,
            at_once=limit <= AT_ONCE_ENTRIES_MAX,
        )
        return FoundPage([(name, _found(name, record)) for name, record in found], more)

    async def about(self, node: Node) -> tuple[Stat, Mark]:
        own = self._own(node)
        record = await self._record(own.number, own.view)
        return _stat_of(record), _mark_of(record)

    async def _record(self, number: int, view: View | None) -> Record:
        return await self._volume.look(lambda _, state: wf1_ops.node_at(state, number), view)

    # What lower layers show, too -----------------------------------------------------------------

    async def linked(self, origin: int) -> Stat | None:
        number = await self._number_of(origin)
        if number is None:
            return None
        record = await self._volume.look(
            lambda _, state: _shown_below(state, number, origin), self._root.view
        )
        return None if record is None else _stat_of(record)

    async def open_linked(self, origin: int, flags: OpenFlags) -> FileNode:
        """Opens that file.  Raises `NotFound`, `ReadOnly`, and `Unsupported` for a link."""
        flags.check()
        if flags.writes:
            self._root.check_changes()
        number = await self._number_of(origin)
        if number is None:
            raise NotFound("nothing with this origin")

        def find(state: State) -> Record:
            record = _shown_below(state, number, origin)
            if record is None:
                raise NotFound("nothing with this origin")
            return file_of(record)

        view = self._root.view
        held, _ = await self._volume.hold(find, view)
        file = Wf1File(self._volume, held, writable=flags.writes, view=view)
        if OpenFlags.TRUNCATE in flags:
            await file.truncate(0)
        return file

    async def origins(self) -> Sequence[int]:
        # Nothing has that origin, so this looks for all there are.
        await self._number_of(0)
        known = dict(self._linked)

        def still(state: State) -> list[int]:
            return [origin for origin, at in known.items() if _shown_below(state, at, origin)]

        return await self._volume.look(lambda _, state: still(state), self._root.view)

    async def _number_of(self, origin: int) -> int | None:
        """The node that had this origin when it was last heard of."""
        number = self._linked.get(origin)
        if number is None and not self._is_scanned:
            async with self._scanning:
                if not self._is_scanned:
                    await self._scan()
            number = self._linked.get(origin)
        return number

    async def _scan(self) -> None:
        """Finds all nodes of one moment that lower layers show."""
        # Whatever was done since that moment is told by who does it, and counts for more.
        view = self._root.view or await self._volume.view()
        found = await self._volume.look(lambda _, state: _changed(state), view, at_once=False)
        row: int | None = 0
        while row is not None:
            more, row = await self._scan_from(row, view)
            found.update(more)
        for origin, number in found.items():
            self._linked.setdefault(origin, number)
        self._is_scanned = True

    async def _scan_from(self, row: int, view: View) -> tuple[dict[int, int], int | None]:
        return await self._volume.look(lambda _, state: _unchanged(state, row), view, at_once=False)


def _shown_below(state: State, number: int, origin: int) -> Record | None:
    """The node `number`, if lower layers show it."""
    record = state.node(number)
    return record if record is not None and record.below and record.origin == origin else None


def _changed(state: State) -> dict[int, int]:
    """The nodes that lower layers show, by their origins, of those that are other than the tables
    say."""
    nodes = state.nodes.values()
    return {node.origin: node.id for node in nodes if node is not None and node.below}


def _unchanged(state: State, first: int) -> tuple[dict[int, int], int | None]:
    """Of those that are as the tables say, from the row `first` on; and where to go on."""
    total = state.base.row_behind(state.next_node)
    count = min(_SLICE_RECORDS, total - first)
    table = WF1_NODE.table(state.base.rows(WF1_NODE, first, count))
    chosen = table[table["below"] > 0]
    pairs = zip(chosen["origin"].tolist(), chosen["id"].tolist(), strict=True)
    end = first + count
    found = {origin: number for origin, number in pairs if number not in state.nodes}
    return found, end if end < total else None


class Wf1Upper(Wf1Layer, Upper):
    """The tree of `volume`, with all changes in it."""

    def __init__(self, volume: Wf1Volume) -> None:
        super().__init__(volume)

    @property
    def redirects(self) -> bool:
        return True

    def _directory(self, directory: DirectoryNode) -> Wf1Directory:
        """A directory of the layer, to change it.  Raises `ReadOnly`, `CrossVolume`."""
        own = self._own(directory)
        if not isinstance(own, Wf1Directory):
            raise InvalidArgument("no directory")
        own.check_changes()
        return own

    # A user's changes ----------------------------------------------------------------------------

    async def create(
        self, directory: DirectoryNode, name: str, *, executable: bool = False
    ) -> FileNode:
        return await self._directory(directory).create(name, executable=executable)

    async def mkdir(self, directory: DirectoryNode, name: str, *, opaque: bool) -> DirectoryNode:
        return await self._directory(directory).mkdir(name, opaque=opaque)

    async def symlink(self, directory: DirectoryNode, name: str, target: str) -> None:
        await self._directory(directory).symlink(name, target)

    async def link(
        self, directory: DirectoryNode, name: str, target: DirectoryNode, new_name: str
    ) -> None:
        await self._directory(directory).link(name, self._directory(target), new_name)

    async def remove(self, directory: DirectoryNode, name: str, *, cover: bool) -> None:
        number = self._directory(directory).number
        await self._volume.change(lambda engine: engine.remove(number, name, cover=cover))

    async def cover(self, directory: DirectoryNode, name: str) -> None:
        number = self._directory(directory).number
        await self._volume.change(lambda engine: engine.cover(number, name))

    async def rename(
        self,
        source: DirectoryNode,
        name: str,
        target: DirectoryNode,
        new_name: str,
        *,
        cover: bool,
        mark: Mark | None = None,
    ) -> None:
        number, to = self._directory(source).number, self._directory(target).number
        await self._volume.change(
            lambda engine: engine.rename(
                number, name, to, new_name, cover=cover, mark=_engine_mark(mark)
            )
        )

    async def exchange(
        self,
        source: DirectoryNode,
        name: str,
        mark: Mark | None,
        target: DirectoryNode,
        new_name: str,
        new_mark: Mark | None,
    ) -> None:
        number, to = self._directory(source).number, self._directory(target).number
        await self._volume.change(
            lambda engine: engine.exchange(
                number,
                name,
                to,
                new_name,
                mark=_engine_mark(mark),
                new_mark=_engine_mark(new_mark),
            )
        )

    # Copying up, which is silent -----------------------------------------------------------------

    async def unnamed(self) -> FileNode:
        volume = self._volume
        held = await volume.change(lambda engine: volume.held_by(engine, engine.copy_up.unnamed()))
        return Wf1File(volume, held, writable=True)

    async def name_file(
        self, file: FileNode, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> None:
        own = self._own(file)
        if not isinstance(own, Wf1File):
            raise InvalidArgument("no file")
        number, to = own.number, self._directory(directory).number

        def named(engine: Engine) -> None:
            engine.copy_up.name(number, to, name, like, wf1_marks.Mark(*mark))
            self._note(number, mark)

        await self._volume.change(named)

    async def copy_directory(
        self, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> DirectoryNode:
        volume, to = self._volume, self._directory(directory).number
        held = await volume.change(
            lambda engine: volume.held_by(
                engine, engine.copy_up.directory(to, name, like, wf1_marks.Mark(*mark))
            )
        )
        return Wf1Directory(volume, held.number, held)

    async def copy_symlink(
        self, directory: DirectoryNode, name: str, target: str, like: Stat, mark: Mark
    ) -> None:
        to = self._directory(directory).number

        def copied(engine: Engine) -> None:
            number = engine.copy_up.symlink(to, name, target, like, wf1_marks.Mark(*mark))
            self._note(number, mark)

        await self._volume.change(copied)

    def _note(self, number: int, mark: Mark) -> None:
        """Has a new copy found by its origin; in the lane, so that no cancellation is between."""
        if mark.below:
            self._linked[mark.origin] = number

    async def adopt(self, origin: int, directory: DirectoryNode, name: str) -> None:
        """Gives the node that `linked` finds another name.  Raises `NotFound`, `AlreadyExists`."""
        to = self._directory(directory).number
        number = await self._number_of(origin)
        if number is None:
            raise NotFound("nothing with this origin")
        await self._volume.change(lambda engine: engine.copy_up.adopt(number, to, name))

    async def set_mark(self, directory: DirectoryNode, mark: Mark) -> None:
        number = self._directory(directory).number
        await self._volume.change(
            lambda engine: engine.copy_up.set_mark(number, wf1_marks.Mark(*mark))
        )

    async def uncover(self, directory: DirectoryNode, name: str) -> None:
        check_name(name)
        number = self._directory(directory).number

        def decide(state: State) -> Change:
            child = state.child(number, name)
            if not wf1_marks.is_whiteout(state, child):
                return wf1_ops.NOTHING
            return Change(*wf1_marks.uncovered(state, number, [(name, child)]))

        await self._volume.change(lambda engine: engine.operate(decide, shrinks=True))


def _engine_mark(mark: Mark | None) -> wf1_marks.Mark | None:
    return None if mark is None else wf1_marks.Mark(*mark)
