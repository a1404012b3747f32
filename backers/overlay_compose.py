"""Volumes put together as an overlay, to be written or only to be looked at.

Invariants: where the upper layer is only read, nothing in it changes, and what a crash left in it
stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from capstore.backers.layer import Layer
from capstore.backers.layers import open_layer, open_upper
from capstore.backers.memory import MemoryVolume
from capstore.backers.named_view import NamedView
from capstore.backers.node import Volume
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_tree import Tree
from capstore.backers.overlay_union import Union
from capstore.backers.wf1 import Wf1Volume


async def compose(
    upper: Volume, lowers: Sequence[Layer], *, writable_files: bool = False
) -> OverlayVolume:
    """The overlay of `upper` and `lowers`; one that cannot be changed if `upper` cannot.

    Raises as `OverlayVolume.over`."""
    if upper.read_only:
        return await viewed(await layer_to_read(upper), lowers)
    return await OverlayVolume.over(await open_upper(upper), lowers, writable_files=writable_files)


async def layer_to_read(volume: Volume) -> Layer:
    """The upper layer that `volume` is, to be looked at."""
    if isinstance(volume, Wf1Volume | MemoryVolume):
        return open_layer(volume)
    return await NamedView.open(volume)


async def viewed(upper: Layer, lowers: Sequence[Layer]) -> OverlayVolume:
    """The overlay that cannot be changed of `upper`, be it writable or not, and `lowers`."""
    layers = [upper, *lowers]
    tree = Tree(Union(upper, lowers), None, writable_files=False)
    return OverlayVolume(tree, await tree.root(), layers)
