"""Changes of names in an overlay, one at a time.

Invariants:

* Each is decided and made while `Tree.changing` is held, and ends in one change of the upper layer.
  What comes before that, copying up, shows to nobody; what comes behind it does not wait.
* What the upper layer removes or covers is known to those who have it (`DirectoryCore.removed`,
  `Place.gone`) before anybody else looks.
* A file of a lower layer is copied up before a name of it moves, or one of several names goes; and
  outside of `changing`, since that takes long.  Then everything is looked at again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from capstore.backers.layer import Mark
from capstore.backers.node import Attributes, DirectoryNode, Expect, NodeKind, OpenFlags, RenameMode
from capstore.backers.overlay_core import DirectoryCore, FileCore, OpenFile
from capstore.backers.overlay_tree import Tree, whole
from capstore.backers.overlay_union import UPPER, Seen, shown
from capstore.schema.errors import (
    AlreadyExists,
    Busy,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    TooLarge,
)

_RACES_MAX: Final = 1000


class _Name(NamedTuple):
    """A name that a change is about, and what it stood for a moment ago."""

    core: DirectoryCore
    name: str
    seen: Seen


class _CopyFirst(Exception):
    """Something has to be copied up before the change can be made."""

    def __init__(self, what: _Name, *, all_below: bool = False) -> None:
        super().__init__()
        self.what = what
        self.all_below = all_below


class Changes:
    """The changes of one overlay's names."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    # Making --------------------------------------------------------------------------------------

    async def create(self, core: DirectoryCore, name: str, *, executable: bool) -> FileCore:
        """Makes an empty file, and opens it."""
        tree = self._tree
        async with tree.changing:
            directory = await self._free(core, name)
            node = await tree.upper.create(directory, name, executable=executable)
            tree.epoch += 1
            stat, _ = await tree.upper.about(node)
            node_id = shown(stat, UPPER).node_id
            place = tree.place(node_id, core, name)
        return FileCore(node_id, place, OpenFile(node, UPPER), writes=True)

    async def create_unless_there(
        self, core: DirectoryCore, name: str, flags: OpenFlags
    ) -> FileCore | None:
        """Makes the file that was not there, if `flags` say so; None if somebody else made it.

        Raises `NotFound`, `AlreadyExists` (exclusive).
        """
        if OpenFlags.CREATE not in flags:
            raise NotFound("no entry of this name")
        try:
            return await self.create(core, name, executable=False)
        except AlreadyExists:
            if OpenFlags.EXCLUSIVE in flags:
                raise
            return None

    async def mkdir(self, core: DirectoryCore, name: str) -> DirectoryCore:
        """Makes an empty directory."""
        tree = self._tree
        async with tree.changing:
            directory = await self._free(core, name)
            opaque = await tree.is_covering(core, name)
            node = await tree.upper.mkdir(directory, name, opaque=opaque)
            tree.epoch += 1
            stat, _ = await tree.upper.about(node)
            return tree.made(core, name, stat, node)

    async def symlink(self, core: DirectoryCore, name: str, target: str) -> None:
        """Makes a symbolic link."""
        async with self._tree.changing:
            directory = await self._free(core, name)
            await self._tree.upper.symlink(directory, name, target)
            self._tree.epoch += 1

    async def _free(self, core: DirectoryCore, name: str) -> DirectoryNode:
        """The upper layer's piece of a directory in which `name` is free.

        Raises `ReadOnly`, `AlreadyExists`, `NotFound`."""
        self._tree.check_name(name)
        self._tree.check_writable()
        if await self._tree.peek(core, name) is not None:
            raise AlreadyExists("the name is taken")
        return await self._raised(core)

    async def _raised(self, core: DirectoryCore) -> DirectoryNode:
        """The upper layer's piece of a directory; see `Tree.copied_directory`."""
        self._tree.check_writable()
        core.check()
        if core.upper is not None:
            return core.upper
        return await whole(self._tree.copied_directory(core))

    # Changing what is there ----------------------------------------------------------------------

    async def _locked(self, change: Callable[[], Awaitable[None]]) -> None:
        """Makes a change in its turn, when what it needs has been copied up."""
        self._tree.check_writable()
        for _ in range(_RACES_MAX):
            epoch = self._tree.epoch
            try:
                return await whole(self._in_turn(change))
            except _CopyFirst as first:
                # Its traceback holds this frame, which must not hold it.
                needed = first.with_traceback(None)
            await self._copy(needed, epoch)
        raise Busy("the name comes and goes")

    async def _in_turn(self, change: Callable[[], Awaitable[None]]) -> None:
        async with self._tree.changing:
            await change()
            self._tree.epoch += 1

    async def _copy(self, needed: _CopyFirst, epoch: int) -> None:
        core, name, seen = needed.what
        if needed.all_below:
            await self._tree.flatten(await self._tree.directory(core, name))
        else:
            await self._tree.copied_file(core, name, seen, epoch)

    async def _own(self, what: _Name) -> DirectoryNode:
        """Has the upper layer have the name itself; its piece of the directory."""
        if not await self._tree.raised(what.core, what.name, what.seen):
            raise _CopyFirst(what)
        return await self._tree.copied_directory(what.core)

    # Removing ------------------------------------------------------------------------------------

    async def remove(self, core: DirectoryCore, name: str, expect: Expect) -> None:
        """Removes a name."""
        await self._locked(lambda: self._remove(core, name, expect))

    async def _remove(self, core: DirectoryCore, name: str, expect: Expect) -> None:
        tree = self._tree
        what = _Name(core, name, await tree.seen(core, name))
        if what.seen.kind is NodeKind.DIRECTORY:
            if expect is Expect.NOT_DIRECTORY:
                raise IsDirectory("a directory")
            await self._check_empty(what)
        elif expect is Expect.DIRECTORY:
            raise NotDirectory("no directory")
        is_own = await self._about_to_go(what)
        directory = await tree.copied_directory(core)
        if is_own:
            cover = await tree.is_covering(core, name)
            await tree.upper.remove(directory, name, cover=cover)
        else:
            await tree.upper.cover(directory, name)
        self._gone(what)

    async def _check_empty(self, what: _Name) -> None:
        """Raises `NotEmpty`."""
        stack = await self._tree.union.descend(what.core.pieces, what.name)
        seen, _ = await self._tree.union.page(stack, "", 1, {})
        if seen:
            raise NotEmpty("the directory has entries")

    async def _about_to_go(self, what: _Name) -> bool:
        """Before a name goes: has the upper layer have it if the node has others in lower layers,
        so that they stay names of one node.  Whether the upper layer has it."""
        if what.seen.is_linked or what.seen.has_lower_names:
            await self._own(what)
            return True
        return what.seen.is_upper

    def _gone(self, what: _Name) -> None:
        """What had this name has lost it, for those who have it."""
        stat = what.seen.entry.stat
        if what.seen.kind is NodeKind.DIRECTORY:
            core = self._tree.known_directory(stat.node_id)
            if core is not None:
                core.removed(stat)
            return
        place = self._tree.known_place(stat.node_id)
        if place is not None and place.is_at(what.core, what.name):
            place.gone = True

    # Moving --------------------------------------------------------------------------------------

    async def rename(
        self,
        source: DirectoryCore,
        name: str,
        target: DirectoryCore,
        new_name: str,
        mode: RenameMode,
    ) -> None:
        """Moves a name, within a layer or from a lower one to the upper one."""
        await self._locked(lambda: self._rename(source, name, target, new_name, mode))

    async def _rename(
        self,
        source: DirectoryCore,
        name: str,
        target: DirectoryCore,
        new_name: str,
        mode: RenameMode,
    ) -> None:
        moved = _Name(source, name, await self._tree.seen(source, name))
        target.check()
        found = await self._tree.peek(target, new_name)
        if found is None:
            if mode is RenameMode.EXCHANGE:
                raise NotFound("no entry to exchange with")
            _check_leaves(moved, target)
            return await self._move(moved, target, new_name, None)
        if mode is RenameMode.NO_REPLACE:
            raise AlreadyExists("the name is taken")
        if found.node_id == moved.seen.node_id:
            return None
        _check_leaves(moved, target)
        other = _Name(target, new_name, found)
        if mode is RenameMode.EXCHANGE:
            _check_leaves(other, source)
            return await self._exchange(moved, other)
        await self._check_replaces(moved, other)
        return await self._move(moved, target, new_name, other)

    async def _check_replaces(self, moved: _Name, other: _Name) -> None:
        """Raises what forbids a name to take the place of another."""
        if moved.seen.kind is not NodeKind.DIRECTORY:
            if other.seen.kind is NodeKind.DIRECTORY:
                raise IsDirectory("a directory is replaced by a directory only")
            return
        if other.seen.kind is not NodeKind.DIRECTORY:
            raise NotDirectory("a directory replaces a directory only")
        await self._check_empty(other)

    async def _move(
        self, moved: _Name, target: DirectoryCore, new_name: str, other: _Name | None
    ) -> None:
        tree = self._tree
        directory = await self._own(moved)
        goal = await tree.copied_directory(target)
        if other is not None:
            await self._about_to_go(other)
        mark = await self._mark_at(moved, target, new_name)
        cover = await tree.is_covering(moved.core, moved.name)
        try:
            await tree.upper.rename(directory, moved.name, goal, new_name, cover=cover, mark=mark)
        except TooLarge:
            if mark is None or not mark.redirect:
                raise
            raise _CopyFirst(moved, all_below=True) from None
        if other is not None:
            self._gone(other)
        self._moved(moved, target, new_name)

    async def _exchange(self, moved: _Name, other: _Name) -> None:
        directory, goal = await self._own(moved), await self._own(other)
        marks = (
            await self._mark_at(moved, other.core, other.name),
            await self._mark_at(other, moved.core, moved.name),
        )
        await self._tree.upper.exchange(directory, moved.name, marks[0], goal, other.name, marks[1])
        self._moved(moved, other.core, other.name)
        self._moved(other, moved.core, moved.name)

    async def _mark_at(self, moved: _Name, target: DirectoryCore, new_name: str) -> Mark | None:
        """The mark of a directory that moves to another name."""
        if moved.seen.kind is not NodeKind.DIRECTORY:
            return None
        upper = self._tree.upper
        core = await self._tree.directory(moved.core, moved.name)
        _, mark = await upper.about(await self._tree.copied_directory(core))
        if core.below is None:
            opaque = await self._tree.is_covering(target, new_name)
            return mark._replace(redirect="", opaque=opaque)
        if not upper.redirects:
            raise _CopyFirst(moved, all_below=True)
        return mark._replace(redirect="/".join(core.below), opaque=False)

    def _moved(self, moved: _Name, target: DirectoryCore, new_name: str) -> None:
        """What had this name has another one, for those who have it."""
        node_id = moved.seen.node_id
        if moved.seen.kind is NodeKind.DIRECTORY:
            core = self._tree.known_directory(node_id)
            if core is not None:
                core.moved(target, new_name)
            return
        place = self._tree.known_place(node_id)
        if place is not None and place.is_at(moved.core, moved.name):
            place.moved(target, new_name)

    async def link(
        self, core: DirectoryCore, name: str, target: DirectoryCore, new_name: str
    ) -> None:
        """Gives a file or a symbolic link a second name."""
        await self._locked(lambda: self._link(core, name, target, new_name))

    async def _link(
        self, core: DirectoryCore, name: str, target: DirectoryCore, new_name: str
    ) -> None:
        what = _Name(core, name, await self._tree.seen(core, name))
        if what.seen.kind is NodeKind.DIRECTORY:
            raise IsDirectory("a directory has one name only")
        if await self._tree.peek(target, new_name) is not None:
            raise AlreadyExists("the name is taken")
        goal = await self._tree.copied_directory(target)
        await self._tree.upper.link(await self._own(what), name, goal, new_name)

    # Attributes ----------------------------------------------------------------------------------

    async def set_attributes(self, core: DirectoryCore, change: Attributes, name: str) -> None:
        """Changes attributes of the entry `name`, or of the directory."""
        if name:
            await self._locked(lambda: self._set_attributes(core, change, name))
            return
        async with self._tree.changing:
            directory = await self._raised(core)
            await directory.set_attributes(change)

    async def _set_attributes(self, core: DirectoryCore, change: Attributes, name: str) -> None:
        seen = await self._tree.seen(core, name)
        if change == Attributes():
            return
        if self._tree.is_in_place(seen):
            directory = seen.piece.node
        else:
            directory = await self._own(_Name(core, name, seen))
        await directory.set_attributes(change, name)


def _check_leaves(moved: _Name, target: DirectoryCore) -> None:
    """Raises `InvalidArgument` for a directory that would move into itself."""
    if moved.seen.kind is NodeKind.DIRECTORY and target.is_within_node(moved.seen.node_id):
        raise InvalidArgument("a directory does not move into itself")
