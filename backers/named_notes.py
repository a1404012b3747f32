"""The hidden directory of an upper layer that keeps its marks as names: what has no place in OCI
layers.

    .wh..wh.capstore/
        making/ files and directories in the making, under random names; nobody misses what is left
        ids/    NODE-ORIGIN, an empty file for each copy: its node id and its origin, in hex
                self-NODE, the id of this directory
        links/  ORIGIN-BELOW, a hard link to each node that lower layers show under BELOW names, too
                ORIGIN-BELOW-LINKS while one of those names is adopted: when the node has more than
                LINKS hard links that has happened, and BELOW is one less

Invariants:

* What the notes say of a node is true before the node has its name, and for as long as it has one.
  A note that is left of a node that is gone does no harm: an id is noted anew, or its note dropped,
  before its next node has been given to anybody.
* Node ids mean something as long as ``self-NODE`` is true; in a copy of the tree it is not.  Where
  a volume cannot find its nodes again, ids are noted in memory only.
* What is not as it is written here, somebody else has put there; it is left alone.
* One change at a time; `about` looks beside that, and what it tells is true at every moment.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from capstore.backers.layer import NO_MARK, Mark
from capstore.backers.named_layer import MARK, peek
from capstore.backers.node import (
    Attributes,
    DirectoryNode,
    Entry,
    Expect,
    FileNode,
    NodeKind,
    OpenFlags,
    Provenance,
    Stat,
    Volume,
)
from capstore.schema.errors import (
    AlreadyExists,
    Corrupt,
    Denied,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    StorageError,
    Unsupported,
)

HIDDEN: Final = MARK + ".wh.capstore"
_TOKEN_BYTES: Final = 12
ID = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,16})")
LINK = re.compile(r"([0-9a-f]{1,16})-([1-9][0-9]{0,9})(?:-([0-9]{1,10}))?")
SELF: Final = "self-"


class Linked:
    """A node that lower layers show under `below` names, too, and its hard link called `name`."""

    __slots__ = ("below", "is_named", "links", "name", "node_id")

    def __init__(self, name: str, node_id: int, below: int) -> None:
        self.name = name
        self.node_id = node_id
        self.below = below
        # Whether the copy has got its first name.
        self.is_named = True
        # While a name is adopted: how many hard links there are without it.
        self.links: int | None = None

    def names_below(self, links: int) -> int:
        """`below`, when the node has so many hard links."""
        adopted = self.links is not None and links > self.links
        return self.below - adopted


class Notes:
    """What is noted of nodes of one layer, and where nodes are made."""

    def __init__(
        self, making: DirectoryNode, links: DirectoryNode, ids: DirectoryNode | None
    ) -> None:
        self.making = making
        self._links = links
        self._ids = ids
        self._origins: dict[int, int] = {}
        self._linked: dict[int, Linked] = {}
        self._of_node: dict[int, int] = {}
        # Names in `making` of files whose last holder let go of them without closing.
        self.dropped: deque[str] = deque()

    @classmethod
    async def open(cls, volume: Volume) -> Notes:
        """The notes of a volume, made if there are none; unfinished work is undone.

        Raises `Corrupt` when something else has a name of theirs.
        """
        root = volume.root
        async with silently(root):
            top = await _directory(root, HIDDEN)
        making, links = await _directory(top, "making"), await _directory(top, "links")
        ids: DirectoryNode | None = None
        with suppress(Unsupported):
            await volume.handle_of(root)
            ids = await _directory(top, "ids")
        notes = cls(making, links, ids)
        await notes._load_ids()
        await notes._load_links()
        await notes._undo_making()
        return notes

    # Looking -------------------------------------------------------------------------------------

    def about(self, stat: Stat) -> tuple[Stat, Mark]:
        """The stat of a node with its links counted as users see them, and its mark."""
        if not stat.link_count:
            # Never named, or removed: what is noted is somebody else's.
            return stat, NO_MARK
        origin = self._of_node.get(stat.node_id)
        if origin is not None:
            linked = self._linked[origin]
            below = linked.names_below(stat.link_count)
            # One of the hard links is the note's own.
            stat = stat._replace(link_count=stat.link_count - 1 + below)
            return stat, Mark(origin=origin, below=below)
        origin = self._origins.get(stat.node_id)
        return stat, NO_MARK if origin is None else Mark(origin=origin)

    async def linked(self, origin: int) -> Stat | None:
        """The stat of the node with this origin that lower names stand for, too."""
        linked = self._linked.get(origin)
        if linked is None or not linked.is_named:
            return None
        try:
            entry = await self._links.lookup(linked.name)
        except NotFound:
            # Its last name below was adopted just now.
            return None
        return self.about(entry.stat)[0]

    async def open_linked(self, origin: int, flags: OpenFlags) -> FileNode:
        """Opens that node.  Raises `NotFound`."""
        linked = self._linked.get(origin)
        if linked is None or not linked.is_named:
            raise NotFound("nothing with this origin")
        return await self._links.open(linked.name, flags)

    @property
    def knows_ids(self) -> bool:
        """Whether any origin is noted."""
        return bool(self._origins)

    def origins(self) -> Sequence[int]:
        """All origins that `linked` finds."""
        return [origin for origin, linked in self._linked.items() if linked.is_named]

    # Ids -----------------------------------------------------------------------------------------

    async def note(self, node_id: int, origin: int) -> None:
        """Notes the origin of a node, 0 for none."""
        old = self._origins.get(node_id)
        if old == (origin or None):
            return
        if origin:
            if self._ids is not None:
                await make(self._ids, _id_name(node_id, origin))
            self._origins[node_id] = origin
        else:
            del self._origins[node_id]
        if old is not None and self._ids is not None:
            await discard(self._ids, _id_name(node_id, old))

    async def forget(self, node_id: int) -> None:
        """Drops the note of a node that is gone, or of one that had the id before."""
        with suppress(StorageError):
            await self.note(node_id, 0)

    async def _load_ids(self) -> None:
        if self._ids is None:
            return
        own = SELF + f"{(await self._ids.stat()).node_id:x}"
        if await peek(self._ids, own) is None:
            # Made just now, or a copy of a tree whose nodes had other ids.
            async for entry in entries(self._ids):
                if entry.name.startswith(SELF) or ID.fullmatch(entry.name):
                    await discard(self._ids, entry.name)
            await make(self._ids, own)
        async for entry in entries(self._ids):
            found = ID.fullmatch(entry.name)
            if found is not None and int(found[2], 16):
                self._origins.setdefault(int(found[1], 16), int(found[2], 16))

    # Links ---------------------------------------------------------------------------------------

    async def link(self, name: str, node_id: int, mark: Mark) -> None:
        """Keeps what is called `name` in `making` for names in lower layers.

        Where there are no hard links nothing is kept, and each lower name remains a file of its
        own.
        """
        if mark.origin in self._linked:
            raise AlreadyExists("a copy of this node is there")
        kept = _link_name(mark.origin, mark.below)
        try:
            # What is called so is none of ours, or is of a copy that was never finished.
            await self.discard(self._links, kept)
            await self.making.link(name, self._links, kept)
        except (Unsupported, Denied):
            # Linux has EPERM for a filesystem without hard links.
            return
        linked = Linked(kept, node_id, mark.below)
        linked.is_named = False
        self._entered(mark.origin, linked)

    def _entered(self, origin: int, linked: Linked) -> None:
        self._linked[origin] = linked
        self._of_node[linked.node_id] = origin

    def _left(self, origin: int) -> None:
        linked = self._linked.pop(origin)
        del self._of_node[linked.node_id]

    def named(self, origin: int) -> None:
        """The node that was linked has got its name."""
        if origin in self._linked:
            self._linked[origin].is_named = True

    async def unlink(self, origin: int) -> None:
        """Drops a link, if there is one."""
        linked = self._linked.get(origin)
        if linked is not None:
            await discard(self._links, linked.name)
            self._left(origin)

    async def adopt(self, origin: int, directory: DirectoryNode, name: str) -> None:
        """Gives a linked node one more name, for one of those below.  Raises `NotFound`."""
        linked = self._linked.get(origin)
        if linked is None or not linked.is_named:
            raise NotFound("nothing with this origin")
        links = (await self._links.lookup(linked.name)).stat.link_count
        await self._renamed(linked, _link_name(origin, linked.below, links))
        linked.links = links
        try:
            await self._links.link(linked.name, directory, name)
        except StorageError:
            linked.links = None
            with suppress(StorageError):
                await self._renamed(linked, _link_name(origin, linked.below))
            raise
        with suppress(StorageError):
            await self._settle(origin, linked)

    async def _settle(self, origin: int, linked: Linked) -> None:
        """Writes down that one name less is below."""
        if linked.below > 1:
            linked.below, linked.links = linked.below - 1, None
            await self._renamed(linked, _link_name(origin, linked.below))
        else:
            await self._links.remove(linked.name)
            self._left(origin)

    async def _renamed(self, linked: Linked, name: str) -> None:
        await self._links.rename(linked.name, self._links, name)
        linked.name = name

    async def _load_links(self) -> None:
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
            self._entered(origin, linked)
            if found[3] is None:
                continue
            if entry.stat.link_count > int(found[3]):
                await self._settle(origin, linked)
            else:
                await self._renamed(linked, _link_name(origin, linked.below))

    # Work ----------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Removes files that were dropped."""
        while self.dropped:
            with suppress(StorageError):
                await discard(self.making, self.dropped.popleft())

    async def discard(self, directory: DirectoryNode, name: str) -> None:
        """Removes whatever is called `name`; a directory with entries moves here first."""
        try:
            await discard(directory, name)
        except NotEmpty:
            if directory is not self.making:
                token = new_token()
                await directory.rename(name, self.making, token)
                name = token
            await self._clear(name)

    async def _clear(self, name: str) -> None:
        """Removes a directory in `making` and all below it, however deep that is."""
        waiting = [name]
        while waiting:
            directory = await self.making.sub(waiting[-1])
            deeper = False
            async for entry in entries(directory):
                try:
                    await discard(directory, entry.name)
                except NotEmpty:
                    token = new_token()
                    await directory.rename(entry.name, self.making, token)
                    waiting.append(token)
                    deeper = True
            if not deeper:
                await discard(self.making, waiting.pop())

    async def _undo_making(self) -> None:
        """Empties `making`, with what was noted of nodes that did not get their names."""
        async for entry in entries(self.making):
            stat = entry.stat
            origin = self._of_node.get(stat.node_id)
            hidden = 1 if origin is None else 2
            if stat.kind is NodeKind.DIRECTORY or stat.link_count <= hidden:
                if origin is not None:
                    await self.unlink(origin)
                await self.note(stat.node_id, 0)
            # What somebody has made irremovable is as invisible as all else here.
            with suppress(StorageError):
                await self.discard(self.making, entry.name)


def _id_name(node_id: int, origin: int) -> str:
    return f"{node_id:x}-{origin:x}"


def _link_name(origin: int, below: int, links: int | None = None) -> str:
    return f"{origin:x}-{below}" if links is None else f"{origin:x}-{below}-{links}"


# On any volume ----------------------------------------------------------------------------------


def new_token() -> str:
    """A name that nothing has."""
    return secrets.token_hex(_TOKEN_BYTES)


async def make(directory: DirectoryNode, name: str) -> bool:
    """Makes an empty file; False if something is called so."""
    try:
        file = await directory.create(name)
    except AlreadyExists:
        return False
    await file.close()
    return True


async def discard(directory: DirectoryNode, name: str) -> None:
    """Removes what is called `name`, if something is.  Raises `NotEmpty`."""
    with suppress(NotFound):
        await directory.remove(name, Expect.ANY)


async def entries(directory: DirectoryNode) -> AsyncIterator[Entry]:
    """All entries, also while they are removed."""
    after, more = "", True
    while more:
        page = await directory.list(after)
        for entry in page.entries:
            after = entry.name
            yield entry
        more = page.more


@asynccontextmanager
async def silently(directory: DirectoryNode) -> AsyncIterator[None]:
    """Has the directory keep its time of change, as far as the volume can."""
    before = await directory.stat()
    try:
        yield
    finally:
        if before.provenance is not Provenance.UNKNOWN:
            with suppress(StorageError):
                await directory.set_attributes(Attributes(modified=before.modified))


async def _directory(parent: DirectoryNode, name: str) -> DirectoryNode:
    """A directory of the notes, made if it is not there."""
    try:
        return await parent.sub(name)
    except NotFound:
        return await parent.mkdir(name)
    except (NotDirectory, IsDirectory):
        raise Corrupt(f"{name} of the layer's notes is no directory") from None
