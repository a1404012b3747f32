"""What is known of nodes of an overlay while somebody has them: where they are, and what they are
made of.

Invariants:

* A directory that somebody has is one `DirectoryCore`, however many handles there are, so all see
  it copied up, renamed or removed.  A file that is a lower layer's yet is one `FileCore` likewise.
* All this changes in steps that do not wait, when the upper layer has changed.
* A core keeps those of the directories above it, so their names are known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

from capstore.backers.node import DirectoryNode, FileNode, Stat
from capstore.backers.overlay_union import UPPER, Kept, Remembered, Stack
from capstore.schema.errors import NotFound


class Place:
    """Where a file was found: `gone` when that name was removed, until it is found again."""

    __slots__ = ("__weakref__", "gone", "name", "parent")

    def __init__(self, parent: DirectoryCore, name: str) -> None:
        self.parent = parent
        self.name = name
        self.gone = False

    def moved(self, parent: DirectoryCore, name: str) -> None:
        """It has another name now."""
        self.parent = parent
        self.name = name
        self.gone = False

    def is_at(self, parent: DirectoryCore, name: str) -> bool:
        """Whether it is this name."""
        return self.parent is parent and self.name == name

    def path(self) -> tuple[str, ...]:
        """The names from the root to here.  Raises `NotFound` for what was removed."""
        if self.gone:
            raise NotFound("the node has no name")
        return (*self.parent.path(), self.name)


class DirectoryCore:
    """A directory: its pieces, and its place.

    `below` is the path, from the roots of the lower layers, of the pieces that are theirs; None if
    there are none.
    """

    __slots__ = (
        "__weakref__",
        "below",
        "kept",
        "last",
        "name",
        "node_id",
        "parent",
        "pieces",
        "remembered",
    )

    def __init__(
        self,
        node_id: int,
        parent: DirectoryCore | None,
        name: str,
        pieces: Stack,
        below: tuple[str, ...] | None,
    ) -> None:
        """`parent` is None for a root."""
        self.node_id = node_id
        self.parent = parent
        self.name = name
        self.pieces = pieces
        self.below = below if self.lowers else None
        # What lower layers said: about names, and pages that were read ahead, by their numbers.
        self.remembered: Remembered = {}
        self.kept: dict[int, Kept] = {}
        # What was known of it when it was removed.
        self.last: Stat | None = None

    @property
    def upper(self) -> DirectoryNode | None:
        """The upper layer's piece."""
        pieces = self.pieces
        return pieces[0].node if pieces and pieces[0].number == UPPER else None

    @property
    def lowers(self) -> Stack:
        """The pieces of lower layers."""
        return self.pieces[1:] if self.upper is not None else self.pieces

    @property
    def gone(self) -> bool:
        """Whether it was removed."""
        return self.last is not None

    def check(self) -> None:
        """Raises `NotFound` when it was removed, for who wants to make something in it."""
        if self.gone:
            raise NotFound("the directory was removed")

    def removed(self, last: Stat) -> None:
        """It has lost its name; it is empty for good."""
        self.last = last._replace(link_count=0)
        self.pieces = ()
        self._forget()

    def moved(self, parent: DirectoryCore, name: str) -> None:
        """It has another name now."""
        self.parent = parent
        self.name = name

    def flattened(self) -> None:
        """Nothing of the layers below belongs to it any more."""
        self.pieces = self.pieces[:1]
        self._forget()

    def _forget(self) -> None:
        """It has nothing of lower layers any more."""
        self.below = None
        self.remembered.clear()
        self.kept.clear()

    def child_below(self, name: str) -> tuple[str, ...] | None:
        """`below` of the directory `name` in it, if that is merged in its own place."""
        return None if self.below is None else (*self.below, name)

    def is_within_node(self, node_id: int) -> bool:
        """Whether it is the directory with this id or somewhere below it."""
        return any(core.node_id == node_id for core in self._upwards())

    def path(self) -> tuple[str, ...]:
        """The names from the root to here.  Raises `NotFound` for what was removed."""
        cores = list(self._upwards())
        if any(core.gone for core in cores):
            raise NotFound("the node has no name")
        return tuple(core.name for core in reversed(cores[:-1]))

    def _upwards(self) -> Iterator[DirectoryCore]:
        core: DirectoryCore | None = self
        while core is not None:
            yield core
            core = core.parent


class OpenFile(NamedTuple):
    """A layer's file that is open, and the number of the layer."""

    node: FileNode
    number: int


class FileCore:
    """An open file, of whatever layer it is at the moment."""

    __slots__ = (
        "__weakref__",
        "copying",
        "file",
        "handles",
        "node_id",
        "number",
        "place",
        "writes",
    )

    def __init__(self, node_id: int, place: Place, opened: OpenFile, *, writes: bool) -> None:
        """`writes`: the layer's file may be written as it is."""
        self.node_id = node_id
        self.place = place
        self.file = opened.node
        self.number = opened.number
        self.writes = writes
        # Of whoever is to release it.
        self.handles = 1
        # Held while it is copied up, or a lower layer's file is written in place.
        self.copying = asyncio.Lock()

    @property
    def is_nameless(self) -> bool:
        """Whether it is a lower layer's file whose name was removed."""
        return self.number != UPPER and self.place.gone

    def switched(self, opened: OpenFile) -> None:
        """From now on it is this file, which may be written.

        The old one is not closed: somebody may be reading it.
        """
        self.file = opened.node
        self.number = opened.number
        self.writes = True
