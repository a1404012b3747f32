"""Read-only images as layers: looked at without a detour, which an overlay does for each name.

Invariants: those of `capstore.backers.image`.
"""

from __future__ import annotations

from capstore.backers.image import ImageDirectory, ImageVolume
from capstore.backers.layer import Found, PlainLayer
from capstore.backers.node import DirectoryNode, FileNode, OpenFlags
from capstore.schema.errors import NotFound


class ImageLayer(PlainLayer):
    """An image without marks."""

    def __init__(self, volume: ImageVolume) -> None:
        super().__init__(volume)
        self._images = volume

    async def find(self, directory: DirectoryNode, name: str) -> Found | None:
        assert isinstance(directory, ImageDirectory)  # noqa: S101 - it is of this layer
        tree, node = self._images.tree, directory.node
        if tree.waits(node):
            return await super().find(directory, name)
        try:
            entry = tree.lookup(node, name)
        except NotFound:
            return None
        return Found(entry) if entry.name == name else None

    async def open_found(
        self, directory: DirectoryNode, name: str, found: Found, flags: OpenFlags
    ) -> FileNode:
        if flags.writes or found.entry is None:
            return await super().open_found(directory, name, found, flags)
        return await self._images.open_file(found.entry.stat.node_id)
