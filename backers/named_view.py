"""A layer whose marks are names as the upper one, to be looked at: nothing in it is changed.

Invariants: what is noted means what it means to `capstore.backers.named`, which makes the notes,
and mends them when it opens the layer to write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

from capstore.backers.layer import Mark
from capstore.backers.named_layer import NamedLayer, is_mark, peek
from capstore.backers.named_notes import (
    HIDDEN,
    ID,
    LINK,
    SELF,
    Linked,
    Notes,
    discard,
    entries,
)
from capstore.backers.node import DirectoryNode, Entry, FileNode, NodeKind, OpenFlags, Stat, Volume
from capstore.schema.errors import NotDirectory, NotFound, ReadOnly


class NamedView(NamedLayer):
    """The layer with what is noted of its nodes; made by `open`."""

    def __init__(self, volume: Volume, notes: SeenNotes | None) -> None:
        super().__init__(volume)
        self._notes = notes

    @classmethod
    async def open(cls, volume: Volume) -> NamedView:
        """The layer that `volume` is, with whatever is noted in it."""
        return cls(volume, await SeenNotes.found_in(volume))

    def holds(self, name: str) -> bool:
        return not is_mark(name)

    def _noted(self, stat: Stat) -> tuple[Stat, Mark]:
        return super()._noted(stat) if self._notes is None else self._notes.about(stat)

    async def linked(self, origin: int) -> Stat | None:
        return None if self._notes is None else await self._notes.linked(origin)

    async def open_linked(self, origin: int, flags: OpenFlags) -> FileNode:
        if flags.writes:
            raise ReadOnly("the layer is open for reading")
        if self._notes is None:
            raise NotFound("nothing with this origin")
        return await self._notes.open_linked(origin, flags)

    async def origins(self) -> Sequence[int]:
        return () if self._notes is None else self._notes.origins()


class SeenNotes(Notes):
    """Notes as they are, found by `found_in`."""

    # Names of nodes in `ids`, and of hard links in `links`, that say something.
    id_names: list[str]
    unsettled: list[str]

    @classmethod
    async def found_in(cls, volume: Volume) -> SeenNotes | None:
        """The notes of a volume; None if there are none."""
        top = await _sub(volume.root, HIDDEN)
        if top is None:
            return None
        making, links = await _sub(top, "making"), await _sub(top, "links")
        if making is None or links is None:
            # They were being made.
            return None
        notes = cls(making, links, await _sub(top, "ids"))
        await notes._see_ids()
        await notes._see_links()
        return notes

    async def _see_ids(self) -> None:
        self.id_names = []
        ids = self._ids
        if ids is None or await peek(ids, f"{SELF}{(await ids.stat()).node_id:x}") is None:
            # In a copy of a tree they mean nothing.
            return
        async for entry in entries(ids):
            found = ID.fullmatch(entry.name)
            if found is not None:
                self.id_names.append(entry.name)
                if int(found[2], 16):
                    self._origins.setdefault(int(found[1], 16), int(found[2], 16))

    async def _see_links(self) -> None:
        self.unsettled = []
        async for entry in entries(self._links):
            found = LINK.fullmatch(entry.name)
            if found is None or entry.stat.kind not in (NodeKind.FILE, NodeKind.SYMLINK):
                continue
            origin, linked = (
                int(found[1], 16),
                Linked(entry.name, entry.stat.node_id, int(found[2])),
            )
            if not origin or origin in self._linked or linked.node_id in self._of_node:
                continue
            if found[3] is not None:
                linked.links = int(found[3])
                self.unsettled.append(entry.name)
            self._entered(origin, linked)

    async def unfinished(self) -> AsyncIterator[Entry]:
        """What is in the making, or was when somebody stopped."""
        async for entry in entries(self.making):
            yield entry

    def stale(self, copies: Collection[int]) -> list[str]:
        """The names in `ids` of nodes that are not among `copies`, and have no link."""
        nodes = ((name, int(name.partition("-")[0], 16)) for name in self.id_names)
        return [name for name, node in nodes if not (node in copies or node in self._of_node)]

    async def drop_id(self, name: str) -> None:
        """Removes a note of an id."""
        if self._ids is not None:
            await discard(self._ids, name)


async def _sub(parent: DirectoryNode, name: str) -> DirectoryNode | None:
    try:
        return await parent.sub(name)
    except (NotFound, NotDirectory):
        return None


# What a crash leaves ------------------------------------------------------------------------------


class Leftover(NamedTuple):
    """What is left of something that was not finished, and what removes it."""

    where: str
    message: str
    remove: Callable[[], Awaitable[None]]


async def leftovers(volume: Volume, copies: Collection[int] | None) -> AsyncIterator[Leftover]:
    """What an interruption left in the layer `volume`, whose nodes with origins have the ids
    `copies`, or None if they are not known.

    What `capstore.backers.named` mends when it opens the layer is there only before that.
    """
    notes = await SeenNotes.found_in(volume)
    if notes is None:
        return
    async for entry in notes.unfinished():
        message = "it was being made when the overlay stopped"
        remove = partial(notes.discard, notes.making, entry.name)
        yield Leftover(f"/{HIDDEN}/making/{entry.name}", message, remove)
    for name in notes.unsettled:
        message = "a name was being given to it when the overlay stopped"
        yield Leftover(f"/{HIDDEN}/links/{name}", message, _mended_by_opening)
    for name in [] if copies is None else notes.stale(copies):
        message = "a note of a node that is gone"
        yield Leftover(f"/{HIDDEN}/ids/{name}", message, partial(notes.drop_id, name))


async def _mended_by_opening() -> None:
    """Nothing is left to be done."""
