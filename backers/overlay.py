"""An overlay: one tree out of a writable layer over others that stay as they are.

Invariants:

* The overlay has its layers' volumes for itself, and closes them.
* Nothing is kept here beside what somebody has open: the layers are all there is, so an overlay is
  the same after a restart as its layers are.

Source: the semantics are those of Linux's overlayfs (Documentation/filesystems/overlayfs.rst) with
redirected directories and an index of hard links.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from capstore.backers.layer import Layer, Upper
from capstore.backers.layers import layer_at
from capstore.backers.node import DirectoryNode, Node, NodeKind, OpenFlags, Usage, Volume
from capstore.backers.node_ids import VOLUME_NUMBER_MAX
from capstore.backers.overlay_changes import Changes
from capstore.backers.overlay_core import DirectoryCore
from capstore.backers.overlay_node import OverlayDirectory, OverlayFile
from capstore.backers.overlay_tree import Tree
from capstore.backers.overlay_union import Stack, Union
from capstore.schema.errors import InvalidArgument, NotFound, ReadOnly, StorageError, Unsupported

_ID_BYTES: Final = 8


class OverlayVolume(Volume):
    """Layers as one volume; made by `over`."""

    def __init__(self, tree: Tree, root: DirectoryCore, layers: Sequence[Layer]) -> None:
        self.tree = tree
        self.changes = Changes(tree)
        self._root = root
        self._layers = layers

    @classmethod
    async def over(
        cls, upper: Upper | None, lowers: Sequence[Layer], *, writable_files: bool = False
    ) -> OverlayVolume:
        """The overlay of `upper` and `lowers`, from the top to the bottom; it owns their volumes.

        Without an upper layer nothing can be changed.  With `writable_files` files of lower layers
        that can be written are written there.  Raises `InvalidArgument` for layers that are the
        same volume or too many, `ReadOnly` for an upper layer that cannot be written.
        """
        layers = [*([] if upper is None else [upper]), *lowers]
        if not lowers or len(lowers) > VOLUME_NUMBER_MAX:
            raise InvalidArgument(f"an overlay has 1 to {VOLUME_NUMBER_MAX} lower layers")
        if len({id(layer.volume) for layer in layers}) < len(layers):
            raise InvalidArgument("a volume is one layer of an overlay only")
        if upper is not None and upper.volume.read_only:
            raise ReadOnly("the upper layer takes the changes, and cannot be written")
        union = Union(upper, lowers, fixed=not writable_files)
        tree = Tree(union, upper, writable_files=writable_files)
        return cls(tree, await tree.root(), layers)

    def __repr__(self) -> str:
        layers = "+".join(type(layer.volume).__name__ for layer in self._layers)
        return f"<OverlayVolume {'closed ' if self.tree.closed else ''}{layers}>"

    @property
    def read_only(self) -> bool:
        """Whether there is no upper layer."""
        return not self.tree.has_upper

    @property
    def root(self) -> OverlayDirectory:
        """The root directory."""
        self.tree.check_open()
        return OverlayDirectory(self, self._root)

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers from the top to the bottom."""
        return self._layers

    async def usage(self) -> Usage:
        """Space and nodes of the upper layer, or of the topmost one."""
        self.tree.check_open()
        return await self._layers[0].volume.usage()

    async def sync(self) -> None:
        """Syncs the layers that are written."""
        self.tree.check_open()
        for layer in self._layers if self.tree.writable_files else self._layers[:1]:
            if not layer.volume.read_only:
                await layer.volume.sync()

    async def close(self) -> None:
        """Closes all layers, also when one of them fails; the first failure is raised."""
        async with self.tree.changing:
            self.tree.closed = True
        failures: list[StorageError] = []
        for layer in self._layers:
            try:
                await layer.volume.close()
            except StorageError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    # Naming nodes --------------------------------------------------------------------------------

    async def handle_of(self, node: Node) -> bytes:
        """The node's id and its path: what was moved is not found any more.

        Raises `NotFound` for a node without a name, `Unsupported` in a snapshot.
        """
        self.tree.check_open()
        if not isinstance(node, OverlayDirectory | OverlayFile) or node.volume is not self:
            raise InvalidArgument("a node of another volume")
        place = node.core if isinstance(node, OverlayDirectory) else node.core.place
        path = "/".join(place.path()).encode()
        return node.core.node_id.to_bytes(_ID_BYTES, "big") + path

    async def node_of(self, handle: bytes) -> Node:
        self.tree.check_open()
        if len(handle) < _ID_BYTES:
            raise InvalidArgument("no handle of this volume")
        node_id = int.from_bytes(handle[:_ID_BYTES], "big")
        try:
            path = handle[_ID_BYTES:].decode().split("/")
        except UnicodeDecodeError:
            raise InvalidArgument("no handle of this volume") from None
        node = await self._node_at([name for name in path if name])
        if node.core.node_id != node_id:
            raise NotFound("the node is gone")
        return node

    async def _node_at(self, path: Sequence[str]) -> OverlayDirectory | OverlayFile:
        core = self._root
        for at, name in enumerate(path, 1):
            seen = await self.tree.seen(core, name)
            if at == len(path) and seen.kind is not NodeKind.DIRECTORY:
                flags = OpenFlags.READ if self.read_only else OpenFlags.WRITE
                file = await self.tree.open(core, name, flags)
                if file is None:
                    raise NotFound("the node is gone")
                return OverlayFile(self, file, writable=not self.read_only)
            core = await self.tree.directory(core, name)
        return OverlayDirectory(self, core)

    # Snapshots -----------------------------------------------------------------------------------

    async def snapshot(self, core: DirectoryCore) -> DirectoryNode:
        """A directory and all below as it is now; see `OverlayDirectory.snapshot`."""
        self.tree.check_open()
        if self.read_only:
            return OverlayDirectory(self, core)
        if self.tree.writable_files:
            raise Unsupported("lower layers may change, so there is no snapshot of them")
        async with self.tree.changing:
            upper = core.upper or self._root.upper
            assert upper is not None  # noqa: S101 - the upper layer has a root
            view = layer_at(self._layers[0], await upper.snapshot())
            pieces: Stack = core.pieces
            if core.upper is not None:
                pieces = (core.pieces[0]._replace(layer=view, node=view.root), *core.lowers)
            below, last = core.below, core.last
        layers = (view, *self._layers[1:])
        frozen = DirectoryCore(core.node_id, None, "", pieces, below)
        frozen.last = last
        tree = Tree(Union(view, layers[1:]), None, writable_files=False)
        return _Snapshot(tree, frozen, layers).root


class _Snapshot(OverlayVolume):
    """An overlay as it was; it owns nothing."""

    async def close(self) -> None:
        """Nothing to close."""
        self.tree.closed = True

    async def handle_of(self, node: Node) -> bytes:
        raise Unsupported("a snapshot lives no longer than its holder")
