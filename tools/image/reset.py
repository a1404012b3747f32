"""``capstore image reset``: the upper layer of an overlay without anything in it.

Invariants: the layer is full or empty at any moment, and only the layer that was named, or the
upper one of an overlay, is opened at all.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from capstore.backers.hostreset import content_below, reset_directory
from capstore.backers.layer import Layer
from capstore.backers.memory import MemoryVolume
from capstore.backers.named_notes import HIDDEN
from capstore.backers.node import NodeKind
from capstore.backers.overlap import check_disjoint
from capstore.backers.overlay_compose import layer_to_read
from capstore.backers.overlay_spec import parse_overlay
from capstore.backers.overlay_view import open_to_read
from capstore.backers.overlay_walk import Walk
from capstore.backers.spec import open_volume
from capstore.backers.spec_text import Spec
from capstore.backers.wf1 import Wf1Volume
from capstore.backers.workers import in_worker
from capstore.images.tree import Finding
from capstore.schema.errors import InvalidArgument, StorageError, Unsupported
from capstore.schema.sizes import format_size
from capstore.tools.console import local_error, out
from capstore.tools.image.layerspecs import overlay_in, there_to_write

_SCHEMES: Final = ("wf1", "dir", "memory")


class Content(NamedTuple):
    """What a layer holds: nodes, whiteouts among them, under each of their names, and bytes of
    files."""

    nodes: int
    size: int

    def __str__(self) -> str:
        return f"{self.nodes} node{'' if self.nodes == 1 else 's'}, {format_size(self.size)}"


async def content_of(text: str) -> Content:
    """What `reset` would drop; raises as that."""
    return await _worked(text, drop=False)


async def reset(text: str, *, quiet: bool) -> None:
    """Empties the upper layer of the overlay `text`, or the layer that it names.

    Raises `NotFound`, `Busy` while somebody serves it, `ReadOnly`, `Unsupported` for a layer that
    cannot be emptied in one step, and what opening and emptying it raises.
    """
    dropped = await _worked(text, drop=True)
    if not quiet:
        out(f"dropped {dropped}")


async def _worked(text: str, *, drop: bool) -> Content:
    upper = await in_worker(lambda: _upper_in(text))
    spec = Spec.parse(upper)
    try:
        if spec.scheme == "dir":
            spec.check_options(())
            return await in_worker(lambda: _of_directory(spec.argument, drop=drop))
        return await _of_volume(upper, drop=drop)
    except StorageError as error:
        raise local_error(error, spec.argument) from error


def _upper_in(text: str) -> str:
    """The specification of the layer that is to be emptied.

    Raises `Unsupported`, `InvalidArgument`, also for layers that are within one another, and as
    `there_to_write`."""
    argument = overlay_in(text)
    if argument is not None:
        described = parse_overlay(argument)
        check_disjoint([Spec.parse(one) for one in (described.upper, *described.lowers)])
        text = described.upper
    spec = Spec.parse(text)
    if spec.scheme not in _SCHEMES:
        known = ", ".join(f"{scheme}:" for scheme in _SCHEMES)
        raise Unsupported(f"{spec.scheme}: is not emptied in one step (there are: {known})")
    if not spec.argument:
        raise InvalidArgument(f"{spec.scheme}: what is to be emptied needs a path")
    return there_to_write(text)


def _of_directory(path: str, *, drop: bool) -> Content:
    below = content_below(path, hidden=HIDDEN)
    if drop:
        reset_directory(path)
    return Content(below.nodes, below.size)


async def _of_volume(upper: str, *, drop: bool) -> Content:
    # Counting opens directories, and a volume of which anything is open is not emptied: it is
    # opened again for that.
    volume = await open_to_read(upper)
    try:
        content = await _counted(await layer_to_read(volume))
    finally:
        await volume.close()
    if drop:
        await _emptied(upper)
    return content


async def _emptied(upper: str) -> None:
    volume = await open_volume(upper)
    try:
        if isinstance(volume, Wf1Volume | MemoryVolume):
            await volume.reset()
    finally:
        await volume.close()


async def _counted(layer: Layer) -> Content:
    """What is in a layer, but for what cannot be read."""
    nodes = size = 0
    walk: Walk[None] = Walk(layer)
    walk.begin(layer.root, None)
    while (step := await walk.next()) is not None:
        if isinstance(step, Finding):
            continue
        nodes += 1
        entry = step.found.entry
        if entry is not None and entry.stat.kind is NodeKind.FILE:
            size += entry.stat.size
        elif entry is not None and entry.stat.kind is NodeKind.DIRECTORY:
            await walk.try_to_enter(step, None)
    return Content(nodes, size)
