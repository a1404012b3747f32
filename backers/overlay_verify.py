"""Checking the upper layer of an overlay against the layers below it.

Invariants:

* Without `repair` nothing is changed.  With it each fault is mended by operations of the upper
  layer after each of which users are shown the same tree, and none is mended that was found with
  the help of something unreadable.
* What was made over other layers than these may be right there, so nothing is mended that says
  where something was: redirects, origins of files, counts of names below.
* What cannot be read is a finding, and ends only the check of what it is in.
* Work is bounded by what the layers hold: a directory is entered once.  Memory is that of a page
  for each level of a path, sixteen bytes for each copy, and some for each directory, for each node
  that layers below show, too, and for each note where marks are names.

To be used while nobody changes the overlay.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np

from capstore.backers.layer import Layer, Mark, Upper
from capstore.backers.named_layer import NamedLayer
from capstore.backers.named_view import Leftover, leftovers
from capstore.backers.node import NodeKind
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_union import UPPER, Piece, Stack, Union, shown
from capstore.backers.overlay_walk import Step, Walk, merged
from capstore.images.tree import Finding
from capstore.schema.errors import Closed, InvalidName, ReadOnly, StorageError
from capstore.schema.names import check_name

# Nodes that are remembered to be named in findings.
_REMEMBERED_MAX: Final = 100_000

A = TypeVar("A")

Notice = Callable[[], None]
_Mend = Callable[[Upper], Awaitable[None]]


async def verify_overlay(
    volume: OverlayVolume, *, repair: bool, notice: Notice | None = None
) -> AsyncIterator[Finding]:
    """What is wrong with the upper layer of `volume`; with `repair`, what is repairable is mended
    before the next is given.

    `notice` is called for each entry that is looked at.  Raises `ReadOnly` where there is something
    to `repair` in and no upper layer, and what mending raises.
    """
    upper, *lowers = volume.layers
    if repair and volume.read_only:
        raise ReadOnly("the overlay has no upper layer")
    async for finding in verify_layers(upper, lowers, repair=repair, notice=notice):
        yield finding


async def verify_layers(
    upper: Layer, lowers: Sequence[Layer], *, repair: bool, notice: Notice | None = None
) -> AsyncIterator[Finding]:
    """As `verify_overlay`, of layers from the top to the bottom."""
    mended = upper if repair else None
    if mended is not None and not isinstance(mended, Upper):
        raise ReadOnly("the layer cannot be written")
    check = _Check(upper, lowers, notice or _nothing)
    for faults in (check.marks, check.leftovers, check.origins, check.counts):
        async for fault in faults():
            yield fault.finding
            if mended is not None and fault.mend is not None:
                await fault.mend(mended)


def _nothing() -> None:
    """Nobody wants to know."""


class _Fault(NamedTuple):
    """Something that is wrong, and how it is mended."""

    finding: Finding
    mend: _Mend | None = None


def _fault(where: str, message: str, mend: _Mend | None = None) -> _Fault:
    return _Fault(Finding(where, message, repairable=mend is not None), mend)


class _Names:
    """The names of a node that lower layers show, too."""

    __slots__ = ("count", "where")

    def __init__(self, where: str) -> None:
        self.where = where
        self.count = 0


class _Check:
    """A check, in parts: `marks` is the first."""

    def __init__(self, upper: Layer, lowers: Sequence[Layer], notice: Notice) -> None:
        self._upper = upper
        self._union = Union(upper, lowers)
        self._notice = notice
        # Whether all of the upper layer could be read.
        self._is_whole = True
        # What copies say that they are of, and the copies.
        self._origins, self._copies = array("Q"), array("Q")
        # By origin, of nodes that lower layers show, too.
        self._named: dict[int, _Names] = {}
        # The ids of all directories that users are shown; None until somebody has to know.
        self._directories: set[int] | None = None
        self._are_all_known = True

    # Marks and whiteouts -------------------------------------------------------------------------

    async def marks(self) -> AsyncIterator[_Fault]:
        """Whiteouts and marks of directories that say nothing, or something impossible."""
        walk: Walk[Stack] = Walk(self._upper)
        try:
            _, mark = await self._upper.about(self._upper.root)
            roots = await self._union.root()
            if mark.redirect:
                yield _fault("/", "the root has a redirect")
        except Closed:
            raise
        except StorageError as error:
            self._is_whole = False
            yield _fault("/", error.message)
            return
        walk.begin(self._upper.root, roots[1:])
        while (step := await walk.next()) is not None:
            if isinstance(step, Finding):
                self._is_whole = False
                yield _Fault(step)
                continue
            self._notice()
            try:
                faults = await self._looked_at(walk, step)
            except Closed:
                raise
            except StorageError as error:
                self._is_whole = False
                yield _fault(step.where, error.message)
                continue
            for fault in faults:
                yield fault

    async def _looked_at(self, walk: Walk[Stack], step: Step[Stack]) -> list[_Fault]:
        """What is wrong with one entry; a directory is entered."""
        entry, mark = step.found
        if entry is None:
            return await self._of_whiteout(step)
        self._note(step, entry.stat.node_id, mark)
        if entry.stat.kind is not NodeKind.DIRECTORY:
            return []
        lowers, faults = await self._of_directory(step, mark)
        await walk.enter(step, lowers)
        return faults

    def _note(self, step: Step[Stack], node_id: int, mark: Mark) -> None:
        """Remembers what is checked when all are known."""
        if mark.origin:
            self._origins.append(mark.origin)
            self._copies.append(node_id)
        if mark.below:
            names = self._named.get(mark.origin)
            if names is None:
                names = self._named[mark.origin] = _Names(step.where)
            names.count += 1

    async def _of_whiteout(self, step: Step[Stack]) -> list[_Fault]:
        if await self._union.look(step.about, step.name) is not None:
            return []

        async def uncover(upper: Upper) -> None:
            await upper.uncover(step.directory, step.name)

        return [_fault(step.where, "a whiteout, and no layer below has the name", uncover)]

    async def _of_directory(self, step: Step[Stack], mark: Mark) -> tuple[Stack, list[_Fault]]:
        """What layers below have in the place of a directory, and what is wrong with its mark."""
        faults: list[_Fault] = []
        lowers: Stack = ()
        if mark.opaque and mark.redirect:
            mark = mark._replace(redirect="")
            message = "it is opaque and has a redirect, which means nothing then"
            faults.append(_fault(step.where, message, _set_mark(step, mark)))
        if mark.opaque:
            if await self._union.look(step.about, step.name) is None:
                message = "it is opaque, and no layer below has the name"
                mend = _set_mark(step, mark._replace(opaque=False))
                faults.append(_fault(step.where, message, mend))
        elif mark.redirect:
            lowers, wrong = await self._redirected(mark.redirect)
            if wrong:
                faults.append(_fault(step.where, f'its redirect "{mark.redirect}" {wrong}'))
        else:
            lowers = await self._union.descend(step.about, step.name)
        ids = [await _id_of(piece) for piece in lowers] if mark.origin else []
        if ids and mark.origin not in ids:
            message = "it is a copy of another directory than the one below"
            may = await self._takes_id(ids[0])
            adopted = _set_mark(step, mark._replace(origin=ids[0])) if may else None
            faults.append(_fault(step.where, message, adopted))
        return lowers, faults

    async def _takes_id(self, node_id: int) -> bool:
        """Gives this id to a directory, if users are shown none that has it: two would be one to
        them.  False also where that cannot be said."""
        if self._directories is None:
            self._directories = set()
            try:
                async for seen in merged(self._union, strictly=False):
                    self._notice()
                    if seen.kind is NodeKind.DIRECTORY:
                        self._directories.add(seen.node_id)
            except Closed:
                raise
            except StorageError:
                self._are_all_known = False
        if not self._are_all_known or node_id in self._directories:
            return False
        self._directories.add(node_id)
        return True

    async def _redirected(self, redirect: str) -> tuple[Stack, str]:
        """What layers below have where a redirect leads, and what is wrong with it."""
        path = redirect.split("/")
        try:
            for name in path:
                check_name(name)
        except InvalidName:
            return (), "is no path"
        lowers = await self._union.below(UPPER, path)
        if lowers:
            return lowers, ""
        above = await self._union.below(UPPER, path[:-1])
        if await self._union.look(above, path[-1]) is None:
            return (), "leads nowhere"
        return (), "leads to something that is no directory"

    # What a crash leaves -------------------------------------------------------------------------

    async def leftovers(self) -> AsyncIterator[_Fault]:
        """What copying up left behind, where notes are names."""
        if not isinstance(self._upper, NamedLayer):
            return
        # Whatever they are copies of: that may have been mended.
        copies = frozenset(self._copies) if self._is_whole else None
        try:
            async for left in leftovers(self._upper.volume, copies):
                yield _fault(left.where, left.message, _removing(left))
        except Closed:
            raise
        except StorageError as error:
            yield _fault("notes", error.message)

    # Copies --------------------------------------------------------------------------------------

    async def origins(self) -> AsyncIterator[_Fault]:
        """Nodes that say that they are copies of the same one."""
        twice = self._claimed_twice()
        if not twice:
            return
        first: dict[int, tuple[int, str]] = {}
        walk: Walk[None] = Walk(self._upper)
        walk.begin(self._upper.root, None)
        while (step := await walk.next()) is not None:
            # What cannot be read was said before.
            if isinstance(step, Finding) or step.found.entry is None:
                continue
            stat, mark = step.found.entry.stat, step.found.mark
            if mark.origin in twice:
                node, where = first.setdefault(mark.origin, (stat.node_id, step.where))
                if node != stat.node_id:
                    is_directory = stat.kind is NodeKind.DIRECTORY
                    mend = _set_mark(step, mark._replace(origin=0)) if is_directory else None
                    yield _fault(step.where, f"it is a copy of the same node as {where} is", mend)
            if stat.kind is NodeKind.DIRECTORY:
                await walk.try_to_enter(step, None)

    def _claimed_twice(self) -> frozenset[int]:
        """Origins of more than one node, some of them if they are very many."""
        origins = np.array(self._origins, dtype=np.uint64)
        copies = np.array(self._copies, dtype=np.uint64)
        order = np.lexsort((copies, origins))
        origins, copies = origins[order], copies[order]
        again = (origins[1:] == origins[:-1]) & (copies[1:] != copies[:-1])
        return frozenset(np.unique(origins[1:][again])[:_REMEMBERED_MAX].tolist())

    async def counts(self) -> AsyncIterator[_Fault]:
        """Nodes that say that layers below show them under more names, or fewer, than they do."""
        try:
            linked = frozenset(await self._upper.origins())
            if not linked or not self._is_whole:
                return
            shown = await self._shown_below(linked)
        except Closed:
            raise
        except StorageError as error:
            yield _fault("/", f"names in layers below were not counted: {error.message}")
            return
        for origin in sorted(linked):
            names = self._named.get(origin) or _Names(f"copy {origin:x} without a name")
            stat = await self._upper.linked(origin)
            said = 0 if stat is None else stat.link_count - names.count
            if said != shown.get(origin, 0):
                message = f"{said} names below are said to be its own, there are {shown[origin]}"
                yield _fault(names.where, message)

    async def _shown_below(self, linked: frozenset[int]) -> dict[int, int]:
        """Under how many names layers below show each of these nodes.  Raises as `merged`."""
        shown = dict.fromkeys(linked, 0)
        async for seen in merged(self._union):
            self._notice()
            if seen.is_linked:
                shown[seen.node_id] += 1
        return shown


async def _id_of(piece: Piece) -> int:
    """The id, in the overlay, of a lower layer's directory."""
    stat, mark = await piece.layer.about(piece.node)
    return shown(stat, piece.number, mark.origin).node_id


def _removing(left: Leftover) -> _Mend:
    async def mend(_: Upper) -> None:
        await left.remove()

    return mend


def _set_mark(step: Step[A], mark: Mark) -> _Mend:
    """Has a directory have another mark, and no whiteout beside it that would be one, too."""

    async def mend(upper: Upper) -> None:
        await upper.set_mark(await step.directory.sub(step.name), mark)
        if not mark.opaque:
            await upper.uncover(step.directory, step.name)

    return mend
