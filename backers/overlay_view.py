"""Volumes opened to be looked at, whatever writes to them otherwise: of an overlay the upper layer,
too, is only read.

Invariants: nothing that a specification names is made or changed, and what a crash left in it stays
as it is.  A `wf1:` volume can be looked at by many at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from capstore.backers.layer import Layer
from capstore.backers.mounts import open_mounts
from capstore.backers.node import Volume
from capstore.backers.overlay import OverlayVolume
from capstore.backers.overlay_compose import layer_to_read, viewed
from capstore.backers.overlay_spec import OverlaySpec, open_layers
from capstore.backers.spec import open_volume
from capstore.backers.spec_text import Spec
from capstore.backers.wf1 import Wf1Volume
from capstore.backers.workers import in_worker
from capstore.schema.errors import NotFound


async def open_to_read(text: str) -> Volume:
    """Opens the tree that the specification `text` describes, without `create` where it says so.

    Raises as `open_volume`.
    """
    spec = Spec.parse(text)
    argument = text.partition(":")[2]
    if spec.scheme == "overlay":
        return await view_of(argument)
    if spec.scheme == "mounts":
        return await open_mounts(argument, open_to_read)
    if spec.scheme == "wf1" and spec.argument:
        spec.check_options({"create", "size", "ro"})
        return await Wf1Volume.open(spec.argument, read_only=True)
    if spec.scheme == "memory" and spec.argument:
        await _check_there(spec)
    if spec.scheme in ("dir", "pyfs") and "ro" not in spec.options:
        text += ",ro"
    return await open_volume(text)


async def _check_there(spec: Spec) -> None:
    if not await in_worker(lambda: Path(spec.argument).exists()):
        raise NotFound("there is no such file")


async def view_of(argument: str) -> OverlayVolume:
    """The overlay that `overlay:` and `argument` describe, read-only.

    Raises as opening it, but `ReadOnly`.
    """

    async def over(upper: Volume, lowers: Sequence[Layer], _: OverlaySpec) -> OverlayVolume:
        return await viewed(await layer_to_read(upper), lowers)

    return await open_layers(argument, open_to_read, over)
