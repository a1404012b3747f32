"""``mounts:/=A,/tmp=B``: one tree out of several volumes, each at a prefix.

Invariants:

* What is mounted, and where, is settled when the volume is made; mount points and directories on
  the way to them are there always, also where no volume has them (`capstore.backers.mounts_place`).
* A mount's number, and so the ids of its nodes, depends on the prefixes alone; a handle on the
  prefix of its mount alone.
* Closing closes all volumes, whatever fails, and is not cut short by a cancellation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

from capstore.backers.mounts_node import Mounted, MountedDirectory, MountedFile, Part, all_of
from capstore.backers.mounts_place import PlaceDirectory, directory_at
from capstore.backers.mounts_table import TAG_BYTES, Place, parse_mounts, places
from capstore.backers.node import DirectoryNode, FileNode, Node, Usage, Volume
from capstore.backers.workers import finished
from capstore.schema.errors import (
    Closed,
    InvalidArgument,
    NotDirectory,
    NotFound,
    Unsupported,
)

__all__ = ["MountsVolume", "open_mounts", "parse_mounts"]

# How a handle begins: of what a volume has, and of a directory on the way that none has.
_OF_VOLUME: Final = b"v"
_ON_THE_WAY: Final = b"w"


class MountsVolume(Volume):
    """A tree out of volumes, which it owns; made by `over`."""

    def __init__(self, volumes: Mapping[str, Volume], place: Place) -> None:
        self._place = place
        self._closed = False
        self._mounts: dict[int, Mounted] = {}
        self._places: dict[bytes, Place] = {}
        for below in place.below():
            self._places[below.tag] = below
            if below.mount is not None:
                source = volumes[below.path]
                part = Part(self, below.mount, source)
                self._mounts[below.mount] = Mounted(part, source.root)

    @classmethod
    def over(cls, mounts: Mapping[str, Volume]) -> MountsVolume:
        """The tree that has each of `mounts` at its prefix: an absolute path, one of them ``/``.

        It owns the volumes as soon as this returns.  Raises `InvalidArgument` for what is no
        prefix, for more volumes than there can be, and for one that is mounted twice.
        """
        if len({id(volume) for volume in mounts.values()}) < len(mounts):
            raise InvalidArgument("mounts: a volume is mounted at one prefix only")
        return cls(mounts, places(mounts))

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<MountsVolume {state} {len(self._mounts)} mounts>"

    def check_open(self) -> None:
        """Raises `Closed` when the volume was closed."""
        if self._closed:
            raise Closed("the volume was closed")

    @property
    def _volumes(self) -> list[Volume]:
        return [part.source for part, _ in self._mounts.values()]

    @property
    def read_only(self) -> bool:
        """Whether no volume writes."""
        return all(volume.read_only for volume in self._volumes)

    @property
    def root(self) -> MountedDirectory:
        """The root directory, that of the volume at ``/``."""
        return directory_at(*self._mounts[0], self._place, self._mounts)

    async def usage(self) -> Usage:
        """As `Volume.usage`, of the volume at ``/``."""
        self.check_open()
        return await self._mounts[0].part.source.usage()

    async def sync(self) -> None:
        """Syncs every volume that writes, also when one fails; the first error is raised then."""
        self.check_open()
        await all_of(volume.sync for volume in self._volumes if not volume.read_only)

    async def close(self) -> None:
        """Closes all volumes, also when one fails; the first error is raised then.

        Closing again closes again what failed.
        """
        self._closed = True
        await _close(self._volumes)

    # Handles -------------------------------------------------------------------------------------

    async def handle_of(self, node: Node) -> bytes:
        """The prefix of the node's mount, as a hash, and the volume's handle; of a directory on
        the way that no volume has, its path."""
        self.check_open()
        if not isinstance(node, MountedDirectory | MountedFile) or node.part.volume is not self:
            raise InvalidArgument("a node of another volume")
        part = node.part
        if part.frozen:
            # The node's own handle would lead to the live tree, which is more than was held.
            raise Unsupported("a snapshot lives no longer than its holder")
        if part.on_the_way:
            assert isinstance(node, PlaceDirectory)  # noqa: S101 - only places are made up
            return _ON_THE_WAY + node.place.tag
        return _OF_VOLUME + self._place_of(part).tag + await part.source.handle_of(node.inner)

    def _place_of(self, part: Part) -> Place:
        """Where a mount is."""
        return next(place for place in self._places.values() if place.mount == part.number)

    async def node_of(self, handle: bytes) -> Node:
        """As `Volume.node_of`; what is mounted over a node since does not keep it from being
        found."""
        self.check_open()
        kind, tag, rest = handle[:1], handle[1 : 1 + TAG_BYTES], handle[1 + TAG_BYTES :]
        if kind not in (_OF_VOLUME, _ON_THE_WAY) or len(tag) != TAG_BYTES:
            raise InvalidArgument("no handle of this volume")
        place = self._places.get(tag)
        if place is None:
            raise NotFound("nothing is mounted there now")
        if kind == _ON_THE_WAY:
            return await self._on_the_way(place)
        if place.mount is None:
            raise NotFound("nothing is mounted there now")
        part, _ = self._mounts[place.mount]
        node = await part.source.node_of(rest)
        if isinstance(node, FileNode):
            return MountedFile(part, node)
        assert isinstance(node, DirectoryNode)  # noqa: S101 - a node is one of both
        return await self._directory(part, node, place)

    async def _on_the_way(self, place: Place) -> PlaceDirectory:
        """The directory at a place, if no volume has one there.  Raises `NotFound`."""
        directory: DirectoryNode = self.root
        for name in place.path.split("/")[1:]:
            directory = await directory.sub(name)
        if isinstance(directory, PlaceDirectory) and directory.part.on_the_way:
            return directory
        raise NotFound("a volume has the directory now")

    async def _directory(self, part: Part, node: DirectoryNode, mount: Place) -> MountedDirectory:
        """A directory of the volume mounted at `mount`, with its place if it has one: a place's
        directory is known by its id."""
        node_id = (await node.stat()).node_id
        waiting = [(mount, self._mounts[part.number].root)] if mount.children else []
        while waiting:
            place, directory = waiting.pop()
            if (await directory.stat()).node_id == node_id:
                return directory_at(part, node, place, self._mounts)
            for child in place.children.values():
                if child.mount is None:
                    with suppress(NotFound, NotDirectory):
                        waiting.append((child, await directory.sub(child.name)))
        return MountedDirectory(part, node)


async def _close(volumes: Iterable[Volume]) -> None:
    """Closes all, whatever fails and whoever is cancelled; raises the first error."""
    closers = [volume.close for volume in volumes]
    await finished(asyncio.ensure_future(all_of(closers)))


async def open_mounts(argument: str, opener: Callable[[str], Awaitable[Volume]]) -> MountsVolume:
    """The tree that ``mounts:`` with `argument` describes (see `parse_mounts`).

    `opener` opens each component.  What was opened is closed when another one fails or the caller
    is cancelled.  Raises `InvalidArgument`, and what `opener` raises.
    """
    specifications = parse_mounts(argument)
    opened: dict[str, Volume] = {}
    try:
        for prefix, specification in specifications.items():
            opened[prefix] = await opener(specification)
        return MountsVolume.over(opened)
    except BaseException:
        # What went wrong first is what is told.
        with suppress(Exception):
            await _close(opened.values())
        raise
