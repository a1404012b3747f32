"""Which kind of layer a volume makes: what its nodes can hold decides.

Invariants: marks that a volume holds itself are always heeded; names are read as marks only where
somebody says so.
"""

from __future__ import annotations

from capstore.backers.image import ImageVolume
from capstore.backers.image_layer import ImageLayer
from capstore.backers.layer import Layer, PlainLayer, Upper
from capstore.backers.memory import MemoryDirectory, MemoryVolume
from capstore.backers.memory_layer import MemoryLayer, MemoryUpper
from capstore.backers.named import NamedLayer, NamedUpper
from capstore.backers.node import DirectoryNode, Volume
from capstore.backers.wf1 import Wf1Volume
from capstore.backers.wf1_layer import Wf1Layer, Wf1Upper
from capstore.backers.wf1_node import Wf1Directory
from capstore.schema.errors import Unsupported


def open_layer(volume: Volume, *, named: bool = False) -> Layer:
    """The layer that `volume` is below others; with `named` its names may be marks."""
    if named:
        return NamedLayer(volume)
    if isinstance(volume, Wf1Volume):
        return Wf1Layer(volume)
    if isinstance(volume, MemoryVolume):
        return MemoryLayer(volume)
    if isinstance(volume, ImageVolume):
        return ImageLayer(volume)
    return PlainLayer(volume)


async def open_upper(volume: Volume) -> Upper:
    """The layer that `volume` is above others."""
    if isinstance(volume, Wf1Volume):
        return Wf1Upper(volume)
    if isinstance(volume, MemoryVolume):
        return MemoryUpper(volume)
    return await NamedUpper.open(volume)


def layer_at(layer: Layer, root: DirectoryNode) -> Layer:
    """The layer as `root`, a directory of a snapshot of it, has it.  Raises `Unsupported`."""
    volume = layer.volume
    if isinstance(volume, Wf1Volume) and isinstance(root, Wf1Directory):
        return Wf1Layer(volume, root)
    if isinstance(volume, MemoryVolume) and isinstance(root, MemoryDirectory):
        return MemoryLayer(volume, root)
    raise Unsupported("the upper layer has no snapshots")
