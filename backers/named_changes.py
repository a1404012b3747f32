"""Changes of names in a layer whose marks are names.

Invariants:

* Each change has one step that counts, in one call of the volume.  Before it come steps that show
  nothing to users: a whiteout beside what is still there, an opaque mark in a directory that has
  nothing below to show, the removal of marks from a directory that a whiteout makes opaque.  When
  it fails they are undone, as far as they would mean anything.  Behind it comes tidying, which may
  fail.
* A directory that is opaque only by the whiteout beside it gets the mark before it moves.
* What is of several steps runs to its end, also when its caller is cancelled.
* A name that is too long for a whiteout is one like others until it is to be covered, which is
  `InvalidName`, with nothing changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, NamedTuple, TypeVar

from capstore.backers.layer import Mark
from capstore.backers.named_layer import (
    COVERED_BYTES_MAX,
    OPAQUE,
    NamedLayer,
    is_mark,
    is_opaque,
    peek,
    whiteout_of,
)
from capstore.backers.named_notes import Notes, entries, make, silently
from capstore.backers.node import (
    DirectoryNode,
    Expect,
    FileNode,
    Node,
    NodeKind,
    RenameMode,
    Stat,
    Volume,
)
from capstore.backers.workers import finished
from capstore.schema.errors import InvalidName, NotEmpty, StorageError, Unsupported

T = TypeVar("T")

# A directory, a name in it, and the mark that what is called so gets where it goes.
_End = tuple[DirectoryNode, str, Mark | None]


class _Moving(NamedTuple):
    """A directory that is about to move: whether it is to be opaque then, and has the mark now."""

    node: DirectoryNode
    node_id: int
    opaque: bool
    is_marked: bool


class NamedChanges(NamedLayer):
    """A layer in which users change names; the half of `NamedUpper` that copies nothing up."""

    def __init__(self, volume: Volume, notes: Notes) -> None:
        super().__init__(volume)
        self._notes = notes

    def holds(self, name: str) -> bool:
        return not is_mark(name)

    def _check(self, name: str) -> None:
        if not self.holds(name):
            raise InvalidName("a name that the layer cannot hold")

    # A user's changes ----------------------------------------------------------------------------

    async def create(
        self, directory: DirectoryNode, name: str, *, executable: bool = False
    ) -> FileNode:
        self._check(name)

        async def work() -> FileNode:
            file = await directory.create(name, executable=executable)
            await self._is_new(file)
            return file

        return await whole(work())

    async def _is_new(self, node: Node) -> None:
        """Forgets what was noted of the last node that had this one's id."""
        if self._notes.knows_ids:
            with suppress(StorageError):
                await self._notes.forget((await node.stat()).node_id)

    async def mkdir(self, directory: DirectoryNode, name: str, *, opaque: bool) -> DirectoryNode:
        self._check(name)
        return await whole(self._mkdir(directory, name, opaque=opaque))

    async def _mkdir(self, directory: DirectoryNode, name: str, *, opaque: bool) -> DirectoryNode:
        async with AsyncExitStack() as undo:
            if opaque:
                await self._covered(directory, name, undo)
            made = await directory.mkdir(name)
            undo.pop_all()
        await self._is_new(made)
        with suppress(StorageError):
            if opaque:
                # It moves without the whiteout.
                await make(made, OPAQUE)
            else:
                await self._notes.discard(directory, whiteout_of(name))
        return made

    async def symlink(self, directory: DirectoryNode, name: str, target: str) -> None:
        self._check(name)

        async def work() -> None:
            await directory.symlink(name, target)
            if self._notes.knows_ids:
                with suppress(StorageError):
                    await self._notes.forget((await directory.lookup(name)).stat.node_id)

        await whole(work())

    async def link(
        self, directory: DirectoryNode, name: str, target: DirectoryNode, new_name: str
    ) -> None:
        self._check(name)
        self._check(new_name)
        await directory.link(name, target, new_name)

    async def remove(self, directory: DirectoryNode, name: str, *, cover: bool) -> None:
        self._check(name)
        await whole(self._remove(directory, name, cover=cover))

    async def _remove(self, directory: DirectoryNode, name: str, *, cover: bool) -> None:
        stat = (await directory.lookup(name)).stat
        inside = None
        if stat.kind is NodeKind.DIRECTORY:
            inside = await directory.sub(name)
            await _check_empty(inside)
        if cover:
            await make(directory, whiteout_of(name))
        if inside is None:
            await directory.remove(name, Expect.NOT_DIRECTORY)
        else:
            await self._strip(inside)
            await directory.remove(name, Expect.DIRECTORY)
        await self._gone(stat)
        if not cover:
            await self._uncovered(directory, name)

    async def cover(self, directory: DirectoryNode, name: str) -> None:
        self._check(name)
        await whole(make(directory, whiteout_of(name)))

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
        self._check(name)
        self._check(new_name)
        await whole(self._rename(source, name, target, new_name, cover=cover, mark=mark))

    async def _rename(
        self,
        source: DirectoryNode,
        name: str,
        target: DirectoryNode,
        new_name: str,
        *,
        cover: bool,
        mark: Mark | None,
    ) -> None:
        stat = (await source.lookup(name)).stat
        goal = await peek(target, new_name)
        if goal is not None and goal.stat.node_id == stat.node_id:
            # Two names of one node, for which a rename does nothing.
            return
        async with AsyncExitStack() as undo:
            moving = await self._prepared_if_directory(source, name, mark, undo)
            if cover:
                await self._covered(source, name, undo)
            if moving and goal is not None and goal.stat.kind is NodeKind.DIRECTORY:
                await self._emptied(target, new_name)
            await source.rename(name, target, new_name)
            undo.pop_all()
        if goal is not None:
            await self._gone(goal.stat)
        if moving is not None:
            await self._moved(moving, target, new_name, mark)
        if not cover:
            await self._uncovered(source, name)

    async def exchange(
        self,
        source: DirectoryNode,
        name: str,
        mark: Mark | None,
        target: DirectoryNode,
        new_name: str,
        new_mark: Mark | None,
    ) -> None:
        self._check(name)
        self._check(new_name)
        await whole(self._exchange((source, name, mark), (target, new_name, new_mark)))

    async def _exchange(self, one: _End, other: _End) -> None:
        (source, name, mark), (target, new_name, new_mark) = one, other
        async with AsyncExitStack() as undo:
            moving = await self._prepared_if_directory(source, name, mark, undo)
            coming = await self._prepared_if_directory(target, new_name, new_mark, undo)
            await source.rename(name, target, new_name, RenameMode.EXCHANGE)
            undo.pop_all()
        if moving is not None:
            await self._moved(moving, target, new_name, mark)
        if coming is not None:
            await self._moved(coming, source, name, new_mark)

    # Steps ---------------------------------------------------------------------------------------

    async def _covered(self, directory: DirectoryNode, name: str, undo: AsyncExitStack) -> None:
        """Makes a whiteout, if there is none."""
        if await make(directory, whiteout_of(name)):
            undo.push_async_callback(self._uncovered, directory, name)

    async def _uncovered(self, directory: DirectoryNode, name: str) -> None:
        """Removes a whiteout that hides nothing, if the name can have one."""
        if len(name.encode()) <= COVERED_BYTES_MAX:
            await self._discarded(directory, whiteout_of(name))

    async def _discarded(self, directory: DirectoryNode, name: str) -> None:
        """Removes what nobody sees, which may fail."""
        with suppress(StorageError):
            await self._notes.discard(directory, name)

    async def _strip(self, directory: DirectoryNode) -> None:
        """Removes the marks in a directory that has nothing else."""
        async for entry in entries(directory):
            await self._notes.discard(directory, entry.name)

    async def _emptied(self, directory: DirectoryNode, name: str) -> None:
        """Makes a directory that has nothing but marks an empty one, which shows the same."""
        inside = await directory.sub(name)
        await _check_empty(inside)
        if (await inside.list("", 1)).entries:
            # It makes the directory opaque, so nothing from below takes the place of the marks.
            await make(directory, whiteout_of(name))
            await self._strip(inside)

    async def _prepared_if_directory(
        self, directory: DirectoryNode, name: str, mark: Mark | None, undo: AsyncExitStack
    ) -> _Moving | None:
        """As `_prepared`; None for what is no directory, and needs nothing."""
        entry = await directory.lookup(name)
        if entry.stat.kind is not NodeKind.DIRECTORY:
            return None
        return await self._prepared(directory, name, mark, undo)

    async def _prepared(
        self, directory: DirectoryNode, name: str, mark: Mark | None, undo: AsyncExitStack
    ) -> _Moving:
        """Has a directory that is to move take its mark with it, not leave it beside."""
        node = await directory.sub(name)
        is_marked = await is_opaque(node)
        if mark is not None:
            check_mark(mark)
            opaque = mark.opaque
        else:
            opaque = is_marked or await self._has_whiteout(directory, name)
        if opaque and not is_marked:
            async with silently(node):
                await make(node, OPAQUE)
            undo.push_async_callback(self._unmarked, node)
        return _Moving(node, (await node.stat()).node_id, opaque, is_marked)

    async def _unmarked(self, directory: DirectoryNode) -> None:
        with suppress(StorageError):
            async with silently(directory):
                await self._notes.discard(directory, OPAQUE)

    async def _moved(
        self, moved: _Moving, directory: DirectoryNode, name: str, mark: Mark | None
    ) -> None:
        """Has a directory that has moved be no more opaque than it shall be."""
        if not moved.opaque:
            if moved.is_marked:
                await self._unmarked(moved.node)
            await self._uncovered(directory, name)
        if mark is not None:
            with suppress(StorageError):
                await self._notes.note(moved.node_id, mark.origin)

    async def _gone(self, stat: Stat) -> None:
        """Drops what was noted of a node that has lost a name, if that was its last."""
        if stat.kind is NodeKind.DIRECTORY or stat.link_count <= 1:
            await self._notes.forget(stat.node_id)


async def whole(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end, also if the caller is cancelled, which is delivered then."""
    return await finished(asyncio.ensure_future(work))


def check_mark(mark: Mark) -> None:
    """Raises `Unsupported` for a mark that names cannot tell."""
    if mark.redirect:
        raise Unsupported("a layer of names has no redirects")


async def _check_empty(directory: DirectoryNode) -> None:
    """Raises `NotEmpty` for a directory with an entry that is no mark."""
    async for entry in entries(directory):
        if not is_mark(entry.name):
            raise NotEmpty("the directory has entries")
