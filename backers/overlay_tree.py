"""The tree of an overlay: finding nodes, opening them, and copying them up.

Invariants:

* Changes of names are made by one at a time, who holds `changing`; what such a change decided by is
  true until it is made.  The contents of files are copied outside of that.
* `epoch` counts changes of names and copies.  Who opened something of a lower layer and finds
  another epoch than before looks again: else he would have what was replaced meanwhile.
* Copying up shows to nobody: ids, times and contents stay, so who is cancelled in the middle has
  changed nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from capstore.backers.layer import Mark, Upper
from capstore.backers.node import DirectoryNode, FileNode, NodeKind, OpenFlags, Provenance, Stat
from capstore.backers.overlay_copy import copy_content
from capstore.backers.overlay_core import DirectoryCore, FileCore, OpenFile, Place
from capstore.backers.overlay_union import UPPER, Piece, Seen, Stack, Union, shown
from capstore.backers.workers import finished
from capstore.schema.errors import (
    AlreadyExists,
    Busy,
    Closed,
    Corrupt,
    InvalidName,
    IsDirectory,
    NotDirectory,
    NotFound,
    ReadOnly,
    Unsupported,
)
from capstore.schema.limits import PAGE_ENTRIES_MAX
from capstore.schema.names import check_name

T = TypeVar("T")

# Who loses so many races in a row is told so.
_RACES_MAX: Final = 1000


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end, also if the caller is cancelled, which is delivered then."""
    return await finished(asyncio.ensure_future(work))


class Tree:
    """The directories and files of an overlay that somebody has, and what is known of them."""

    def __init__(self, union: Union, upper: Upper | None, *, writable_files: bool) -> None:
        """`upper` is None where nothing can be changed."""
        self.union = union
        self._upper = upper
        self.writable_files = writable_files
        self.changing = asyncio.Lock()
        self.epoch = 0
        self.closed = False
        self._directories: WeakValueDictionary[int, DirectoryCore] = WeakValueDictionary()
        self._files: WeakValueDictionary[int, FileCore] = WeakValueDictionary()
        self._places: WeakValueDictionary[int, Place] = WeakValueDictionary()

    # Checks --------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raises `Closed`."""
        if self.closed:
            raise Closed("the volume was closed")

    @property
    def has_upper(self) -> bool:
        """Whether anything can be changed."""
        return self._upper is not None

    @property
    def upper(self) -> Upper:
        """The layer that takes changes.  Raises `Closed`, `ReadOnly`."""
        self.check_open()
        if self._upper is None:
            raise ReadOnly("the overlay has no upper layer")
        return self._upper

    def check_writable(self) -> None:
        """Raises `Closed`, `ReadOnly`."""
        _ = self.upper

    def check_name(self, name: str) -> str:
        """`name` if an entry can be called so; raises `InvalidName`."""
        check_name(name)
        if self.union.hides(name):
            raise InvalidName("a name that the upper layer cannot hold")
        return name

    # Finding -------------------------------------------------------------------------------------

    async def seen(self, core: DirectoryCore, name: str) -> Seen:
        """What `name` stands for in a directory.  Raises `NotFound`, `InvalidName`."""
        found = await self.peek(core, name)
        if found is None:
            raise NotFound("no entry of this name")
        return found

    async def peek(self, core: DirectoryCore, name: str) -> Seen | None:
        """As `seen`, but None for nothing."""
        self.check_open()
        return await self.union.look(core.pieces, self.check_name(name), core.remembered)

    async def is_covering(self, core: DirectoryCore, name: str) -> bool:
        """Whether layers below the upper one show something as `name`."""
        return await self.union.look(core.lowers, name, core.remembered) is not None

    async def stat_of(self, core: DirectoryCore) -> Stat:
        """What is known of a directory, also when it was removed."""
        self.check_open()
        if not core.pieces:
            if core.last is None:
                raise NotFound("the directory is gone")
            return core.last
        piece = core.pieces[0]
        stat, _ = await piece.layer.about(piece.node)
        return shown(stat, piece.number, core.node_id)

    async def root(self) -> DirectoryCore:
        """The root directory."""
        pieces = await self.union.root()
        piece = pieces[0]
        stat, mark = await piece.layer.about(piece.node)
        node_id = shown(stat, piece.number, mark.origin).node_id
        core = DirectoryCore(node_id, None, "", pieces, ())
        self._directories[node_id] = core
        return core

    async def directory(self, parent: DirectoryCore, name: str) -> DirectoryCore:
        """The directory `name`.  Raises `NotFound`, `NotDirectory`."""
        for _ in range(_RACES_MAX):
            epoch = self.epoch
            seen = await self.seen(parent, name)
            if seen.kind is not NodeKind.DIRECTORY:
                raise NotDirectory("no directory")
            core = self._known(seen.node_id, parent)
            if core is None:
                stack = await self._stack(parent, name)
                if stack and self.epoch == epoch:
                    return self._entered(parent, name, seen, stack)
            elif self.epoch == epoch:
                core.moved(parent, name)
                return core
        raise Busy("the name comes and goes")

    def _known(self, node_id: int, parent: DirectoryCore) -> DirectoryCore | None:
        """The directory with this id, which was found in `parent`, if somebody has it."""
        core = self._directories.get(node_id)
        if core is None or core.gone:
            return None
        # Layers whose ids are not unique shall not make a circle.
        if parent.is_within_node(node_id):
            raise Corrupt("a directory of a layer is in itself")
        return core

    async def _stack(self, parent: DirectoryCore, name: str) -> Stack:
        """The pieces of a directory that was there just now; empty if it is not any more."""
        try:
            return await self.union.descend(parent.pieces, name)
        except (NotFound, NotDirectory):
            return ()

    def _entered(self, parent: DirectoryCore, name: str, seen: Seen, stack: Stack) -> DirectoryCore:
        """The directory that was found, for all who find it from now on."""
        core = self._known(seen.node_id, parent)
        if core is None:
            redirect = seen.found.mark.redirect if seen.is_upper else ""
            below = tuple(redirect.split("/")) if redirect else parent.child_below(name)
            core = DirectoryCore(seen.node_id, parent, name, stack, below)
            self._directories[seen.node_id] = core
        return core

    def made(
        self, parent: DirectoryCore, name: str, stat: Stat, node: DirectoryNode
    ) -> DirectoryCore:
        """A directory that was made in the upper layer just now, as its `stat` has it."""
        node_id = shown(stat, UPPER).node_id
        core = self._known(node_id, parent)
        if core is None:
            core = DirectoryCore(node_id, parent, name, (Piece(UPPER, self.upper, node),), None)
            self._directories[node_id] = core
        return core

    def known_directory(self, node_id: int) -> DirectoryCore | None:
        """The directory with this id, if somebody has it."""
        return self._directories.get(node_id)

    def place(self, node_id: int, parent: DirectoryCore, name: str) -> Place:
        """Where the file with this id is: here, as was found just now."""
        place = self._places.get(node_id)
        if place is None:
            place = self._places[node_id] = Place(parent, name)
        elif place.gone:
            place.moved(parent, name)
        return place

    def known_place(self, node_id: int) -> Place | None:
        """Where a file is that somebody has."""
        return self._places.get(node_id)

    # Opening -------------------------------------------------------------------------------------

    async def open(self, core: DirectoryCore, name: str, flags: OpenFlags) -> FileCore | None:
        """Opens the file `name` that is there; None if nothing is, and it may be made.

        Raises as `DirectoryNode.open`, and `AlreadyExists` is for the caller to raise.
        """
        for _ in range(_RACES_MAX):
            epoch = self.epoch
            seen = await self.peek(core, name)
            if seen is None:
                return None
            file = await self._opened(core, name, seen, flags, epoch)
            if file is not None:
                return file
        raise Busy("the name comes and goes")

    async def _opened(
        self, core: DirectoryCore, name: str, seen: Seen, flags: OpenFlags, epoch: int
    ) -> FileCore | None:
        """The file that was seen in `epoch`, open; None if it is to be looked for again."""
        if flags and OpenFlags.EXCLUSIVE in flags:
            raise AlreadyExists("the name is taken")
        if seen.kind is NodeKind.DIRECTORY:
            raise IsDirectory("a directory")
        if seen.kind is not NodeKind.FILE:
            raise Unsupported("only a file can be opened")
        if flags:
            # Arithmetic of flags takes its time, and who reads has none.
            flags &= ~OpenFlags.CREATE
        if seen.is_upper or seen.is_linked:
            return await self._open_upper(core, name, seen, flags, epoch)
        file = await self.open_lower(core, name, seen, epoch, writes=flags.writes)
        if file is not None and flags and OpenFlags.TRUNCATE in flags:
            try:
                await self.copied(file, 0)
                await file.file.truncate(0)
            except BaseException:
                await whole(self.release(file))
                raise
        return file

    async def _open_upper(
        self, core: DirectoryCore, name: str, seen: Seen, flags: OpenFlags, epoch: int
    ) -> FileCore | None:
        try:
            node = await self.union.open(seen, flags)
        except NotFound:
            if self.epoch == epoch:
                raise
            return None
        place = self.place(seen.node_id, core, name)
        return FileCore(seen.node_id, place, OpenFile(node, UPPER), writes=flags.writes)

    async def open_lower(
        self, core: DirectoryCore, name: str, seen: Seen, epoch: int, *, writes: bool = False
    ) -> FileCore | None:
        """The core of a lower layer's file that was seen in `epoch`; all who have it share it.

        None if it is to be looked for again; else to be released.
        """
        in_place = writes and self.is_in_place(seen)
        known = self._shared(seen, epoch, in_place=in_place)
        if known is not None or self.epoch != epoch:
            return known
        node = await self.union.open(seen, OpenFlags.WRITE if in_place else OpenFlags.READ)
        known = self._shared(seen, epoch, in_place=in_place)
        if known is not None or self.epoch != epoch:
            await node.close()
            return known
        opened = OpenFile(node, seen.number)
        known = self._files.get(seen.node_id)
        if known is not None:
            # It was open for reading only; its readers see what is written in place.
            known.switched(opened)
            known.handles += 1
            return known
        place = self.place(seen.node_id, core, name)
        file = self._files[seen.node_id] = FileCore(seen.node_id, place, opened, writes=in_place)
        return file

    def _shared(self, seen: Seen, epoch: int, *, in_place: bool) -> FileCore | None:
        """The core that others have, if it will do, with one more who has it."""
        known = self._files.get(seen.node_id)
        if known is None or self.epoch != epoch or (in_place and not known.writes):
            return None
        known.handles += 1
        return known

    def is_in_place(self, seen: Seen) -> bool:
        """Whether what was seen is a lower layer's file that is changed there."""
        return (
            self.writable_files
            and seen.kind is NodeKind.FILE
            and not (seen.is_upper or seen.holder or seen.piece.layer.volume.read_only)
        )

    async def release(self, file: FileCore) -> None:
        """Lets go of a file, and closes it if nobody else has it."""
        file.handles -= 1
        if not file.handles:
            if self._files.get(file.node_id) is file:
                del self._files[file.node_id]
            await file.file.close()

    # Copying up ----------------------------------------------------------------------------------

    async def copied(
        self, file: FileCore, length: int | None = None, *, always: bool = False
    ) -> None:
        """Copies an open file up, its first `length` bytes or all; with `always` also one that may
        be written in place."""
        async with file.copying:
            if file.number == UPPER or (file.writes and not always):
                return
            stat, _ = await self.union.about(file.number, file.file)
            copy = await self.upper.unnamed()
            try:
                if length is not None and length < stat.size:
                    # What is cut is changed, and both are to be seen at once.
                    now = time.time_ns()
                    stat = stat._replace(
                        size=length, modified=now, provenance=Provenance.WALL_CLOCK
                    )
                await copy_content(file.file, copy, stat.size)
                await whole(self._publish(file, copy, stat))
            finally:
                if file.file is not copy:
                    await whole(copy.close())

    async def _publish(self, file: FileCore, copy: FileNode, stat: Stat) -> None:
        """Gives a copy its name, unless the file has none any more, and has everybody use it."""
        async with self.changing:
            place = file.place
            if not place.gone and not place.parent.gone:
                directory = await self.copied_directory(place.parent)
                mark = Mark(origin=file.node_id, below=stat.link_count - 1)
                await self.upper.name_file(copy, directory, place.name, stat, mark)
            file.switched(OpenFile(copy, UPPER))
            self.epoch += 1
            self._files.pop(file.node_id, None)

    async def copied_file(self, core: DirectoryCore, name: str, seen: Seen, epoch: int) -> None:
        """Copies up the file that was seen in `epoch`, if it is still there."""
        file = await self.open_lower(core, name, seen, epoch)
        if file is not None:
            try:
                await self.copied(file, always=True)
            finally:
                await whole(self.release(file))

    async def copied_directory(self, core: DirectoryCore) -> DirectoryNode:
        """The upper layer's piece of a directory, made with those above it if it has none.

        For who holds `changing`.  Raises `NotFound` for a directory that was removed.
        """
        core.check()
        if core.upper is not None:
            return core.upper
        assert core.parent is not None  # noqa: S101 - the upper layer has a root
        parent = await self.copied_directory(core.parent)
        piece = core.pieces[0]
        stat, _ = await piece.layer.about(piece.node)
        mark = Mark(origin=core.node_id)
        node = await self.upper.copy_directory(parent, core.name, stat, mark)
        core.pieces = (piece._replace(number=UPPER, layer=self.upper, node=node), *core.pieces)
        self.epoch += 1
        return node

    async def raised(self, core: DirectoryCore, name: str, seen: Seen) -> bool:
        """Has the upper layer have `name` itself; False for a file whose content has to be copied
        first.  For who holds `changing`."""
        if seen.is_upper:
            return True
        if seen.kind is NodeKind.FILE and not seen.is_linked:
            return False
        if seen.kind is NodeKind.DIRECTORY:
            child = await self.directory(core, name)
            await self.copied_directory(child)
            return True
        parent = await self.copied_directory(core)
        if seen.is_linked:
            await self.upper.adopt(seen.node_id, parent, name)
        elif seen.kind is NodeKind.SYMLINK:
            stat, target = seen.entry.stat, seen.entry.target or ""
            mark = Mark(origin=seen.node_id, below=stat.link_count - 1)
            await self.upper.copy_symlink(parent, name, target, stat, mark)
        else:
            raise Unsupported("a special node of a lower layer does not move to the upper one")
        self.epoch += 1
        return True

    # All below a directory -----------------------------------------------------------------------

    async def flatten(self, core: DirectoryCore) -> None:
        """Copies up all below a directory, so that it has nothing of lower layers."""
        while core.lowers and not core.gone:
            for listed in await self._children(core):
                name, epoch = listed.entry.name, self.epoch
                seen = await self.peek(core, name)
                if seen is None or seen.is_linked:
                    continue
                if seen.kind is NodeKind.DIRECTORY:
                    await self.flatten(await self.directory(core, name))
                elif seen.kind is NodeKind.FILE and not seen.is_upper:
                    await self.copied_file(core, name, seen, epoch)
            await whole(self._close_off(core))

    async def _close_off(self, core: DirectoryCore) -> None:
        """Makes a directory opaque, if all in it is the upper layer's."""
        async with self.changing:
            if core.gone or not core.lowers:
                return
            node = await self.copied_directory(core)
            for seen in await self._children(core):
                name = seen.entry.name
                if not await self.raised(core, name, seen):
                    return
                if seen.kind is NodeKind.DIRECTORY and (await self.directory(core, name)).lowers:
                    return
            _, mark = await self.upper.about(node)
            await self.upper.set_mark(node, mark._replace(opaque=True, redirect=""))
            core.flattened()
            self.epoch += 1
            await self._tidied(node)

    async def _tidied(self, directory: DirectoryNode) -> None:
        """Removes the marks in a directory that is opaque, where they say nothing any more."""
        after, more = "", True
        while more:
            page = await self.upper.page(directory, after, PAGE_ENTRIES_MAX)
            for name, found in page.found:
                if found.entry is None:
                    await self.upper.uncover(directory, name)
                elif found.mark.opaque:
                    mark = found.mark._replace(opaque=False)
                    await self.upper.set_mark(await directory.sub(name), mark)
                after = name
            more = page.more

    async def _children(self, core: DirectoryCore) -> list[Seen]:
        children: list[Seen] = []
        more, after = True, ""
        while more:
            page, more = await self.union.page(core.pieces, after, PAGE_ENTRIES_MAX, core.kept)
            children += page
            after = page[-1].entry.name if page else after
        return children
