"""Layers: what an overlay puts on top of one another, and the marks by which the upper ones speak
of those below.

Invariants:

* A mark is no name: a layer shows marks only through these classes, never as entries.
* Each method of `Upper` that changes something has happened as a whole or not at all: for those who
  look, when it was cancelled, and after a crash.  What is silent leaves the times and the version
  of the directory as they are, since for a user nothing happened in it.
* An overlay makes one change of names at a time, so nothing here has to be safe from two at once.
  It looks, opens, reads and writes beside that.
* Directories are those of the layer's own volume: `Layer.root` and what is below it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from capstore.backers.node import (
    DirectoryNode,
    Entry,
    FileNode,
    Node,
    OpenFlags,
    Page,
    Stat,
    Volume,
)
from capstore.schema.errors import NotFound

__all__ = ["NO_MARK", "WHITEOUT", "Found", "FoundPage", "Layer", "Mark", "PlainLayer", "Upper"]


class Mark(NamedTuple):
    """What an overlay notes at a node of a layer.

    `opaque`: the directory hides what the layers below have in its place.
    `redirect`: in the layers below, the directory goes on at this path from their roots (`a/b`),
    and not in its own place; empty for none.
    `origin`: the node id, in the overlay, of what this is a copy of; 0 for the layer's own.
    `below`: under how many names the layers below still show the node.  While that is not 0, the
    node lives without a name, too, and is found by its origin (`Layer.linked`).
    """

    opaque: bool = False
    redirect: str = ""
    origin: int = 0
    below: int = 0


NO_MARK = Mark()


class Found(NamedTuple):
    """What a layer has under a name: an entry with its mark, or, without an entry, a whiteout.

    The entry's stat counts the names in layers below as links, too (`Mark.below`).
    """

    entry: Entry | None
    mark: Mark = NO_MARK


WHITEOUT = Found(None)


class FoundPage(NamedTuple):
    """A part of what a directory has, whiteouts included, in the order of the names' bytes."""

    found: Sequence[tuple[str, Found]]
    more: bool


class Layer(ABC):
    """A tree as an overlay reads it."""

    @property
    @abstractmethod
    def volume(self) -> Volume:
        """What holds the layer."""

    @property
    @abstractmethod
    def root(self) -> DirectoryNode:
        """The layer's root directory."""

    def holds(self, name: str) -> bool:
        """Whether an entry of this name, which is a valid one, can be in the layer."""
        return True

    @abstractmethod
    async def find(self, directory: DirectoryNode, name: str) -> Found | None:
        """What the layer has as `name`, None for nothing."""

    @abstractmethod
    async def page(
        self, directory: DirectoryNode, after: str, limit: int, until: str = ""
    ) -> FoundPage:
        """Up to `limit` of what the directory has behind `after`, at least one if there is one.

        With `until`, a name, what is behind that may be left out, as if it were not there.
        """

    @abstractmethod
    async def about(self, node: Node) -> tuple[Stat, Mark]:
        """The stat, with links counted as in `Found`, and the mark of an open node."""

    async def open_found(
        self, directory: DirectoryNode, name: str, found: Found, flags: OpenFlags
    ) -> FileNode:
        """Opens the file that was found as `name`; raises as `DirectoryNode.open`."""
        return await directory.open(name, flags)

    async def linked(self, origin: int) -> Stat | None:
        """What is known of the file or link with this origin that lower names stand for, too."""
        return None

    async def open_linked(self, origin: int, flags: OpenFlags) -> FileNode:
        """Opens that file.  Raises `NotFound`."""
        raise NotFound("nothing with this origin")

    async def origins(self) -> Sequence[int]:
        """All origins that `linked` finds."""
        return ()


class PlainLayer(Layer):
    """A tree without marks."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._root = volume.root

    @property
    def volume(self) -> Volume:
        return self._volume

    @property
    def root(self) -> DirectoryNode:
        return self._root

    async def find(self, directory: DirectoryNode, name: str) -> Found | None:
        try:
            entry = await directory.lookup(name)
        except NotFound:
            return None
        # Where letters do not count (FAT), other spellings are other names here.
        return Found(entry) if entry.name == name else None

    async def page(
        self, directory: DirectoryNode, after: str, limit: int, until: str = ""
    ) -> FoundPage:
        page: Page = await directory.list(after, limit)
        # As `Found(entry)`, which takes twice as long: each entry of each listing comes by.
        made, of = tuple.__new__, Found
        found = [(entry.name, made(of, (entry, NO_MARK))) for entry in page.entries]
        return FoundPage(found, page.more)

    async def about(self, node: Node) -> tuple[Stat, Mark]:
        return await node.stat(), NO_MARK


class Upper(Layer):
    """The layer that takes all changes."""

    @property
    @abstractmethod
    def redirects(self) -> bool:
        """Whether directories can have a mark with a redirect."""

    # A user's changes ----------------------------------------------------------------------------

    @abstractmethod
    async def create(
        self, directory: DirectoryNode, name: str, *, executable: bool = False
    ) -> FileNode:
        """Makes an empty file, open for writing, where nothing or a whiteout is."""

    @abstractmethod
    async def mkdir(self, directory: DirectoryNode, name: str, *, opaque: bool) -> DirectoryNode:
        """Makes an empty directory where nothing or a whiteout is."""

    @abstractmethod
    async def symlink(self, directory: DirectoryNode, name: str, target: str) -> None:
        """Makes a symbolic link where nothing or a whiteout is."""

    @abstractmethod
    async def link(
        self, directory: DirectoryNode, name: str, target: DirectoryNode, new_name: str
    ) -> None:
        """Gives the layer's own file or link `name` a second name, where nothing or a whiteout
        is."""

    @abstractmethod
    async def remove(self, directory: DirectoryNode, name: str, *, cover: bool) -> None:
        """Removes what the layer has as `name`, and leaves a whiteout there if it shall `cover`
        what is below.  A directory has nothing but whiteouts in it, and they go with it."""

    @abstractmethod
    async def cover(self, directory: DirectoryNode, name: str) -> None:
        """Puts a whiteout where the layer has nothing."""

    @abstractmethod
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
        """Moves what the layer has as `name` to `new_name`, where nothing, a whiteout or something
        of the layer's that goes is: a directory with nothing but whiteouts goes with them.

        Leaves a whiteout at `name` if it shall `cover` what is below.  A directory that moves gets
        `mark`.  Raises `TooLarge` for a redirect that is too long.
        """

    @abstractmethod
    async def exchange(
        self,
        source: DirectoryNode,
        name: str,
        mark: Mark | None,
        target: DirectoryNode,
        new_name: str,
        new_mark: Mark | None,
    ) -> None:
        """Has two of the layer's own names change their nodes.

        What was `name`, if it is a directory, gets `mark`, the other one `new_mark`.
        """

    # Copying up, which is silent -----------------------------------------------------------------

    @abstractmethod
    async def unnamed(self) -> FileNode:
        """A new empty file without a name, open for writing; it is gone when it is closed or
        dropped, unless `name_file` was called."""

    @abstractmethod
    async def name_file(
        self, file: FileNode, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> None:
        """Gives an unnamed file a name where nothing is, with the times and executable bit of
        `like` as far as they can be recorded."""

    @abstractmethod
    async def copy_directory(
        self, directory: DirectoryNode, name: str, like: Stat, mark: Mark
    ) -> DirectoryNode:
        """Makes an empty directory where nothing is, with the times of `like`."""

    @abstractmethod
    async def copy_symlink(
        self, directory: DirectoryNode, name: str, target: str, like: Stat, mark: Mark
    ) -> None:
        """Makes a symbolic link where nothing is, with the times of `like`."""

    @abstractmethod
    async def adopt(self, origin: int, directory: DirectoryNode, name: str) -> None:
        """Gives the node that `linked` finds the name `name`, where nothing is, one of those that
        layers below show it under: `Mark.below` is one less."""

    @abstractmethod
    async def set_mark(self, directory: DirectoryNode, mark: Mark) -> None:
        """Gives a directory another mark."""

    @abstractmethod
    async def uncover(self, directory: DirectoryNode, name: str) -> None:
        """Removes a whiteout where there is one; silent, since it is for one that hides nothing.

        Where whiteouts are names, one beside an entry called `name` goes likewise.
        """
